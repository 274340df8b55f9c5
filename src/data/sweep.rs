//! What a Refit that was killed left of backups, rehearsals and restores: containers, trees that grow beside what they were to replace,
//! databases beside the live one, copies that were looked at. Each is known by its name or its label, and is removed or, where an exchange was
//! begun, brought to its end; the next restore would do the same.

use std::{io, path::Path};

use super::{
    Reach,
    kind::{self, kind_of},
    layout::environment_dir,
    manifest::PartKind,
    part,
};
use crate::{config::Environment, runtime::Job};

/// What was done, and what could not be, for people. Only while nothing else is at work on the data of this environment.
pub async fn sweep_leftovers(
    environment: &Environment,
    backups_dir: &Path,
    reach: Reach<'_>,
    job: &Job,
) -> Vec<String> {
    let mut said = Vec::new();
    if environment.backups.is_empty() {
        return said;
    }
    if let Some(scratch) = reach.scratch {
        // An engine that is away is looked at by who needs it.
        let swept = scratch.sweep_scratch(&environment.key).await.unwrap_or_default();
        said.extend(swept.into_iter().map(|name| format!("removed container {name}")));
    }
    for backup in &environment.backups {
        let kind = kind_of(PartKind::of(&backup.source));
        let source = backup.source.clone();
        let files = tokio::task::spawn_blocking(move || kind.discard_leftovers(&source)).await;
        match files {
            Ok(Ok(removed)) => said.extend(removed.iter().map(|path| format!("removed {}", path.display()))),
            Ok(Err(error)) => said.push(format!("{}: {error}", kind::place(&backup.source))),
            Err(_) => {}
        }
        match kind.sweep(backup, &environment.key, reach, job).await {
            Ok(done) => said.extend(done),
            // A server that is away, mostly; the next backup or restore says so if it still is.
            Err(error) => tracing::debug!(backup = %backup.name, %error, "its leftovers cannot be looked for"),
        }
    }
    let (dir, key) = (backups_dir.to_owned(), environment.key.clone());
    let looks = tokio::task::spawn_blocking(move || remove_copies(&environment_dir(&dir, &key))).await;
    said.extend(looks.unwrap_or_default());
    said
}

/// Copies of parts, in their sets, that a verification restored there.
fn remove_copies(sets: &Path) -> Vec<String> {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut said = Vec::new();
    for set in entries(sets).filter(|set| set.file_type().is_ok_and(|kind| kind.is_dir())) {
        for entry in entries(&set.path()) {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with('.') && name.ends_with(part::LOOK)) else {
                continue;
            };
            let path = set.path().join(name);
            match remove(&path) {
                Ok(()) => said.push(format!("removed {}", path.display())),
                Err(error) => said.push(format!("{}: {error}", path.display())),
            }
        }
    }
    said
}

fn remove(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}
