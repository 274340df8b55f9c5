//! What grows for ever unless somebody tidies up: old deployment logs, and deliveries that were settled long ago.

use std::{
    path::Path,
    sync::Weak,
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;

use super::Queue;

const EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// A Git host redelivers within days; an older delivery id need not be known any more, because what is deployed is the branch's tip.
const KEEP_DELIVERIES_DAYS: u32 = 90;

/// Tidies up now and once a day.
pub(super) async fn watch(queue: Weak<Queue>, closing: CancellationToken) {
    loop {
        let Some(strong) = queue.upgrade() else { return };
        let server = &strong.world.config.server;
        let (logs, days) = (server.logs_dir.clone(), server.log_keep_days);
        let removed = tokio::task::spawn_blocking(move || remove_old_logs(&logs, days)).await.unwrap_or(0);
        match strong.world.registry.forget_deliveries(KEEP_DELIVERIES_DAYS).await {
            Ok(forgotten) => tracing::debug!(removed, forgotten, "tidied up old logs and deliveries"),
            Err(error) => tracing::warn!(%error, "old deliveries could not be removed"),
        }
        drop(strong);
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = closing.cancelled() => return,
        }
    }
}

/// Removes deployment logs that nobody wrote to for `days`; how many. Other files in the directory are not ours.
fn remove_old_logs(dir: &Path, days: u32) -> usize {
    let Some(before) = SystemTime::now().checked_sub(Duration::from_secs(u64::from(days) * 86_400)) else { return 0 };
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let ours = |name: &str| name.starts_with("deployment_") && name.ends_with(".log");
    let old = |entry: &std::fs::DirEntry| {
        let written = entry.metadata().and_then(|m| if m.is_file() { m.modified() } else { Ok(SystemTime::now()) });
        entry.file_name().to_str().is_some_and(ours) && written.is_ok_and(|at| at < before)
    };
    entries.flatten().filter(old).filter(|entry| std::fs::remove_file(entry.path()).is_ok()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_logs_of_ours_go() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let long_ago = SystemTime::now() - Duration::from_secs(40 * 86_400);
        for (name, old) in [("deployment_a_1.log", true), ("deployment_b_2.log", false), ("notes.log", true)] {
            let file = std::fs::File::create(dir.path().join(name))?;
            if old {
                file.set_modified(long_ago)?;
            }
        }
        assert_eq!(remove_old_logs(dir.path(), 30), 1);
        assert!(!dir.path().join("deployment_a_1.log").exists());
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 2);
        Ok(())
    }
}
