//! Looking at backups, with or without a daemon.

use serde::Serialize;

use super::blocking;
use crate::{
    control::{ControlError, Observer, Result},
    data::{self, SetSummary},
    model::EnvironmentKey,
    pipeline::needed,
};

/// One set, and what is to be known before it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupEntry {
    #[serde(flatten)]
    pub key: EnvironmentKey,
    #[serde(flatten)]
    pub set: SetSummary,
    /// Why it stays whatever the retention rule says; several reasons are joined.
    pub needed_for: Option<String>,
    /// The retention rule would let it go now.
    pub expires: bool,
}

impl Observer {
    /// The sets of an environment, the newest first.
    pub async fn backups(&self, key: &EnvironmentKey) -> Result<Vec<BackupEntry>> {
        let server = &self.config.server;
        let mut needs = Vec::new();
        if let Some(registry) = &self.registry {
            let sets = needed::sets(registry, &server.state_dir, key).await;
            needs = sets.map_err(|message| ControlError::Unavailable { message, hint: None })?;
        }
        let Some(environment) = self.config.by_key(key) else { return Ok(Vec::new()) };
        let (dir, wanted, retention) = (server.backups_dir.clone(), key.clone(), environment.backup_retention.clone());
        let protect: Vec<String> = needs.iter().map(|need| need.set.clone()).collect();
        let (sets, last, going) = blocking(move || {
            let sets = data::list(&dir, &wanted)?;
            let last =
                sets.iter().map(|set| data::last_copies(&sets, std::slice::from_ref(set)).pop()).collect::<Vec<_>>();
            let going = data::expired(&dir, &wanted, &retention, jiff::Timestamp::now(), &protect)?;
            Ok((sets, last, going))
        })
        .await?;
        let entry = |(set, last): (SetSummary, Option<(SetSummary, String)>)| {
            let need = needs.iter().find(|need| need.set == format!("{key}/{}", set.name)).map(|need| need.why.clone());
            let why: Vec<String> = last.map(|(_, why)| why).into_iter().chain(need).collect();
            let expires = going.iter().any(|gone| gone.name == set.name);
            BackupEntry { key: key.clone(), set, needed_for: (!why.is_empty()).then(|| why.join("; ")), expires }
        };
        Ok(sets.into_iter().zip(last).map(entry).collect())
    }
}
