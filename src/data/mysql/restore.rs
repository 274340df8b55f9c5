//! Putting a dump back: loaded into a database of its own, counted, asked the configured question, and only then exchanged
//! (`swap.rs`) for the live one.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::sync::CancellationToken;

use super::{
    client::{Row, Server, quoted, text},
    sieve::{Purpose, Sieve, Sifted},
    swap::{self, Names, Settled},
};
use crate::{
    data::{
        DataError, Part, PartFormat, check,
        progress::SetDir,
        restore::{Gate, Loaded, Work},
        unpack::PartReader,
    },
    runtime::Job,
};

/// Bytes on the way between two ends.
const PIPE: usize = 64 * 1024;

pub(super) async fn restore(work: &Work<'_>, gate: Gate) -> Result<Loaded, DataError> {
    let server = Server::find(&work.backup.source, work.key, work.reach, work.job).await?;
    let restored = restore_with(&server, work, gate).await;
    server.close(work.job).await;
    restored
}

async fn restore_with(server: &Server<'_>, work: &Work<'_>, gate: Gate) -> Result<Loaded, DataError> {
    if work.part.format != PartFormat::Plain {
        return Err(DataError::dump("it is no dump of a MySQL database"));
    }
    let job = work.job;
    let names = Names::of(&super::database_of(&work.backup.source)?)?;
    let log = &job.log;
    tell(swap::settle(server, &names, job).await?, &names, job);

    // What is begun here is ended here, also when the job is cancelled.
    let winding_up = Job { log: log.clone(), cancel: CancellationToken::new() };
    let made = AtomicBool::new(false);
    let ready = async {
        let default = default_of(server, &names, job).await?;
        refuse_strangers(server, &names, job).await?;
        make(server, &names, default.as_deref(), job).await?;
        let sifted = load(server, &names.new, work.part, work.set, Purpose::Load, job).await?;
        ask_check(server, &names.new, work, job).await?;
        let rows = verify(server, &names.new, &sifted.heard.tables, work.part, job).await?;
        let tables = sifted.heard.tables.len();
        if default.is_none() {
            made.store(true, Ordering::Relaxed);
            server.ask(None, &format!("CREATE DATABASE IF NOT EXISTS {};\n", quoted(&names.live)), job).await?;
        }
        swap::prepare(server, &names, sifted.code, default.as_deref(), job).await?;
        gate.pass().await?;
        Ok((tables, rows))
    };
    let ready = tokio::select! {
        biased;
        () = job.cancel.cancelled() => Err(DataError::Cancelled),
        ready = ready => ready,
    };
    let (tables, rows) = match ready {
        Ok(ready) => ready,
        Err(error) => {
            // Nothing was changed; what cannot be cleared away now is found by the next one.
            if let Err(left) = swap::settle(server, &names, &winding_up).await {
                log.line(format!("`{}` stays for now: {left}", names.new));
            } else if made.load(Ordering::Relaxed)
                && swap::tables(server, &names.live, &winding_up).await.is_ok_and(|tables| tables.is_empty())
                && let Err(left) = swap::drop_database(server, &names.live, &winding_up).await
            {
                log.line(format!("`{}` was made for this and is left, empty: {left}", names.live));
            }
            return Err(error);
        }
    };
    let exchanged = swap::exchange(server, &names, job).await;
    let settled = swap::settle(server, &names, &winding_up).await;
    match (exchanged, settled) {
        (_, Ok(Settled::Forward)) => Ok(Loaded { tables: tables as u64, rows: Some(rows), note: None }),
        (Err(error), Ok(_)) => Err(error),
        (Ok(()), Ok(_)) => Err(DataError::dump("the tables were not exchanged")),
        (exchanged, Err(error)) => {
            let why = exchanged.err().map_or_else(String::new, |first| format!("{first}; then: "));
            let next = "the next backup or restore of this database finishes what was begun";
            Err(DataError::dump(format!("{why}{error}; {next}")))
        }
    }
}

/// Whether there is anything of a database: itself, or what a restore that was killed has left of it.
pub(super) async fn exists(server: &Server<'_>, database: &str, job: &Job) -> Result<bool, DataError> {
    let names = Names::of(database)?;
    let all = [&names.live, &names.new, &names.old].map(|name| text(name)).join(", ");
    let sql = format!("SELECT COUNT(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME IN ({all});\n");
    Ok(first(server.ask(None, &sql, job).await?).is_some_and(|count| count != "0"))
}

/// Finishes what a restore that was killed had begun, if there was one.
pub(super) async fn settle(database: &str, server: &Server<'_>, job: &Job) -> Result<Option<String>, DataError> {
    let names = Names::of(database)?;
    Ok(tell(swap::settle(server, &names, job).await?, &names, job))
}

/// Logs it, and gives it back.
fn tell(settled: Settled, names: &Names, job: &Job) -> Option<String> {
    let live = &names.live;
    let what = match settled {
        Settled::Nothing => return None,
        Settled::Discarded => format!("removed what an interrupted restore had left beside `{live}`"),
        Settled::Back => format!("an interrupted restore of `{live}` was undone: it is as it was before"),
        Settled::Forward => format!("an interrupted restore of `{live}` was finished"),
    };
    job.log.line(&what);
    Some(what)
}

/// How the live database's default character set is put back after the dump's own `ALTER DATABASE`. None: there is no such database.
async fn default_of(server: &Server<'_>, names: &Names, job: &Job) -> Result<Option<String>, DataError> {
    let sql = format!(
        "SELECT DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {};\n",
        text(&names.live)
    );
    let answer = server.ask(None, &sql, job).await?;
    Ok(match answer.first().map(Vec::as_slice) {
        Some([set, collation]) => Some(format!("ALTER DATABASE CHARACTER SET {set} COLLATE {collation}")),
        _ => None,
    })
}

/// A foreign key of another database would follow its table to where that is dropped.
async fn refuse_strangers(server: &Server<'_>, names: &Names, job: &Job) -> Result<(), DataError> {
    let sql = format!(
        "SELECT CONSTRAINT_SCHEMA, TABLE_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS \
         WHERE UNIQUE_CONSTRAINT_SCHEMA = {live} AND CONSTRAINT_SCHEMA <> {live} LIMIT 1;\n",
        live = text(&names.live)
    );
    match server.ask(None, &sql, job).await?.first().map(Vec::as_slice) {
        Some([schema, table]) => Err(DataError::dump(format!(
            "a foreign key of the table `{schema}`.`{table}` refers to it: drop that key, and make it again afterwards"
        ))),
        _ => Ok(()),
    }
}

async fn make(server: &Server<'_>, names: &Names, default: Option<&str>, job: &Job) -> Result<(), DataError> {
    let set = default.and_then(|default| default.strip_prefix("ALTER DATABASE")).unwrap_or_default();
    let made = server.ask(None, &format!("CREATE DATABASE {}{set};\n", quoted(&names.new)), job).await;
    made.map(|_| ()).map_err(|error| match error {
        DataError::Dump { why } if why.contains("1044") => DataError::dump(format!(
            "{why}; a restore is loaded beside the database first: grant its user all rights on `{}` and `{}`",
            names.new, names.old
        )),
        other => other,
    })
}

/// Streams the dump through the sieve into a client.
pub(super) async fn load(
    server: &Server<'_>,
    database: &str,
    part: &Part,
    set: SetDir<'_>,
    purpose: Purpose,
    job: &Job,
) -> Result<Sifted, DataError> {
    let (writer, mut reader) = tokio::io::duplex(PIPE);
    let stop = job.cancel.child_token();
    let inner = Job { log: job.log.clone(), cancel: stop.clone() };
    let client = server.run(Some(database), &mut reader, &inner);
    let mut client = Box::pin(client);
    let mut feeding = Box::pin(feed(part, set, purpose, writer));
    let (sifted, ended) = tokio::select! {
        // A client that ends before its input does has failed, and says why.
        ended = &mut client => {
            ended?;
            return Err(DataError::dump("the client ended before the end of the dump"));
        }
        fed = &mut feeding => {
            if fed.is_err() {
                stop.cancel();
            }
            (fed, client.await)
        }
    };
    // Of a client that was ended because the dump is bad, the dump is the reason.
    let sifted = sifted?;
    ended?;
    Ok(sifted)
}

/// The writer is dropped at the end, which ends the client.
async fn feed(part: &Part, set: SetDir<'_>, purpose: Purpose, mut writer: DuplexStream) -> Result<Sifted, DataError> {
    let refused = |refused| DataError::dump(format!("the dump was refused: {refused}"));
    let lost = |_| DataError::dump("the client takes no more input");
    let mut reader = PartReader::open(set, part)?;
    let mut sieve = Sieve::new(purpose);
    let mut chunk = vec![0; PIPE];
    loop {
        let n = reader.read(&mut chunk).await.map_err(|e| DataError::dump(e.to_string()))?;
        if n == 0 {
            break;
        }
        sieve.feed(&chunk[..n]).map_err(refused)?;
        writer.write_all(&sieve.take()).await.map_err(lost)?;
    }
    reader.finish().await?;
    let sifted = sieve.finish().map_err(refused)?;
    if !sifted.heard.complete {
        return Err(DataError::dump("the dump is cut off: its closing line is missing"));
    }
    writer.write_all(&sifted.rest).await.map_err(lost)?;
    writer.shutdown().await.map_err(lost)?;
    Ok(sifted)
}

/// The configured question, asked of what was loaded, while nothing is changed yet.
async fn ask_check(server: &Server<'_>, database: &str, work: &Work<'_>, job: &Job) -> Result<(), DataError> {
    let Some(query) = &work.backup.check else { return Ok(()) };
    let answer = first(server.ask(Some(database), &format!("{query}\n;\n"), job).await?);
    match check::judge(answer) {
        Ok(_) => Ok(()),
        Err(why) => Err(DataError::dump(format!("the `check`, asked of what was loaded, {why}"))),
    }
}

/// The first column of the first row; NULL is an empty text.
pub(super) fn first(answer: Vec<Row>) -> Option<String> {
    let value = answer.into_iter().next()?.into_iter().next()?;
    Some(if value == "NULL" { String::new() } else { value })
}

/// Compares what is in the tables with what the dump had and with what was noted when it was made. All rows.
async fn verify(
    server: &Server<'_>,
    database: &str,
    dumped: &BTreeMap<String, u64>,
    part: &Part,
    job: &Job,
) -> Result<u64, DataError> {
    for noted in &part.tables {
        let found = dumped.get(&noted.name).copied();
        if found != Some(noted.rows) {
            let found = found.map_or_else(|| "is not in it".to_owned(), |rows| format!("has {rows} rows in it"));
            let why = format!(
                "the dump is not what was noted: the table `{}` should have {} rows and {found}",
                noted.name, noted.rows
            );
            return Err(DataError::dump(why));
        }
    }
    let loaded = count(server, database, dumped.keys(), job).await?;
    for (table, rows) in dumped {
        let found = loaded.get(table).copied().unwrap_or_default();
        if found != *rows {
            let why = format!("the table `{table}` has {found} rows after loading, and {rows} in the dump");
            return Err(DataError::dump(why));
        }
    }
    Ok(loaded.values().sum())
}

/// Counts the rows of tables.
pub(super) async fn count(
    server: &Server<'_>,
    database: &str,
    tables: impl Iterator<Item = &String>,
    job: &Job,
) -> Result<BTreeMap<String, u64>, DataError> {
    let tables: Vec<&String> = tables.collect();
    let sql: String = tables.iter().map(|table| format!("SELECT COUNT(*) FROM {};\n", quoted(table))).collect();
    if sql.is_empty() {
        return Ok(BTreeMap::new());
    }
    let answers = server.ask(Some(database), &sql, job).await?;
    let number = |row: Vec<String>| row.first().and_then(|n| n.parse().ok()).unwrap_or_default();
    Ok(tables.into_iter().cloned().zip(answers.into_iter().map(number)).collect())
}
