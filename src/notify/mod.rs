//! What people are told in a chat: a live message of each deployment, the report of its end, and the question where one waits for approval.
//!
//! The pipeline writes a row into the outbox in the same transaction as the state that it reports (a deployment begins, asks, ends); the row says only
//! *that* there is something to say. [`run`], a task of the daemon, takes what is due, composes the [`Report`] from the deployment and its journal, sends it, and
//! settles the row. So a report is never lost to a crash, and no deployment ever waits for Telegram. [`flush`] does the same
//! within a limit, for a command that works without a daemon. Without `[telegram]` a report is one line in the daemon's log.
//!
//! - **The live message** (`card`) comes silently when a deployment begins, and is edited as stages go (`live`), at last into what became of it.
//! - **What rings** is a message of its own, which answers the live one: a failure, a rollback, one that is stuck, with everything that there is to say (`render`),
//!   and the failed stage's log as a file where the message has no room for it; a question, with buttons; a success in one line, or with `quiet` not at all.
//! - **A backup** (`rehearsal`) that could not be restored rings, once a set; that the next one is good comes silently.
//! - **The pace** (`pace`) is what a chat takes; edits come last.
//!
//! When the way is blocked (no connection, trouble at Telegram, a pause it asks for, a token or chat that is wrong) nothing at all is
//! tried until the pause is over, so that a backlog does not become a storm; the oldest message then goes first. The pauses are
//! 1 s, doubling to 5 min; what Telegram asks for; or 5 min where a person has to act. After an outage only what matters is told: of a deployment that has
//! ended meanwhile, the end. What Telegram refuses for a day is given up, with its text in the log; an outage never makes it give up.
//!
//! A message is settled as soon as Telegram has said that it took it. The Bot API knows no key that would make sending repeatable: where
//! the answer is lost (a timeout after the request went out, a crash between the answer and the note) nobody knows whether it was taken. The row is marked
//! before the request goes out, so that this is known afterwards: the end and the question are then sent again, and people may read them twice; the live
//! message is not. Edits are harmless to repeat. `registry::OutboxFigures` counts all of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{
    courier::{Courier, Next},
    live::Edits,
};
use crate::{
    config::Config,
    fault::Faults,
    registry::{Registry, RegistryError},
};

pub mod buttons;
mod card;
mod courier;
mod live;
mod logfile;
mod pace;
mod rehearsal;
pub(crate) mod render;
mod report;
pub mod telegram;
#[cfg(test)]
mod tests;
pub(crate) mod words;

pub use pace::{Limits, Pacer, Turn};
pub use render::Message;
pub use report::Report;
pub use words::{freed, reference};

/// A registry that cannot be read or written is asked again after this.
const REGISTRY_PAUSE: Duration = Duration::from_secs(5);

/// The longest sleep: the clock may be set back, and messages are due by the clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(5 * 60);

/// How long after the shutdown a message may still be begun: the last deployments end just before it.
const LAST_CALL: Duration = Duration::from_secs(2);

/// When the task ends after the shutdown, come what may. A request that is dropped in the middle might be sent twice.
const GRACE: Duration = Duration::from_secs(5);

/// What sending works with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Post {
    pub registry: Registry,
    pub config: Arc<Config>,
    /// Shared by all that write to the bot's chats.
    pub pacer: Pacer,
    /// Faults that a test ordered, at `report:<kind>:<moment>`: `intent` once a row is marked, `effect` once its message was taken, `record`
    /// once that is noted; and at `report:edit:effect`.
    pub faults: Faults,
    /// How long Telegram has for an answer.
    pub patience: Duration,
}

impl Post {
    pub fn new(registry: Registry, config: Arc<Config>) -> Self {
        Self { registry, config, pacer: Pacer::default(), faults: Faults::default(), patience: telegram::PATIENCE }
    }

    async fn reach(&self, what: &str, moment: &str) {
        self.faults.reach(&format!("report:{what}:{moment}")).await;
    }
}

/// Sends reports until `shutdown`, and then, unless the way is blocked, what is due, for a few seconds. `ticks` goes up when
/// something was recorded. The registry must stay open until this has ended, or a message could be sent and not be noted.
pub async fn run(post: Post, mut ticks: watch::Receiver<u64>, shutdown: CancellationToken) {
    let mut courier = Courier::new(post);
    // Whatever was in the way before this start may be mended.
    if let Err(error) = courier.wake().await {
        tracing::error!(%error, "reports that waited go on waiting");
    }
    let mut ticking = true;
    loop {
        let ends = shutdown.is_cancelled();
        let waiting = tokio::select! {
            waiting = deliver_all(&mut courier, &shutdown) => waiting,
            () = grace(&shutdown) => return,
        };
        if ends {
            return;
        }
        let (sleep, listens) = match waiting {
            Ok(Waiting::Held(pause)) => (pause, false),
            Ok(Waiting::UntilDue(due)) => (due.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP), true),
            Err(error) => {
                tracing::error!(%error, "reports cannot be sent");
                (REGISTRY_PAUSE, false)
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {
                if !listens {
                    return;
                }
            }
            () = tokio::time::sleep(sleep) => {}
            changed = ticks.changed(), if listens && ticking => ticking = changed.is_ok(),
        }
    }
}

/// Sends what is due, for at most `limit`. What cannot be sent stays for the next command or the daemon.
///
/// # Errors
/// How many reports wait, and why the oldest does: for a remark to the user, not for an exit code.
pub async fn flush(post: Post, limit: Duration) -> Result<(), String> {
    let registry = post.registry.clone();
    let mut courier = Courier::new(post);
    let never = CancellationToken::new();
    let in_time = tokio::time::timeout(limit, deliver_all(&mut courier, &never)).await;
    if let Ok(Err(error)) = in_time {
        return Err(error.to_string());
    }
    match registry.outbox_backlog().await {
        Ok((0, _)) => Ok(()),
        Ok((count, why)) => {
            let reports = if count == 1 { "one report waits".to_owned() } else { format!("{count} reports wait") };
            Err(format!("{reports} to be sent: {}", why.unwrap_or_else(|| "there was no time".to_owned())))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Why nothing more is sent now.
#[derive(Debug)]
enum Waiting {
    /// The way is blocked.
    Held(Duration),
    /// Nothing is due; `None`: nothing is there.
    UntilDue(Option<Duration>),
}

async fn deliver_all(courier: &mut Courier, shutdown: &CancellationToken) -> Result<Waiting, RegistryError> {
    let mut ending = None;
    loop {
        if shutdown.is_cancelled() && ending.get_or_insert_with(Instant::now).elapsed() > LAST_CALL {
            break;
        }
        let Some(message) = courier.due().await? else { break };
        if let Next::Hold(pause) = courier.deliver(&message).await? {
            return Ok(Waiting::Held(pause));
        }
    }
    let wanted = match courier.refresh().await? {
        Edits::Held(pause) => return Ok(Waiting::Held(pause)),
        Edits::Wanted(wanted) => wanted,
    };
    Ok(Waiting::UntilDue([wanted, courier.next_due_in().await?].into_iter().flatten().min()))
}

/// Ends a while after the shutdown was asked for.
async fn grace(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(GRACE).await;
}
