//! Where PostgreSQL's own programs find the server: by its own socket, `--username` and `--dbname` in the database's container; by the
//! variables of libpq (`PGHOST`, …) where there is a `url`. Where they run is told in `tools.rs`.
//!
//! Neither a password nor a URL is ever an argument: who may list processes would read it. A URL is taken apart into libpq's variables, and a
//! parameter that has no variable is refused rather than dropped.

use std::fmt::Write;

use super::DataError;
use crate::{
    config::BackupSource,
    data::{Reach, tools::Tools, url::DatabaseUrl},
    model::EnvironmentKey,
    runtime::{ContainerExec, ExecOutcome, Job, ScratchContainer},
    secret::Secret,
};

/// Parameters of a URL, and libpq's variables for them (PostgreSQL's manual, 34.15).
const PARAMETERS: [(&str, &str); 14] = [
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslcrl", "PGSSLCRL"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("gssencmode", "PGGSSENCMODE"),
    ("options", "PGOPTIONS"),
    ("application_name", "PGAPPNAME"),
    ("client_encoding", "PGCLIENTENCODING"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("host", "PGHOST"),
];

/// A way to a server.
#[derive(Debug)]
pub(in crate::data) struct Client<'a> {
    tools: Tools<'a>,
    /// `--username=…` and so on; empty where the variables say it all.
    target: Vec<String>,
    env: Vec<(&'static str, Secret)>,
}

impl<'a> Client<'a> {
    /// # Errors
    /// [`DataError::Dump`] that says what is out of reach, or what about the URL is not understood.
    pub async fn open(
        source: &BackupSource,
        key: &EnvironmentKey,
        reach: Reach<'a>,
        application: &str,
    ) -> Result<Self, DataError> {
        match source {
            BackupSource::Postgres { container, database, user, password, .. } => Ok(Self {
                tools: Tools::in_container(container, reach)?,
                target: target(database, user, application),
                env: password.iter().map(|password| ("PGPASSWORD", password.clone())).collect(),
            }),
            BackupSource::PostgresUrl { url, tools, .. } => {
                let env = Url::parse(url).map_err(DataError::dump)?.variables(application);
                let tools = Tools::for_url(tools, "postgres", key, reach).await?;
                Ok(Self { tools, target: Vec::new(), env })
            }
            _ => Err(DataError::dump("not a PostgreSQL database")),
        }
    }

    /// Of a server that a throw-away container runs: `target` says how it is found there.
    pub fn of_scratch(exec: &'a dyn ContainerExec, scratch: Box<dyn ScratchContainer>, target: Vec<String>) -> Self {
        Self { tools: Tools::of_scratch(exec, scratch), target, env: Vec::new() }
    }

    pub fn exec(&self) -> &dyn ContainerExec {
        self.tools.exec()
    }

    pub fn container(&self) -> &str {
        self.tools.container()
    }

    pub fn env(&self) -> Vec<(&str, &Secret)> {
        self.env.iter().map(|(name, value)| (*name, value)).collect()
    }

    /// A program with its arguments, and whom it is to connect to.
    pub fn command(&self, program: &[&str]) -> Vec<String> {
        program.iter().map(|word| (*word).to_owned()).chain(self.target.iter().cloned()).collect()
    }

    /// Another database of the same server, reached the same way.
    pub fn aim_at(&mut self, database: &str) {
        if let Some(connection) = self.target.last_mut() {
            *connection = connection_to(database, "");
        }
        for (_, value) in self.env.iter_mut().filter(|(name, _)| *name == "PGDATABASE") {
            *value = Secret::new(database);
        }
    }

    /// Another target of the same server.
    pub fn set_target(&mut self, target: Vec<String>) {
        self.target = target;
    }

    pub fn scratch(&self) -> Option<&dyn ScratchContainer> {
        self.tools.scratch()
    }

    /// Runs SQL that Refit made up. Its answers, a line each.
    pub async fn ask(&self, sql: &str, job: &Job) -> Result<Vec<String>, DataError> {
        let mut said = Vec::new();
        let (command, env) = (self.command(&PSQL), self.env());
        let mut sql = sql.as_bytes();
        let outcome = self.exec().exec_through(self.container(), &command, &env, &mut sql, &mut said, job).await?;
        succeeded("psql", &outcome)?;
        Ok(String::from_utf8_lossy(&said).lines().map(str::to_owned).collect())
    }

    /// Removes what was made for it.
    pub async fn close(self, job: &Job) {
        self.tools.close(job).await;
    }
}

/// `psql` that reads commands, says only what they answer, and ends with the first that fails.
pub(in crate::data) const PSQL: [&str; 7] =
    ["psql", "--no-psqlrc", "--no-password", "--no-align", "--tuples-only", "--quiet", "--set=ON_ERROR_STOP=1"];

fn target(database: &str, user: &str, application: &str) -> Vec<String> {
    vec![format!("--username={user}"), connection_to(database, application)]
}

fn connection_to(database: &str, application: &str) -> String {
    let mut connection = format!("--dbname=dbname={} connect_timeout=10", super::conninfo_quote(database));
    if !application.is_empty() {
        let _ = write!(connection, " application_name={}", super::conninfo_quote(application));
    }
    connection
}

pub(in crate::data) fn succeeded(program: &str, outcome: &ExecOutcome) -> Result<(), DataError> {
    if outcome.code == 0 {
        return Ok(());
    }
    let said = outcome.output.iter().rev().take(3).rev().cloned().collect::<Vec<_>>().join("\n");
    let said = if said.is_empty() { "it said nothing".to_owned() } else { said };
    let hint = if said.contains("lock timeout") {
        "; another connection holds a lock and could not be ended: close it (`pg_stat_activity` lists them)"
    } else {
        ""
    };
    Err(DataError::dump(format!("`{program}` ended with exit code {}: {said}{hint}", outcome.code)))
}

/// `postgresql://user:password@host:port/database?parameter=value`, taken apart.
#[derive(Debug)]
pub(in crate::data) struct Url {
    url: DatabaseUrl,
    parameters: Vec<(&'static str, String)>,
}

impl Url {
    /// The error is for people, and says nothing of what the URL holds.
    pub fn parse(secret: &Secret) -> Result<Self, String> {
        const FORM: &str = "postgresql://user:password@host:port/database";
        let url = DatabaseUrl::parse(secret, &["postgres", "postgresql"], "PostgreSQL", FORM)?;
        let mut parameters = Vec::new();
        let url = url.finish(|url, name, value| {
            match PARAMETERS.iter().find(|(known, _)| *known == name) {
                _ if name == "password" => url.password = Some(Secret::new(value)),
                Some(("host", _)) => url.host = value,
                Some((_, variable)) => parameters.push((*variable, value)),
                None => return false,
            }
            true
        })?;
        Ok(Self { url, parameters })
    }

    pub fn database(&self) -> &str {
        &self.url.database
    }

    /// For people: `db.example:5432`.
    pub fn server(&self) -> String {
        self.url.server()
    }

    fn variables(self, application: &str) -> Vec<(&'static str, Secret)> {
        let mut variables = vec![
            ("PGHOST", Secret::new(self.url.host)),
            ("PGDATABASE", Secret::new(self.url.database)),
            ("PGUSER", Secret::new(self.url.user)),
            ("PGCONNECT_TIMEOUT", Secret::new("10")),
        ];
        variables.extend(self.url.port.map(|port| ("PGPORT", Secret::new(port.to_string()))));
        variables.extend(self.url.password.map(|password| ("PGPASSWORD", password)));
        if !application.is_empty() {
            variables.push(("PGAPPNAME", Secret::new(application)));
        }
        for (name, value) in self.parameters {
            variables.retain(|(known, _)| *known != name);
            variables.push((name, Secret::new(value)));
        }
        variables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_stay_one_argument() {
        let expected = ["--username=-x; y", r"--dbname=dbname='it\'s=\\a --odd' connect_timeout=10"];
        assert_eq!(target(r"it's=\a --odd", "-x; y", ""), expected);
    }

    fn variables(url: &str) -> Result<Vec<(&'static str, String)>, String> {
        let variables = Url::parse(&Secret::new(url))?.variables("");
        Ok(variables.into_iter().map(|(name, value)| (name, value.expose().to_owned())).collect())
    }

    #[test]
    fn a_url_becomes_variables_and_nothing_of_it_is_lost() {
        let url =
            "postgres://o%27brien:p%40ss%25@[::1]:5433/odd%20name?sslmode=require&connect_timeout=3&options=-c%20x%3D1";
        let expected = [
            ("PGHOST", "::1"),
            ("PGDATABASE", "odd name"),
            ("PGUSER", "o'brien"),
            ("PGPORT", "5433"),
            ("PGPASSWORD", "p@ss%"),
            ("PGSSLMODE", "require"),
            ("PGCONNECT_TIMEOUT", "3"),
            ("PGOPTIONS", "-c x=1"),
        ];
        assert_eq!(variables(url).unwrap(), expected.map(|(name, value)| (name, value.to_owned())));
        let socket = variables("postgresql://u@localhost/d?host=/run/postgresql").unwrap();
        assert_eq!(socket[0], ("PGHOST", "/run/postgresql".to_owned()));
        for bad in [
            "hunter22",
            "mysql://u:hunter22@h/d",
            "postgres://u:hunter22@h/",
            "postgres://h/d",
            "postgres://u:hunter22@h/d?passfile=x",
        ] {
            let error = variables(bad).unwrap_err();
            assert!(error.starts_with("the database's `url` ") && !error.contains("hunter22"), "{error}");
        }
    }
}
