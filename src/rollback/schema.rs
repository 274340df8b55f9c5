//! What became of the database's schema since a release: from the outputs that migrations recorded.

use serde_json::Value;

use crate::model::{DeploymentId, DeploymentView, Stage, StageStatus, Status};

/// Something that may have changed the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Past {
    /// A migration ran, to its end or not; `after` is what `migrate.version` said then.
    Migrated { by: DeploymentId, after: Option<String> },
    /// A rollback put the data back to how `to` had left it.
    Restored { by: DeploymentId, to: DeploymentId },
}

impl Past {
    fn by(&self) -> DeploymentId {
        match self {
            Self::Migrated { by, .. } | Self::Restored { by, .. } => *by,
        }
    }
}

/// A release's schema and today's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing changed it, or it came to the same version; the version where it is known.
    Same(Option<String>),
    Changed {
        then: Option<String>,
        now: String,
        by: Vec<DeploymentId>,
    },
    Unknown {
        by: Vec<DeploymentId>,
    },
}

/// How the schema stood after some deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Untouched,
    At(String),
    /// As this migration left it, which nobody recorded.
    LeftBy(DeploymentId),
}

/// The history from deployments, whatever their order.
pub fn past(deployments: &[DeploymentView]) -> Vec<Past> {
    let mut past: Vec<Past> = deployments.iter().filter_map(of).collect();
    past.sort_by_key(Past::by);
    past
}

fn of(view: &DeploymentView) -> Option<Past> {
    if let Some(rollback) = &view.rollback {
        let restored = rollback.restore.is_some() && view.status == Status::Succeeded;
        return restored.then_some(Past::Restored { by: view.id, to: rollback.to });
    }
    let stage = view.stages.iter().find(|stage| stage.name == Stage::Migrate)?;
    if matches!(stage.status, StageStatus::Pending | StageStatus::Skipped) {
        return None;
    }
    let text = |name: &str| stage.output.as_ref()?.get(name).and_then(Value::as_str).map(str::to_owned);
    match (text("before"), text("after")) {
        (Some(before), Some(after)) if before == after => None,
        (_, after) => Some(Past::Migrated { by: view.id, after }),
    }
}

/// What came after the schema that a release left, for people; `None` where it is the same, or not known.
pub fn ahead(deployments: &[DeploymentView], release: DeploymentId) -> Option<String> {
    match compare(&past(deployments), release) {
        Verdict::Changed { then: Some(then), now, .. } => Some(format!("{now} (it was {then})")),
        _ => None,
    }
}

/// Compares the schema as `target` left it with how it is now. `past` has the oldest first.
pub fn compare(past: &[Past], target: DeploymentId) -> Verdict {
    let then = state_after(past, target);
    let now = past.last().map_or(State::Untouched, |last| state_after(past, last.by()));
    let by = || past.iter().map(Past::by).filter(|by| *by > target).collect();
    match (then, now) {
        (State::At(then), State::At(now)) if then == now => Verdict::Same(Some(now)),
        (then, now) if then == now => Verdict::Same(None),
        (State::At(then), State::At(now)) => Verdict::Changed { then: Some(then), now, by: by() },
        (State::Untouched, State::At(now)) => Verdict::Changed { then: None, now, by: by() },
        _ => Verdict::Unknown { by: by() },
    }
}

fn state_after(past: &[Past], deployment: DeploymentId) -> State {
    let mut state = State::Untouched;
    for event in past.iter().filter(|event| event.by() <= deployment) {
        state = match event {
            Past::Migrated { after: Some(version), .. } => State::At(version.clone()),
            Past::Migrated { by, after: None } => State::LeftBy(*by),
            // What it put back is older than itself, so this ends.
            Past::Restored { to, by } if to < by => state_after(past, *to),
            Past::Restored { .. } => state,
        };
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migrated(by: i64, after: &str) -> Past {
        Past::Migrated { by: DeploymentId(by), after: (!after.is_empty()).then(|| after.to_owned()) }
    }

    fn verdict(past: &[Past], target: i64) -> Verdict {
        compare(past, DeploymentId(target))
    }

    #[test]
    fn versions_are_compared_and_not_counted() {
        let ids = |ids: &[i64]| ids.iter().map(|id| DeploymentId(*id)).collect::<Vec<_>>();
        let changed = |then: Option<&str>, now: &str, by: &[i64]| Verdict::Changed {
            then: then.map(str::to_owned),
            now: now.to_owned(),
            by: ids(by),
        };
        assert_eq!(verdict(&[], 3), Verdict::Same(None));
        let past = [migrated(2, "0001"), migrated(4, "0002")];
        assert_eq!(verdict(&past, 4), Verdict::Same(Some("0002".to_owned())));
        assert_eq!(verdict(&past, 3), changed(Some("0001"), "0002", &[4]));
        assert_eq!(verdict(&past, 1), changed(None, "0002", &[2, 4]));
        // Forward again: deployment 6 rolled back to 3, and nothing touched the schema.
        assert_eq!(verdict(&past, 5), Verdict::Same(Some("0002".to_owned())));
    }

    #[test]
    fn what_nobody_recorded_is_unknown_and_what_was_put_back_is_known() {
        let past = [migrated(2, "0001"), migrated(4, "")];
        assert_eq!(verdict(&past, 3), Verdict::Unknown { by: vec![DeploymentId(4)] });
        assert_eq!(verdict(&past, 4), Verdict::Same(None), "as that migration left it");
        let restored = Past::Restored { by: DeploymentId(5), to: DeploymentId(3) };
        let past = [migrated(2, "0001"), migrated(4, "0002"), restored];
        assert_eq!(verdict(&past, 3), Verdict::Same(Some("0001".to_owned())));
        assert!(matches!(verdict(&past, 4), Verdict::Changed { .. }));
    }
}
