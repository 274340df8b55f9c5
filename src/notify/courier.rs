//! Takes messages from the outbox to Telegram, one after the other, oldest first.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    Report,
    telegram::{Client, Verdict},
};
use crate::{
    config::Config,
    model::Status,
    registry::{Message, Registry, RegistryError},
};

/// The first pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// A chat takes about one message a second (Bot API, "broadcasting to users").
const PACE: Duration = Duration::from_secs(1);

/// A message that Telegram keeps refusing is given up when both are reached: it has been tried this often, and is this old.
const GIVE_UP_ATTEMPTS: u32 = 10;
const GIVE_UP_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether more may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    More,
    /// The way is blocked: nothing is tried for so long.
    Hold(Duration),
}

/// What a message says now.
#[derive(Debug)]
enum Word {
    Report(Box<Report>),
    /// Nothing any more.
    OutOfDate,
    /// A newer version wrote it.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Courier {
    registry: Registry,
    config: Arc<Config>,
    /// `None` without `[telegram]`; an error where its settings cannot be used.
    client: Option<Result<Client, String>>,
    /// The trouble that was last logged: each is logged once.
    told: Option<String>,
    last: Option<Instant>,
}

impl Courier {
    pub fn new(registry: Registry, config: Arc<Config>) -> Self {
        let client = config.telegram.as_ref().map(Client::new);
        Self { registry, config, client, told: None, last: None }
    }

    pub async fn due(&self) -> Result<Option<Message>, RegistryError> {
        self.registry.due_message().await
    }

    /// Until the next message is due; `None` with an empty outbox.
    pub async fn next_due_in(&self) -> Result<Option<Duration>, RegistryError> {
        self.registry.next_message_in().await
    }

    /// Sends one message and notes what became of it.
    pub async fn deliver(&mut self, message: &Message) -> Result<Next, RegistryError> {
        let report = match self.word(message).await? {
            Word::Report(report) => *report,
            Word::OutOfDate => {
                self.registry.message_sent(message.id).await?;
                return Ok(Next::More);
            }
            Word::Unknown => {
                tracing::warn!(
                    message = message.id,
                    kind = message.kind,
                    "a message that this version cannot word is dropped"
                );
                self.registry.message_sent(message.id).await?;
                return Ok(Next::More);
            }
        };
        let verdict = match &mut self.client {
            None => {
                tracing::info!(deployment = report.id.0, "{}", report.line());
                self.registry.message_sent(message.id).await?;
                return Ok(Next::More);
            }
            Some(Err(why)) => Verdict::Closed(why.clone()),
            Some(Ok(client)) => {
                if let Some(last) = self.last {
                    tokio::time::sleep(PACE.saturating_sub(last.elapsed())).await;
                }
                let verdict = client.send(&report.message()).await;
                self.last = Some(Instant::now());
                verdict
            }
        };
        self.note(message, &report, verdict).await
    }

    /// A message says only what it is about; the words are those of the moment in which it is sent.
    async fn word(&self, message: &Message) -> Result<Word, RegistryError> {
        let known = matches!(message.kind.as_str(), "end" | "approval")
            && message.body.get("version").and_then(serde_json::Value::as_u64) == Some(1);
        let Some(id) = message.deployment.filter(|_| known) else { return Ok(Word::Unknown) };
        let Some(view) = self.registry.deployment(id).await? else { return Ok(Word::Unknown) };
        // Somebody has answered already, or it has ended: its end is told by a message of its own.
        if message.kind == "approval" && view.status != Status::AwaitingApproval {
            return Ok(Word::OutOfDate);
        }
        let events = self.registry.events(id, 0).await?;
        Ok(Word::Report(Box::new(Report::of(&view, &events, &self.config))))
    }

    async fn note(&mut self, message: &Message, report: &Report, verdict: Verdict) -> Result<Next, RegistryError> {
        let pause = backoff(message.attempts);
        let (why, pause, next) = match verdict {
            Verdict::Accepted => {
                self.registry.message_sent(message.id).await?;
                if self.told.take().is_some() {
                    tracing::info!("Telegram takes reports again");
                }
                tracing::debug!(deployment = report.id.0, "reported to Telegram");
                return Ok(Next::More);
            }
            Verdict::Slow(wait) => {
                let wait = wait.clamp(FIRST_PAUSE, Duration::from_secs(60 * 60));
                (format!("Telegram asks for a pause of {} s", wait.as_secs()), wait, Next::Hold(wait))
            }
            Verdict::Away(why) => (why, pause, Next::Hold(pause)),
            Verdict::Closed(why) if may_give_up(message) => return self.give_up(message, report, &why).await,
            Verdict::Closed(why) => (why, LONGEST_PAUSE, Next::Hold(LONGEST_PAUSE)),
            Verdict::Refused(why) if may_give_up(message) => return self.give_up(message, report, &why).await,
            // Others may get through.
            Verdict::Refused(why) => (why, pause, Next::More),
        };
        self.registry.message_failed(message.id, &why, pause).await?;
        if self.told.as_deref() != Some(why.as_str()) {
            tracing::warn!(
                deployment = report.id.0,
                why,
                "a report could not be sent to Telegram; it is kept and tried again"
            );
            self.told = Some(why);
        }
        Ok(next)
    }

    async fn give_up(&self, message: &Message, report: &Report, why: &str) -> Result<Next, RegistryError> {
        let line = report.line();
        tracing::error!(deployment = report.id.0, why, line, "Telegram refused a report for a day; it is given up");
        self.registry.message_sent(message.id).await?;
        Ok(Next::More)
    }
}

fn backoff(failed: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failed)).min(LONGEST_PAUSE)
}

fn may_give_up(message: &Message) -> bool {
    let age = Timestamp::now().duration_since(message.created_at);
    message.attempts + 1 >= GIVE_UP_ATTEMPTS && Duration::try_from(age).is_ok_and(|age| age > GIVE_UP_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_five_minutes() {
        let pauses: Vec<u64> = (0..12).map(|n| backoff(n).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(backoff(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn only_an_old_message_that_was_tried_often_is_given_up() {
        let message = |attempts, hours: i64| Message {
            id: 1,
            deployment: None,
            kind: "end".to_owned(),
            body: serde_json::Value::Null,
            attempts,
            created_at: Timestamp::now() - jiff::SignedDuration::from_hours(hours),
        };
        assert!(may_give_up(&message(9, 25)));
        assert!(!may_give_up(&message(8, 25)));
        assert!(!may_give_up(&message(300, 23)));
        assert!(!may_give_up(&message(300, -25)), "a clock that went back gives nothing up");
    }
}
