//! `refit report`: one deployment told in paragraphs, as text, Markdown or JSON.

use serde_json::json;

use super::{
    args::{ReportArgs, ReportFormat},
    context::{Context, find_deployment, log_file, open_registry},
    error::{CliError, Result, exit},
    outputs,
    story::Story,
    style::{Clock, took, words},
};
use crate::model::{StageStatus, StageView};

pub async fn run(context: &Context, args: &ReportArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    let registry = open_registry(&config).await?;
    let view = find_deployment(&registry, args.id.id).await?;
    let log = log_file(&config, &view).map(|file| file.display().to_string());
    let story = Story::load(&registry, view).await?;
    match args.format {
        ReportFormat::Json => context.print_json(&as_json(&story)?)?,
        ReportFormat::Text => context.print(&Report::new(&story, log.as_deref(), &context.clock).text())?,
        ReportFormat::Markdown => context.print(&Report::new(&story, log.as_deref(), &context.clock).markdown())?,
    }
    Ok(exit::OK)
}

/// The story's fields, with its sentences beside them.
fn as_json(story: &Story) -> Result<serde_json::Value> {
    let mut value = serde_json::to_value(story).map_err(|e| CliError::io("writing JSON", e))?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("headline".to_owned(), json!(story.headline()));
        fields.insert("live_now".to_owned(), json!(story.live_now()));
        fields.insert("next_step".to_owned(), json!(story.next_step()));
    }
    Ok(value)
}

/// The paragraphs, before they have a format.
struct Report {
    title: String,
    opening: String,
    /// What people said.
    said: Vec<String>,
    why: Option<String>,
    /// The stages that did something.
    stages: Vec<(String, String)>,
    undone: Vec<String>,
    tail: Vec<String>,
    freed: Option<String>,
    next: Option<String>,
    log: Option<String>,
}

impl Report {
    fn new(story: &Story, log: Option<&str>, clock: &Clock) -> Self {
        let view = &story.deployment;
        let when = clock.local(view.started_at.unwrap_or(view.queued_at));
        let took = story.took().map(|took| format!(", {took}")).unwrap_or_default();
        let what = match &view.commit {
            Some(_) => format!("{} from {}", story.commit_line(), story.origin()),
            None => format!("the tip of {}", story.origin()),
        };
        let what = match story.rollback_line() {
            Some(rollback) if story.order() == "restore" => format!("restore {rollback}; {}", story.commit_line()),
            Some(rollback) => format!("roll back: {rollback}; {}", story.commit_line()),
            None => format!("deploy {what}"),
        };
        let reason = story.reason().map(|reason| format!(" Reason: {}", sentence(&reason))).unwrap_or_default();
        let verb = if view.started_at.is_some() { "began" } else { "was queued" };
        Self {
            title: sentence(&story.headline()),
            opening: format!(
                "It was to {what}, asked for by {}.{reason} It {verb} at {when}{took}. {}",
                story.asked(),
                sentence(&story.live_now()),
            ),
            said: [("Approval:", story.approval()), ("Resolved:", story.resolved())]
                .into_iter()
                .filter_map(|(what, said)| said.map(|said| sentence(&format!("{what} {said}"))))
                .collect(),
            why: view.error.as_deref().map(|error| match view.failed_stage {
                Some(stage) => format!("It ended in {stage}: {}", printable(error)),
                None => format!("Why: {}", printable(error)),
            }),
            stages: view.stages.iter().filter(|s| s.status != StageStatus::Pending).map(stage_line).collect(),
            undone: view.undone.iter().map(|line| printable(line)).collect(),
            tail: story.tail.clone(),
            freed: story.freed(),
            next: story.next_step().map(|step| sentence(&step)),
            log: log.map(str::to_owned),
        }
    }

    fn text(&self) -> String {
        let mut out = format!("{}\n\n{}\n", self.title, self.opening);
        self.said.iter().for_each(|said| out.push_str(&format!("\n{said}\n")));
        if let Some(why) = &self.why {
            out.push_str(&format!("\n{why}\n"));
        }
        if !self.stages.is_empty() {
            out.push_str("\nStages:\n");
            for (name, line) in &self.stages {
                out.push_str(&format!("  {name:<8} {line}\n"));
            }
        }
        out.push_str(&list("\nUndone, in this order:\n", "  - ", &self.undone));
        out.push_str(&list("\nThe last lines of the failed stage:\n", "    ", &self.tail));
        if let Some(freed) = &self.freed {
            out.push_str(&format!("\nSpace given back: {freed}.\n"));
        }
        if let Some(next) = &self.next {
            out.push_str(&format!("\nWhat to do now: {next}\n"));
        }
        if let Some(log) = &self.log {
            out.push_str(&format!("\nThe whole log: {log}\n"));
        }
        out
    }

    fn markdown(&self) -> String {
        let mut out = format!("# {}\n\n{}\n", escape(&self.title), escape(&self.opening));
        self.said.iter().for_each(|said| out.push_str(&format!("\n{}\n", escape(said))));
        if let Some(why) = &self.why {
            out.push_str(&format!("\n## Why\n\n{}\n", escape(why)));
        }
        if !self.stages.is_empty() {
            out.push_str("\n## Stages\n\n| stage | what happened |\n|---|---|\n");
            for (name, line) in &self.stages {
                out.push_str(&format!("| {name} | {} |\n", escape(line)));
            }
        }
        let undone: Vec<String> = self.undone.iter().map(|line| escape(line)).collect();
        out.push_str(&list("\n## Undone, in this order\n\n", "- ", &undone));
        if !self.tail.is_empty() {
            // Indented, because a fence could be closed by what is in it.
            out.push_str(&list("\n## The last lines of the failed stage\n\n", "    ", &self.tail));
        }
        if let Some(freed) = &self.freed {
            out.push_str(&format!("\nSpace given back: {freed}.\n"));
        }
        if let Some(next) = &self.next {
            out.push_str(&format!("\n## What to do now\n\n{next}\n"));
        }
        if let Some(log) = &self.log {
            out.push_str(&format!("\nThe whole log: `{log}`\n"));
        }
        out
    }
}

fn stage_line(stage: &StageView) -> (String, String) {
    // An undone stage shows the time of what was undone.
    let how = if stage.status == StageStatus::Undone { " after" } else { " in" };
    let took = stage.duration_ms.map(|ms| format!("{how} {}", took(ms))).unwrap_or_default();
    let detail = Some(outputs::sentence(stage))
        .filter(|text| !text.is_empty())
        .map(|text| format!(": {text}"))
        .unwrap_or_default();
    (stage.name.to_string(), format!("{}{took}{detail}", words(stage.status.as_str())))
}

fn list(heading: &str, bullet: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    lines.iter().fold(heading.to_owned(), |out, line| out + bullet + line + "\n")
}

/// With a capital and a full stop: reports are prose.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}

fn printable(text: &str) -> String {
    text.lines().map(crate::log::printable).collect::<Vec<_>>().join("\n")
}

/// Text from outside that Markdown and the HTML in it must not interpret.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '*' | '_' | '[' | ']' | '|' | '#' | '~' => {
                out.push('\\');
                out.push(c);
            }
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    fn told(format: impl Fn(&Report) -> String) -> String {
        let log = Some("/srv/app/logs/7.log");
        let all: Vec<String> =
            sample::all().iter().map(|story| format(&Report::new(story, log, &sample::clock()))).collect();
        all.join("\n────────\n\n")
    }

    #[test]
    fn every_state_reads_as_prose() {
        insta::assert_snapshot!(told(Report::text));
    }

    #[test]
    fn every_state_reads_as_markdown() {
        insta::assert_snapshot!(told(Report::markdown));
    }

    #[test]
    fn markup_from_outside_is_inert() {
        let mut story = sample::all().remove(5);
        story.deployment.subject = Some("<script>alert(1)</script> *bold* | `x`".to_owned());
        let text = Report::new(&story, None, &sample::clock()).markdown();
        assert!(text.contains("&lt;script&gt;alert(1)&lt;/script&gt; \\*bold\\* \\|"), "{text}");
    }
}
