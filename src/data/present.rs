//! What there is, before a restore, to be backed up: on a new machine, or after a loss, some of it is what the restore will make.

use super::{
    Reach,
    kind::{self, kind_of},
    manifest::PartKind,
};
use crate::{config::Environment, runtime::Job};

/// The environment without the sources that do not exist yet; the log names them. One that cannot be asked counts as there: backing it up
/// says what is wrong.
pub async fn present(environment: &Environment, reach: Reach<'_>, job: &Job) -> Environment {
    let mut present = environment.clone();
    present.backups.clear();
    for backup in &environment.backups {
        let kind = kind_of(PartKind::of(&backup.source));
        match kind.exists(backup, &environment.key, reach, job).await {
            Ok(false) => {
                let place = kind::place(&backup.source);
                job.log
                    .line(format!("`{}` is not there yet ({place}): there is nothing of it to back up", backup.name));
            }
            Ok(true) | Err(_) => present.backups.push(backup.clone()),
        }
    }
    present
}
