//! Edits: the live message follows its deployment, and a question shows that it was answered.
//!
//! Nothing is queued for it. Whenever something was recorded, each message that does not show its last word yet is composed anew from the
//! journal, and edited if that differs from what it shows (`chat_messages.digest`) and the [pacer](super::Pacer) lets it. So edits coalesce by themselves: what
//! came in between was never written anywhere, and the last state always arrives. An edit may be repeated without harm, for one that changes
//! nothing is answered "message is not modified". A message that is gone stays gone.

use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{
    Turn,
    courier::{Courier, Next, Story, Trouble},
    telegram::Verdict,
};
use crate::{
    model::Status,
    registry::{ChatMessage, MessageKind, RegistryError},
};

/// The clock of the live message goes on at least so often.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// What is left to edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edits {
    /// The way is blocked.
    Held(Duration),
    /// When the next one may go; `None`: when something happens.
    Wanted(Option<Duration>),
}

impl Courier {
    /// Brings up to date what may be edited now.
    pub async fn refresh(&mut self) -> Result<Edits, RegistryError> {
        if !matches!(self.client, Some(Ok(_))) {
            return Ok(Edits::Wanted(None));
        }
        if let Some(wait) = self.post.pacer.held() {
            return Ok(Edits::Held(wait));
        }
        let mut wanted: Option<Duration> = None;
        for shown in self.registry().open_chat_messages().await? {
            let Some(story) = self.story(shown.deployment).await? else { continue };
            let wait = match self.due_in(&shown, &story) {
                Some(wait) if wait.is_zero() => {
                    let (_, last) = story.report.shown(shown.kind, &story.view, true);
                    let turn = if last { Turn::Message } else { Turn::Edit };
                    match self.post.pacer.try_turn(shown.chat, turn) {
                        Err(wait) => Some(wait),
                        Ok(()) => match self.update(&shown, &story).await? {
                            Some(verdict) => return Ok(Edits::Held(self.hindered_edit(verdict, &shown))),
                            None => (!last).then_some(HEARTBEAT),
                        },
                    }
                }
                wait => wait,
            };
            wanted = [wanted, wait].into_iter().flatten().min();
        }
        Ok(Edits::Wanted(wanted))
    }

    /// How long until a message is to be edited, if nothing happens; `None`: not at all.
    fn due_in(&self, shown: &ChatMessage, story: &Story) -> Option<Duration> {
        let (_, last) = story.report.shown(shown.kind, &story.view, false);
        if last || self.digest(shown.kind, story) != shown.digest {
            return Some(Duration::ZERO);
        }
        let runs = shown.kind == MessageKind::Begun && story.view.status == Status::Running;
        let age = Duration::try_from(Timestamp::now().duration_since(shown.shown_at)).unwrap_or_default();
        runs.then(|| HEARTBEAT.saturating_sub(age))
    }

    /// Has the messages of a deployment that ended show their last words, before anything rings.
    ///
    /// Returns what is in the way, if something is.
    pub(super) async fn finish(&mut self, story: &Story) -> Result<Option<Verdict>, RegistryError> {
        for kind in [MessageKind::Approval, MessageKind::Begun] {
            let shown = self.registry().chat_message(story.view.id, kind).await?;
            let Some(shown) = shown.filter(|shown| shown.open) else { continue };
            self.post.pacer.turn(shown.chat, Turn::Message).await;
            if let Some(in_the_way) = self.update(&shown, story).await? {
                return Ok(Some(in_the_way));
            }
        }
        Ok(None)
    }

    /// Edits one message and notes it. Returns what is in the way, if something is.
    async fn update(&mut self, shown: &ChatMessage, story: &Story) -> Result<Option<Verdict>, RegistryError> {
        let Some(Ok(client)) = &self.client else { return Ok(None) };
        let (message, last) = story.report.shown(shown.kind, &story.view, true);
        let verdict = if is_no_news(story) {
            client.delete(shown.chat, shown.message).await
        } else {
            let keyboard = self.keyboard(shown.kind, &story.view);
            let buttons = self.offered(&keyboard, story.view.id, shown.chat).await?;
            client.edit(shown.chat, shown.message, &message, &buttons).await
        };
        let gone = match verdict {
            Verdict::Accepted(_) => false,
            Verdict::Gone => true,
            Verdict::Refused(why) => {
                tracing::warn!(
                    deployment = story.view.id.0,
                    why,
                    "Telegram refuses to change a message; it stays as it is"
                );
                false
            }
            in_the_way => return Ok(Some(in_the_way)),
        };
        self.post.reach("edit", "effect").await;
        let gone = gone || is_no_news(story);
        let edited =
            ChatMessage { digest: self.digest(shown.kind, story), open: !last && !gone, gone, ..shown.clone() };
        self.registry().chat_message_edited(&edited).await?;
        self.works();
        Ok(None)
    }

    fn hindered_edit(&mut self, verdict: Verdict, shown: &ChatMessage) -> Duration {
        self.failed_edits += 1;
        match Trouble::of(verdict, self.failed_edits - 1) {
            Err(trouble) => match self.hindered(trouble, Some(shown.deployment)) {
                Next::Hold(pause) => pause,
                Next::More => Duration::ZERO,
            },
            Ok(_) => Duration::ZERO,
        }
    }

    /// Of what a message shows, but for its clock.
    pub(super) fn digest(&self, kind: MessageKind, story: &Story) -> String {
        let (message, _) = story.report.shown(kind, &story.view, false);
        let mut digest = Sha256::new_with_prefix(message.html);
        for button in self.keyboard(kind, &story.view).0.iter().flatten() {
            digest.update([0]);
            digest.update(&button.text);
        }
        hex::encode(digest.finalize())
    }
}

/// A push that is not to be deployed: nobody asked, so nobody is told.
fn is_no_news(story: &Story) -> bool {
    story.view.status == Status::Skipped && !story.view.trigger.kind.is_explicit()
}
