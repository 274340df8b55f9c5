//! A running deployment on the terminal: moving lines where the terminal can, plain lines where it cannot.
//!
//! [`Narrator`] turns journal events into finished lines and is pure; [`Progress`] shows them, with a spinner for each stage
//! that runs.

use std::{collections::BTreeMap, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use jiff::Timestamp;

use super::style::{Paint, Tone, clip, took};
use crate::{
    model::{DeploymentId, Stage},
    pipeline::journal::{Event, FailureKind, Recorded},
};

/// A line of an error on the terminal; the whole is in the log.
const ERROR_WIDTH: usize = 160;

/// What an event means for who watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A stage, or its undo, begins: something to watch.
    Begins { stage: Stage, undo: bool },
    /// Something to read. With a stage, its spinner is done.
    Says { stage: Option<Stage>, tone: Tone, text: String },
}

/// Folds a deployment's events into lines; remembers when each stage began.
#[derive(Debug)]
pub struct Narrator {
    id: DeploymentId,
    began: BTreeMap<Stage, Timestamp>,
}

impl Narrator {
    pub fn new(id: DeploymentId) -> Self {
        Self { id, began: BTreeMap::new() }
    }

    pub fn line(&mut self, recorded: &Recorded) -> Option<Line> {
        let at = recorded.at;
        let says = |stage, tone, text| Some(Line::Says { stage, tone, text });
        match &recorded.event {
            Event::Begun { previous: Some(previous), .. } => {
                says(None, Tone::Plain, format!("begins; deployment {previous} is live"))
            }
            Event::Begun { previous: None, .. } => says(None, Tone::Plain, "begins; nothing is live yet".to_owned()),
            Event::StepStarted { stage, .. } => {
                self.began.insert(*stage, at);
                Some(Line::Begins { stage: *stage, undo: false })
            }
            Event::StepSucceeded { stage, .. } => {
                says(Some(*stage), Tone::Good, format!("{stage}: succeeded in {}", self.took(*stage, at)))
            }
            Event::StepWarned { stage, error, .. } => {
                let error = clip(error, ERROR_WIDTH);
                says(
                    Some(*stage),
                    Tone::Warn,
                    format!("{stage}: failed after {}, going on: {error}", self.took(*stage, at)),
                )
            }
            Event::StepSkipped { stage, reason } => {
                says(Some(*stage), Tone::Plain, format!("{stage}: skipped ({})", clip(reason, ERROR_WIDTH)))
            }
            Event::StepFailed { stage, kind, error, .. } => {
                let how = match kind {
                    FailureKind::Cancelled => "cancelled",
                    FailureKind::TimedOut => "timed out",
                    _ => "failed",
                };
                let error = clip(error, ERROR_WIDTH);
                says(Some(*stage), Tone::Bad, format!("{stage}: {how} after {}: {error}", self.took(*stage, at)))
            }
            Event::ApprovalRequested { expires_at } => {
                let (id, until) = (self.id, expires_at.strftime("%Y-%m-%d %H:%M UTC"));
                let how = format!("`refit approve {id}`, or `refit reject {id} --reason \"…\"`");
                says(None, Tone::Warn, format!("waits for approval until {until}: {how}"))
            }
            Event::Approved { by } => says(None, Tone::Good, format!("approved by {}", clip(by, 40))),
            Event::ApprovalRefused { expired: true, .. } => {
                says(None, Tone::Bad, "nobody approved it in time".to_owned())
            }
            Event::ApprovalRefused { by, reason, .. } => {
                let why = reason.as_deref().map(|r| format!(": {}", clip(r, ERROR_WIDTH))).unwrap_or_default();
                says(None, Tone::Bad, format!("rejected by {}{why}", clip(by, 40)))
            }
            Event::CancelRequested { by } => says(None, Tone::Warn, format!("{} asked to cancel it", clip(by, 40))),
            Event::Interrupted => {
                says(None, Tone::Warn, "the process that ran it was stopped; recovering from the journal".to_owned())
            }
            Event::UndoStarted { stage } => Some(Line::Begins { stage: *stage, undo: true }),
            Event::UndoFinished { stage, summary: Some(summary) } => {
                says(Some(*stage), Tone::Warn, format!("{stage}: undone: {}", clip(summary, ERROR_WIDTH)))
            }
            Event::UndoFinished { stage, summary: None } => {
                Some(Line::Says { stage: Some(*stage), tone: Tone::Plain, text: String::new() })
            }
            Event::UndoFailed { stage, error } => {
                says(Some(*stage), Tone::Bad, format!("{stage}: could not be undone: {}", clip(error, ERROR_WIDTH)))
            }
            Event::Ended { .. } => None,
        }
    }

    fn took(&self, stage: Stage, end: Timestamp) -> String {
        took(self.began.get(&stage).map_or(0, |from| end.as_millisecond() - from.as_millisecond()))
    }
}

/// Shows events on standard error.
#[derive(Debug)]
pub struct Progress {
    narrator: Narrator,
    paint: Paint,
    bars: Option<MultiProgress>,
    waiting: Option<ProgressBar>,
    running: BTreeMap<Stage, ProgressBar>,
}

impl Progress {
    /// `live`: the terminal can redraw lines.
    pub fn new(id: DeploymentId, live: bool, paint: Paint) -> Self {
        let bars = live.then(MultiProgress::new);
        Self { narrator: Narrator::new(id), paint, bars, waiting: None, running: BTreeMap::new() }
    }

    /// Until the next event: why nothing moves.
    pub fn wait(&mut self, text: &str) {
        match &self.bars {
            Some(bars) => self.waiting = Some(spinner(bars, text.to_owned())),
            None => self.print(text),
        }
    }

    pub fn event(&mut self, recorded: &Recorded) {
        if let Some(waiting) = self.waiting.take() {
            waiting.finish_and_clear();
        }
        match self.narrator.line(recorded) {
            Some(Line::Begins { stage, undo }) => {
                if let Some(bars) = &self.bars {
                    let text = if undo { format!("{stage}: being undone") } else { stage.to_string() };
                    self.running.insert(stage, spinner(bars, text));
                }
            }
            Some(Line::Says { stage, tone, text }) => {
                if let Some(bar) = stage.and_then(|stage| self.running.remove(&stage)) {
                    bar.finish_and_clear();
                }
                if !text.is_empty() {
                    self.print(&self.paint.tone(tone, &text));
                }
            }
            None => {}
        }
    }

    /// A line above what moves.
    pub fn print(&self, text: &str) {
        let shown = match &self.bars {
            Some(bars) => bars.println(text),
            None => std::io::Write::write_all(&mut std::io::stderr().lock(), format!("{text}\n").as_bytes()),
        };
        // The deployment goes on though nobody may be watching any more.
        drop(shown);
    }

    /// Takes away what moves.
    pub fn finish(&mut self) {
        for bar in std::mem::take(&mut self.running).into_values().chain(self.waiting.take()) {
            bar.finish_and_clear();
        }
    }
}

fn spinner(bars: &MultiProgress, text: String) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} {msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = bars.add(ProgressBar::new_spinner().with_style(style).with_message(text));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn at(seq: i64, ms: i64, event: Event) -> Recorded {
        Recorded { seq, at: Timestamp::from_millisecond(1_795_000_000_000 + ms).unwrap(), event }
    }

    #[test]
    fn parallel_stages_are_timed_apart() {
        let mut narrator = Narrator::new(DeploymentId(7));
        let mut said = Vec::new();
        let started = |stage| Event::StepStarted { stage, input: Value::Null };
        let events = [
            at(1, 0, started(Stage::Test)),
            at(2, 500, started(Stage::Build)),
            at(3, 1_700, Event::StepSucceeded { stage: Stage::Build, output: Value::Null }),
            at(
                4,
                2_000,
                Event::StepFailed {
                    stage: Stage::Test,
                    kind: FailureKind::Failed,
                    error: "3 of 40\n\u{1b}[31mred".to_owned(),
                    tail: Vec::new(),
                },
            ),
            at(5, 2_100, Event::UndoStarted { stage: Stage::Build }),
            at(6, 2_200, Event::UndoFinished { stage: Stage::Build, summary: None }),
            at(7, 2_300, Event::UndoFailed { stage: Stage::Pull, error: "disk".to_owned() }),
            at(8, 2_400, Event::ApprovalRequested { expires_at: "2026-11-22T10:15:30Z".parse().unwrap() }),
        ];
        for event in &events {
            if let Some(Line::Says { text, .. }) = narrator.line(event) {
                said.push(text);
            }
        }
        assert_eq!(
            said,
            [
                "build: succeeded in 1.2s",
                "test: failed after 2.0s: 3 of 40",
                "",
                "pull: could not be undone: disk",
                "waits for approval until 2026-11-22 10:15 UTC: `refit approve 7`, or `refit reject 7 --reason \"…\"`",
            ]
        );
    }
}
