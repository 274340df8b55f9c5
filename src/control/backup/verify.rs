//! Verifying by hand.

use super::{Hands, blocking};
use crate::{
    control::{ControlError, Result},
    data::{self, Depth, SetState, VerifyReport, VerifyRequest},
};

impl Hands<'_> {
    /// Looks at a set, the newest where none is named, and keeps what was found beside it.
    pub(super) async fn verify(&self, name: Option<&str>, depth: Depth) -> Result<VerifyReport> {
        let (dir, key) = (self.control.config().server.backups_dir.clone(), self.environment.key.clone());
        let name = name.map(str::to_owned);
        let set = blocking(move || {
            let sets = data::list(&dir, &key)?;
            match name {
                Some(name) => data::find_set(&sets, &key, &name).map(Some),
                None => Ok(sets.into_iter().find(|set| set.state == SetState::Complete)),
            }
        })
        .await?;
        let key = &self.environment.key;
        let set = set.ok_or_else(|| {
            ControlError::usage(format!("{key} has no backup yet"), "`refit backup create` takes one")
        })?;
        if set.state == SetState::Incomplete {
            return Err(ControlError::usage(
                format!("backup {} has no manifest: it is being made, or was interrupted, and is no backup", set.name),
                "`refit backup list` shows what else there is",
            ));
        }
        let request = VerifyRequest { environment: Some(&self.environment), set: &set.path, depth, parts: &[] };
        let report = data::verify_set(request, self.control.world.runtimes.reach(), &self.job).await?;
        Ok(data::keep_verification(&set.path, report).await?)
    }
}
