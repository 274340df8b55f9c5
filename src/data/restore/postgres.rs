//! PostgreSQL: the dump replaces what the database holds, in one transaction.
//!
//! `psql` in the database's own container, as the configured user, reads one stream that Refit makes up: `BEGIN`; `clear.sql`, which empties the
//! database; the dump; a question whose answer tells that everything before it was done; and, when the gate has opened, `COMMIT`. A
//! dump in the custom format is turned into SQL on the way by `pg_restore` in the same container. Nothing is written to a disk in
//! between, and no shell is involved.
//!
//! Not `psql --single-transaction`: that commits at the end of its input, and the input of a `psql` whose Refit was killed ends early. Here an
//! input that ends early has no `COMMIT` in it. The first error ends `psql` (`ON_ERROR_STOP`), and the server rolls back.
//!
//! A server that is busy does not see that its client is gone, and would hold every lock until the statement ends. So it is told to look
//! every second (`client_connection_check_interval`, from PostgreSQL 14 on).
//!
//! Loading into a second database and swapping names was the other choice. It needs the right to make databases, and it loses what belongs to
//! the database itself: settings, rights to connect, its place in replication. What this way costs: readers wait
//! until it is done, which they would have to anyway; and the locks it takes are as many as there are tables
//! (`max_locks_per_transaction` times `max_connections`, 6,400 by default).

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{Gate, Loaded, Work};
use crate::{
    config::BackupSource,
    data::{DataError, PartFormat, postgres::conninfo_quote, unpack::PartReader},
    runtime::{ContainerExec, ExecOutcome, Job},
    secret::Secret,
};

use listener::{Heard, Listener};

mod listener;

const CLEAR: &str = include_str!("clear.sql");

/// Bytes on the way between two ends.
const PIPE: usize = 64 * 1024;

/// A line of `psql`'s output that is longer is not one of those that are looked for, in bytes.
const LONGEST_LINE: usize = 256;

pub(in crate::data) async fn restore(work: &Work<'_>, gate: Gate) -> Result<Loaded, DataError> {
    let BackupSource::Postgres { container, database, user, password, .. } = &work.backup.source else {
        return Err(DataError::dump("not a PostgreSQL database"));
    };
    let exec = work.reach.containers(container)?;
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|e| DataError::dump(e.to_string()))?;
    let session = Session {
        work,
        exec,
        container,
        command: command(database, user),
        env: password.iter().map(|password| ("PGPASSWORD", password)).collect(),
        mark: format!("refit-loaded-{}", hex::encode(random)),
        cancel: work.job.cancel.child_token(),
    };
    session.run(gate).await
}

fn command(database: &str, user: &str) -> Vec<String> {
    let fixed = ["psql", "--no-psqlrc", "--no-password", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"];
    let mut command: Vec<String> = fixed.map(str::to_owned).to_vec();
    command.push(format!("--username={user}"));
    command.push(format!(
        "--dbname=dbname={} connect_timeout=10 application_name='refit restore'",
        conninfo_quote(database)
    ));
    command
}

struct Session<'a> {
    work: &'a Work<'a>,
    exec: &'a dyn ContainerExec,
    container: &'a str,
    command: Vec<String>,
    env: Vec<(&'a str, &'a Secret)>,
    /// What `psql` prints when it has done everything up to there.
    mark: String,
    cancel: CancellationToken,
}

impl Session<'_> {
    async fn run(&self, gate: Gate) -> Result<Loaded, DataError> {
        let job = Job { log: self.work.job.log.clone(), cancel: self.cancel.clone() };
        let (sink, heard) = Listener::new(&self.mark);
        let (mut sink, mut listened) = (sink, heard.clone());
        let (writer, mut reader) = tokio::io::duplex(PIPE);
        let psql = self.exec.exec_through(self.container, &self.command, &self.env, &mut reader, &mut sink, &job);
        let mut psql = Box::pin(psql);
        let mut feeding = Box::pin(self.feed(writer, &mut listened, gate, &job));
        let ended = tokio::select! {
            ended = &mut psql => ended,
            fed = &mut feeding => {
                if fed.is_err() {
                    self.cancel.cancel();
                }
                let ended = psql.await;
                fed?;
                ended
            }
        };
        succeeded("psql", &ended?)?;
        let heard = heard.borrow();
        match heard.tables {
            Some(tables) if heard.committed => Ok(Loaded { tables, rows: Some(heard.rows), note: None }),
            _ => Err(DataError::dump("`psql` ended by itself before it was told to commit")),
        }
    }

    /// Writes what `psql` reads. The writer is dropped at the end, which ends `psql`.
    async fn feed(
        &self,
        mut writer: DuplexStream,
        heard: &mut watch::Receiver<Heard>,
        gate: Gate,
        job: &Job,
    ) -> Result<(), DataError> {
        let lost = |_| DataError::dump("`psql` takes no more input");
        writer.write_all(b"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\n").await.map_err(lost)?;
        writer.write_all(CLEAR.as_bytes()).await.map_err(lost)?;
        let reader = PartReader::open(self.work.set, self.work.part)?;
        match self.work.part.format {
            PartFormat::Plain => self.pass_on(reader, &mut writer).await?.finish().await?,
            PartFormat::Custom => self.convert(reader, &mut writer, job).await?,
            PartFormat::Database | PartFormat::Tar | PartFormat::Output => {
                return Err(DataError::dump("it is no dump of a PostgreSQL database"));
            }
        }
        // Deferred constraints are checked now, while there is a way back for all parts.
        let end = format!(
            "\nSET CONSTRAINTS ALL IMMEDIATE;\nSELECT '{}', count(*) FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema';\n",
            self.mark
        );
        writer.write_all(end.as_bytes()).await.map_err(lost)?;
        heard.wait_for(|heard| heard.tables.is_some()).await.map_err(|_| DataError::Cancelled)?;
        gate.pass().await?;
        writer.write_all(b"COMMIT;\n").await.map_err(lost)
    }

    async fn pass_on<R: tokio::io::AsyncRead + Unpin>(
        &self,
        mut from: R,
        to: &mut DuplexStream,
    ) -> Result<R, DataError> {
        let mut chunk = vec![0; PIPE];
        loop {
            let n = from.read(&mut chunk).await.map_err(|e| DataError::dump(e.to_string()))?;
            if n == 0 {
                return Ok(from);
            }
            to.write_all(&chunk[..n]).await.map_err(|_| DataError::dump("`psql` takes no more input"))?;
        }
    }

    /// Through `pg_restore`, which connects to nothing: it reads the archive and prints SQL.
    async fn convert(&self, mut reader: PartReader, to: &mut DuplexStream, job: &Job) -> Result<(), DataError> {
        let command = ["pg_restore".to_owned(), "--file=-".to_owned()];
        let (mut sql_in, sql_out) = tokio::io::duplex(PIPE);
        let converting = async {
            let ended = self.exec.exec_through(self.container, &command, &[], &mut reader, &mut sql_in, job).await;
            drop(sql_in);
            succeeded("pg_restore", &ended?)
        };
        let (converted, passed) = tokio::join!(converting, self.pass_on(sql_out, to));
        converted?;
        passed?;
        reader.finish().await
    }
}

fn succeeded(program: &str, outcome: &ExecOutcome) -> Result<(), DataError> {
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
