//! PostgreSQL: the dump replaces what the database holds, in one transaction.
//!
//! `psql` in the database's own container, as the configured user, reads one stream that Refit makes up: `BEGIN`; `clear.sql`, which empties the
//! database; the dump, past [`Script`], which lets nothing through but SQL and data; a question whose answer tells that everything before it
//! was done; and, when the gate has opened, `COMMIT`. A
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

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::watch,
};

use super::{Gate, Loaded, Work};
use crate::{
    config::Backup,
    data::{
        DataError, Part, PartFormat, Reach,
        postgres::{
            client::{Client, succeeded},
            roles,
            script::Script,
        },
        progress::SetDir,
        unpack::PartReader,
    },
    model::EnvironmentKey,
    runtime::Job,
};

use listener::{Heard, Listener};
pub(in crate::data) use missing::exists;

mod listener;
mod missing;

const CLEAR: &str = include_str!("clear.sql");

/// Bytes on the way between two ends.
const PIPE: usize = 64 * 1024;

/// A line of `psql`'s output that is longer is not one of those that are looked for, in bytes.
const LONGEST_LINE: usize = 256;

pub(in crate::data) async fn restore(work: &Work<'_>, gate: Gate) -> Result<Loaded, DataError> {
    let client = Client::open(&work.backup.source, work.key, work.reach, "refit restore").await?;
    let made = missing::make(work).await;
    let loaded = match &made {
        Ok(_) => roles_and_data(work, &client, gate).await,
        Err(_) => Ok(Loaded::default()),
    };
    client.close(work.job).await;
    if made? && loaded.is_err() {
        missing::unmake(work).await;
    }
    loaded
}

async fn roles_and_data(work: &Work<'_>, client: &Client<'_>, gate: Gate) -> Result<Loaded, DataError> {
    let made = match &work.part.roles {
        Some(file) => roles::make(client, &work.set, file, work.job).await?,
        None => roles::Made::default(),
    };
    made.notes.iter().for_each(|note| work.job.log.line(format!("warning: {note}")));
    let committing = AtomicBool::new(false);
    let loading =
        Loading { part: work.part, set: work.set, client, clear: true, job: work.job, committing: &committing };
    match loading.run(Some(gate)).await {
        Ok(loaded) => {
            let note = (!made.notes.is_empty()).then(|| made.notes.join("\n"));
            Ok(Loaded { note: loaded.note.or(note), ..loaded })
        }
        Err(error) => {
            // Of a transaction that may be committed nobody knows what needs them.
            if !committing.load(Ordering::Relaxed) {
                made.undo(client, work.job).await;
            }
            Err(error)
        }
    }
}

/// The first column of a query's first row.
pub(in crate::data) async fn ask(
    backup: &Backup,
    key: &EnvironmentKey,
    query: &str,
    reach: Reach<'_>,
    job: &Job,
) -> Result<Option<String>, DataError> {
    let client = Client::open(&backup.source, key, reach, "refit restore").await?;
    let answer = first(&client, query, job).await;
    client.close(job).await;
    answer
}

/// The same of a server that is connected to already.
pub(in crate::data) async fn first(client: &Client<'_>, query: &str, job: &Job) -> Result<Option<String>, DataError> {
    let query = format!("--command={query}");
    let command = client.command(&[PSQL.as_slice(), &["--field-separator-zero", &query]].concat());
    let mut answer = Vec::new();
    let outcome = client.exec().exec_into(client.container(), &command, &client.env(), &mut answer, job).await?;
    succeeded("psql", &outcome)?;
    if answer.is_empty() {
        return Ok(None);
    }
    let first = answer.split(|byte| matches!(byte, 0 | b'\n')).next().unwrap_or_default();
    Ok(Some(String::from_utf8_lossy(first).into_owned()))
}

/// Reads commands, says what they did, and ends with the first that fails.
const PSQL: [&str; 6] =
    ["psql", "--no-psqlrc", "--no-password", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"];

/// A dump on its way into a database.
pub(in crate::data) struct Loading<'a> {
    pub part: &'a Part,
    pub set: SetDir<'a>,
    pub client: &'a Client<'a>,
    /// The database is emptied first.
    pub clear: bool,
    pub job: &'a Job,
    /// Set when the last step is taken.
    pub committing: &'a AtomicBool,
}

impl Loading<'_> {
    /// Without a gate it is committed when it is loaded.
    pub async fn run(&self, gate: Option<Gate>) -> Result<Loaded, DataError> {
        let job = Job { log: self.job.log.clone(), cancel: self.job.cancel.child_token() };
        let fence = self.fence(&job).await?;
        let mark = format!("refit-loaded-{}", random()?);
        let (sink, heard) = Listener::new(&mark);
        let (mut sink, mut listened) = (sink, heard.clone());
        let (writer, mut reader) = tokio::io::duplex(PIPE);
        let (command, env) = (self.client.command(&PSQL), self.client.env());
        let (exec, container) = (self.client.exec(), self.client.container());
        let mut psql = Box::pin(exec.exec_through(container, &command, &env, &mut reader, &mut sink, &job));
        let mut feeding = Box::pin(async {
            let mut feed = Feed { loading: self, writer, script: Script::new(fence.is_none()), job: &job };
            feed.run(fence.as_deref(), &mark, &mut listened, gate).await
        });
        let ended = tokio::select! {
            ended = &mut psql => ended,
            fed = &mut feeding => {
                if fed.is_err() {
                    job.cancel.cancel();
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

    /// The key of a `\restrict`, where this `psql` knows that.
    async fn fence(&self, job: &Job) -> Result<Option<String>, DataError> {
        let mut said = Vec::new();
        let version = ["psql".to_owned(), "--version".to_owned()];
        let asked = self.client.exec().exec_into(self.client.container(), &version, &[], &mut said, job).await?;
        succeeded("psql", &asked)?;
        if knows_restrict(&String::from_utf8_lossy(&said)) { random().map(Some) } else { Ok(None) }
    }
}

/// Of what `psql --version` says. The minor releases of August 2025 brought it.
fn knows_restrict(said: &str) -> bool {
    let version = said.split_ascii_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let mut numbers = version.unwrap_or_default().split('.').map(|n| n.parse::<u32>().unwrap_or_default());
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let since = match major {
        0..=12 => return false,
        13 => 22,
        14 => 19,
        15 => 14,
        16 => 10,
        17 => 6,
        _ => return true,
    };
    minor >= since
}

fn random() -> Result<String, DataError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|e| DataError::dump(e.to_string()))?;
    Ok(hex::encode(random))
}

/// What `psql` reads, as it is made up. The writer is dropped at the end, which ends `psql`.
struct Feed<'a> {
    loading: &'a Loading<'a>,
    writer: DuplexStream,
    script: Script,
    job: &'a Job,
}

impl Feed<'_> {
    async fn run(
        &mut self,
        fence: Option<&str>,
        mark: &str,
        heard: &mut watch::Receiver<Heard>,
        gate: Option<Gate>,
    ) -> Result<(), DataError> {
        if let Some(key) = fence {
            self.say(&format!("\\restrict {key}\n")).await?;
        }
        self.say("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\n").await?;
        if self.loading.clear {
            self.say(CLEAR).await?;
        }
        let reader = PartReader::open(self.loading.set, self.loading.part)?;
        match self.loading.part.format {
            PartFormat::Plain => self.pass_on(reader).await?.finish().await?,
            PartFormat::Custom => self.convert(reader).await?,
            PartFormat::Database | PartFormat::Tar | PartFormat::Output => {
                return Err(DataError::dump("it is no dump of a PostgreSQL database"));
            }
        }
        let script = std::mem::replace(&mut self.script, Script::new(false));
        script.finish().map_err(|refused| DataError::dump(refused.to_string()))?;
        // Deferred constraints are checked now, while there is a way back for all parts.
        let end = format!(
            "\nSET CONSTRAINTS ALL IMMEDIATE;\nSELECT '{mark}', count(*) FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema';\n"
        );
        self.say(&end).await?;
        heard.wait_for(|heard| heard.tables.is_some()).await.map_err(|_| DataError::Cancelled)?;
        if let Some(gate) = gate {
            gate.pass().await?;
        }
        self.loading.committing.store(true, Ordering::Relaxed);
        self.say("COMMIT;\n").await
    }

    async fn say(&mut self, text: &str) -> Result<(), DataError> {
        self.write(text.as_bytes()).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.writer.write_all(bytes).await.map_err(|_| DataError::dump("`psql` takes no more input"))
    }

    /// Of the dump, what `psql` may read.
    async fn pass_on<R: tokio::io::AsyncRead + Unpin>(&mut self, mut from: R) -> Result<R, DataError> {
        let (mut chunk, mut passed) = (vec![0; PIPE], Vec::with_capacity(PIPE));
        loop {
            let n = from.read(&mut chunk).await.map_err(|e| DataError::dump(e.to_string()))?;
            if n == 0 {
                return Ok(from);
            }
            passed.clear();
            let taken = self.script.take(&chunk[..n], &mut passed);
            taken.map_err(|refused| DataError::dump(refused.to_string()))?;
            self.write(&passed).await?;
        }
    }

    /// Through `pg_restore`, which connects to nothing: it reads the archive and prints SQL.
    async fn convert(&mut self, mut reader: PartReader) -> Result<(), DataError> {
        let command = ["pg_restore".to_owned(), "--file=-".to_owned()];
        let (mut sql_in, sql_out) = tokio::io::duplex(PIPE);
        let (client, job) = (self.loading.client, self.job);
        let (exec, container) = (client.exec(), client.container());
        let converting = async {
            let ended = exec.exec_through(container, &command, &[], &mut reader, &mut sql_in, job).await;
            drop(sql_in);
            succeeded("pg_restore", &ended?)
        };
        let (converted, passed) = tokio::join!(converting, self.pass_on(sql_out));
        // What was refused is the cause of `pg_restore`'s complaint that nobody reads on.
        passed?;
        converted?;
        reader.finish().await
    }
}
