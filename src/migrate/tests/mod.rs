//! Pure parts with made-up files; the rest against real servers, each with the same story.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    log::{DeploymentLog, StageLog},
    redact::Redactor,
};

mod docker_servers;
mod plans;
mod server;
mod sqlite;

/// Files by name and text.
fn files(of: &[(&str, &str)]) -> Files {
    Files::read("migrations", owned(of)).unwrap()
}

fn owned(of: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    of.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
}

fn log() -> StageLog {
    DeploymentLog::discard(Redactor::default()).section("migrate")
}

/// For sqlx's own tool, which reads a directory.
fn write(dir: &Path, of: &[(&str, &str)]) {
    for (name, text) in of {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

/// As a deployment does it: everything that is pending.
async fn up_all(place: &Place, files: &Files) -> Result<Vec<String>, String> {
    up_with(place, files, std::time::Duration::from_secs(2), &CancellationToken::new()).await.map_err(|f| f.message)
}

async fn up_with(
    place: &Place,
    files: &Files,
    lock_timeout: std::time::Duration,
    cancel: &CancellationToken,
) -> Result<Vec<String>, Failure> {
    let failed = |cause: SessionError| Failure { message: cause.to_string(), cause };
    let mut session = Session::open(place, lock_timeout, cancel).await.map_err(failed)?;
    session.lock(std::time::Duration::from_secs(20)).await.map_err(failed)?;
    let applied = session.applied().await.map_err(failed)?;
    let pending = plan_up(files, &applied, None, false);
    let pending = pending.map_err(|problems| failed(SessionError::Unfit(problems.to_string())))?;
    let carried = up(&mut session, &pending, &log(), &mut NoWitness).await;
    session.close().await;
    Ok(carried?.into_iter().map(|one| one.title).collect())
}

async fn down_to(place: &Place, files: &Files, to: i64) -> Result<Vec<String>, String> {
    let cancel = CancellationToken::new();
    let mut session = Session::open(place, std::time::Duration::from_secs(2), &cancel).await.unwrap();
    session.lock(std::time::Duration::from_secs(20)).await.unwrap();
    let applied = session.applied().await.unwrap();
    let back = plan_down(files, &applied, to).map_err(|problems| problems.to_string())?;
    let carried = down(&mut session, &back, &log(), &mut NoWitness).await;
    session.close().await;
    carried.map(|carried| carried.into_iter().map(|one| one.title).collect()).map_err(|f| f.message)
}

async fn states(place: &Place, files: &Files) -> Vec<String> {
    let state = look(place, &CancellationToken::new()).await.unwrap();
    rows(files, &state.applied).iter().map(|row| format!("{} {}", row.version, row.state.as_str())).collect()
}
