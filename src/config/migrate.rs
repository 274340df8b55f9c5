//! `[migrate]`: the user's own command, or SQL files. A combination that could not keep its promise when it matters is refused here, where
//! nothing has happened yet.

use std::time::Duration;

use super::{
    read::Reader,
    tree::Value,
    types::{
        Backup, BackupSource, Migrate, MigrateCommand, MigrateWith, MigrationDatabase, MigrationFiles, OnMigrateFailure,
    },
    values::{self, Complaint, Parsed, boolean, choice, duration, text},
};
use crate::{model::Name, secret::Secret};

/// What stands in the table, before anything is made of it.
struct Keys {
    run: Option<String>,
    version: Option<String>,
    status: Option<String>,
    down: Option<String>,
    files: Option<String>,
    database: Option<Name>,
    url: Option<Secret>,
    lock_timeout: Duration,
    on_failure: Option<OnMigrateFailure>,
    hold: bool,
}

/// `None` where `run` or `files` is the empty string, by which an environment turns the common one off.
pub(super) fn migrate(table: &Reader<'_>, backups: &[Backup]) -> Option<Migrate> {
    const WAYS: &[(&str, OnMigrateFailure)] =
        &[("keep", OnMigrateFailure::Keep), ("down", OnMigrateFailure::Down), ("restore", OnMigrateFailure::Restore)];
    let on = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
    let keys = Keys {
        run: on(table.read("run", text)),
        version: table.read("version", values::filled),
        status: table.read("status", values::filled),
        down: table.read("down", values::filled),
        files: on(table.read("files", directory)),
        database: table.read("database", values::checked::<Name>),
        url: table.read("url", |value| table.secret(value)),
        lock_timeout: table.get("lock_timeout", duration),
        on_failure: table.read("on_failure", choice(WAYS)),
        hold: table.get("hold", boolean),
    };
    let (timeout, max_backup_age) = (table.get("timeout", duration), table.get("max_backup_age", duration));
    if keys.run.is_none() && keys.files.is_none() {
        if !table.has("run") && !table.has("files") {
            let help = "add `run = \"…\"`, a command, or `files = \"migrations\"`, a directory of SQL files";
            table.missing("run", help.to_owned());
        }
        return None;
    }
    let (on_failure, hold) = (keys.on_failure, keys.hold);
    judge_way_back(table, &keys, backups);
    let with = if keys.files.is_some() { files(table, keys, backups) } else { command(table, keys) };
    Some(Migrate { with: with?, timeout, on_failure: on_failure?, max_backup_age, hold })
}

/// A directory of the repository; the empty string turns it off.
fn directory(value: &Value) -> Parsed<String> {
    match text(value)? {
        empty if empty.trim().is_empty() => Ok(empty),
        _ => values::inner_path(value),
    }
}

fn command(table: &Reader<'_>, keys: Keys) -> Option<MigrateWith> {
    let why = "belongs to migrations in SQL files, and here a command migrates";
    table.refuse(&["database", "url", "lock_timeout"], why, "remove the key, or set `files` in place of `run`");
    Some(MigrateWith::Command(MigrateCommand {
        run: keys.run?,
        version: keys.version,
        status: keys.status,
        down: keys.down,
    }))
}

fn files(table: &Reader<'_>, keys: Keys, backups: &[Backup]) -> Option<MigrateWith> {
    if keys.run.is_some() {
        let complaint = Complaint::new("migrations are either a command (`run`) or SQL files (`files`), not both");
        table.complain("files", complaint.help("keep one; an environment turns the other off with `run = \"\"`"));
        return None;
    }
    let why = "belongs to a command, and here SQL files migrate, whose state the database's own table tells";
    table.refuse(&["version", "status", "down"], why, "remove the key; what undoes `1_x.up.sql` is `1_x.down.sql`");
    let database = database(table, &keys, backups)?;
    Some(MigrateWith::Files(MigrationFiles { dir: keys.files?, database, lock_timeout: keys.lock_timeout }))
}

/// Where the files are applied: what is named, else the only database that is backed up.
fn database(table: &Reader<'_>, keys: &Keys, backups: &[Backup]) -> Option<MigrationDatabase> {
    let mut known = backups.iter().filter(|backup| is_database(&backup.source)).map(|backup| &backup.name);
    match (&keys.database, &keys.url) {
        (Some(_), Some(_)) => {
            let complaint = Complaint::new("the database is given twice, by `database` and by `url`");
            table.complain("url", complaint.help("keep one of them"));
            None
        }
        (Some(name), None) if known.any(|known| known == name) => Some(MigrationDatabase::Backup(name.clone())),
        (Some(name), None) => {
            let complaint = Complaint::new(format!("there is no database `{name}` among the `[[backup]]` entries"));
            let help = "name one of kind postgres, mysql or sqlite, or give `url = { env = \"DATABASE_URL\" }`";
            table.complain("database", complaint.help(help));
            None
        }
        (None, Some(url)) => {
            check_url(table, url);
            Some(MigrationDatabase::Url(url.clone()))
        }
        // What is there was read and is a problem already.
        (None, None) if table.has("database") || table.has("url") => None,
        (None, None) => match (known.next(), known.next()) {
            (Some(only), None) => Some(MigrationDatabase::Backup(only.clone())),
            (first, _) => {
                let which = if first.is_none() { "no database" } else { "more than one database" };
                let complaint = Complaint::new(format!("{which} is backed up here, so `files` needs to be told where"));
                let help =
                    "add `database = \"NAME\"`, the name of a `[[backup]]`, or `url = { env = \"DATABASE_URL\" }`";
                table.complain("files", complaint.help(help));
                None
            }
        },
    }
}

fn is_database(source: &BackupSource) -> bool {
    matches!(
        source,
        BackupSource::Postgres { .. }
            | BackupSource::PostgresUrl { .. }
            | BackupSource::Mysql { .. }
            | BackupSource::MysqlUrl { .. }
            | BackupSource::Sqlite { .. }
    )
}

/// The scheme says which kind of database it is. The value itself is never shown.
fn check_url(table: &Reader<'_>, url: &Secret) {
    const KNOWN: [&str; 5] = ["postgres:", "postgresql:", "mysql:", "mariadb:", "sqlite:"];
    let text = url.expose();
    // Missing secrets are allowed to commands that only read.
    if text.is_empty() || KNOWN.iter().any(|scheme| text.starts_with(scheme)) {
        return;
    }
    let complaint = Complaint::new("the URL is of no database that SQL files can be applied to");
    let help =
        "it begins with postgres://, mysql:// or sqlite:///ABSOLUTE/PATH; for anything else use a command, `run`";
    table.complain("url", complaint.help(help));
}

/// Whether what `on_failure` promises can be kept.
fn judge_way_back(table: &Reader<'_>, keys: &Keys, backups: &[Backup]) {
    let complain = |what: &str, help: &str| table.complain("on_failure", Complaint::new(what).help(help));
    match keys.on_failure {
        Some(OnMigrateFailure::Down) if keys.files.is_none() && (keys.down.is_none() || keys.version.is_none()) => {
            complain(
                "\"down\" needs to know where the schema was, and how it comes back",
                "add `version = \"…\"`, which prints the schema's version, and `down = \"…\"`, which goes back to the one in \
                 $REFIT_SCHEMA_BEFORE; or use \"keep\"",
            );
        }
        Some(OnMigrateFailure::Restore) if !keys.hold => complain(
            "\"restore\" would lose what is written between the backup and the failure, while the app runs",
            "add `hold = true`, which stops the app before the backup and the migration; or use \"down\" or \"keep\"",
        ),
        Some(OnMigrateFailure::Restore) if backups.is_empty() => {
            complain("\"restore\" has nothing to put back", "add a `[[backup]]` of the database, or use \"keep\"");
        }
        Some(OnMigrateFailure::Restore) => {
            if let Some(name) = &keys.database
                && !backups.iter().any(|backup| backup.name == *name)
            {
                complain("\"restore\" has no backup of this database", "add a `[[backup]]` of it, or use \"keep\"");
            }
        }
        _ => {}
    }
    if keys.files.is_none() && keys.on_failure != Some(OnMigrateFailure::Down) && keys.down.is_some() {
        let complaint = Complaint::new("is never run, because `on_failure` is not \"down\"");
        table.complain("down", complaint.help("set `on_failure = \"down\"`, or remove the key"));
    }
}
