//! The last step: what was loaded beside the live database takes its place.
//!
//! MySQL has no transaction around `CREATE` and `DROP`, and nothing renames a database. But one `RENAME TABLE` moves any number of tables between
//! databases, all or none, for every connection at the same moment. Tables only: a table that has triggers cannot leave its
//! database, and views, routines and events cannot at all. So those are written down first, then taken away, and made anew from what was
//! written. Beside `shop` there are, during a restore:
//!
//! - `shop__refit_new`, with what was loaded;
//! - `shop__refit_old`, which gets the old tables. In it is the journal: a table with the SQL of all views, triggers, routines and
//!   events of both sides. Its name tells how far the swap has come: `filling`, `prepared`, `swapped`, `done`.
//!
//! | step | killed after it, [`settle`] |
//! |---|---|
//! | new and old databases made, dump loaded, journal `filling` | drops both: nothing of the live one was touched |
//! | journal complete: `prepared` | makes the old views, triggers, routines and events anew, drops both: **all old** |
//! | live views, triggers, routines, events dropped | the same |
//! | `RENAME TABLE` of all tables and, with them, of the journal to `swapped` | makes the new ones, drops both: **all new** |
//! | new views, triggers, routines, events made: `done` | drops both |
//!
//! Because the journal is renamed by the very statement that exchanges the tables, its name never tells anything else than what is. Doing a
//! row of the table twice comes to the same: objects are dropped, then made.
//!
//! What an app could see that runs nevertheless: for a moment tables without triggers and views, never a mixture of old and new rows. A
//! server that loses its power within the `RENAME` undoes it when it starts (MariaDB from 10.6, MySQL from 8.0); older ones do not promise that.
//!
//! Rights on the database, its default character set and its place in replication belong to its name and stay.

use super::{
    client::{LOCK_WAIT, Server, quoted, text},
    sieve::{Code, Purpose, Sieve, write_statement},
};
use crate::{data::DataError, runtime::Job};

/// What a journal's name begins with; the rest is the phase.
const JOURNAL: &str = "refit_restore_";

/// Hexadecimal digits of SQL in one statement that fills the journal.
const FILL: usize = 512 * 1024;

/// The databases of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub live: String,
    pub new: String,
    pub old: String,
}

impl Names {
    /// The server's limit is 64 characters.
    pub fn of(database: &str) -> Result<Self, DataError> {
        const LONGEST: usize = 64;
        let names = Self {
            live: database.to_owned(),
            new: format!("{database}__refit_new"),
            old: format!("{database}__refit_old"),
        };
        if names.new.chars().count() > LONGEST {
            let why = format!("its name leaves no room for `{}`, which is loaded beside it: rename it", names.new);
            return Err(DataError::dump(why));
        }
        Ok(names)
    }
}

/// What an earlier restore had left, and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    Nothing,
    /// It had not changed the live database.
    Discarded,
    /// The old data is there again in full.
    Back,
    /// The new data is there in full.
    Forward,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Filling,
    Prepared,
    Swapped,
    Done,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Filling, Self::Prepared, Self::Swapped, Self::Done];

    fn table(self) -> String {
        let phase = match self {
            Self::Filling => "filling",
            Self::Prepared => "prepared",
            Self::Swapped => "swapped",
            Self::Done => "done",
        };
        format!("{JOURNAL}{phase}")
    }
}

/// Finishes or undoes what a restore that was killed had begun.
pub(super) async fn settle(server: &Server<'_>, names: &Names, job: &Job) -> Result<Settled, DataError> {
    let (new, old) = exist(server, names, job).await?;
    let settled = match (new, old) {
        (false, false) => return Ok(Settled::Nothing),
        (_, false) => Settled::Discarded,
        (_, true) => match latest_phase(server, names, job).await? {
            None | Some(Phase::Filling) => Settled::Discarded,
            Some(Phase::Prepared) => {
                replay(server, names, Phase::Prepared, job).await?;
                Settled::Back
            }
            Some(Phase::Swapped) => {
                replay(server, names, Phase::Swapped, job).await?;
                rename_journal(server, names, Phase::Swapped, Phase::Done, job).await?;
                Settled::Forward
            }
            Some(Phase::Done) => Settled::Forward,
        },
    };
    // The journal goes last: until then all of this can be done again.
    drop_database(server, &names.new, job).await?;
    drop_database(server, &names.old, job).await?;
    Ok(settled)
}

/// Whether there is a new and an old one.
async fn exist(server: &Server<'_>, names: &Names, job: &Job) -> Result<(bool, bool), DataError> {
    let one =
        |name: &str| format!("SELECT COUNT(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {};\n", text(name));
    let answer = server.ask(None, &(one(&names.new) + &one(&names.old)), job).await?;
    let is = |n: usize| answer.get(n).and_then(|row| row.first()).is_some_and(|count| count != "0");
    Ok((is(0), is(1)))
}

/// The phase, once nobody is at work any more: the client of a Refit that was killed may have been told to rename, and wait for a lock.
async fn latest_phase(server: &Server<'_>, names: &Names, job: &Job) -> Result<Option<Phase>, DataError> {
    server.ask(None, &alone(names), job).await?;
    phase(server, names, job).await
}

/// Waits until no other session has said the same. Ends with the session.
fn alone(names: &Names) -> String {
    let waits = 2 * LOCK_WAIT;
    format!("DO GET_LOCK(LEFT(CONCAT('refit:', SHA1({})), 64), {waits});\n", text(&names.live))
}

async fn phase(server: &Server<'_>, names: &Names, job: &Job) -> Result<Option<Phase>, DataError> {
    let tables = tables(server, &names.old, job).await?;
    Ok(Phase::ALL.into_iter().rev().find(|phase| tables.contains(&phase.table())))
}

pub(super) async fn drop_database(server: &Server<'_>, name: &str, job: &Job) -> Result<(), DataError> {
    // Of several restores' old tables one may refer to another; nothing outside may (see `refuse_strangers`).
    let sql = format!("SET SESSION foreign_key_checks = 0;\nDROP DATABASE IF EXISTS {};\n", quoted(name));
    server.ask(None, &sql, job).await.map(|_| ())
}

/// Tables and sequences.
pub(super) async fn tables(server: &Server<'_>, database: &str, job: &Job) -> Result<Vec<String>, DataError> {
    let sql = "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE NOT LIKE '%VIEW';\n";
    Ok(server.ask(Some(database), sql, job).await?.into_iter().flatten().collect())
}

/// Everything is loaded and verified: writes down what must be made anew, on either side. The live database is only read.
pub(super) async fn prepare(
    server: &Server<'_>,
    names: &Names,
    new_code: Vec<Code>,
    default: Option<&str>,
    job: &Job,
) -> Result<(), DataError> {
    let old_code = code_of(server, &names.live, job).await?;
    clear(server, &names.new, job).await?;
    let journal = format!("{}.{}", quoted(&names.old), quoted(&Phase::Filling.table()));
    let mut sql = format!(
        "CREATE DATABASE {};\nCREATE TABLE {journal} (side CHAR(3) NOT NULL, turn INT NOT NULL, statement LONGBLOB NOT NULL, \
         PRIMARY KEY (side, turn)) ENGINE=InnoDB;\n",
        quoted(&names.old)
    );
    for (side, mut code) in [("old", old_code), ("new", new_code)] {
        code.extend(default.map(|default| default.as_bytes().to_vec()));
        fill(&mut sql, &journal, side, &code);
    }
    server.run(None, &mut sql.as_bytes(), job).await?;
    rename_journal(server, names, Phase::Filling, Phase::Prepared, job).await
}

fn fill(sql: &mut String, journal: &str, side: &str, code: &[Code]) {
    let mut room = 0;
    for (turn, statement) in code.iter().enumerate() {
        if room < statement.len() * 2 {
            if turn > 0 {
                sql.push_str(";\n");
            }
            sql.push_str(&format!("INSERT INTO {journal} VALUES"));
            room = FILL;
        } else {
            sql.push(',');
        }
        room = room.saturating_sub(statement.len() * 2);
        sql.push_str(&format!("('{side}',{turn},x'{}')", hex::encode(statement)));
    }
    if !code.is_empty() {
        sql.push_str(";\n");
    }
}

async fn rename_journal(
    server: &Server<'_>,
    names: &Names,
    from: Phase,
    to: Phase,
    job: &Job,
) -> Result<(), DataError> {
    let old = quoted(&names.old);
    let sql = format!("RENAME TABLE {old}.{} TO {old}.{};\n", quoted(&from.table()), quoted(&to.table()));
    server.ask(None, &sql, job).await.map(|_| ())
}

/// The SQL of a database's views, triggers, routines and events.
async fn code_of(server: &Server<'_>, database: &str, job: &Job) -> Result<Vec<Code>, DataError> {
    let mut sieve = Sifting(Sieve::new(Purpose::Code));
    let options = ["--no-data", "--single-transaction", "--skip-lock-tables", "--skip-triggers", "--triggers"];
    let ended = server.dump(database, &options, &mut sieve, job).await?;
    super::client::succeeded(server.dump_name(), &ended)?;
    let sifted = sieve.0.finish().map_err(|refused| DataError::dump(format!("what is there now: {refused}")))?;
    if let Some(missing) = sifted.heard.missing {
        return Err(DataError::dump(format!("what is there now: {missing}")));
    }
    Ok(sifted.code)
}

/// A sink that sifts.
#[derive(Debug)]
struct Sifting(Sieve);

impl tokio::io::AsyncWrite for Sifting {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        let fed = self.0.feed(buf).map_err(|refused| std::io::Error::other(refused.to_string()));
        std::task::Poll::Ready(fed.map(|()| buf.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

/// Drops views, triggers, routines and events.
async fn clear(server: &Server<'_>, database: &str, job: &Job) -> Result<(), DataError> {
    let list = "SELECT 'TRIGGER', TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE() \
                UNION ALL SELECT 'EVENT', EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA = DATABASE() \
                UNION ALL SELECT 'VIEW', TABLE_NAME FROM information_schema.VIEWS WHERE TABLE_SCHEMA = DATABASE() \
                UNION ALL SELECT ROUTINE_TYPE, ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = DATABASE();\n";
    let (mut sql, mut packages) = (String::new(), String::new());
    for row in server.ask(Some(database), list, job).await? {
        let [what, name] = row.as_slice() else { continue };
        let into = if what.starts_with("PACKAGE") { &mut packages } else { &mut sql };
        into.push_str(&format!("DROP {what} IF EXISTS {};\n", quoted(name)));
    }
    if !packages.is_empty() {
        // MariaDB knows the word in this mode only.
        sql.push_str("SET SESSION sql_mode = 'ORACLE';\n");
        sql.push_str(&packages);
    }
    if sql.is_empty() {
        return Ok(());
    }
    server.run(Some(database), &mut sql.as_bytes(), job).await
}

/// Makes the live database's views, triggers, routines and events those of the journal's one side.
async fn replay(server: &Server<'_>, names: &Names, phase: Phase, job: &Job) -> Result<(), DataError> {
    let side = if phase == Phase::Swapped { "new" } else { "old" };
    let journal = format!("{}.{}", quoted(&names.old), quoted(&phase.table()));
    let sql = format!("SELECT HEX(statement) FROM {journal} WHERE side = '{side}' ORDER BY turn;\n");
    let mut code = vec![alone(names).trim().trim_end_matches(';').as_bytes().to_vec()];
    for statement in server.ask(None, &sql, job).await?.into_iter().flatten() {
        code.push(hex::decode(&statement).map_err(|e| DataError::dump(format!("{journal}: {e}")))?);
    }
    make_code(server, &names.live, &code, job).await
}

/// Makes a database's views, triggers, routines and events exactly these.
pub(super) async fn make_code(server: &Server<'_>, database: &str, code: &[Code], job: &Job) -> Result<(), DataError> {
    clear(server, database, job).await?;
    let mut sql = Vec::new();
    code.iter().for_each(|statement| write_statement(&mut sql, statement));
    server.run(Some(database), &mut sql.as_slice(), job).await
}

/// The gate is open. From here on [`settle`] brings everything to one end or the other.
pub(super) async fn exchange(server: &Server<'_>, names: &Names, job: &Job) -> Result<(), DataError> {
    let (old_tables, new_tables) = (tables(server, &names.live, job).await?, tables(server, &names.new, job).await?);
    if let Err(error) = try_locks(server, &names.live, &old_tables, job).await {
        // Nothing of the live one was touched, and nothing of it is to be made anew.
        rename_journal(server, names, Phase::Prepared, Phase::Filling, job).await?;
        return Err(in_use(error));
    }
    clear(server, &names.live, job).await?;
    let mut moves = Vec::new();
    for (tables, from, to) in [(old_tables, &names.live, &names.old), (new_tables, &names.new, &names.live)] {
        for table in tables {
            let table = quoted(&table);
            moves.push(format!("{}.{table} TO {}.{table}", quoted(from), quoted(to)));
        }
    }
    let old = quoted(&names.old);
    let (from, to) = (quoted(&Phase::Prepared.table()), quoted(&Phase::Swapped.table()));
    moves.push(format!("{old}.{from} TO {old}.{to}"));
    // A client whose input ends in the middle of a statement would send what it has, which might be a shorter list. It cannot
    // execute what it has no whole text of.
    let sql = format!(
        "{}SET SESSION foreign_key_checks = 0;\nSET @refit = {};\nPREPARE refit FROM @refit;\nEXECUTE refit;\n",
        alone(names),
        text(&format!("RENAME TABLE {}", moves.join(", ")))
    );
    server.run(None, &mut sql.as_bytes(), job).await.map_err(in_use)
}

/// Whether every table could be locked just now: whoever would keep the exchange waiting is met before anything is taken away.
async fn try_locks(server: &Server<'_>, database: &str, tables: &[String], job: &Job) -> Result<(), DataError> {
    if tables.is_empty() {
        return Ok(());
    }
    let locks: Vec<String> = tables.iter().map(|table| format!("{} WRITE", quoted(table))).collect();
    let sql = format!("LOCK TABLES {};\nUNLOCK TABLES;\n", locks.join(", "));
    server.run(Some(database), &mut sql.as_bytes(), job).await
}

fn in_use(error: DataError) -> DataError {
    match error {
        DataError::Dump { why } if why.contains("1205") => {
            let next = "another connection is using a table: close it (`SHOW PROCESSLIST` lists them)";
            DataError::dump(format!("{why}; {next}"))
        }
        other => other,
    }
}
