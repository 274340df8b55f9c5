//! The live message: what a chat shows of a deployment from its beginning to its end, in few lines.
//!
//! While the deployment goes on there is a line a stage, and one that says how far it came and for how long it has been at it. At the end the stages become one
//! line, and the result stands there; whatever rings says the rest. All lengths are limited where the [`Report`] is composed, so a card is
//! far below Telegram's limit.

use super::{
    Message,
    render::{Canvas, Piece},
    report::Report,
    words::{duration, units},
};
use crate::{
    model::{ApprovalState, DeploymentView, Stage, Status},
    registry::MessageKind,
};

/// Stages done, stages ahead.
const DONE: &str = "▰";
const AHEAD: &str = "▱";

impl Report {
    /// The live message. Without `clock` the passing of time alone does not change it.
    pub fn card(&self, clock: bool) -> Message {
        let mut canvas = Canvas::default();
        self.head(&mut canvas);
        if self.status.is_end() {
            self.ended(&mut canvas);
        } else {
            self.under_way(&mut canvas, clock);
        }
        canvas.message()
    }

    fn head(&self, canvas: &mut Canvas) {
        canvas.words(&format!("{} ", self.mark()));
        canvas.bold(&self.place);
        canvas.words(&format!(": {}\n", self.summary));
        if let Some((short, url)) = &self.commit {
            match url {
                Some(url) => canvas.piece(&Piece::Link { text: short.clone(), url: url.clone() }),
                None => canvas.code(short),
            }
            for (between, text) in [(" ", &self.subject), (" by ", &self.author)] {
                if let Some(text) = text {
                    canvas.words(between);
                    canvas.code(text);
                }
            }
            canvas.words("\n");
        }
        if let Some((way, why)) = &self.rollback {
            canvas.words(&format!("{way}: "));
            canvas.code(why);
            canvas.words("\n");
        }
    }

    fn under_way(&self, canvas: &mut Canvas, clock: bool) {
        let (done, all) = (self.done, self.done + self.running + self.ahead.len());
        let time = self.elapsed.as_ref().filter(|_| clock).map(|time| format!(", {time}")).unwrap_or_default();
        if !self.goes_back {
            canvas.words(&format!("{}{} {done} of {all}{time}\n", DONE.repeat(done), AHEAD.repeat(all - done)));
        }
        self.stages.iter().for_each(|stage| canvas.words(&format!("{stage}\n")));
        if !self.goes_back {
            self.ahead.iter().for_each(|stage| canvas.words(&format!("· {stage}\n")));
        }
        if let Some(approval) = self.approval.as_ref().filter(|_| self.status == Status::AwaitingApproval) {
            canvas.words(&format!("waits {approval}\n"));
        }
    }

    fn ended(&self, canvas: &mut Canvas) {
        if !self.stages.is_empty() {
            canvas.words(&format!("{}\n", self.stages.join(" · ")));
        }
        if let Some(error) = &self.error {
            canvas.code(error);
            canvas.words("\n");
        }
        for (stage, warning) in &self.warnings {
            canvas.words(&format!("⚠ {stage}: "));
            canvas.code(warning);
            canvas.words("\n");
        }
        let took = self.took.as_ref().map(|took| format!("took {took}"));
        let live = self.live.as_ref().map(|live| format!("live: {live}"));
        let approval = self.approval.as_ref().map(|approval| format!("approval {approval}"));
        let number = Some(format!("number {}", self.id));
        let facts: Vec<String> = [number, took, approval, live].into_iter().flatten().collect();
        canvas.words(&format!("{}\n", facts.join(" · ")));
    }

    /// A good end in one line: it answers the live message, which says the rest.
    pub fn bell(&self) -> Message {
        let mut canvas = Canvas::default();
        canvas.words(&format!("{} ", self.mark()));
        canvas.bold(&self.place);
        let took = self.took.as_ref().map(|took| format!(" in {took}")).unwrap_or_default();
        canvas.words(&format!(": {}{took}", self.summary));
        for (stage, warning) in &self.warnings {
            canvas.words(&format!("\n⚠ {stage}: "));
            canvas.code(warning);
        }
        canvas.message()
    }

    /// What became of the question whether it may go on, once it is answered.
    pub fn answered(&self, view: &DeploymentView) -> Message {
        let state = view.approval.as_ref().map(|approval| approval.state);
        let (mark, words) = match state {
            Some(ApprovalState::Approved) => ("✅", "approved"),
            Some(ApprovalState::Rejected) => ("✋", "rejected"),
            Some(ApprovalState::Expired) => ("⌛", "nobody answered in time"),
            Some(ApprovalState::Cancelled | ApprovalState::Waiting) | None => ("🚫", "no longer asked"),
        };
        let mut canvas = Canvas::default();
        canvas.words(&format!("{mark} "));
        canvas.bold(&self.place);
        canvas.words(&format!(": deployment {}: {words}", self.id));
        if let Some(by) = &self.answered_by {
            canvas.words(" by ");
            canvas.code(by);
        }
        canvas.message()
    }

    /// What a message of this kind shows while it is edited, and whether that is its last word.
    pub fn shown(&self, kind: MessageKind, view: &DeploymentView, clock: bool) -> (Message, bool) {
        match kind {
            MessageKind::Approval if self.status == Status::AwaitingApproval => (self.message(), false),
            MessageKind::Approval => (self.answered(view), true),
            _ => (self.card(clock), self.status.is_end()),
        }
    }

    /// The name of the file with the failed stage's log.
    pub fn log_name(&self, stage: Stage) -> String {
        format!("deployment_{}_{stage}.log", self.id)
    }

    /// Whether the message has no room for these last lines of the log.
    pub fn leaves_out(&self, tail: &[String]) -> bool {
        let shown = self.message().plain;
        units(&shown) > 0 && tail.iter().any(|line| !shown.contains(line.trim_end()))
    }
}

/// How long a deployment has been at it; to ten seconds after the first minute, since nobody counts them.
pub(super) fn elapsed(ms: i64) -> String {
    match ms / 1000 {
        ..60 => format!("{} s", ms / 1000),
        60..3600 => duration(ms / 10_000 * 10_000),
        _ => duration(ms),
    }
}
