//! A deployment's journal as a stream: what is there, then what comes.

use std::collections::VecDeque;

use futures_util::{StreamExt, stream, stream::BoxStream};
use tokio::sync::watch;

use super::{ControlError, Result, Update, unknown};
use crate::{model::DeploymentId, registry::Registry};

struct State {
    registry: Registry,
    ticks: watch::Receiver<u64>,
    id: DeploymentId,
    seq: i64,
    pending: VecDeque<Update>,
    ended: bool,
}

/// Events after `seq`, then `End`. Woken by `ticks`; reads the registry, so that nothing is missed between two wakes.
pub(super) fn follow(
    registry: Registry,
    ticks: watch::Receiver<u64>,
    id: DeploymentId,
    after: i64,
) -> BoxStream<'static, Result<Update>> {
    let state = State { registry, ticks, id, seq: after, pending: VecDeque::new(), ended: false };
    stream::try_unfold(state, |mut state| async move {
        loop {
            if let Some(update) = state.pending.pop_front() {
                return Ok(Some((update, state)));
            }
            if state.ended {
                return Ok(None);
            }
            // Marked before reading: a change during the read wakes us again.
            state.ticks.borrow_and_update();
            state.read().await?;
            if state.pending.is_empty() && state.ticks.changed().await.is_err() {
                return Err(ControlError::Unavailable {
                    message: "the daemon is stopping".to_owned(),
                    hint: Some(format!("`refit show {}` tells how it went on", state.id)),
                });
            }
        }
    })
    .boxed()
}

impl State {
    async fn read(&mut self) -> Result<()> {
        let view = self.registry.deployment(self.id).await?.ok_or_else(|| unknown(self.id))?;
        let events = self.registry.events(self.id, self.seq).await?;
        self.seq = events.last().map_or(self.seq, |r| r.seq);
        self.pending.extend(events.into_iter().map(Update::Event));
        // The status and the last event are one commit: an end seen here has all its events seen before it.
        if view.status.is_end() {
            self.ended = true;
            self.pending.push_back(Update::End { deployment: Box::new(view) });
        }
        Ok(())
    }
}
