//! Driving one deployment, by one task that owns its state.
//!
//! [`Runner`] keeps the [`Saga`] and appends to the journal; stages run as tasks of their own and only send back how they ended. So
//! there is one writer, and what is in memory is what is on disk. The loop is: start what is ready, wait for an end or a cancel
//! request, record it, again; then, if something failed, the same backwards, one stage at a time; then the end.
//!
//! If the journal itself cannot be written (disk full, file gone) nothing more is begun: the error goes up, and the next
//! start recovers from what was written last.

use std::{
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    World, health,
    journal::{Event, FailureKind, Phase, Recorded, Saga},
    kept, outcome, preflight,
    stages::{self, Done, Progress, StageFailure, Step, retire},
};
use crate::{
    config::Environment,
    fault::GoOn,
    log::{DeploymentLog, StageLog},
    model::{DeploymentId, RollbackKind, Stage, Status},
    registry::{End, Entry, Facts, MessageKind, NewMessage, RegistryError, Release},
    runtime::{Artefact, Job},
};

/// How long an undo waits for a runtime that is away, and how often it tries.
const UNDO_PATIENCE: Duration = Duration::from_secs(120);
const UNDO_PAUSE: Duration = Duration::from_secs(1);

/// Runs a queued deployment, or one that waits for approval, to its end. `cancels` brings the names of those who ask to cancel it. One
/// that still waits for approval when `closing` is cancelled is left waiting: the status is then no end.
pub async fn run(
    world: Arc<World>,
    environment: Arc<Environment>,
    id: DeploymentId,
    cancels: mpsc::Receiver<String>,
    closing: &CancellationToken,
) -> Result<Status, RegistryError> {
    let mut runner = Runner::open(world, environment, id).await?;
    if runner.forward(cancels, closing).await? == Way::Waiting {
        return Ok(Status::AwaitingApproval);
    }
    runner.backward().await?;
    runner.finish().await
}

/// Takes up a deployment whose process died, as `recover::plan` decided.
pub async fn resume(
    world: Arc<World>,
    environment: Arc<Environment>,
    id: DeploymentId,
    plan: super::recover::Plan,
) -> Result<Status, RegistryError> {
    let mut runner = Runner::open(world, environment, id).await?;
    if runner.is_skipped() || plan == super::recover::Plan::Finish && runner.still_healthy().await {
        return runner.finish().await;
    }
    runner.record(Event::Interrupted).await?;
    runner.backward().await?;
    runner.finish().await
}

/// One deployment while it is driven.
#[derive(Debug)]
struct Runner {
    world: Arc<World>,
    environment: Arc<Environment>,
    id: DeploymentId,
    saga: Saga,
    events: Vec<Recorded>,
    progress: Progress,
    log: DeploymentLog,
    log_name: String,
    /// Why the rules say that there is nothing to deploy.
    skip: Option<String>,
}

/// Where the way forward came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To its end, good or bad.
    Over,
    /// To the gate, and this process is about to end.
    Waiting,
}

/// How a stage's task ended.
struct Ended {
    stage: Stage,
    result: Result<Done, StageFailure>,
    tail: Vec<String>,
}

impl Runner {
    async fn open(world: Arc<World>, environment: Arc<Environment>, id: DeploymentId) -> Result<Self, RegistryError> {
        let view = world
            .registry
            .deployment(id)
            .await?
            .ok_or(RegistryError::Damaged { what: "deployment", why: format!("{id} is not there") })?;
        let events = world.registry.events(id, 0).await?;
        let saga = Saga::replay(events.iter().map(|r| &r.event))?;
        let previous = match saga.phase {
            Phase::Queued => world.registry.live(&environment.key).await?,
            // What was live when it began is still what `live` says: it moves only with the end.
            _ => world.registry.live(&environment.key).await?.filter(|r| Some(r.deployment) == saga.previous),
        };
        let order = match view.trigger.kind.has_order() {
            true => world.registry.rollback_order(id).await?,
            false => None,
        };
        let target = match &order {
            Some(order) => world.registry.release(order.target).await?,
            None => None,
        };
        let mut environment = environment;
        if let Some(target) = &target {
            // The old version runs, and is judged, by its own settings.
            let mut kept = kept::environment(&world, &environment, target.deployment).0;
            kept.start.runtime = target.runtime;
            environment = Arc::new(kept);
        }
        let artefact = |target: &Release| Artefact {
            id: target.artefact.clone(),
            name: target.artefact_name.clone(),
            reused: true,
        };
        let mut progress = Progress {
            commit: target.as_ref().map(|t| t.commit.clone()),
            artefact: target.as_ref().map(artefact),
            only_data: order.as_ref().is_some_and(|order| order.kind == RollbackKind::Restore),
            without_backup: order.as_ref().is_some_and(|order| order.kind == RollbackKind::Restore && order.forced),
            parts: order.as_ref().map(|order| order.parts.clone()).unwrap_or_default(),
            restore: order.and_then(|order| order.backup),
            target,
            requested: view.commit.clone(),
            reference: view.reference.clone(),
            explicit: view.trigger.kind.is_explicit(),
            forced: view.trigger.forced,
            previous,
            ..Progress::default()
        };
        let mut skip = None;
        for recorded in &events {
            if let Event::StepSucceeded { stage, output } | Event::StepWarned { stage, output, .. } = &recorded.event {
                // A record that cannot be read matters only to a step that needs it, which then says so.
                let _ = stages::learn(*stage, output, recorded.at, &mut progress);
                skip = skip.or_else(|| skip_of(*stage, output));
            }
        }
        let log_name = view.log.clone().unwrap_or_else(|| {
            let at = view.queued_at.strftime("%Y-%m-%d_%H-%M-%S");
            format!("deployment_{at}_{id}.log")
        });
        let path = world.config.server.logs_dir.join(&log_name);
        let redactor = world.config.redactor.clone();
        let log = DeploymentLog::open(&path, redactor.clone()).unwrap_or_else(|error| {
            tracing::error!(deployment = id.0, path = %path.display(), %error, "the log cannot be written");
            DeploymentLog::discard(redactor)
        });
        Ok(Self { world, environment, id, saga, events, progress, log, log_name, skip })
    }

    async fn record(&mut self, entry: impl Into<Entry>) -> Result<(), RegistryError> {
        let seq = self.events.last().map_or(0, |r| r.seq);
        let (saga, recorded) = self.world.registry.append(self.id, &self.saga, seq, &entry.into()).await?;
        self.saga = saga;
        self.events.push(recorded);
        self.world.tick();
        Ok(())
    }

    fn step(&self, log: StageLog, cancel: CancellationToken) -> Step {
        Step {
            world: Arc::clone(&self.world),
            environment: Arc::clone(&self.environment),
            deployment: self.id,
            job: Job { log, cancel },
        }
    }

    async fn forward(
        &mut self,
        mut cancels: mpsc::Receiver<String>,
        closing: &CancellationToken,
    ) -> Result<Way, RegistryError> {
        if self.saga.phase == Phase::Queued && !self.begin().await? {
            return Ok(Way::Over);
        }
        let log = self.log.section("refit");
        let cancel = CancellationToken::new();
        let mut running: JoinSet<Ended> = JoinSet::new();
        loop {
            if self.skip.is_none() {
                self.start_ready(&mut running, &cancel).await?;
            }
            if let Some(expires_at) = self.saga.awaits_approval() {
                if self.hear_approval(expires_at, &mut cancels, closing).await? == Way::Waiting {
                    return Ok(Way::Waiting);
                }
                continue;
            }
            if running.is_empty() {
                return Ok(Way::Over);
            }
            tokio::select! {
                ended = running.join_next() => {
                    // Stages catch their panics, and nobody aborts them.
                    if let Some(Ok(ended)) = ended {
                        self.take_end(ended, &cancel).await?;
                    } else {
                        self.record(Event::Interrupted).await?;
                        cancel.cancel();
                    }
                }
                by = receive(&mut cancels) => {
                    if self.saga.failure.is_none() {
                        log.line(format!("cancelled by {by}"));
                        self.record(Event::CancelRequested { by }).await?;
                    }
                    cancel.cancel();
                }
            }
        }
    }

    /// Leaves the queue; `false` if something is missing and the deployment has ended already.
    async fn begin(&mut self) -> Result<bool, RegistryError> {
        let previous = self.progress.previous.as_ref().map(|release| release.deployment);
        // Where only data goes back no version is left: one that fails goes back like a deployment.
        let target = self.progress.target.as_ref().filter(|_| !self.progress.only_data);
        let rollback_to = target.map(|release| release.deployment);
        let mut facts = Facts { log: Some(self.log_name.clone()), ..Facts::default() };
        if let Some(target) = &self.progress.target {
            // What comes back is known already.
            let then = self.world.registry.deployment(target.deployment).await?;
            (facts.subject, facts.author) = then.map(|then| (then.subject, then.author)).unwrap_or_default();
            facts.image = Some(target.artefact.clone());
        }
        let message = Some(NewMessage::of(MessageKind::Begun));
        self.record(Entry { facts, message, ..Event::Begun { previous, rollback_to }.into() }).await?;
        self.reach("begun").await;
        let log = self.log.section("refit");
        log.line(format!("deployment {} of {} ({})", self.id, self.environment.key, self.progress.reference));
        if let Err(failure) = self.look_around(&log).await {
            log.line(&failure.message);
            self.end_before_it_began(failure).await?;
            return Ok(false);
        }
        Ok(true)
    }

    async fn look_around(&self, log: &StageLog) -> Result<(), StageFailure> {
        let Some(target) = &self.progress.target else {
            return preflight::check(&self.world, &self.environment).await;
        };
        // Asked for twice, or what is live was to be started again and has come to itself.
        let same = self.progress.previous.as_ref().is_some_and(|live| live.deployment == target.deployment);
        if self.progress.only_data && !same {
            return Err(StageFailure::failed(format!(
                "deployment {} is not live any more: ask for the restore again",
                target.deployment
            )));
        }
        if same
            && !self.progress.only_data
            && health::now(&self.world, Arc::clone(&self.environment), &target.instance).await.is_ok()
        {
            return Err(StageFailure::failed(format!("deployment {} is live already, and healthy", target.deployment)));
        }
        if let Some(warning) = preflight::check_rollback(&self.world, &self.environment).await? {
            log.line(format!("warning: {warning}"));
        }
        Ok(())
    }

    async fn reach(&self, point: &str) -> GoOn {
        self.world.faults.reach(point).await
    }

    /// Starts every stage that may start; with `parallel = false` only one at a time.
    async fn start_ready(
        &mut self,
        running: &mut JoinSet<Ended>,
        cancel: &CancellationToken,
    ) -> Result<(), RegistryError> {
        loop {
            let ready = self.saga.ready();
            let Some(stage) = ready.first().copied() else { return Ok(()) };
            if stage == Stage::Migrate && self.asks_for_approval() {
                return self.request_approval().await;
            }
            if !self.environment.parallel && !running.is_empty() {
                return Ok(());
            }
            if let Some(reason) = stages::skip_reason(stage, &self.environment, &self.progress) {
                self.record(Event::StepSkipped { stage, reason: reason.to_owned() }).await?;
                continue;
            }
            let log = self.log.stage(stage);
            let step = self.step(log.clone(), cancel.child_token());
            let input = match stages::input(stage, &step, &self.progress).await {
                Ok(input) => input,
                Err(failure) => {
                    self.record(Event::StepStarted { stage, input: Value::Null }).await?;
                    return self.take_end(Ended { stage, result: Err(failure), tail: Vec::new() }, cancel).await;
                }
            };
            self.record(Event::StepStarted { stage, input: input.clone() }).await?;
            running.spawn(async move {
                let faults = &step.world.faults;
                faults.reach(&format!("step:{stage}:intent")).await;
                let mut result = stages::run(stage, &step, &input).await;
                match faults.reach(&format!("step:{stage}:effect")).await {
                    GoOn::AsUsual => {}
                    GoOn::Fail => result = Err(StageFailure::failed("a fault was ordered here")),
                    GoOn::Twice => result = stages::run(stage, &step, &input).await,
                }
                Ended { stage, result, tail: log.tail() }
            });
        }
    }

    /// Records how a stage ended. The first failure stops the others.
    async fn take_end(&mut self, ended: Ended, cancel: &CancellationToken) -> Result<(), RegistryError> {
        let stage = ended.stage;
        self.record_end_of_step(ended, cancel).await?;
        self.reach(&format!("step:{stage}:record")).await;
        Ok(())
    }

    async fn record_end_of_step(&mut self, ended: Ended, cancel: &CancellationToken) -> Result<(), RegistryError> {
        let Ended { stage, result, tail } = ended;
        // A log that could not be written means a full or broken disk: better to stop while stopping is cheap.
        let result = match (result, self.log.failure()) {
            (Ok(_), Some(why)) => Err(StageFailure {
                kind: FailureKind::Unavailable,
                message: format!("{why}: free some space and run it again"),
            }),
            (result, _) => result,
        };
        match result {
            Ok(done) => {
                if let Err(failure) = stages::learn(stage, &done.output, jiff::Timestamp::now(), &mut self.progress) {
                    return self.take_failure(stage, failure, tail, cancel).await;
                }
                self.skip = self.skip.take().or_else(|| skip_of(stage, &done.output));
                let event = match done.warning {
                    Some(error) => Event::StepWarned { stage, error, output: done.output },
                    None => Event::StepSucceeded { stage, output: done.output },
                };
                self.record(Entry { facts: done.facts, ..event.into() }).await
            }
            Err(failure) => self.take_failure(stage, failure, tail, cancel).await,
        }
    }

    async fn take_failure(
        &mut self,
        stage: Stage,
        failure: StageFailure,
        tail: Vec<String>,
        cancel: &CancellationToken,
    ) -> Result<(), RegistryError> {
        let error = self.log.stage(stage).redactor().mask(&failure.message);
        self.log.stage(stage).line(&error);
        self.record(Event::StepFailed { stage, kind: failure.kind, error, tail }).await?;
        cancel.cancel();
        Ok(())
    }

    async fn backward(&mut self) -> Result<(), RegistryError> {
        while self.saga.failure.is_some()
            && !self.saga.is_ended()
            && !self.saga.is_stuck()
            && let Some(stage) = self.saga.next_undo()
        {
            let (input, output) = self.records_of(stage);
            let log = self.log.stage(stage);
            let step = self.step(log.clone(), CancellationToken::new());
            self.record(Event::UndoStarted { stage }).await?;
            self.reach(&format!("undo:{stage}:intent")).await;
            // A step whose input could not even be made has nothing to undo.
            let undo = async || match &input {
                Value::Null => Ok(None),
                input => undo_patiently(stage, &step, input, output.as_ref()).await,
            };
            let mut result = undo().await;
            match self.reach(&format!("undo:{stage}:effect")).await {
                GoOn::AsUsual => {}
                GoOn::Fail => result = Err(StageFailure::failed("a fault was ordered here")),
                GoOn::Twice => result = undo().await,
            }
            let event = match result {
                Ok(summary) => {
                    if let Some(summary) = &summary {
                        log.line(format!("undone: {summary}"));
                    }
                    Event::UndoFinished { stage, summary }
                }
                Err(failure) => {
                    let error = log.redactor().mask(&failure.message);
                    log.line(format!("could not be undone: {error}"));
                    Event::UndoFailed { stage, error }
                }
            };
            self.record(event).await?;
            self.reach(&format!("undo:{stage}:record")).await;
        }
        Ok(())
    }

    fn records_of(&self, stage: Stage) -> (Value, Option<Value>) {
        let mut input = Value::Null;
        let mut recorded_output = None;
        for recorded in &self.events {
            match &recorded.event {
                Event::StepStarted { stage: s, input: i } if *s == stage => input = i.clone(),
                Event::StepSucceeded { stage: s, output } | Event::StepWarned { stage: s, output, .. }
                    if *s == stage =>
                {
                    recorded_output = Some(output.clone());
                }
                _ => {}
            }
        }
        (input, recorded_output)
    }

    async fn finish(mut self) -> Result<Status, RegistryError> {
        if let Phase::Ended(status) = self.saga.phase {
            return Ok(status);
        }
        let status = if self.is_skipped() { Status::Skipped } else { self.saga.verdict() };
        self.reach("end:intent").await;
        let mut end = outcome::end(status, &self.saga, &self.events);
        let mut facts = Facts::default();
        match status {
            Status::Succeeded => {
                end.live = self.release();
                if let Some(live) = &end.live {
                    let log = self.log.section("refit");
                    self.keep_up(live, &log).await;
                    facts.freed =
                        retire::retire_old(&self.world, &self.environment, self.id, live.deployment, &log).await;
                    self.reach("end:retired").await;
                }
            }
            Status::Skipped => end.error.clone_from(&self.skip),
            _ => {}
        }
        self.end(status, end, facts).await
    }

    /// From now on the engine starts it again when it ends. A deployment that is good is not lost over an engine that does not take that.
    async fn keep_up(&self, live: &Release, log: &StageLog) {
        let runtime = self.world.runtimes.of(live.runtime);
        if let Err(error) = runtime.keep_up(&live.instance, true).await {
            log.line(format!("warning: {} is not started again if it ends by itself: {error}", live.instance.name));
        }
    }

    async fn end_before_it_began(&mut self, failure: StageFailure) -> Result<(), RegistryError> {
        let code = match failure.kind {
            FailureKind::Unavailable => outcome::exit::UNAVAILABLE,
            _ => outcome::exit::STOPPED,
        };
        let error = self.world.config.redactor.mask(&failure.message);
        let end = End { failed_stage: None, error: Some(error), exit_code: code, live: None };
        self.end(Status::Failed, end, Facts::default()).await.map(drop)
    }

    async fn end(&mut self, status: Status, end: End, facts: Facts) -> Result<Status, RegistryError> {
        let words = end.error.clone();
        self.log.section("refit").line(match &words {
            Some(error) => format!("{status}: {error}"),
            None => status.to_string(),
        });
        // A skipped push is no news; who asked in person wants to know.
        let told = status != Status::Skipped || self.progress.explicit;
        let message = told.then(|| NewMessage::of(MessageKind::End));
        let event = Event::Ended { status, reason: words };
        self.record(Entry { event, facts, end: Some(end), message }).await?;
        self.reach("end:record").await;
        Ok(status)
    }

    /// The rules found nothing to deploy, and nobody cancelled it meanwhile.
    fn is_skipped(&self) -> bool {
        self.skip.is_some() && self.saga.failure.is_none()
    }

    /// What is live from now on.
    fn release(&self) -> Option<Release> {
        let progress = &self.progress;
        if let Some(target) = &progress.target {
            let instance = progress.instance.clone()?;
            return Some(Release { instance, live_since: jiff::Timestamp::now(), ..target.clone() });
        }
        let artefact = progress.artefact.clone()?;
        Some(Release {
            deployment: self.id,
            key: self.environment.key.clone(),
            commit: progress.commit.clone()?,
            artefact: artefact.id,
            artefact_name: artefact.name,
            runtime: self.environment.start.runtime,
            instance: progress.instance.clone()?,
            live_since: jiff::Timestamp::now(),
        })
    }

    /// Every step was done when the daemon died: what it brought up decides.
    async fn still_healthy(&self) -> bool {
        let Some(instance) = &self.progress.instance else { return false };
        let runtime = self.world.runtime(&self.environment);
        let step = self.step(self.log.section("refit"), CancellationToken::new());
        let now = Instant::now();
        health::judge(runtime.as_ref(), self.world.http(), &self.environment, instance, now, &step.job).await.is_ok()
    }
}

/// Undoes a stage. While the runtime is away (the engine restarts, the machine comes up) it is waited for: giving up at once would
/// leave to a person what a minute mends.
async fn undo_patiently(
    stage: Stage,
    step: &Step,
    input: &Value,
    output: Option<&Value>,
) -> Result<Option<String>, StageFailure> {
    let began = Instant::now();
    let mut told = false;
    loop {
        match stages::undo(stage, step, input, output).await {
            Err(failure) if failure.kind == FailureKind::Unavailable && began.elapsed() < UNDO_PATIENCE => {
                if !told {
                    step.job.log.line(format!("cannot be undone yet, trying again: {}", failure.message));
                    told = true;
                }
                tokio::time::sleep(UNDO_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Why the rules say, in pull's output, that there is nothing to deploy.
fn skip_of(stage: Stage, output: &Value) -> Option<String> {
    let reason = output.get("skip").filter(|_| stage == Stage::Pull)?;
    reason.as_str().map(str::to_owned)
}

mod approval;

/// The next cancel request; waits for ever once nobody can ask any more.
async fn receive(cancels: &mut mpsc::Receiver<String>) -> String {
    match cancels.recv().await {
        Some(by) => by,
        None => pending().await,
    }
}
