//! From deliveries to deployments, and from deployments to runs.
//!
//! Three kinds of task, all fed from the registry so that a crash loses nothing:
//!
//! - one *inbox writer* turns many waiting deliveries into one commit ([`inbox`]);
//! - one *settler* reads what the inbox holds and queues a deployment for each environment that follows the branch;
//! - one *worker* an environment runs what waits there, one at a time (older ones are superseded when a newer one is queued, but a push
//!   does not take the place of what a person asked for: it comes after that). It owns the environment's state: a cancel request is a message to it.
//!
//! And in a daemon a *reconciler* asks the remotes at the start and every few minutes for pushes that nobody announced ([`reconcile`]), and
//! old logs and deliveries are tidied away ([`housekeeping`]), backups are tried out ([`rehearsal`]), and versions that were kept warm are stopped
//! when their time is over ([`warm`]).

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Environment,
    model::{DeploymentId, EnvironmentKey, Name, Status},
    pipeline::{
        World,
        journal::{Event, Phase},
        orphans, outcome, recover, run,
        stages::build,
        traffic,
    },
    registry::{Delivery, End, Entry, Facts, Receipt, RegistryError},
};

mod housekeeping;
mod inbox;
mod reconcile;
mod rehearsal;
mod warm;

/// Deliveries that may wait for the disk; beyond that the door waits, and with it the sender.
const INBOX_DEPTH: usize = 4096;

/// Between two attempts to recover a deployment whose journal could not be written.
const RECOVERY_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);

/// Between two looks at an environment whose runtime could not be asked when this process began.
const TIDY_PAUSE: std::time::Duration = std::time::Duration::from_secs(10);

/// After the begin of a daemon. The engine may end the step of a build whose client was killed, after recovery looked for what it left.
const BUILDS_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);

/// Between two looks at whether the gate serves what is live.
const GATE_PAUSE: std::time::Duration = std::time::Duration::from_secs(2);

/// A message to an environment's worker.
#[derive(Debug)]
enum Command {
    /// Something was queued.
    Wake,
    Cancel {
        id: DeploymentId,
        by: String,
    },
    /// Whatever runs.
    CancelRunning {
        by: String,
    },
}

/// The handle that `control` holds.
#[derive(Debug)]
pub struct Queue {
    world: Arc<World>,
    inbox: mpsc::Sender<inbox::Waiting>,
    workers: HashMap<EnvironmentKey, mpsc::UnboundedSender<Command>>,
    /// Deployments that run now.
    active: watch::Sender<usize>,
    /// No new work.
    closing: CancellationToken,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl Queue {
    /// Starts the tasks; a daemon's also ask the remotes and tidy up. What was queued before the last stop is taken up. `untidy`:
    /// where recovery could not look at everything yet.
    pub fn start(world: Arc<World>, daemon: bool, untidy: &BTreeSet<EnvironmentKey>) -> Arc<Self> {
        let (inbox_in, inbox_out) = mpsc::channel(INBOX_DEPTH);
        let closing = CancellationToken::new();
        let active = watch::Sender::new(0);
        let mut tasks = JoinSet::new();
        let mut workers = HashMap::new();
        for app in &world.config.apps {
            for environment in &app.environments {
                let (commands_in, commands) = mpsc::unbounded_channel();
                workers.insert(environment.key.clone(), commands_in);
                let worker = Worker {
                    world: Arc::clone(&world),
                    environment: Arc::clone(environment),
                    active: active.clone(),
                    closing: closing.clone(),
                    daemon,
                };
                tasks.spawn(worker.work(commands, untidy.contains(&environment.key)));
            }
        }
        let settle = Arc::new(Notify::new());
        let writer = inbox::write(world.registry.clone(), inbox_out, Arc::clone(&settle));
        tasks.spawn(writer);
        let queue = Arc::new(Self { world, inbox: inbox_in, workers, active, closing, tasks: tasks.into() });
        if let Ok(mut tasks) = queue.tasks.try_lock() {
            tasks.spawn(inbox::settle(Arc::downgrade(&queue), settle, queue.closing.clone()));
            if daemon {
                for environment in queue.world.config.environments() {
                    let environment = Arc::clone(environment);
                    tasks.spawn(warm::watch(Arc::clone(&queue.world), environment, queue.closing.clone()));
                }
                tasks.spawn(reconcile::watch(Arc::downgrade(&queue), queue.closing.clone()));
                tasks.spawn(housekeeping::watch(Arc::downgrade(&queue), queue.closing.clone()));
                tasks.spawn(rehearsal::watch(Arc::downgrade(&queue), queue.closing.clone()));
            }
        }
        queue.workers.values().for_each(|worker| drop(worker.send(Command::Wake)));
        queue
    }

    /// Writes a delivery; returns once it is on disk.
    pub async fn receive(&self, delivery: Delivery) -> Result<Receipt, Arc<RegistryError>> {
        let (reply, answer) = oneshot::channel();
        let gone = || Arc::new(RegistryError::Stopping);
        self.inbox.send(inbox::Waiting { delivery, reply }).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Tells an environment's worker that something waits for it.
    pub fn wake(&self, key: &EnvironmentKey) {
        if let Some(worker) = self.workers.get(key) {
            // A worker that is gone means that we are closing; what is queued waits for the next start.
            let _ = worker.send(Command::Wake);
        }
    }

    /// Asks an app's remote for pushes now, and not at the next interval. Returns at once.
    pub fn ask_remote(queue: &Arc<Self>, app: &Name) {
        let Some(app) = queue.world.config.apps.iter().find(|known| known.name == *app) else { return };
        let (queue, app) = (Arc::clone(queue), Arc::clone(app));
        // Not one of `tasks`: it holds the queue itself, and its Git has a limit of its own.
        tokio::spawn(async move {
            tokio::select! {
                () = reconcile::ask(&queue, &app) => {}
                () = queue.closing.cancelled() => {}
            }
        });
    }

    /// Asks the worker to cancel; `false` where nobody works on that environment.
    pub fn cancel(&self, key: &EnvironmentKey, id: DeploymentId, by: &str) -> bool {
        let command = Command::Cancel { id, by: by.to_owned() };
        self.workers.get(key).is_some_and(|worker| worker.send(command).is_ok())
    }

    /// Counts other work that [`idle`](Self::idle) waits for; `None` once no new work is taken.
    pub fn begin(&self) -> Option<Active> {
        let active = Active::count(&self.active);
        (!self.closing.is_cancelled()).then_some(active)
    }

    /// Takes no new work. Running deployments go on.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Waits until no deployment runs.
    pub async fn idle(&self) {
        let mut active = self.active.subscribe();
        // The sender lives as long as `self`.
        let _ = active.wait_for(|running| *running == 0).await;
    }

    /// Cancels everything that runs: it is undone. The workers know what that is, also what has left the queue and is not
    /// in the registry as running yet.
    pub fn cancel_all(&self, by: &str) {
        for worker in self.workers.values() {
            // A worker that has ended runs nothing.
            let _ = worker.send(Command::CancelRunning { by: by.to_owned() });
        }
    }

    /// Ends the tasks; call after [`idle`](Self::idle).
    pub async fn stop(&self) {
        self.close();
        self.tasks.lock().await.shutdown().await;
    }
}

/// Something that runs, counted for as long as this lives: also when it ends by a panic.
#[derive(Debug)]
pub struct Active(watch::Sender<usize>);

impl Active {
    fn count(active: &watch::Sender<usize>) -> Self {
        active.send_modify(|n| *n += 1);
        Self(active.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// Runs one environment's deployments, one at a time.
#[derive(Debug)]
struct Worker {
    world: Arc<World>,
    environment: Arc<Environment>,
    active: watch::Sender<usize>,
    closing: CancellationToken,
    daemon: bool,
}

impl Worker {
    async fn work(self, mut commands: mpsc::UnboundedReceiver<Command>, mut untidy: bool) {
        let mut behind_gate = self.daemon && self.settle_gate().await;
        let mut builds = self.daemon;
        let builds_due = Instant::now() + BUILDS_PAUSE;
        // Points in time, not pauses: a pause that begins anew with each turn of the loop is never over beside a shorter one.
        let mut tidy_due = Instant::now() + TIDY_PAUSE;
        let mut gate_due = Instant::now() + GATE_PAUSE;
        loop {
            let command = tokio::select! {
                () = self.closing.cancelled() => return,
                command = commands.recv() => command,
                () = sleep_until(tidy_due), if untidy => {
                    untidy = !self.tidy().await;
                    tidy_due = Instant::now() + TIDY_PAUSE;
                    continue;
                }
                () = sleep_until(builds_due), if builds => {
                    builds = false;
                    self.clear_builds().await;
                    continue;
                }
                () = sleep_until(gate_due), if behind_gate => {
                    self.settle_gate().await;
                    gate_due = Instant::now() + GATE_PAUSE;
                    continue;
                }
            };
            match command {
                None => return,
                Some(Command::Wake) => {
                    // What nobody recorded may have the port that the next version needs.
                    untidy = untidy && !self.tidy().await;
                    self.run_all(&mut commands).await;
                    behind_gate = self.daemon && self.settle_gate().await;
                }
                Some(Command::Cancel { id, by }) => self.cancel_queued(id, &by).await,
                Some(Command::CancelRunning { .. }) => {}
            }
        }
    }

    /// Whether what is live is behind the gate, which then serves it.
    async fn settle_gate(&self) -> bool {
        match traffic::settle(&self.world, &self.environment).await {
            Ok(behind_gate) => behind_gate,
            Err(error) => {
                tracing::error!(environment = %self.environment.key, %error, "what is live cannot be read");
                true
            }
        }
    }

    async fn clear_builds(&self) {
        if let Err(why) = build::clear(&self.world, &self.environment, None).await {
            tracing::debug!(environment = %self.environment.key, why, "what builds left could not be removed");
        }
    }

    async fn tidy(&self) -> bool {
        orphans::tidy(&self.world, &self.environment, self.daemon).await
    }

    /// Runs what waits until nothing does.
    async fn run_all(&self, commands: &mut mpsc::UnboundedReceiver<Command>) {
        loop {
            let _active = Active::count(&self.active);
            // The turn is taken only for what is there to run: who finds it taken waits.
            if let Ok(None) = self.next().await {
                return;
            }
            // A backup by hand may have it.
            let _held = tokio::select! {
                held = self.world.holds.take(&self.environment.key, "a deployment") => held,
                () = self.closing.cancelled() => return,
            };
            // Asked only now: whoever closes the queue and then waits for `active` sees either this one counted, or nothing begun.
            if self.closing.is_cancelled() {
                return;
            }
            match self.next().await {
                Ok(Some(id)) => self.run_to_its_end(id, commands).await,
                Ok(None) => return,
                // What waits must not wait for the next push to be looked for.
                Err(error) => {
                    tracing::error!(environment = %self.environment.key, %error, "the queue cannot be read");
                    self.pause().await;
                }
            }
        }
    }

    /// What was waiting for approval when the last process ended goes before what waits in the queue; what is held back there ends.
    async fn next(&self) -> Result<Option<DeploymentId>, RegistryError> {
        let (registry, key) = (&self.world.registry, &self.environment.key);
        if let Some(id) = registry.awaiting_approval(key).await? {
            return Ok(Some(id));
        }
        while let Some(id) = registry.next_queued(key).await? {
            let Some(stuck) = self.holds_back(id).await? else { return Ok(Some(id)) };
            self.end_queued(id, Status::Skipped, held_back(stuck)).await?;
            self.world.tick();
            tracing::warn!(deployment = id.0, stuck = stuck.0, environment = %key, "held back");
        }
        Ok(None)
    }

    /// The stuck deployment because of which one that nobody asked for by name must not begin.
    async fn holds_back(&self, id: DeploymentId) -> Result<Option<DeploymentId>, RegistryError> {
        let registry = &self.world.registry;
        let Some(stuck) = registry.unresolved(&self.environment.key).await? else { return Ok(None) };
        let explicit = registry.deployment(id).await?.is_some_and(|view| view.trigger.kind.is_explicit());
        Ok(Some(stuck).filter(|_| !explicit))
    }

    async fn run_to_its_end(&self, id: DeploymentId, commands: &mut mpsc::UnboundedReceiver<Command>) {
        let environment = &self.environment.key;
        match self.run_one(id, commands).await {
            Ok(Status::AwaitingApproval) => {
                tracing::info!(deployment = id.0, %environment, "goes on waiting for approval")
            }
            Ok(status) => tracing::info!(deployment = id.0, %environment, %status, "ended"),
            Err(error) => match self.world.registry.saga(id).await {
                Ok((saga, _)) if saga.is_ended() => {
                    tracing::info!(deployment = id.0, %environment, "a newer one took its place as it was to begin");
                }
                // The journal could not be written (a full disk, say): going on would act without a record.
                _ => {
                    tracing::error!(deployment = id.0, %environment, %error, "cannot go on");
                    self.recover(id).await;
                }
            },
        }
    }

    async fn pause(&self) {
        tokio::select! {
            () = tokio::time::sleep(RECOVERY_PAUSE) => {}
            () = self.closing.cancelled() => {}
        }
    }

    /// Runs a deployment while listening for its cancellation.
    async fn run_one(
        &self,
        id: DeploymentId,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Result<Status, RegistryError> {
        let (cancel, cancels) = mpsc::channel(4);
        let closing = &self.closing;
        let run = run::run(Arc::clone(&self.world), Arc::clone(&self.environment), id, cancels, closing);
        let mut run = std::pin::pin!(run);
        loop {
            tokio::select! {
                result = &mut run => return result,
                command = commands.recv() => match command {
                    Some(Command::Cancel { id: wanted, by }) if wanted == id => drop(cancel.try_send(by)),
                    Some(Command::Cancel { id: other, by }) => self.cancel_queued(other, &by).await,
                    Some(Command::CancelRunning { by }) => drop(cancel.try_send(by)),
                    // What was queued meanwhile is looked for after this one. (One that waits for a person's word looks by itself.)
                    Some(Command::Wake) => {}
                    None => return run.await,
                },
            }
        }
    }

    /// Tries until the journal can be written again; then the deployment is undone like one whose process died. One that had not
    /// begun stays in the queue.
    async fn recover(&self, id: DeploymentId) {
        loop {
            self.pause().await;
            if self.closing.is_cancelled() {
                return;
            }
            match recover::recover_one(&self.world, id, self.environment.key.clone()).await {
                Ok(_) => return,
                Err(error) => tracing::error!(deployment = id.0, %error, "cannot be recovered yet"),
            }
        }
    }

    async fn cancel_queued(&self, id: DeploymentId, by: &str) {
        let result = self.end_queued(id, Status::Cancelled, format!("cancelled by {by} while it waited")).await;
        if let Err(error) = result {
            tracing::warn!(deployment = id.0, %error, "could not be cancelled in the queue");
        }
        self.world.tick();
    }

    /// Ends a deployment that has not begun; one that has is left alone.
    async fn end_queued(&self, id: DeploymentId, status: Status, reason: String) -> Result<(), RegistryError> {
        let registry = &self.world.registry;
        let (saga, seq) = registry.saga(id).await?;
        if saga.phase != Phase::Queued {
            return Ok(());
        }
        let event = Event::Ended { status, reason: Some(reason.clone()) };
        let end = End { error: Some(reason), ..outcome::end(status, &saga, &[]) };
        let entry = Entry { event, facts: Facts::default(), end: Some(end), message: None };
        registry.append(id, &saga, seq, &entry).await.map(drop)
    }
}

/// Why nothing is deployed by itself to an environment whose way back failed.
fn held_back(stuck: DeploymentId) -> String {
    format!(
        "deployment {stuck} is stuck, and nobody has said that it was looked at: nothing is deployed by itself until `refit resolve {stuck} \
         --reason \"…\"`, which asks the remote again"
    )
}
