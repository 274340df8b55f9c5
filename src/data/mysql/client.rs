//! The server's own programs, run beside it: `mariadb` and `mariadb-dump`, or `mysql` and `mysqldump` where those are missing.
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

use crate::{
    config::BackupSource,
    data::{DataError, Reach},
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
}

/// One database server, as a part's configuration names it.
#[derive(Debug)]
pub(super) struct Server<'a> {
    exec: &'a dyn ContainerExec,
    container: &'a str,
    address: Vec<String>,
    password: Vec<(&'a str, &'a Secret)>,
    programs: Programs,
}

/// How long a statement waits for connections that are still using a table, in seconds.
pub(super) const LOCK_WAIT: u32 = 30;

/// One row of an answer.
pub(super) type Row = Vec<String>;

impl<'a> Server<'a> {
    /// Looks which programs are there; connects to nothing.
    pub async fn find(source: &'a BackupSource, reach: Reach<'a>, job: &Job) -> Result<Self, DataError> {
        let BackupSource::Mysql { container, user, password, .. } = source else {
            return Err(DataError::dump("not a MySQL database"));
        };
        let exec = reach.containers(container)?;
        let password = password.iter().map(|password| ("MYSQL_PWD", password)).collect();
        Self::through(exec, container, user, &[], password, job).await
    }

    pub async fn through(
        exec: &'a dyn ContainerExec,
        container: &'a str,
        user: &str,
        options: &[String],
        password: Vec<(&'a str, &'a Secret)>,
        job: &Job,
    ) -> Result<Self, DataError> {
        let programs = Programs::find(exec, container, job).await?;
        let mut address = vec![format!("--user={user}"), "--default-character-set=utf8mb4".to_owned()];
        address.extend_from_slice(options);
        Ok(Self { exec, container, address, password, programs })
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
        let ended = self.exec.exec_through(self.container, &command, &self.password, source, sink, job).await?;
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
        Ok(self.exec.exec_into(self.container, &command, &self.password, sink, job).await?)
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
                    let mut programs = Self { client, dump, client_options: Vec::new(), dump_options: Vec::new() };
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
                Err(error) if error.to_string().contains(&format!("there is no `{client}` in it")) => {
                    last = Some(error)
                }
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
