//! Where PostgreSQL's own programs run, and what they connect to.
//!
//! | configured | programs run in | they find the server by |
//! |---|---|---|
//! | `container` | the database's container, over the exec API | its own socket, `--username` and `--dbname` |
//! | `url`, `tools = "host"` | this host: those found on `PATH` | the variables of libpq (`PGHOST`, …) |
//! | `url`, `tools = "<image>"` | a throw-away container of that image, in the host's network | the same variables |
//!
//! Neither a password nor a URL is ever an argument: who may list processes would read it. A URL is taken apart into libpq's variables, and a
//! parameter that has no variable is refused rather than dropped.

use std::fmt::Write;

use super::DataError;
use crate::{
    config::{BackupSource, PostgresTools},
    data::Reach,
    model::EnvironmentKey,
    runtime::{
        ContainerExec, ExecOutcome, Job, ScratchContainer, ScratchImage, ScratchNetwork, ScratchRun, ScratchSpec,
        host::HostExec,
    },
    secret::Secret,
};

/// Of a container for clients alone, in bytes.
const MEMORY: u64 = 512 * 1024 * 1024;

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
    exec: Exec<'a>,
    container: String,
    /// `--username=…` and so on; empty where the variables say it all.
    target: Vec<String>,
    env: Vec<(&'static str, Secret)>,
    /// Goes with the client.
    scratch: Option<Box<dyn ScratchContainer>>,
}

#[derive(Debug)]
enum Exec<'a> {
    Containers(&'a dyn ContainerExec),
    Host(HostExec),
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
                exec: Exec::Containers(reach.containers(container)?),
                container: container.clone(),
                target: target(database, user, application),
                env: password.iter().map(|password| ("PGPASSWORD", password.clone())).collect(),
                scratch: None,
            }),
            BackupSource::PostgresUrl { url, tools, .. } => {
                let env = Url::parse(url).map_err(DataError::dump)?.variables(application);
                match tools {
                    PostgresTools::Host => Ok(Self {
                        exec: Exec::Host(HostExec),
                        container: "this host".to_owned(),
                        target: Vec::new(),
                        env,
                        scratch: None,
                    }),
                    PostgresTools::Image(image) => Self::in_image(image, env, key, reach).await,
                }
            }
            _ => Err(DataError::dump("not a PostgreSQL database")),
        }
    }

    async fn in_image(
        image: &str,
        env: Vec<(&'static str, Secret)>,
        key: &EnvironmentKey,
        reach: Reach<'a>,
    ) -> Result<Self, DataError> {
        let out_of_reach = || DataError::dump(format!("image `{image}` is out of reach: there is no Docker Engine"));
        let scratch = reach.scratch.ok_or_else(out_of_reach)?;
        let spec = ScratchSpec {
            key,
            purpose: "postgres",
            image: ScratchImage::Named(image),
            run: ScratchRun::Commands,
            env: &[],
            user: None,
            mounts: &[],
            network: ScratchNetwork::Host,
            memory: MEMORY,
        };
        let scratch = scratch.open(&spec).await?;
        Ok(Self {
            exec: Exec::Containers(reach.containers.ok_or_else(out_of_reach)?),
            container: scratch.name().to_owned(),
            target: Vec::new(),
            env,
            scratch: Some(scratch),
        })
    }

    /// Of a server that a throw-away container runs: `target` says how it is found there.
    pub fn of_scratch(exec: &'a dyn ContainerExec, scratch: Box<dyn ScratchContainer>, target: Vec<String>) -> Self {
        let container = scratch.name().to_owned();
        Self { exec: Exec::Containers(exec), container, target, env: Vec::new(), scratch: Some(scratch) }
    }

    pub fn exec(&self) -> &dyn ContainerExec {
        match &self.exec {
            Exec::Containers(exec) => *exec,
            Exec::Host(exec) => exec,
        }
    }

    pub fn container(&self) -> &str {
        &self.container
    }

    pub fn env(&self) -> Vec<(&str, &Secret)> {
        self.env.iter().map(|(name, value)| (*name, value)).collect()
    }

    /// A program with its arguments, and whom it is to connect to.
    pub fn command(&self, program: &[&str]) -> Vec<String> {
        program.iter().map(|word| (*word).to_owned()).chain(self.target.iter().cloned()).collect()
    }

    /// Another target of the same server.
    pub fn set_target(&mut self, target: Vec<String>) {
        self.target = target;
    }

    pub fn scratch(&self) -> Option<&dyn ScratchContainer> {
        self.scratch.as_deref()
    }

    /// Runs SQL that Refit made up. Its answers, a line each.
    pub async fn ask(&self, sql: &str, job: &Job) -> Result<Vec<String>, DataError> {
        let mut said = Vec::new();
        let (command, env) = (self.command(&PSQL), self.env());
        let mut sql = sql.as_bytes();
        let outcome = self.exec().exec_through(&self.container, &command, &env, &mut sql, &mut said, job).await?;
        succeeded("psql", &outcome)?;
        Ok(String::from_utf8_lossy(&said).lines().map(str::to_owned).collect())
    }

    /// Removes what was made for it.
    pub async fn close(self, job: &Job) {
        if let Some(scratch) = self.scratch
            && let Err(error) = scratch.remove().await
        {
            job.log.line(format!("warning: {error}"));
        }
    }
}

/// `psql` that reads commands, says only what they answer, and ends with the first that fails.
pub(in crate::data) const PSQL: [&str; 7] =
    ["psql", "--no-psqlrc", "--no-password", "--no-align", "--tuples-only", "--quiet", "--set=ON_ERROR_STOP=1"];

fn target(database: &str, user: &str, application: &str) -> Vec<String> {
    let mut connection = format!("--dbname=dbname={} connect_timeout=10", super::conninfo_quote(database));
    if !application.is_empty() {
        let _ = write!(connection, " application_name={}", super::conninfo_quote(application));
    }
    vec![format!("--username={user}"), connection]
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
    host: String,
    port: Option<u16>,
    pub database: String,
    user: String,
    password: Option<Secret>,
    parameters: Vec<(&'static str, String)>,
}

impl Url {
    /// The error is for people, and says nothing of what the URL holds.
    pub fn parse(secret: &Secret) -> Result<Self, String> {
        const FORM: &str = "write `postgresql://user:password@host:port/database`";
        let bad = |why: &str| format!("the database's `url` {why}: {FORM}");
        let url = reqwest::Url::parse(secret.expose()).map_err(|_| bad("is no URL"))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(bad("is not one of PostgreSQL"));
        }
        let plain = |text: &str| decode(text).ok_or_else(|| bad("holds something that is not UTF-8"));
        let mut parsed = Self {
            host: plain(url.host_str().unwrap_or_default())?.trim_matches(['[', ']']).to_owned(),
            port: url.port(),
            database: plain(url.path().trim_start_matches('/'))?,
            user: plain(url.username())?,
            password: url.password().map(plain).transpose()?.map(Secret::new),
            parameters: Vec::new(),
        };
        for (name, value) in url.query_pairs() {
            if let ("password", value) = (&*name, &*value) {
                parsed.password = Some(Secret::new(value));
                continue;
            }
            match PARAMETERS.iter().find(|(known, _)| *known == name) {
                Some(("host", _)) => parsed.host = value.into_owned(),
                Some((_, variable)) => parsed.parameters.push((variable, value.into_owned())),
                None => {
                    return Err(format!(
                        "the database's `url` has a parameter `{}` that is not known here",
                        name.escape_default()
                    ));
                }
            }
        }
        if parsed.host.is_empty() || parsed.database.is_empty() || parsed.user.is_empty() {
            return Err(bad("lacks its host, database or user"));
        }
        Ok(parsed)
    }

    /// For people: `db.example:5432`.
    pub fn server(&self) -> String {
        self.port.map_or_else(|| self.host.clone(), |port| format!("{}:{port}", self.host))
    }

    fn variables(self, application: &str) -> Vec<(&'static str, Secret)> {
        let mut variables = vec![
            ("PGHOST", Secret::new(self.host)),
            ("PGDATABASE", Secret::new(self.database)),
            ("PGUSER", Secret::new(self.user)),
            ("PGCONNECT_TIMEOUT", Secret::new("10")),
        ];
        variables.extend(self.port.map(|port| ("PGPORT", Secret::new(port.to_string()))));
        variables.extend(self.password.map(|password| ("PGPASSWORD", password)));
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

/// Percent-encoding undone.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = (byte == b'%').then(|| after.get(..2)).flatten();
        match hex.and_then(|hex| hex::decode(hex).ok()) {
            Some(decoded) => {
                bytes.extend(decoded);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
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
