//! What is to be done, from the files and the table. Pure: it sees everything at once, and names everything that is wrong.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    TABLE,
    files::{Files, Migration, title},
};

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub version: i64,
    pub name: String,
    pub checksum: Vec<u8>,
    /// False: it stopped half way, on a server that cannot undo it.
    pub success: bool,
    /// When, as the database writes it (UTC).
    pub at: String,
}

impl Applied {
    fn title(&self) -> String {
        title(self.version, &self.name)
    }
}

/// Why nothing can be done; each says what, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error(
        "{} stopped half way: the database is dirty. Look at what it did; then either finish it by hand and say so (`UPDATE {TABLE} SET success = TRUE \
         WHERE version = {version}`), or take it back by hand and forget it (`DELETE FROM {TABLE} WHERE version = {version}`)",
        title(*version, name)
    )]
    Dirty { version: i64, name: String },
    #[error(
        "{file} was edited after it was applied: put it back as it was (`git log -- {file}`), and make the change in a new migration"
    )]
    Edited { file: String },
    #[error(
        "the database has migration {}, and this commit does not: deploy a commit that has it, or take it back first (`refit migrate down --to {below} \
         --commit SHA`, with a commit that has it)",
        title(*version, name)
    )]
    Missing { version: i64, name: String, below: i64 },
    #[error(
        "{file} came too late: {newest} is applied already, and was not made to follow it; give the file a number above {newest}"
    )]
    OutOfOrder { file: String, newest: i64 },
    #[error("there is no migration {0} here: `refit migrate status` lists them")]
    NoSuchVersion(i64),
    #[error("{file} cannot be taken back: there is no `.down.sql` beside it; {advice}")]
    NoDown { file: String, advice: &'static str },
}

/// Every problem there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("; ")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

/// The newest migration that a database has; `None` for one that was never migrated.
pub fn newest(applied: &[Applied]) -> Option<i64> {
    applied.iter().map(|row| row.version).max()
}

/// The migrations to apply, in order; up to and with `to` where that is given. With `reversible` each of them must have a way back.
pub fn plan_up<'a>(
    files: &'a Files,
    applied: &[Applied],
    to: Option<i64>,
    reversible: bool,
) -> Result<Vec<&'a Migration>, Problems> {
    let mut problems = disagreements(files, applied);
    if let Some(to) = to
        && files.get(to).is_none()
    {
        problems.push(Problem::NoSuchVersion(to));
    }
    let is_applied = |migration: &Migration| applied.iter().any(|row| row.version == migration.version);
    let pending: Vec<_> = files.migrations.iter().filter(|migration| !is_applied(migration)).collect();
    let newest = newest(applied).unwrap_or_default();
    for late in pending.iter().filter(|migration| migration.version < newest) {
        problems.push(Problem::OutOfOrder { file: late.file.clone(), newest });
    }
    let pending: Vec<_> = pending.into_iter().filter(|migration| to.is_none_or(|to| migration.version <= to)).collect();
    if reversible {
        let advice = "add it, or set `on_failure = \"keep\"`";
        problems.extend(no_way_back(&pending, advice));
    }
    if problems.is_empty() { Ok(pending) } else { Err(Problems(problems)) }
}

/// The migrations to take back, newest first: all above `to`.
pub fn plan_down<'a>(files: &'a Files, applied: &[Applied], to: i64) -> Result<Vec<&'a Migration>, Problems> {
    let mut problems = disagreements(files, applied);
    // What stays is not touched, and need not be known here: going back is for getting out of trouble.
    problems.retain(|problem| !matches!(problem, Problem::Missing { version, .. } if *version <= to));
    if to != 0 && !applied.iter().any(|row| row.version == to) {
        problems.push(Problem::NoSuchVersion(to));
    }
    let mut back: Vec<_> = files
        .migrations
        .iter()
        .filter(|migration| migration.version > to && applied.iter().any(|row| row.version == migration.version))
        .collect();
    back.reverse();
    problems.extend(no_way_back(&back, "take it back by hand, or put back a backup"));
    if problems.is_empty() { Ok(back) } else { Err(Problems(problems)) }
}

fn no_way_back(migrations: &[&Migration], advice: &'static str) -> Vec<Problem> {
    let without = migrations.iter().filter(|migration| !migration.has_down());
    without.map(|migration| Problem::NoDown { file: migration.file.clone(), advice }).collect()
}

/// Where files and table are not about the same history.
fn disagreements(files: &Files, applied: &[Applied]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut below = 0;
    for row in applied {
        if !row.success {
            problems.push(Problem::Dirty { version: row.version, name: row.name.clone() });
        }
        match files.get(row.version) {
            None => problems.push(Problem::Missing { version: row.version, name: row.name.clone(), below }),
            Some(file) if file.checksum() != row.checksum => {
                problems.push(Problem::Edited { file: file.file.clone() });
            }
            Some(_) => below = row.version,
        }
    }
    problems
}

/// A migration as a person looks at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub version: i64,
    pub name: String,
    pub state: RowState,
    /// When it was applied, UTC.
    pub applied_at: Option<String>,
    /// The file; `None` where this commit has none.
    pub file: Option<String>,
    /// Whether it can be taken back.
    pub reversible: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowState {
    Applied,
    Pending,
    /// Applied, and its file is another one now.
    Edited,
    /// Applied, and this commit has no such file.
    Missing,
    /// It stopped half way.
    Dirty,
    /// Not applied, and one with a greater number is.
    TooLate,
}

impl RowState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Pending => "pending",
            Self::Edited => "edited",
            Self::Missing => "missing",
            Self::Dirty => "dirty",
            Self::TooLate => "too late",
        }
    }
}

/// Every migration that the files or the table know, by number.
pub fn rows(files: &Files, applied: &[Applied]) -> Vec<Row> {
    let newest = newest(applied).unwrap_or_default();
    let mut rows: Vec<Row> = applied.iter().map(|row| of_applied(files, row)).collect();
    for migration in &files.migrations {
        if applied.iter().any(|row| row.version == migration.version) {
            continue;
        }
        let state = if migration.version < newest { RowState::TooLate } else { RowState::Pending };
        rows.push(Row {
            version: migration.version,
            name: migration.name.clone(),
            state,
            applied_at: None,
            file: Some(migration.file.clone()),
            reversible: migration.has_down(),
        });
    }
    rows.sort_by_key(|row| row.version);
    rows
}

fn of_applied(files: &Files, row: &Applied) -> Row {
    let file = files.get(row.version);
    let state = match file {
        _ if !row.success => RowState::Dirty,
        None => RowState::Missing,
        Some(file) if file.checksum() != row.checksum => RowState::Edited,
        Some(_) => RowState::Applied,
    };
    Row {
        version: row.version,
        name: row.name.clone(),
        state,
        applied_at: Some(row.at.clone()),
        file: file.map(|file| file.file.clone()),
        reversible: file.is_some_and(Migration::has_down),
    }
}

/// What a database has and a commit's files do not: what a rollback to that commit would meet.
pub(super) fn unknown_to(files: &Files, applied: &[Applied]) -> Vec<String> {
    applied.iter().filter(|row| files.get(row.version).is_none()).map(Applied::title).collect()
}
