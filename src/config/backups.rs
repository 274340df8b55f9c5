//! The kinds of `[[backup]]` that are no database: `files`, `volume` and `command`.

use super::{
    read::Reader,
    stages::{environment_and_secrets, name_from},
    types::{Backup, BackupCommand, BackupSource},
    values::{self, docker_name},
};
use crate::model::Name;

/// The keys that only some kinds have.
const SPECIFIC: [&str; 17] = [
    "check",
    "container",
    "database",
    "user",
    "password",
    "format",
    "roles",
    "url",
    "tools",
    "path",
    "volume",
    "exclude",
    "dump",
    "restore",
    "rehearse",
    "env",
    "secrets",
];

/// Every key of another kind is a problem: it would be silently without effect.
pub(super) fn refuse_foreign(table: &Reader<'_>, kind: &str, own: &[&str]) {
    let foreign: Vec<&str> = SPECIFIC.into_iter().filter(|key| !own.contains(key)).collect();
    for key in foreign {
        table.refuse(&[key], &format!("a `{kind}` backup has no `{key}`"), "remove the key");
    }
}

pub(super) fn files(table: &Reader<'_>) -> Option<(BackupSource, Option<Name>)> {
    refuse_foreign(table, "files", &["path", "exclude"]);
    let exclude = table.get("exclude", values::exclusions);
    let path = table.required("path", values::host_path(table.dir))?;
    if path.parent().is_none() {
        let complaint = values::Complaint::new("is the root of this host's files");
        table.complain("path", complaint.help("name the directory that holds the app's files"));
        return None;
    }
    let last = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Some((BackupSource::Files { path, exclude }, name_from(&last, "files")))
}

pub(super) fn volume(table: &Reader<'_>) -> Option<(BackupSource, Option<Name>)> {
    refuse_foreign(table, "volume", &["volume", "exclude"]);
    let exclude = table.get("exclude", values::exclusions);
    let volume = table.required("volume", docker_name)?;
    let name = name_from(&volume, "volume");
    Some((BackupSource::Volume { volume, exclude }, name))
}

pub(super) fn command(table: &Reader<'_>) -> Option<(BackupSource, Option<Name>)> {
    refuse_foreign(table, "command", &["dump", "restore", "rehearse", "container", "env", "secrets"]);
    let dump = table.required("dump", values::filled);
    let restore = table.required("restore", values::filled);
    let rehearse = table.read("rehearse", values::filled);
    let container = table.read("container", docker_name);
    let (env, secrets) = environment_and_secrets(table);
    let command = BackupCommand { dump: dump?, restore: restore?, rehearse, container, env, secrets };
    Some((BackupSource::Command(Box::new(command)), name_from("command", "command")))
}

/// What is put back by exchanging a directory must not hold what is put back otherwise.
pub(super) fn refuse_nested(table: &Reader<'_>, backup: &Backup, others: &[Backup]) {
    let path = |backup: &Backup| match &backup.source {
        BackupSource::Files { path, .. } => Some((true, path.clone())),
        BackupSource::Sqlite { path } => Some((false, path.clone())),
        _ => None,
    };
    let Some((is_dir, own)) = path(backup) else { return };
    for other in others {
        let Some((other_is_dir, others)) = path(other) else { continue };
        let nested = own != others && (other_is_dir && own.starts_with(&others) || is_dir && others.starts_with(&own));
        if nested {
            let complaint =
                values::Complaint::new(format!("this and the backup `{}` lie inside one another", other.name));
            table
                .complain("path", complaint.help("name directories beside each other: one of them is exchanged whole"));
        }
    }
}
