//! The gate before migrate: asking for a person's word, and waiting for it.
//!
//! The word is a row of its own ([`Registry::decide`](crate::registry::Registry::decide)), which any process may write; the one that drives the deployment
//! finds it, and writes what follows from it into the journal. So a decision survives whichever process dies, and waiting costs nothing:
//! it can end with the daemon and go on with the next. That nobody said anything in time is such a row too, so that a word which comes
//! in the last moment either counts or is refused.
//!
//! What is queued meanwhile is newer than what waits: the waiting one makes way, so that nobody approves what is out of date.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Runner, Way, receive};
use crate::{
    pipeline::journal::{Approval, Event},
    registry::{Decision, Entry, MessageKind, NewMessage, RegistryError},
};

/// Between two looks for a decision that another process may have written.
const LOOK: Duration = Duration::from_secs(1);

/// Who lets the time run out.
const NOBODY: &str = "nobody";

impl Runner {
    /// Whether migrate has to wait for a person's word. Going back is not for anybody to hold up.
    pub(super) fn asks_for_approval(&self) -> bool {
        self.environment.approval.is_some() && self.saga.approval == Approval::NotAsked && !self.saga.is_rollback()
    }

    pub(super) async fn request_approval(&mut self) -> Result<(), RegistryError> {
        let patience = self.environment.approval.unwrap_or_default();
        let expires_at = Timestamp::now().checked_add(patience).unwrap_or(Timestamp::MAX);
        let id = self.id;
        let until = expires_at.strftime("%Y-%m-%d %H:%M:%S UTC");
        self.log.section("refit").line(format!(
            "waits for approval until {until}: `refit approve {id}`, or `refit reject {id} --reason \"…\"`"
        ));
        let message = NewMessage::of(MessageKind::Approval);
        let event = Event::ApprovalRequested { expires_at };
        self.record(Entry { message: Some(message), ..event.into() }).await?;
        self.reach("approval:record").await;
        Ok(())
    }

    /// Waits for the decision, the time limit or a cancellation, and records it; until `closing` at the longest.
    pub(super) async fn hear_approval(
        &mut self,
        expires_at: Timestamp,
        cancels: &mut mpsc::Receiver<String>,
        closing: &CancellationToken,
    ) -> Result<Way, RegistryError> {
        let mut ticks = self.world.ticks.subscribe();
        let event = loop {
            let registry = &self.world.registry;
            if let Some(decision) = registry.decision(self.id).await? {
                self.reach("approval:decision").await;
                break heard(decision);
            }
            if let Some(newer) = registry.next_queued(&self.environment.key).await? {
                break Event::CancelRequested { by: format!("deployment {newer}, which is newer") };
            }
            let now = Timestamp::now();
            if now >= expires_at {
                let nobody = Decision { approved: false, by: NOBODY.to_owned(), reason: None, at: now };
                break heard(registry.decide(self.id, &nobody).await?.unwrap_or(nobody));
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                // The sender lives in `world`.
                _ = ticks.changed() => {}
                by = receive(cancels) => break Event::CancelRequested { by },
                () = closing.cancelled() => {
                    self.log.section("refit").line("goes on waiting with the next start");
                    return Ok(Way::Waiting);
                }
            }
        };
        self.log.section("refit").line(match &event {
            Event::Approved { by } => format!("approved by {by}"),
            Event::ApprovalRefused { expired: true, .. } => "nobody approved it in time".to_owned(),
            Event::ApprovalRefused { by, .. } => format!("rejected by {by}"),
            Event::CancelRequested { by } => format!("cancelled by {by}"),
            _ => String::new(),
        });
        self.record(event).await?;
        self.reach("approval:heard").await;
        Ok(Way::Over)
    }
}

/// What a decision is in the journal. A person who says no gives a reason; only the end of the time has none.
fn heard(decision: Decision) -> Event {
    let Decision { approved, by, reason, .. } = decision;
    match approved {
        true => Event::Approved { by },
        false => Event::ApprovalRefused { expired: reason.is_none(), by, reason },
    }
}
