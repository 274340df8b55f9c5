//! Deliveries: onto the disk in batches, then into the queue.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Queue, held_back};
use crate::{
    config::Environment,
    model::{Branch, Name, Status, Trigger},
    registry::{Delivery, NewDeployment, Outcome, Receipt, Registry, RegistryError, StoredDelivery},
};

/// Deliveries written in one commit, at most.
const BATCH: usize = 512;

/// A pass of this many deliveries is a flood.
const FLOOD: u64 = 8;

/// Between two passes in a flood.
const BREATH: Duration = Duration::from_millis(50);

/// Before a pass that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A delivery and who waits for it to be on disk.
#[derive(Debug)]
pub(super) struct Waiting {
    pub delivery: Delivery,
    pub reply: oneshot::Sender<Result<Receipt, Arc<RegistryError>>>,
}

/// Writes what waits, everything that came while the last commit was under way in the next.
pub(super) async fn write(registry: Registry, mut inbox: mpsc::Receiver<Waiting>, settle: Arc<Notify>) {
    let mut waiting = Vec::with_capacity(BATCH);
    while inbox.recv_many(&mut waiting, BATCH).await > 0 {
        let (batch, replies): (Vec<_>, Vec<_>) = waiting.drain(..).map(|w| (w.delivery, w.reply)).unzip();
        match registry.accept(&batch).await {
            Ok(receipts) => {
                for (receipt, reply) in receipts.into_iter().zip(replies) {
                    // A door that went away meanwhile does not change that the delivery is here.
                    let _ = reply.send(Ok(receipt));
                }
            }
            Err(error) => {
                tracing::error!(%error, "deliveries could not be written");
                let error = Arc::new(error);
                for reply in replies {
                    let _ = reply.send(Err(Arc::clone(&error)));
                }
            }
        }
        settle.notify_one();
    }
}

/// Settles open deliveries: at the start those of the last run, then whenever some were written.
pub(super) async fn settle(queue: Weak<Queue>, written: Arc<Notify>, closing: CancellationToken) {
    loop {
        let Some(queue) = queue.upgrade() else { return };
        let settled = settle_pass(&queue).await;
        drop(queue);
        let pause = match settled {
            // One push is settled at once. In a flood fewer, larger passes leave the disk to those who still wait for an answer.
            Ok(settled) => (settled >= FLOOD).then_some(BREATH),
            // What is open must not wait for the next push.
            Err(error) => {
                tracing::error!(%error, "deliveries could not be settled");
                Some(RETRY)
            }
        };
        if let Some(pause) = pause {
            tokio::select! {
                () = tokio::time::sleep(pause) => continue,
                () = closing.cancelled() => return,
            }
        }
        tokio::select! {
            () = written.notified() => {}
            () = closing.cancelled() => return,
        }
    }
}

/// One pass; how many deliveries it settled. Of several pushes to one branch only the newest counts: what is deployed is the branch's
/// tip anyway.
async fn settle_pass(queue: &Queue) -> Result<u64, RegistryError> {
    let registry = &queue.world.registry;
    let mut settled = 0;
    for newest in registry.newest_open_deliveries().await? {
        let outcomes = settle_one(queue, &newest).await?;
        settled += registry.settle(&newest, &outcomes).await?;
    }
    if settled > 0 {
        queue.world.tick();
    }
    Ok(settled)
}

async fn settle_one(queue: &Queue, stored: &StoredDelivery) -> Result<Vec<Outcome>, RegistryError> {
    let delivery = &stored.delivery;
    let mut outcomes = Vec::new();
    for environment in following(queue, &delivery.app, &delivery.branch) {
        let key = environment.key.clone();
        if let Some(why) = already(queue, environment, delivery).await? {
            outcomes.push(Outcome { environment: Some(key), deployment: None, ignored: Some(why) });
            continue;
        }
        let trigger = Trigger {
            kind: delivery.source,
            by: delivery.pusher.clone(),
            delivery: Some(delivery.delivery.clone()),
            forced: delivery.forced,
        };
        let new = NewDeployment {
            key: key.clone(),
            commit: Some(delivery.commit.clone()),
            reference: format!("refs/heads/{}", delivery.branch),
            trigger,
            rollback: None,
        };
        let id = queue.world.registry.enqueue(&new).await?;
        queue.wake(&key);
        outcomes.push(Outcome { environment: Some(key), deployment: Some(id), ignored: None });
    }
    if outcomes.is_empty() {
        let ignored = Some(format!("no environment of {} follows the branch `{}`", delivery.app, delivery.branch));
        outcomes.push(Outcome { environment: None, deployment: None, ignored });
    }
    Ok(outcomes)
}

fn following<'a>(queue: &'a Queue, app: &Name, branch: &Branch) -> impl Iterator<Item = &'a Arc<Environment>> {
    let app = queue.world.config.apps.iter().find(|a| a.name == *app);
    let branch = branch.clone();
    app.into_iter().flat_map(|a| &a.environments).filter(move |e| e.branch == branch)
}

/// Why a push gets no deployment, as far as the registry can tell. What needs Git is judged by the pull stage.
async fn already(
    queue: &Queue,
    environment: &Environment,
    delivery: &Delivery,
) -> Result<Option<String>, RegistryError> {
    let registry = &queue.world.registry;
    let commit = &delivery.commit;
    if registry.live(&environment.key).await?.is_some_and(|release| release.commit == *commit) {
        return Ok(Some(format!("{} is live already", commit.short())));
    }
    let earlier = registry.last_of_commit(&environment.key, commit, None).await?;
    // A branch that was forced back to a release that was good: the pull stage looks closer.
    let earlier = earlier.filter(|(_, status)| !(delivery.forced && *status == Status::Succeeded));
    if let Some((id, status)) = earlier {
        let why =
            format!("{} has deployment {id} ({status}) already: `refit rerun {id}` does it again", commit.short());
        return Ok(Some(why));
    }
    Ok(registry.unresolved(&environment.key).await?.map(held_back))
}
