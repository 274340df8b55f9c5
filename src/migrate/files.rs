//! The files of a directory → migrations. Pure: whoever calls has read the tree.
//!
//! The names are those that sqlx reads. Where it would ignore a file that was plainly meant (`0007-add.sql`, `add.sql`), or take one in a way that
//! nobody meant (two of the same number), this says so: a migration that is silently left out is found on the day it is missed.

use std::{borrow::Cow, collections::BTreeMap};

use sqlx::{
    AssertSqlSafe, SqlSafeStr,
    migrate::{Migration as Sql, MigrationType},
};

use crate::{git::Mirror, log::printable, model::CommitId};

/// The first line of a file that is not to run in a transaction; sqlx's own mark.
const NO_TRANSACTION: &str = "-- no-transaction";

/// One migration.
#[derive(Debug, Clone)]
pub struct Migration {
    /// From 1 on.
    pub version: i64,
    /// The file's name between number and ending, with spaces for underscores.
    pub name: String,
    /// The file that applies it, with its directory.
    pub file: String,
    pub(super) up: Sql,
    /// The file that takes it back, and its SQL.
    pub(super) down: Option<(String, Sql)>,
}

impl Migration {
    /// SHA-384 of the file that applies it.
    pub fn checksum(&self) -> &[u8] {
        &self.up.checksum
    }

    pub fn has_down(&self) -> bool {
        self.down.is_some()
    }

    /// Whether it and its row are there together or not at all, on a server that can do that.
    pub fn in_transaction(&self) -> bool {
        !self.up.no_tx
    }

    /// What [`Self::file`] holds.
    pub(super) fn text(&self) -> &str {
        self.up.sql.as_str()
    }

    /// `7 (add mood)`, for people.
    pub fn title(&self) -> String {
        title(self.version, &self.name)
    }
}

pub(super) fn title(version: i64, name: &str) -> String {
    format!("{version} ({})", printable(name))
}

/// The migrations of one directory, by their numbers.
#[derive(Debug, Clone, Default)]
pub struct Files {
    pub migrations: Vec<Migration>,
}

/// What is wrong with a file, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {what}", printable(.file))]
pub struct FileProblem {
    pub file: String,
    pub what: String,
}

/// What a name says.
struct Named<'a> {
    version: i64,
    description: &'a str,
    kind: MigrationType,
}

impl Files {
    /// Whether a file of the directory is one that [`Self::read`] wants to see. Others (a README) are nobody's business.
    pub fn wants(name: &str) -> bool {
        name.to_ascii_lowercase().ends_with(".sql")
    }

    /// `dir` is only for messages. The error has every problem there is.
    pub fn read(dir: &str, files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Self, Vec<FileProblem>> {
        let mut problems = Vec::new();
        let mut ups: BTreeMap<i64, Migration> = BTreeMap::new();
        let mut downs: BTreeMap<i64, (String, Sql)> = BTreeMap::new();
        let mut files: Vec<_> = files.into_iter().collect();
        files.sort();
        for (name, bytes) in files {
            let file = if dir.is_empty() || dir == "." { name.clone() } else { format!("{dir}/{name}") };
            let mut problem = |what: String| problems.push(FileProblem { file: file.clone(), what });
            let named = match parse(&name) {
                Ok(named) => named,
                Err(what) => {
                    problem(what);
                    continue;
                }
            };
            let Ok(text) = String::from_utf8(bytes) else {
                problem("is not UTF-8 text: save it as UTF-8".to_owned());
                continue;
            };
            let version = named.version;
            let twice = |other: &str| {
                format!("has the number {version}, and so has {}: give it one of its own", printable(other))
            };
            let sql = sql(&named, text);
            if named.kind.is_down_migration() {
                match downs.get(&version) {
                    Some((other, _)) => problem(twice(other)),
                    None => drop(downs.insert(version, (file, sql))),
                }
            } else {
                match ups.get(&version) {
                    Some(other) => problem(twice(&other.file)),
                    None => {
                        let name = sql.description.to_string();
                        drop(ups.insert(version, Migration { version, name, file, up: sql, down: None }));
                    }
                }
            }
        }
        pair(&mut ups, downs, &mut problems);
        if problems.is_empty() { Ok(Self { migrations: ups.into_values().collect() }) } else { Err(problems) }
    }

    pub fn get(&self, version: i64) -> Option<&Migration> {
        self.migrations.iter().find(|migration| migration.version == version)
    }
}

/// The migrations in a directory of a commit. Blocks. The error is for people, and has every problem there is.
pub fn files_of(mirror: &Mirror, commit: &CommitId, dir: &str) -> Result<Files, String> {
    let found = mirror.read_dir(commit, dir, Files::wants).map_err(|e| e.to_string())?;
    let found = found.ok_or_else(|| {
        format!("commit {} has no directory `{}`: add it, or set `migrate.files`", commit.short(), printable(dir))
    })?;
    Files::read(dir.trim_end_matches('/'), found).map_err(|problems| {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    })
}

/// Gives each migration its way back.
fn pair(ups: &mut BTreeMap<i64, Migration>, downs: BTreeMap<i64, (String, Sql)>, problems: &mut Vec<FileProblem>) {
    for (version, (file, sql)) in downs {
        let what = match ups.get_mut(&version) {
            Some(up) if up.name != sql.description => {
                format!("has the number of {}, and another name: give both the same", up.file)
            }
            Some(up) => {
                up.down = Some((file, sql));
                continue;
            }
            None => "takes back a migration that is not here: add its `.up.sql`, or remove this".to_owned(),
        };
        problems.push(FileProblem { file, what });
    }
}

/// `<number>_<name>.sql`, `.up.sql`, `.down.sql`; the error says what is not so.
fn parse(name: &str) -> Result<Named<'_>, String> {
    const FORM: &str = "name it `<number>_<name>.up.sql` (with a `.down.sql` beside it) or `<number>_<name>.sql`";
    let bad = |what: &str| format!("{what}: {FORM}");
    let (number, rest) = name.split_once('_').ok_or_else(|| bad("has no `_` after its number"))?;
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad("does not begin with a number"));
    }
    let version = number.parse::<i64>().ok().filter(|n| *n > 0);
    let version = version.ok_or_else(|| bad("has a number that is not from 1 to 9223372036854775807"))?;
    let kind = MigrationType::from_filename(rest);
    let description = rest.strip_suffix(kind.suffix()).ok_or_else(|| bad("does not end in `.sql`, in small letters"))?;
    let lower = description.to_ascii_lowercase();
    if lower.is_empty() || lower == "up" || lower == "down" {
        return Err(bad("has no name after its number"));
    }
    if lower.ends_with(".up") || lower.ends_with(".down") {
        return Err(bad("does not end in `.up.sql` or `.down.sql`, in small letters and once"));
    }
    Ok(Named { version, description, kind })
}

fn sql(named: &Named<'_>, text: String) -> Sql {
    let no_transaction = text.starts_with(NO_TRANSACTION);
    let description = Cow::Owned(named.description.replace('_', " "));
    Sql::new(named.version, description, named.kind, AssertSqlSafe(text).into_sql_str(), no_transaction)
}
