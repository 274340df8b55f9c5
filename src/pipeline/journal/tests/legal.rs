//! The rules a second time, in other words: what may follow a history, told from the events alone. [`next`] has to agree on every event
//! in every state that a random walk of legal events comes to, so that no sequence leaves the named ends and every illegal
//! event is refused.

use proptest::prelude::*;

use super::*;

const KINDS: [FailureKind; 4] =
    [FailureKind::Failed, FailureKind::TimedOut, FailureKind::Unavailable, FailureKind::Cancelled];

/// Every event there is, with every stage, status and kind.
fn alphabet() -> Vec<Event> {
    let mut all = vec![
        begun(),
        Event::Begun { previous: None, rollback_to: None },
        Event::Begun { previous: Some(DeploymentId(2)), rollback_to: Some(DeploymentId(1)) },
        Event::ApprovalRequested { expires_at: Timestamp::MAX },
        Event::Approved { by: String::new() },
        Event::ApprovalRefused { by: String::new(), reason: None, expired: false },
        Event::CancelRequested { by: String::new() },
        Event::Interrupted,
    ];
    for stage in Stage::ALL.iter().copied() {
        all.extend([
            started(stage),
            succeeded(stage),
            Event::StepWarned { stage, error: String::new(), output: json!({}) },
            Event::StepSkipped { stage, reason: String::new() },
            Event::UndoStarted { stage },
            Event::UndoFinished { stage, summary: None },
            Event::UndoFailed { stage, error: String::new() },
        ]);
        let failed = |kind| Event::StepFailed { stage, kind, error: String::new(), tail: Vec::new() };
        all.extend(KINDS.map(failed));
    }
    all.extend(Status::ALL.iter().map(|status| ended(*status)));
    all
}

struct History<'a>(&'a [Event]);

impl History<'_> {
    fn has(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.0.iter().any(wanted)
    }

    fn begun(&self) -> bool {
        self.has(|e| matches!(e, Event::Begun { .. }))
    }

    fn goes_back(&self) -> bool {
        self.has(|e| matches!(e, Event::UndoStarted { .. }))
    }

    fn is_stuck(&self) -> bool {
        self.has(|e| matches!(e, Event::UndoFailed { .. }))
    }

    /// What ended the way forward first.
    fn failure(&self) -> Option<FailureKind> {
        self.0.iter().find_map(|event| match event {
            Event::StepFailed { kind, .. } => Some(*kind),
            Event::CancelRequested { .. } => Some(FailureKind::Cancelled),
            Event::Interrupted => Some(FailureKind::Interrupted),
            Event::ApprovalRefused { .. } => Some(FailureKind::Refused),
            _ => None,
        })
    }

    fn last(&self, stage: Stage) -> Option<&Event> {
        self.0.iter().rev().find(|event| event.stage() == Some(stage))
    }

    fn was_started(&self, stage: Stage) -> bool {
        self.has(|e| matches!(e, Event::StepStarted { stage: s, .. } if *s == stage))
    }

    /// Started, and neither its end nor the process's was recorded since.
    fn runs(&self, stage: Stage) -> bool {
        let since = self.0.iter().rev().take_while(|e| e.stage() != Some(stage));
        matches!(self.last(stage), Some(Event::StepStarted { .. }))
            && !since.into_iter().any(|e| *e == Event::Interrupted)
    }

    fn is_done(&self, stage: Stage) -> bool {
        let last = self.last(stage);
        matches!(last, Some(Event::StepSucceeded { .. } | Event::StepWarned { .. } | Event::StepSkipped { .. }))
    }

    fn waits(&self) -> bool {
        let gate = |e: &&Event| {
            matches!(e, Event::ApprovalRequested { .. } | Event::Approved { .. } | Event::ApprovalRefused { .. })
        };
        let last = self.0.iter().rev().find(gate);
        matches!(last, Some(Event::ApprovalRequested { .. })) && self.failure().is_none()
    }

    fn may_start(&self, stage: Stage) -> bool {
        let free = self.begun() && self.failure().is_none() && !self.waits() && self.last(stage).is_none();
        free && prerequisites(stage).iter().all(|s| self.is_done(*s))
    }

    fn next_undo(&self) -> Option<Stage> {
        let left = |stage: &Stage| {
            !matches!(
                self.last(*stage),
                None | Some(Event::StepSkipped { .. } | Event::UndoFinished { .. } | Event::UndoFailed { .. })
            )
        };
        Stage::ALL.iter().rev().copied().find(left)
    }

    fn may_end(&self, status: Status) -> bool {
        let nothing_but_pull = Stage::ALL.iter().all(|s| *s == Stage::Pull || !self.was_started(*s));
        let untouched = nothing_but_pull && !self.was_started(Stage::Pull);
        let called_for = match (self.failure(), self.next_undo()) {
            (None, _) => Stage::ALL.iter().all(|s| self.is_done(*s)).then_some(Status::Succeeded),
            (Some(_), _) if self.is_stuck() => Some(Status::Stuck),
            (Some(_), Some(_)) => None,
            (Some(kind), None) => Some(self.after_undo(kind)),
        };
        called_for == Some(status)
            || match status {
                Status::Superseded | Status::Cancelled => !self.begun(),
                Status::Skipped => {
                    !self.begun() || (self.failure().is_none() && self.is_done(Stage::Pull) && nothing_but_pull)
                }
                // Something that is needed was away before the first step.
                Status::Failed => self.begun() && untouched,
                _ => false,
            }
    }

    fn after_undo(&self, kind: FailureKind) -> Status {
        let is_rollback = self.has(|e| matches!(e, Event::Begun { rollback_to: Some(_), .. }));
        let had_previous = self.has(|e| matches!(e, Event::Begun { previous: Some(_), .. }));
        match (kind, self.was_started(Stage::Start)) {
            (FailureKind::Cancelled, _) => Status::Cancelled,
            (FailureKind::Interrupted, _) | (_, false) if is_rollback => Status::Failed,
            (_, true) if is_rollback => Status::Stuck,
            (_, true) if had_previous => Status::RolledBack,
            _ => Status::Failed,
        }
    }

    fn allows(&self, event: &Event) -> bool {
        if self.has(|e| matches!(e, Event::Ended { .. })) {
            return false;
        }
        match event {
            Event::Begun { .. } => !self.begun(),
            Event::StepStarted { stage, .. } | Event::StepSkipped { stage, .. } => self.may_start(*stage),
            Event::StepSucceeded { stage, .. } | Event::StepWarned { stage, .. } | Event::StepFailed { stage, .. } => {
                self.runs(*stage)
            }
            Event::ApprovalRequested { .. } => {
                !self.has(|e| matches!(e, Event::ApprovalRequested { .. })) && self.may_start(Stage::Migrate)
            }
            Event::Approved { .. } | Event::ApprovalRefused { .. } => self.waits(),
            Event::CancelRequested { .. } => !self.goes_back(),
            Event::Interrupted => self.begun(),
            Event::UndoStarted { stage } => {
                let quiet = Stage::ALL.iter().all(|s| !self.runs(*s));
                self.failure().is_some() && quiet && !self.is_stuck() && self.next_undo() == Some(*stage)
            }
            Event::UndoFinished { stage, .. } | Event::UndoFailed { stage, .. } => {
                matches!(self.last(*stage), Some(Event::UndoStarted { .. }))
            }
            Event::Ended { status, .. } => self.may_end(*status),
        }
    }
}

/// How often a legal event is drawn: most walks should come far.
fn weight(event: &Event) -> usize {
    match event {
        Event::StepStarted { .. } | Event::StepSucceeded { .. } | Event::UndoFinished { .. } => 12,
        Event::StepWarned { .. } | Event::StepSkipped { .. } | Event::UndoStarted { .. } | Event::Approved { .. } => 4,
        _ => 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_the_rules_allow_is_allowed_and_everything_else_refused(draws in proptest::collection::vec(any::<usize>(), 60)) {
        let alphabet = alphabet();
        let (mut saga, mut history) = (Saga::default(), Vec::new());
        for draw in draws {
            let mut legal = Vec::new();
            for event in &alphabet {
                let allowed = History(&history).allows(event);
                prop_assert_eq!(next(&saga, event).is_ok(), allowed, "{:?} after {:?}", event, history);
                if allowed {
                    legal.extend(std::iter::repeat_n(event, weight(event)));
                }
            }
            // No state but an end has no way on.
            prop_assert_eq!(legal.is_empty(), saga.is_ended(), "after {:?}", history);
            let Some(event) = legal.get(draw % legal.len().max(1)).copied() else { break };
            saga = next(&saga, event).expect("it is legal");
            prop_assert_eq!(&saga, &Saga::replay(history.iter().chain([event])).expect("it is legal"));
            history.push(event.clone());
        }
        if let Phase::Ended(status) = saga.phase {
            prop_assert!(status.is_end(), "{}", status);
        }
    }
}
