//! Sets that go: by name, or by the retention rule. Never one that holds the last good copy of something, and never one that something
//! still goes back to.

use super::{Hands, Removed, STOPPED, blocking};
use crate::{
    control::{ControlError, Result},
    data::{self, SetSummary},
    pipeline::needed::Need,
};

impl Hands<'_> {
    pub(super) async fn delete(&self, names: &[String]) -> Result<Removed> {
        let (dir, key) = (self.control.config().server.backups_dir.clone(), self.environment.key.clone());
        let needed = self.needed().await?;
        let names = names.to_vec();
        let doomed: Vec<SetSummary> = blocking(move || {
            let all = data::list(&dir, &key)?;
            names.iter().map(|name| data::find_set(&all, &key, name)).collect()
        })
        .await?;
        // All or none: the first name may be the slip.
        let whole = |set: &SetSummary| format!("{}/{}", self.environment.key, set.name);
        for set in &doomed {
            if let Some(need) = needed.iter().find(|need| need.set == whole(set)) {
                return Err(kept(set, &need.why));
            }
        }
        let (dir, key) = (self.control.config().server.backups_dir.clone(), self.environment.key.clone());
        let going = doomed.clone();
        let last = blocking(move || Ok(data::last_copies(&data::list(&dir, &key)?, &going))).await?;
        if let Some((set, why)) = last.first() {
            return Err(kept(set, why));
        }
        let mut removed = Removed { removed: Vec::new(), bytes: 0 };
        for set in doomed {
            self.job.log.line(format!("removing {}", set.name));
            let bytes = set.bytes;
            let name = set.name.clone();
            blocking(move || data::remove_set(&set)).await?;
            removed.removed.push(name);
            removed.bytes += bytes;
        }
        removed.removed.sort();
        Ok(removed)
    }

    pub(super) async fn prune(&self) -> Result<Removed> {
        let dir = self.control.config().server.backups_dir.clone();
        let (key, retention) = (self.environment.key.clone(), self.environment.backup_retention.clone());
        let protect: Vec<String> = self.needed().await?.into_iter().map(|Need { set, .. }| set).collect();
        let pruned = blocking(move || data::prune(&dir, &key, &retention, jiff::Timestamp::now(), &protect)).await?;
        Ok(Removed { removed: pruned.removed, bytes: pruned.bytes })
    }
}

fn kept(set: &SetSummary, why: &str) -> ControlError {
    ControlError::Failed {
        message: format!("backup {} stays, and nothing was removed: it is needed for {why}", set.name),
        hint: Some("`refit backup list` shows what needs each".to_owned()),
        code: STOPPED,
    }
}
