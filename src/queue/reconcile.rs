//! Asking the remotes: a webhook or hook that never arrived is only a delay.

use std::{sync::Weak, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Queue;
use crate::{config::App, model::TriggerKind, registry::Delivery};

/// A remote gets this long to answer.
const LIMIT: Duration = Duration::from_secs(30);

/// Asks now and every `server.reconcile`; with zero not at all.
pub(super) async fn watch(queue: Weak<Queue>, closing: CancellationToken) {
    loop {
        let Some(strong) = queue.upgrade() else { return };
        let every = strong.world.config.server.reconcile;
        if every.is_zero() {
            return;
        }
        for app in &strong.world.config.apps {
            tokio::select! {
                () = ask(&strong, app) => {}
                () = closing.cancelled() => return,
            }
        }
        drop(strong);
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = closing.cancelled() => return,
        }
    }
}

/// Announces the tip of every branch that an environment follows; the settler knows what is deployed already.
async fn ask(queue: &Queue, app: &App) {
    let mut asked = Vec::new();
    for environment in &app.environments {
        if asked.contains(&environment.branch) {
            continue;
        }
        asked.push(environment.branch.clone());
        // Not under the mirror's lock: `ls-remote` does not touch the mirror, and a fetch must not wait for a slow remote.
        let mirror = queue.world.mirror_of(environment);
        let tip = match mirror.remote_tip(&environment.branch, LIMIT).await {
            Ok(Some(tip)) => tip,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(app = %app.name, branch = %environment.branch, %error, "the remote could not be asked");
                return;
            }
        };
        let delivery = Delivery {
            source: TriggerKind::Reconcile,
            delivery: format!("{}@{}", tip.as_str(), environment.branch),
            app: app.name.clone(),
            branch: environment.branch.clone(),
            commit: tip,
            pusher: None,
            forced: false,
        };
        if let Err(error) = queue.receive(delivery).await {
            tracing::error!(app = %app.name, %error, "a push that was found could not be noted");
        }
    }
}
