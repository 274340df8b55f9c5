//! Carrying a plan out, file by file, and looking at how things stand.

use std::{fmt::Write as _, time::Duration};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{
    Problem, SessionError,
    files::{Files, Migration},
    place::{Options, Place},
    plan::{Applied, newest, unknown_to},
    session::{Session, at},
};
use crate::log::StageLog;

/// Is told of each migration before anything of it is done, and after. What it says no to is not done.
#[async_trait]
pub trait Witness: Send {
    /// The error is for people.
    async fn intent(&mut self, migration: &Migration) -> Result<(), String>;
    async fn effect(&mut self, migration: &Migration);
}

/// Nobody needs to know.
#[derive(Debug)]
pub struct NoWitness;

#[async_trait]
impl Witness for NoWitness {
    async fn intent(&mut self, _migration: &Migration) -> Result<(), String> {
        Ok(())
    }

    async fn effect(&mut self, _migration: &Migration) {}
}

/// One migration that was applied or taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    pub version: i64,
    pub title: String,
    pub took: Duration,
}

/// What stopped it, on the way through the files; those before it stand.
#[derive(Debug)]
pub struct Failure {
    /// Names the file.
    pub message: String,
    pub cause: SessionError,
}

/// How a database stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub applied: Vec<Applied>,
}

impl State {
    /// For people and the journal: the newest number with its name, `none` where nothing was ever applied.
    pub fn version(&self) -> String {
        let last = self.applied.iter().max_by_key(|row| row.version);
        last.map_or_else(|| "none".to_owned(), |row| super::files::title(row.version, &row.name))
    }

    pub fn newest(&self) -> Option<i64> {
        newest(&self.applied)
    }

    /// The migration that stopped half way.
    pub fn dirty(&self) -> Option<Problem> {
        let row = self.applied.iter().find(|row| !row.success)?;
        Some(Problem::Dirty { version: row.version, name: row.name.clone() })
    }

    /// The newest migration under `version`; 0 where there is none.
    pub fn below(&self, version: i64) -> i64 {
        self.applied.iter().map(|row| row.version).filter(|other| *other < version).max().unwrap_or_default()
    }

    pub fn has(&self, version: i64) -> bool {
        self.applied.iter().any(|row| row.version == version)
    }

    /// What the database has and these files do not, each as `7 (add mood)`.
    pub fn unknown_to(&self, files: &Files) -> Vec<String> {
        unknown_to(files, &self.applied)
    }
}

/// Reads the table, without a lock and without making anything.
pub async fn look(place: &Place, cancel: &CancellationToken) -> Result<State, SessionError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    if let Options::Sqlite(options) = &place.options
        && !options.get_filename().exists()
    {
        return Ok(State { applied: Vec::new() });
    }
    let mut session = Session::open(place, PATIENCE, cancel).await?;
    let applied = session.applied().await;
    session.close().await;
    Ok(State { applied: applied? })
}

/// Applies `migrations`, in the order given. The session has the lock.
pub async fn up(
    session: &mut Session,
    migrations: &[&Migration],
    log: &StageLog,
    witness: &mut dyn Witness,
) -> Result<Vec<Carried>, Failure> {
    let mut carried = Vec::new();
    for (n, migration) in migrations.iter().enumerate() {
        log.line(format!("applying {} ({} of {})", migration.file, n + 1, migrations.len()));
        intend(witness, migration).await?;
        let took = match session.apply(migration).await {
            Ok(took) => took,
            Err(cause) => return Err(failure(session, migration, cause).await),
        };
        witness.effect(migration).await;
        log.line(format!("applied {} in {} ms", migration.title(), took.as_millis()));
        carried.push(Carried { version: migration.version, title: migration.title(), took });
    }
    Ok(carried)
}

/// Takes `migrations` back, in the order given. The session has the lock.
pub async fn down(
    session: &mut Session,
    migrations: &[&Migration],
    log: &StageLog,
    witness: &mut dyn Witness,
) -> Result<Vec<Carried>, Failure> {
    let mut carried = Vec::new();
    for migration in migrations {
        log.line(format!("taking back {}", migration.title()));
        intend(witness, migration).await?;
        let took = session.revert(migration).await.map_err(|cause| Failure {
            message: format!("{} was not taken back: {cause}", migration.title()),
            cause,
        })?;
        witness.effect(migration).await;
        log.line(format!("took back {} in {} ms", migration.title(), took.as_millis()));
        carried.push(Carried { version: migration.version, title: migration.title(), took });
    }
    Ok(carried)
}

async fn intend(witness: &mut dyn Witness, migration: &Migration) -> Result<(), Failure> {
    witness.intent(migration).await.map_err(|why| Failure {
        message: format!("{} was not begun: {why}", migration.file),
        cause: SessionError::Unfit(why),
    })
}

/// What a file that failed left behind.
async fn failure(session: &mut Session, migration: &Migration, cause: SessionError) -> Failure {
    let line = if let SessionError::Sql { line, .. } = &cause { *line } else { None };
    let mut message = format!("{}: {cause}", at(&migration.file, line));
    if matches!(cause, SessionError::Cancelled) {
        return Failure { message, cause };
    }
    // Writing to a string does not fail.
    let _ = match session.applied().await.map(|applied| State { applied }) {
        Ok(state) if state.dirty().is_some() => {
            state.dirty().map_or(Ok(()), |dirty| write!(message, "; {dirty}"))
        }
        Ok(_) if migration.up.no_tx && session.server().undoes() => {
            write!(message, "; it runs without a transaction (`-- no-transaction`), so what it did before that stays")
        }
        Ok(_) if session.server().undoes() => write!(message, "; its transaction was undone"),
        Ok(_) => Ok(()),
        Err(error) => write!(message, "; what it left is not known: {error}"),
    };
    Failure { message, cause }
}
