//! What a builder says while it works, as log lines and, if it fails, as an explanation.
//!
//! The classic builder sends text in pieces, in which `Step 2/5 : RUN make` begins a step. BuildKit sends the state of a graph whose
//! vertices (`[2/5] RUN make`) run side by side, each with its own output.

use std::{collections::HashMap, sync::Arc};

use bollard::models::{BuildInfo, BuildInfoAux};

use super::{
    lines::{Lines, Tail},
    trail::Trail,
};
use crate::log::StageLog;

/// Lines of the failing step that an error quotes.
const QUOTED: usize = 20;

/// Follows one build.
#[derive(Debug)]
pub(super) struct Progress {
    log: StageLog,
    /// What the classic builder has made.
    trail: Arc<Trail>,
    text: Lines,
    /// The step that runs, for the classic builder.
    step: Step,
    /// BuildKit's steps by their digests.
    vertices: HashMap<String, Step>,
    /// The digest of the first of them that failed.
    failed: Option<String>,
    image: Option<String>,
}

#[derive(Debug)]
struct Step {
    name: String,
    text: Lines,
    output: Tail,
    told: bool,
}

impl Step {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), text: Lines::default(), output: Tail::new(QUOTED), told: false }
    }

    fn line(&mut self, line: &str, log: &StageLog) {
        log.line(line);
        if !line.trim().is_empty() {
            self.output.push(line);
        }
    }
}

impl Progress {
    pub(super) fn new(log: StageLog, trail: Arc<Trail>) -> Self {
        let (text, step) = (Lines::default(), Step::new(""));
        Self { log, trail, text, step, vertices: HashMap::new(), failed: None, image: None }
    }

    pub(super) fn message(&mut self, message: BuildInfo) {
        if let Some(text) = &message.stream {
            let (step, trail, log) = (&mut self.step, &self.trail, &self.log);
            self.text.push(text.as_bytes(), |line| classic_line(step, trail, line, log));
        }
        if let Some(status) = &message.status
            && message.progress_detail.is_none_or(|detail| detail.current.is_none())
        {
            // A pull: `latest: Pulling from library/debian`, a layer's begin and end; not its every kilobyte.
            let id = message.id.map(|id| format!("{id}: ")).unwrap_or_default();
            self.log.line(format!("{id}{status}"));
        }
        match message.aux {
            Some(BuildInfoAux::Default(image)) => self.image = image.id.or(self.image.take()),
            Some(BuildInfoAux::BuildKit(status)) => {
                for vertex in status.vertexes {
                    let state = if vertex.cached { "cached" } else { "" };
                    self.vertex(vertex.digest, &vertex.name, vertex.started.is_some(), state, &vertex.error);
                }
                for piece in status.logs {
                    let step = self.vertices.entry(piece.vertex).or_insert_with(|| Step::new(""));
                    let mut text = std::mem::take(&mut step.text);
                    text.push(&piece.msg, |line| step.line(line, &self.log));
                    step.text = text;
                }
            }
            None => {}
        }
    }

    fn vertex(&mut self, digest: String, name: &str, started: bool, state: &str, error: &str) {
        if !error.is_empty() && !error.contains("context canceled") && self.failed.is_none() {
            self.failed = Some(digest.clone());
        }
        let step = self.vertices.entry(digest).or_insert_with(|| Step::new(name));
        name.clone_into(&mut step.name);
        // BuildKit's own chores (`[internal] load metadata`, `copy /context /`) tell the reader nothing unless they fail.
        let own = !name.starts_with('[') || name.starts_with("[internal]");
        if (started || !state.is_empty()) && !step.told && !own {
            step.told = true;
            self.log.line(format!("{name} {state}").trim_end());
        }
    }

    /// Logs what is left. The image's id, as far as the engine told it.
    pub(super) fn finish(&mut self) -> Option<String> {
        let (step, trail, log) = (&mut self.step, &self.trail, &self.log);
        std::mem::take(&mut self.text).finish(|line| classic_line(step, trail, line, log));
        for step in self.vertices.values_mut() {
            let text = std::mem::take(&mut step.text);
            text.finish(|line| step.line(line, &self.log));
        }
        self.image.take()
    }

    /// The engine's reason for failing, with the step it was in and the end of that step's output.
    pub(super) fn explain(&mut self, why: &str) -> String {
        self.finish();
        let step = self.failed.as_ref().and_then(|digest| self.vertices.get(digest)).unwrap_or(&self.step);
        if let Some(base) = base_image(&step.name) {
            let hint = "pull it by hand to see why, or correct the Dockerfile's FROM";
            return format!("the base image `{base}` is not on this host and cannot be pulled ({why}); {hint}");
        }
        let mut text = match exit_code(why) {
            _ if step.name.is_empty() => why.to_owned(),
            Some(code) => format!("step `{}` ended with exit code {code}", step.name),
            None => format!("step `{}`: {why}", step.name),
        };
        let output: Vec<&str> = step.output.iter().collect();
        if !output.is_empty() {
            text.push_str("; the last lines of its output:");
        }
        for line in output {
            text.push_str("\n  ");
            text.push_str(&crate::log::printable(line));
        }
        text
    }
}

fn classic_line(step: &mut Step, trail: &Trail, line: &str, log: &StageLog) {
    if let Some(name) = line.strip_prefix("Step ").and_then(|rest| Some(rest.split_once(" : ")?.1)) {
        trail.step(name);
        *step = Step::new(name);
        log.line(line);
    } else if let Some(what) = line.strip_prefix(" ---> ") {
        if what == "Using cache" {
            log.line(line);
        } else if !what.is_empty() && what.bytes().all(|b| b.is_ascii_hexdigit()) {
            trail.image(what);
        }
    } else if line.starts_with("Removing intermediate container ") {
        // It was gone a moment later.
    } else {
        step.line(line, log);
    }
}

/// The code in the engine's words for a command that failed, which repeat the whole command.
fn exit_code(why: &str) -> Option<i64> {
    // Classic: `The command '…' returned a non-zero code: 1`. BuildKit: `process "…" did not complete successfully: exit code: 1`.
    let (_, code) = ["' returned a non-zero code: ", "\" did not complete successfully: exit code: "]
        .iter()
        .find_map(|words| why.trim().rsplit_once(words))?;
    code.parse().ok()
}

/// What a step that could not get its base image was after.
fn base_image(step: &str) -> Option<&str> {
    // Classic: `FROM --platform=x image AS name`. BuildKit: `[internal] load metadata for <registry>/library/image:tag`.
    match step.strip_prefix("FROM ") {
        Some(rest) => rest.split_whitespace().find(|word| !word.starts_with("--")),
        None => step.strip_prefix("[internal] load metadata for "),
    }
}
