//! `start.strategy = "auto"`: which strategy an environment has that names none, and why.
//!
//! Two versions side by side are the better way wherever nothing is there that only one of them may have. What of that can be read in the
//! configuration is looked at here, and where it is in doubt the old version stops first: an update of Refit must not break an app
//! that worked.

use super::types::{Backup, BackupSource, RuntimeKind, Strategy};

/// Below this a port may be one that only root can listen on: the engine publishes it, but the gate may not be allowed to.
const FIRST_PLAIN_PORT: u16 = 1024;

/// What the choice is made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ground<'a> {
    pub runtime: RuntimeKind,
    /// The environment's public port.
    pub port: Option<u16>,
    /// `start.gate`, where it is written.
    pub gate: Option<bool>,
    pub networks: &'a [String],
    /// As in `Start::volumes`.
    pub volumes: &'a [String],
    pub backups: &'a [Backup],
}

/// The strategy, and in a few words why, as they stand in brackets after it.
pub(super) fn choose(ground: Ground<'_>) -> (Strategy, String) {
    match exclusive(ground) {
        Some(why) => (Strategy::Recreate, why),
        None => {
            let why = match ground.volumes {
                [] => "has a port, no volumes, and no database file",
                _ => "has a port, only read-only volumes, and no database file",
            };
            (Strategy::BlueGreen, why.to_owned())
        }
    }
}

/// The first thing that two versions cannot have at once.
fn exclusive(ground: Ground<'_>) -> Option<String> {
    if ground.gate == Some(false) {
        return Some("`gate = false`".to_owned());
    }
    if ground.runtime == RuntimeKind::Process {
        let why = "processes share this host's files, and may not heed PORT";
        return Some(why.to_owned());
    }
    let Some(port) = ground.port else { return Some("no port that a gate could serve".to_owned()) };
    if port < FIRST_PLAIN_PORT {
        return Some(format!("port {port} may need root, and the gate is no root"));
    }
    if ground.networks.iter().any(|network| network == "host") {
        return Some("in the network `host` both versions would have the same port".to_owned());
    }
    if let Some(volume) = ground.volumes.iter().find(|volume| !volume.ends_with(":ro")) {
        let source = volume.split(':').next().unwrap_or(volume);
        return Some(format!("writes to the volume {source}"));
    }
    let sqlite = |backup: &&Backup| matches!(backup.source, BackupSource::Sqlite { .. });
    let database = ground.backups.iter().find(sqlite)?;
    Some(format!("the SQLite database {} is for one version at a time", database.name))
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use super::*;
    use crate::config::{Compression, VerifyBackup};

    const WEB: Ground<'static> = Ground {
        runtime: RuntimeKind::Docker,
        port: Some(8000),
        gate: None,
        networks: &[],
        volumes: &[],
        backups: &[],
    };

    fn backup(source: BackupSource) -> Backup {
        Backup {
            name: "guests".parse().unwrap(),
            source,
            required: false,
            timeout: Duration::from_secs(1),
            compression: Compression::None,
            verify: VerifyBackup::Off,
            check: None,
        }
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[track_caller]
    fn chosen(ground: Ground<'_>, strategy: Strategy, why: &str) {
        let (is, reason) = choose(ground);
        assert_eq!(is, strategy, "{reason}");
        assert!(reason.contains(why), "{reason}: not {why}");
    }

    #[test]
    fn a_web_app_without_files_of_its_own_runs_beside_itself() {
        let (blue_green, recreate) = (Strategy::BlueGreen, Strategy::Recreate);
        chosen(WEB, blue_green, "has a port, no volumes");
        chosen(Ground { gate: Some(true), ..WEB }, blue_green, "has a port");
        let networks = texts(&["shop", "hosts"]);
        chosen(Ground { networks: &networks, ..WEB }, blue_green, "has a port");
        let read_only = texts(&["assets:/assets:ro", "/etc/shop:/etc/shop:ro"]);
        chosen(Ground { volumes: &read_only, ..WEB }, blue_green, "only read-only volumes");
        let one = [backup(BackupSource::Volume { volume: "x".to_owned(), exclude: Default::default() })];
        chosen(Ground { backups: &one, ..WEB }, blue_green, "has a port");
        // One of them is enough.
        let mixed = texts(&["assets:/assets:ro", "uploads:/app/uploads"]);
        chosen(Ground { volumes: &mixed, ..WEB }, recreate, "writes to the volume uploads");
    }

    #[test]
    fn what_only_one_version_may_have_is_named() {
        fn named(ground: Ground<'_>, why: &str) {
            chosen(ground, Strategy::Recreate, why);
        }
        named(Ground { gate: Some(false), ..WEB }, "`gate = false`");
        named(Ground { port: None, ..WEB }, "no port");
        named(Ground { port: Some(80), ..WEB }, "port 80 may need root");
        named(Ground { runtime: RuntimeKind::Process, ..WEB }, "may not heed PORT");
        named(Ground { runtime: RuntimeKind::Process, gate: Some(true), ..WEB }, "may not heed PORT");
        let host = texts(&["host"]);
        named(Ground { networks: &host, ..WEB }, "network `host`");
        for volume in ["/srv/uploads:/app/uploads", "data:/data"] {
            let volumes = texts(&[volume]);
            named(Ground { volumes: &volumes, ..WEB }, "writes to the volume");
        }
        let sqlite = [backup(BackupSource::Sqlite { path: PathBuf::from("/srv/guests.db") })];
        named(Ground { backups: &sqlite, ..WEB }, "the SQLite database guests");
    }
}
