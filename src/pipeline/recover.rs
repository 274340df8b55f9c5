//! What becomes of a deployment whose process died: decided from the journal alone, carried out by `run::resume`.

use std::sync::Arc;

use super::{
    World,
    journal::{Event, Phase, Saga},
    run,
};
use crate::{
    model::{DeploymentId, EnvironmentKey, Stage, Status},
    registry::{Entry, Facts, MessageKind, NewMessage, RegistryError},
};

/// What to do with an interrupted deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Every step was done and only the end is missing: check its health, then say so, or go back.
    Finish,
    /// Undo what was begun, or go on undoing.
    GoBack,
}

/// An unknown outcome is never success: only a journal in which every step ended well may finish.
pub fn plan(saga: &Saga) -> Plan {
    let all_done = saga.phase == Phase::Forward
        && saga.failure.is_none()
        && Stage::ALL.iter().all(|stage| {
            use super::journal::Step;
            matches!(saga.step(*stage), Step::Succeeded | Step::Warned | Step::Skipped)
        });
    if all_done { Plan::Finish } else { Plan::GoBack }
}

/// What recovery did with one deployment.
#[derive(Debug)]
pub struct Recovered {
    pub id: DeploymentId,
    pub key: EnvironmentKey,
    pub plan: Plan,
    pub status: Status,
}

/// Recovers every deployment that was running when the last process ended. Called under the lock, before the queue starts.
pub async fn recover(world: &Arc<World>) -> Result<Vec<Recovered>, RegistryError> {
    let mut recovered = Vec::new();
    for (id, key) in world.registry.open_deployments(Status::Running).await? {
        recovered.push(recover_one(world, id, key).await?);
    }
    // One that waits for approval is left waiting, unless nobody will ever take it up.
    for (id, key) in world.registry.open_deployments(Status::AwaitingApproval).await? {
        if world.config.by_key(&key).is_none() {
            recovered.push(recover_one(world, id, key).await?);
        }
    }
    Ok(recovered)
}

/// Recovers one deployment that nobody drives any more.
pub async fn recover_one(
    world: &Arc<World>,
    id: DeploymentId,
    key: EnvironmentKey,
) -> Result<Recovered, RegistryError> {
    let (saga, seq) = world.registry.saga(id).await?;
    let plan = plan(&saga);
    // It could not even begin and waits again, or somebody else ended it: there is nothing to take back.
    if let Phase::Queued | Phase::Ended(_) = saga.phase {
        let status = if let Phase::Ended(status) = saga.phase { status } else { Status::Queued };
        return Ok(Recovered { id, key, plan, status });
    }
    // It only waits for a person's word: a store that could not be read for a while is no reason to undo it.
    if saga.awaits_approval().is_some() && world.config.by_key(&key).is_some() {
        return Ok(Recovered { id, key, plan, status: Status::AwaitingApproval });
    }
    let status = match world.config.by_key(&key) {
        Some(environment) => run::resume(Arc::clone(world), Arc::clone(environment), id, plan).await?,
        None => abandon(world, id, saga, seq, &key).await?,
    };
    tracing::warn!(deployment = id.0, environment = %key, ?plan, %status, "recovered an interrupted deployment");
    Ok(Recovered { id, key, plan, status })
}

/// The environment is no longer configured: nothing is known of how to undo it, so a person has to look.
async fn abandon(
    world: &World,
    id: DeploymentId,
    saga: Saga,
    seq: i64,
    key: &EnvironmentKey,
) -> Result<Status, RegistryError> {
    let (mut saga, recorded) = world.registry.append(id, &saga, seq, &Event::Interrupted.into()).await?;
    let mut events = world.registry.events(id, 0).await?;
    let mut seq = recorded.seq;
    // Stuck already: only its end was not written.
    if let Some(stage) = saga.next_undo().filter(|_| !saga.is_stuck()) {
        let error = format!("{key} is no longer in the configuration: put it back and look at what is running");
        for event in [Event::UndoStarted { stage }, Event::UndoFailed { stage, error }] {
            let (next, recorded) = world.registry.append(id, &saga, seq, &event.into()).await?;
            (saga, seq) = (next, recorded.seq);
            events.push(recorded);
        }
    }
    let status = saga.verdict();
    let end = super::outcome::end(status, &saga, &events);
    let event = Event::Ended { status, reason: end.error.clone() };
    let message = Some(NewMessage::of(MessageKind::End));
    let entry = Entry { event, facts: Facts::default(), end: Some(end), message };
    world.registry.append(id, &saga, seq, &entry).await?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_journal_without_gaps_may_finish() -> Result<(), super::super::journal::IllegalTransition> {
        let mut events = vec![Event::Begun { previous: None, rollback_to: None }];
        for stage in Stage::ALL {
            assert_eq!(plan(&Saga::replay(&events)?), Plan::GoBack, "before {stage}");
            events.push(Event::StepStarted { stage: *stage, input: json!({}) });
            assert_eq!(plan(&Saga::replay(&events)?), Plan::GoBack, "in {stage}");
            events.push(Event::StepSucceeded { stage: *stage, output: json!({}) });
        }
        assert_eq!(plan(&Saga::replay(&events)?), Plan::Finish);
        Ok(())
    }
}
