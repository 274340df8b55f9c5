//! Asking the remotes: a webhook or hook that never arrived is only a delay, and so is a push that was held back while an environment
//! was stuck.

use std::{collections::BTreeSet, sync::Weak, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Queue;
use crate::{
    config::App,
    model::{Branch, Name, TriggerKind},
    registry::Delivery,
};

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
pub(super) async fn ask(queue: &Queue, app: &App) {
    let Some(environment) = app.environments.first() else { return };
    let branches: BTreeSet<Branch> = app.environments.iter().map(|e| e.branch.clone()).collect();
    let branches: Vec<Branch> = branches.into_iter().collect();
    let tips = match queue.world.mirror_of(environment).remote_tips(&branches, LIMIT).await {
        Ok(tips) => tips,
        Err(error) => return tracing::warn!(app = %app.name, %error, "the remote could not be asked"),
    };
    for (branch, tip) in tips {
        let delivery = Delivery {
            source: TriggerKind::Reconcile,
            delivery: format!("{}@{branch}{}", tip.as_str(), round(queue, app, &branch).await),
            app: app.name.clone(),
            branch,
            commit: tip,
            pusher: None,
            forced: false,
        };
        if let Err(error) = queue.receive(delivery).await {
            tracing::error!(app = %app.name, %error, "a push that was found could not be noted");
        }
    }
}

/// A tip is announced once, however often it is found. After an environment of the branch was resolved it is announced once more: what was
/// held back until then must not pass for a repetition. (In the registry, so that it does not matter which process finds it.)
async fn round(queue: &Queue, app: &App, branch: &Branch) -> String {
    let following = app.environments.iter().filter(|e| e.branch == *branch);
    let names: Vec<Name> = following.map(|e| e.key.environment.clone()).collect();
    match queue.world.registry.count_resolved(&app.name, &names).await {
        Ok(0) => String::new(),
        Ok(count) => format!("~{count}"),
        Err(error) => {
            tracing::warn!(app = %app.name, %error, "what was held back is looked for at the next interval");
            String::new()
        }
    }
}
