//! The server's own programs, run beside it or wherever `tools.rs` finds them: `mariadb` and `mariadb-dump`, or `mysql` and `mysqldump` where those are missing.
//!
//! **The password** goes in the environment (`MYSQL_PWD`), never on a command line. The other ways were: a file of options, which would lie on
//! the container's disk, and stay there if Refit were killed; and standard input, which the client needs for the dump. What is in a
//! process's environment is readable by its own user and by root of that container, who can read the database's files anyway.
//! (MySQL calls the variable deprecated and keeps it.)
//!
//! **No option files are read** (`--no-defaults`): a `where` or `ignore-table` in one of them would make the dump less than the database,
//! and an `init-command` would run in the middle of a restore.
//!
//! **The client obeys the server only.** In binary mode it knows no command of its own but `DELIMITER` and `\C`; its sandbox, where it has one,
//! shuts the file system and the shell as well; it does not reconnect, which would lose the session's settings; and it gives the
//! server no local files. Whatever SQL is run here from names of objects quotes them.

use tokio::io::AsyncRead;

use super::url::Url;
use crate::{
    config::BackupSource,
    data::{DataError, Reach, tools::Tools},
    model::EnvironmentKey,
    runtime::{ContainerExec, ExecOutcome, Job},
    secret::Secret,
};

/// Which programs are there, and the options that only some versions have.
#[derive(Debug, Clone)]
struct Programs {
    client: &'static str,
    dump: &'static str,
    client_options: Vec<&'static str>,
    dump_options: Vec<&'static str>,
    /// MySQL's `--ssl-mode`.
    ssl_mode: bool,
}

/// One database server, as a part's configuration names it.
#[derive(Debug)]
pub(super) struct Server<'a> {
    tools: Tools<'a>,
    address: Vec<String>,
    password: Option<Secret>,
    programs: Programs,
}

/// How long a statement waits for connections that are still using a table, in seconds.
pub(super) const LOCK_WAIT: u32 = 30;

/// One row of an answer.
pub(super) type Row = Vec<String>;

impl<'a> Server<'a> {
    /// Looks which programs are there; connects only to ask for encryption. What is made for it goes with [`Self::close`].
    pub async fn find(
        source: &BackupSource,
        key: &EnvironmentKey,
        reach: Reach<'a>,
        job: &Job,
    ) -> Result<Self, DataError> {
        match source {
            BackupSource::Mysql { container, user, password, .. } => {
                let tools = Tools::in_container(container, reach)?;
                Self::through(tools, user, password.clone(), |_| Vec::new(), job).await
            }
            BackupSource::MysqlUrl { url, tools } => {
                let url = Url::parse(url).map_err(DataError::dump)?;
                let tools = Tools::for_url(tools, "mysql", key, reach).await?;
                let password = url.password().cloned();
                let server = Self::through(tools, url.user(), password, |mode| url.options(mode), job).await?;
                if url.must_ask(server.programs.ssl_mode)
                    && let Err(error) = server.is_encrypted(job).await
                {
                    server.close(job).await;
                    return Err(error);
                }
                Ok(server)
            }
            _ => Err(DataError::dump("not a MySQL database")),
        }
    }

    /// `options` say where the server is; they are told whether the programs know `--ssl-mode`.
    pub async fn through(
        tools: Tools<'a>,
        user: &str,
        password: Option<Secret>,
        options: impl FnOnce(bool) -> Vec<String>,
        job: &Job,
    ) -> Result<Self, DataError> {
        let programs = match Programs::find(tools.exec(), tools.container(), job).await {
            Ok(programs) => programs,
            Err(error) => {
                tools.close(job).await;
                return Err(error);
            }
        };
        let mut address = vec![format!("--user={user}"), "--default-character-set=utf8mb4".to_owned()];
        address.extend(options(programs.ssl_mode));
        Ok(Self { tools, address, password, programs })
    }

    async fn is_encrypted(&self, job: &Job) -> Result<(), DataError> {
        let answer = self.ask(None, "SHOW SESSION STATUS LIKE 'Ssl_cipher';\n", job).await?;
        let cipher = answer.first().and_then(|row| row.get(1)).map_or("", String::as_str);
        if cipher.is_empty() {
            return Err(DataError::dump("the server does not encrypt, and the `url` says `ssl-mode=REQUIRED`"));
        }
        Ok(())
    }

    /// Removes what was made for it.
    pub async fn close(self, job: &Job) {
        self.tools.close(job).await;
    }

    fn env(&self) -> Vec<(&str, &Secret)> {
        self.password.iter().map(|password| ("MYSQL_PWD", password)).collect()
    }

    /// For people and for a manifest's command line.
    pub fn client_name(&self) -> &'static str {
        self.programs.client
    }

    pub fn dump_name(&self) -> &'static str {
        self.programs.dump
    }

    /// The answer to SQL that is small in both directions.
    pub async fn ask(&self, database: Option<&str>, sql: &str, job: &Job) -> Result<Vec<Row>, DataError> {
        let mut answer = Vec::new();
        self.send(database, &mut sql.as_bytes(), &mut answer, job).await?;
        let text = String::from_utf8_lossy(&answer);
        Ok(text.lines().map(|line| line.split('\t').map(unescape).collect()).collect())
    }

    /// Everything of `source`, in one session, to its end. The first error ends it.
    pub async fn run(
        &self,
        database: Option<&str>,
        source: &mut (dyn AsyncRead + Send + Unpin),
        job: &Job,
    ) -> Result<(), DataError> {
        let mut answer = tokio::io::sink();
        self.send(database, source, &mut answer, job).await
    }

    async fn send(
        &self,
        database: Option<&str>,
        source: &mut (dyn AsyncRead + Send + Unpin),
        sink: &mut (dyn tokio::io::AsyncWrite + Send + Unpin),
        job: &Job,
    ) -> Result<(), DataError> {
        let mut command = vec![self.programs.client.to_owned(), "--no-defaults".to_owned()];
        command.extend(self.address.iter().cloned());
        let fixed = ["--batch", "--skip-column-names", "--binary-mode", "--comments", "--skip-reconnect"];
        command.extend(fixed.map(str::to_owned));
        command.extend(["--local-infile=0", "--max-allowed-packet=1G"].map(str::to_owned));
        command.push(format!("--init-command=SET SESSION lock_wait_timeout = {LOCK_WAIT}"));
        command.extend(self.programs.client_options.iter().map(|option| (*option).to_owned()));
        command.extend(database.map(|database| format!("--database={database}")));
        let (exec, container) = (self.tools.exec(), self.tools.container());
        let ended = exec.exec_through(container, &command, &self.env(), source, sink, job).await?;
        succeeded(self.programs.client, &ended)
    }

    /// Dumps into `sink`. The caller says what, in `options`.
    pub async fn dump(
        &self,
        database: &str,
        options: &[&str],
        sink: &mut (dyn tokio::io::AsyncWrite + Send + Unpin),
        job: &Job,
    ) -> Result<ExecOutcome, DataError> {
        let mut command = vec![self.programs.dump.to_owned(), "--no-defaults".to_owned()];
        command.extend(self.address.iter().cloned());
        command.extend(ALWAYS.map(str::to_owned));
        command.extend(self.programs.dump_options.iter().chain(options).map(|option| (*option).to_owned()));
        command.extend(["--".to_owned(), database.to_owned()]);
        Ok(self.tools.exec().exec_into(self.tools.container(), &command, &self.env(), sink, job).await?)
    }
}

/// What a dump is made with whatever its purpose: everything that belongs to the database, and every byte as it is.
const ALWAYS: [&str; 9] = [
    "--quick",
    "--routines",
    "--triggers",
    "--events",
    "--hex-blob",
    "--tz-utc",
    "--no-tablespaces",
    "--skip-add-locks",
    "--max-allowed-packet=1G",
];

impl Programs {
    async fn find(exec: &dyn ContainerExec, container: &str, job: &Job) -> Result<Self, DataError> {
        let mut last = None;
        for (client, dump) in [("mariadb", "mariadb-dump"), ("mysql", "mysqldump")] {
            match help(exec, container, client, job).await {
                Ok(client_help) => {
                    let dump_help = help(exec, container, dump, job).await?;
                    let has = |help: &str, option: &str| help.lines().any(|line| line.starts_with(option));
                    let mut programs =
                        Self { client, dump, client_options: Vec::new(), dump_options: Vec::new(), ssl_mode: false };
                    programs.ssl_mode = client_help.lines().any(|line| line.trim_start().starts_with("--ssl-mode"));
                    if has(&client_help, "sandbox ") {
                        programs.client_options.push("--sandbox");
                    }
                    if has(&client_help, "system-command ") {
                        programs.client_options.push("--system-command=OFF");
                    }
                    if has(&client_help, "commands ") {
                        programs.client_options.push("--commands=OFF");
                    }
                    // A dump is of one database, not of a replica's place in its source's log.
                    if has(&dump_help, "set-gtid-purged ") {
                        programs.dump_options.push("--set-gtid-purged=OFF");
                    }
                    if has(&dump_help, "column-statistics ") {
                        programs.dump_options.push("--column-statistics=0");
                    }
                    return Ok(programs);
                }
                Err(error) if error.to_string().contains(&format!("there is no `{client}` ")) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| DataError::dump("no client program")))
    }
}

/// What a program says of its options; their values come last, one a line.
async fn help(exec: &dyn ContainerExec, container: &str, program: &str, job: &Job) -> Result<String, DataError> {
    let mut said = Vec::new();
    let command = [program, "--no-defaults", "--help"].map(str::to_owned);
    let ended = exec.exec_into(container, &command, &[], &mut said, job).await?;
    succeeded(program, &ended)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

pub(super) fn succeeded(program: &str, outcome: &ExecOutcome) -> Result<(), DataError> {
    if outcome.code == 0 {
        return Ok(());
    }
    let said = outcome.output.iter().rev().take(3).rev().cloned().collect::<Vec<_>>().join("\n");
    let said = if said.is_empty() { "it said nothing".to_owned() } else { said };
    Err(DataError::dump(format!("`{program}` ended with exit code {}: {said}", outcome.code)))
}

/// A name as SQL has it.
pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Text as SQL has it, whatever the session's mode says of backslashes.
pub(super) fn text(value: &str) -> String {
    format!("CONVERT(x'{}' USING utf8mb4)", hex::encode(value))
}

/// What the client does to a value in its answers: `\t`, `\n`, `\0` and `\\`.
fn unescape(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut rest = value.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            plain.push(c);
            continue;
        }
        plain.push(match rest.next() {
            Some('t') => '\t',
            Some('n') => '\n',
            Some('0') => '\0',
            Some(other) => other,
            None => '\\',
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_answers_survive_the_client() {
        assert_eq!(quoted("a`b; -- "), "`a``b; -- `");
        assert_eq!(text("ü'"), "CONVERT(x'c3bc27' USING utf8mb4)");
        assert_eq!(unescape(r"a\tb\nc\\n\0d\"), "a\tb\nc\\n\0d\\");
    }
}
