//! Takes messages from the outbox to Telegram, one after the other, oldest first.
//!
//! What is vital (an end, a question) is sent at least once: where the answer to an earlier attempt was not heard, it goes out again. The live
//! message is sent at most once: a second one would stay in the chat for ever, and its deployment's end is told by a message of its own anyway.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    Post, Report,
    buttons::{Keyboard, Offered, keyboard_for},
    logfile,
    telegram::{Client, Manner, Verdict},
};
use crate::{
    config::Config,
    model::{DeploymentId, DeploymentView, Stage, StageStatus, Status},
    pipeline::{journal::Recorded, outcome},
    registry::{ChatMessage, Message, MessageKind, NewMessage, Registry, RegistryError},
};

/// The first pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// A message that Telegram keeps refusing is given up when both are reached: it has been tried this often, and is this old.
const GIVE_UP_ATTEMPTS: u32 = 10;
const GIVE_UP_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The live message waits so long for what pull finds out: the commit, or that there is nothing to deploy.
const PULL_PATIENCE: Duration = Duration::from_secs(3);
const PULL_LOOK: Duration = Duration::from_millis(300);

/// Whether more may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    More,
    /// The way is blocked: nothing is tried for so long.
    Hold(Duration),
}

/// A deployment as it is when a message about it goes out.
#[derive(Debug)]
pub(super) struct Story {
    pub view: DeploymentView,
    pub events: Vec<Recorded>,
    pub report: Report,
}

/// What goes out for a row of the outbox.
#[derive(Debug)]
enum Plan {
    Send(Letter),
    /// Not yet.
    Wait(Duration),
    /// The live message says it already.
    Told,
    /// There is nothing to say any more.
    Drop,
}

#[derive(Debug)]
struct Letter {
    content: Content,
    silent: bool,
    reply_to: Option<i32>,
    keyboard: Keyboard,
    /// It is edited later.
    stays_open: bool,
    /// What follows once it was taken.
    next: Option<MessageKind>,
}

#[derive(Debug)]
enum Content {
    Text(super::Message),
    File { name: String, content: Vec<u8> },
}

#[derive(Debug)]
pub(super) struct Courier {
    pub(super) post: Post,
    /// `None` without `[telegram]`; an error where its settings cannot be used.
    pub(super) client: Option<Result<Client, String>>,
    /// The trouble that was last logged: each is logged once.
    pub(super) told: Option<String>,
    /// Edits that failed since one was taken.
    pub(super) failed_edits: u32,
}

impl Courier {
    pub fn new(post: Post) -> Self {
        let client = post.config.telegram.as_ref().map(|telegram| Client::new(telegram, post.patience));
        Self { post, client, told: None, failed_edits: 0 }
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.post.registry
    }

    fn config(&self) -> &Arc<Config> {
        &self.post.config
    }

    /// Everything that waits is due.
    pub async fn wake(&self) -> Result<(), RegistryError> {
        self.registry().messages_due_now().await
    }

    pub async fn due(&self) -> Result<Option<Message>, RegistryError> {
        self.registry().due_message().await
    }

    /// Until the next message is due; `None` with an empty outbox.
    pub async fn next_due_in(&self) -> Result<Option<Duration>, RegistryError> {
        self.registry().next_message_in().await
    }

    /// A message says only what it is about; the words are those of the moment in which it is sent.
    pub(super) async fn story(&self, id: DeploymentId) -> Result<Option<Story>, RegistryError> {
        let Some(view) = self.registry().deployment(id).await? else { return Ok(None) };
        let events = self.registry().events(id, 0).await?;
        let report = Report::of(&view, &events, self.config());
        Ok(Some(Story { view, events, report }))
    }

    /// Sends one message and notes what became of it.
    pub async fn deliver(&mut self, message: &Message) -> Result<Next, RegistryError> {
        if let Some(found) = message.rehearsed() {
            return self.tell_of_backup(message, &found).await;
        }
        let about = message.about();
        let story = match about {
            Some((_, id)) => self.story(id).await?,
            None => None,
        };
        let Some(((kind, _), story)) = about.zip(story) else {
            tracing::warn!(
                message = message.id,
                kind = message.kind,
                "a message that this version cannot word is dropped"
            );
            self.registry().message_dropped(message.id).await?;
            return Ok(Next::More);
        };
        let chat = match &self.client {
            None => return self.log_only(message, kind, &story).await,
            Some(Err(why)) => return self.note(message, &story, None, Verdict::Closed(why.clone())).await,
            Some(Ok(client)) => client.place().0,
        };
        if let Some(wait) = self.post.pacer.held() {
            return Ok(Next::Hold(wait));
        }
        if kind == MessageKind::End
            && let Some(verdict) = self.finish(&story).await?
        {
            return self.note(message, &story, None, verdict).await;
        }
        let letter = match self.plan(message, kind, &story, chat).await? {
            Plan::Send(letter) => letter,
            Plan::Wait(wait) => {
                self.registry().message_waits(message.id, wait).await?;
                return Ok(Next::More);
            }
            Plan::Told => {
                self.registry().message_sent(message, None, None).await?;
                return Ok(Next::More);
            }
            Plan::Drop => {
                self.registry().message_dropped(message.id).await?;
                return Ok(Next::More);
            }
        };
        self.post.pacer.turn(chat, super::Turn::Message).await;
        self.send(message, kind, &story, letter).await
    }

    /// Without Telegram a report is a line in the log.
    async fn log_only(&self, message: &Message, kind: MessageKind, story: &Story) -> Result<Next, RegistryError> {
        let out_of_date = kind == MessageKind::Approval && story.view.status != Status::AwaitingApproval;
        if matches!(kind, MessageKind::Begun | MessageKind::Log) || out_of_date {
            self.registry().message_dropped(message.id).await?;
            return Ok(Next::More);
        }
        tracing::info!(deployment = story.report.id.0, "{}", story.report.line());
        self.registry().message_sent(message, None, None).await?;
        Ok(Next::More)
    }

    async fn plan(
        &self,
        message: &Message,
        kind: MessageKind,
        story: &Story,
        chat: i64,
    ) -> Result<Plan, RegistryError> {
        let (view, report) = (&story.view, &story.report);
        let text = |text: super::Message| Letter {
            content: Content::Text(text),
            silent: false,
            reply_to: None,
            keyboard: Keyboard::default(),
            stays_open: false,
            next: None,
        };
        if kind == MessageKind::Begun {
            let ended = view.status.is_end();
            return Ok(match still_pulling(message, view) {
                _ if ended || message.doubtful => Plan::Drop,
                true => Plan::Wait(PULL_LOOK),
                false => {
                    let keyboard = self.keyboard(MessageKind::Begun, view);
                    Plan::Send(Letter { silent: true, stays_open: true, keyboard, ..text(report.card(true)) })
                }
            });
        }
        let live = self.registry().chat_message(view.id, MessageKind::Begun).await?;
        let live = live.filter(|live| !live.gone && live.chat == chat);
        let reply_to = live.as_ref().map(|live| live.message);
        let quiet = self.config().telegram.as_ref().is_some_and(|telegram| telegram.quiet);
        let good = view.status == Status::Succeeded && view.rollback.is_none();
        Ok(match kind {
            // Somebody has answered already, or it has ended: its end is told by a message of its own.
            MessageKind::Approval if view.status != Status::AwaitingApproval => Plan::Drop,
            MessageKind::Approval => {
                let keyboard = self.keyboard(MessageKind::Approval, view);
                Plan::Send(Letter { reply_to, keyboard, stays_open: true, ..text(report.message()) })
            }
            MessageKind::Log => match self.log_file(story).await {
                Some(content) => Plan::Send(Letter { content, silent: true, reply_to, ..text(report.bell()) }),
                None => Plan::Drop,
            },
            _ if good && quiet && live.is_some() => Plan::Told,
            _ => {
                let keyboard = self.keyboard(MessageKind::End, view);
                let words = if good && live.is_some() { report.bell() } else { report.message() };
                let next = self.leaves_out_log(story).then_some(MessageKind::Log);
                Plan::Send(Letter { silent: good && quiet, reply_to, keyboard, next, ..text(words) })
            }
        })
    }

    /// Which buttons a message carries: none where nobody could press them.
    pub(super) fn keyboard(&self, kind: MessageKind, view: &DeploymentView) -> Keyboard {
        let telegram = self.config().telegram.as_ref().filter(|telegram| !telegram.operators.is_empty());
        let Some(telegram) = telegram else { return Keyboard::default() };
        let asks = view.status == Status::AwaitingApproval;
        // At the end the buttons are under the message that rings; the question has its own.
        let carries = match kind {
            MessageKind::Begun if view.status.is_end() => telegram.quiet && view.status == Status::Succeeded,
            MessageKind::Begun => !asks,
            MessageKind::Approval => asks,
            MessageKind::End => true,
            MessageKind::Log => false,
        };
        if carries { keyboard_for(view) } else { Keyboard::default() }
    }

    pub(super) async fn offered(
        &self,
        keyboard: &Keyboard,
        id: DeploymentId,
        chat: i64,
    ) -> Result<Vec<Vec<Offered>>, RegistryError> {
        if keyboard.is_empty() {
            return Ok(Vec::new());
        }
        self.registry().offer(keyboard, id, chat).await
    }

    fn leaves_out_log(&self, story: &Story) -> bool {
        let redactor = &self.config().redactor;
        let tail: Vec<String> = outcome::failure_tail(&story.events).iter().map(|line| redactor.mask(line)).collect();
        story.view.status.is_end() && story.view.failed_stage.is_some() && story.report.leaves_out(&tail)
    }

    async fn log_file(&self, story: &Story) -> Option<Content> {
        let (stage, name) = (story.view.failed_stage?, story.view.log.clone()?);
        let path = self.config().server.logs_dir.join(name);
        let read = tokio::task::spawn_blocking(move || logfile::stage_log(&path, stage)).await.ok()?;
        let content = self.config().redactor.mask(&read.ok()?).into_bytes();
        (!content.is_empty()).then(|| Content::File { name: story.report.log_name(stage), content })
    }

    async fn send(
        &mut self,
        message: &Message,
        kind: MessageKind,
        story: &Story,
        letter: Letter,
    ) -> Result<Next, RegistryError> {
        let Some(Ok(client)) = &self.client else { return Ok(Next::More) };
        let buttons = self.offered(&letter.keyboard, story.view.id, client.place().0).await?;
        self.registry().message_sending(message.id).await?;
        self.post.reach(kind.as_str(), "intent").await;
        let Some(Ok(client)) = &mut self.client else { return Ok(Next::More) };
        let verdict = match &letter.content {
            Content::Text(text) => {
                let manner = Manner { silent: letter.silent, reply_to: letter.reply_to, buttons: &buttons };
                client.send(text, manner).await
            }
            Content::File { name, content } => client.send_file(name, content.clone(), letter.reply_to).await,
        };
        // The chat may have moved meanwhile.
        let (chat, thread) = client.place();
        if matches!(verdict, Verdict::Accepted(_)) {
            self.post.reach(kind.as_str(), "effect").await;
        }
        self.note(message, story, Some((&letter, kind, chat, thread)), verdict).await
    }

    async fn note(
        &mut self,
        message: &Message,
        story: &Story,
        sent: Option<(&Letter, MessageKind, i64, Option<i32>)>,
        verdict: Verdict,
    ) -> Result<Next, RegistryError> {
        let unheard = matches!(verdict, Verdict::Unheard(_));
        let trouble = match Trouble::of(verdict, message.attempts) {
            Ok(number) => return self.accepted(message, story, sent, number).await,
            Err(trouble) => trouble,
        };
        if trouble.hopeless && may_give_up(message) {
            return self.give_up(message, &story.report, &trouble.why).await;
        }
        let pause = trouble.hold.unwrap_or_else(|| backoff(message.attempts));
        self.registry().message_failed(message.id, &trouble.why, pause, unheard).await?;
        Ok(self.hindered(trouble, Some(story.view.id)))
    }

    async fn accepted(
        &mut self,
        message: &Message,
        story: &Story,
        sent: Option<(&Letter, MessageKind, i64, Option<i32>)>,
        number: Option<i32>,
    ) -> Result<Next, RegistryError> {
        let shown = sent.zip(number).filter(|((letter, ..), _)| letter.stays_open);
        let shown = shown.map(|((_, kind, chat, thread), message)| ChatMessage {
            deployment: story.view.id,
            kind,
            chat,
            thread,
            message,
            digest: self.digest(kind, story),
            shown_at: Timestamp::now(),
            open: true,
            gone: false,
        });
        let next = sent.and_then(|(letter, ..)| letter.next).map(NewMessage::of);
        self.registry().message_sent(message, shown.as_ref(), next.as_ref()).await?;
        if let Some((_, kind, ..)) = sent {
            self.post.reach(kind.as_str(), "record").await;
        }
        self.works();
        tracing::debug!(deployment = story.view.id.0, kind = message.kind, "reported to Telegram");
        Ok(Next::More)
    }

    /// The way is free.
    pub(super) fn works(&mut self) {
        self.failed_edits = 0;
        if self.told.take().is_some() {
            tracing::info!("Telegram takes reports again");
        }
    }

    /// Says what is in the way, once, and what that means for the others.
    pub(super) fn hindered(&mut self, trouble: Trouble, id: Option<DeploymentId>) -> Next {
        let Trouble { why, hold, asked, .. } = trouble;
        if let Some(pause) = hold.filter(|_| asked) {
            self.post.pacer.hold(pause);
        }
        if self.told.as_deref() != Some(why.as_str()) {
            tracing::warn!(
                deployment = id.map(|id| id.0),
                why,
                "a report could not be sent to Telegram; it is kept and tried again"
            );
            self.told = Some(why);
        }
        hold.map_or(Next::More, Next::Hold)
    }

    async fn give_up(&self, message: &Message, report: &Report, why: &str) -> Result<Next, RegistryError> {
        let line = report.line();
        tracing::error!(deployment = report.id.0, why, line, "Telegram refused a report for a day; it is given up");
        self.registry().message_dropped(message.id).await?;
        Ok(Next::More)
    }
}

/// Why an attempt came to nothing.
#[derive(Debug)]
pub(super) struct Trouble {
    pub why: String,
    /// Nothing at all is tried for so long; `None`: others may get through.
    pub hold: Option<Duration>,
    /// Telegram asked for the pause.
    asked: bool,
    /// Time does not mend it.
    pub hopeless: bool,
}

impl Trouble {
    /// # Errors
    /// The trouble; else the new message's number, if there is one.
    pub fn of(verdict: Verdict, attempts: u32) -> Result<Option<i32>, Self> {
        let (why, hold, asked, hopeless) = match verdict {
            Verdict::Accepted(number) => return Ok(number),
            Verdict::Slow(wait) => {
                let wait = wait.clamp(FIRST_PAUSE, Duration::from_secs(60 * 60));
                (format!("Telegram asks for a pause of {} s", wait.as_secs()), Some(wait), true, false)
            }
            Verdict::Away(why) | Verdict::Unheard(why) => (why, Some(backoff(attempts)), false, false),
            Verdict::Closed(why) => (why, Some(LONGEST_PAUSE), false, true),
            Verdict::Refused(why) => (why, None, false, true),
            Verdict::Gone => ("the message is no longer there".to_owned(), None, false, true),
        };
        Err(Self { why, hold, asked, hopeless })
    }
}

/// What pull finds out is not known yet, and it is worth the wait.
fn still_pulling(message: &Message, view: &DeploymentView) -> bool {
    let pulls = view
        .stages
        .iter()
        .any(|stage| stage.name == Stage::Pull && matches!(stage.status, StageStatus::Pending | StageStatus::Running));
    let age = Duration::try_from(Timestamp::now().duration_since(message.created_at));
    pulls && age.is_ok_and(|age| age < PULL_PATIENCE)
}

pub(super) fn backoff(failed: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failed)).min(LONGEST_PAUSE)
}

pub(super) fn may_give_up(message: &Message) -> bool {
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
            doubtful: false,
            created_at: Timestamp::now() - jiff::SignedDuration::from_hours(hours),
        };
        assert!(may_give_up(&message(9, 25)));
        assert!(!may_give_up(&message(8, 25)));
        assert!(!may_give_up(&message(300, 23)));
        assert!(!may_give_up(&message(300, -25)), "a clock that went back gives nothing up");
    }
}
