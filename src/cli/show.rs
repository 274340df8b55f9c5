//! `refit show`: one deployment, stage by stage.

use serde_json::Value;

use super::{
    args::{Format, ShowArgs},
    context::{Context, find_deployment, log_file, open_registry},
    deploy::headline_tone,
    error::{Result, exit},
    story::Story,
    style::{Clock, Paint, Tone, cell, clip, stage_tone, table_text, took, words},
};
use crate::{
    files::human_bytes,
    model::{Stage, StageView},
};

const DETAIL_WIDTH: usize = 90;

pub async fn run(context: &Context, args: &ShowArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    let registry = open_registry(&config).await?;
    let view = find_deployment(&registry, args.id.id).await?;
    match args.format.format {
        Format::Json => context.print_json(&view)?,
        Format::Table => {
            let log = log_file(&config, &view).map(|file| file.display().to_string());
            let story = Story::load(&registry, view).await?;
            context.print(&page(&story, log.as_deref(), context.paint, context.width, &context.clock))?;
        }
    }
    Ok(exit::OK)
}

fn page(story: &Story, log: Option<&str>, paint: Paint, width: Option<u16>, clock: &Clock) -> String {
    let view = &story.deployment;
    let mut out = format!("{}\n\n", paint.tone(headline_tone(story), &story.headline()));
    let mut line = |name: &str, text: String| out.push_str(&format!("{} {text}\n", paint.dim(&format!("{name:<9}"))));
    line("commit", story.commit_line());
    line("from", story.origin());
    line("asked by", story.asked());
    line("queued", format!("{} ({})", clock.local(view.queued_at), clock.ago(view.queued_at)));
    if let Some(took) = story.took() {
        line("time", took);
    }
    line("live", story.live_now());
    for (name, value) in [("image", &view.image), ("backup", &view.backup)] {
        if let Some(value) = value {
            line(name, value.clone());
        }
    }
    if let Some(log) = log {
        line("log", log.to_owned());
    }
    if let Some(error) = &view.error {
        line("why", clip(error, 400));
    }
    for undone in &view.undone {
        line("undone", clip(undone, 400));
    }
    if let Some(next) = story.next_step() {
        line("next", next);
    }
    out.push('\n');
    out.push_str(&stages(&view.stages, paint, width));
    out
}

fn stages(stages: &[StageView], paint: Paint, width: Option<u16>) -> String {
    let mut table = paint.table(&["STAGE", "STATUS", "TOOK", "DETAIL"], width);
    for stage in stages {
        table.add_row([
            cell(Tone::Plain, stage.name.as_str()),
            cell(stage_tone(stage.status), words(stage.status.as_str())),
            cell(Tone::Plain, stage.duration_ms.map(took).unwrap_or_default()),
            cell(Tone::Plain, detail(stage)),
        ]);
    }
    table_text(&table)
}

/// The error, or what the stage recorded, on one line.
pub fn detail(stage: &StageView) -> String {
    let text = match (&stage.error, &stage.output) {
        (Some(error), _) => error.clone(),
        (None, Some(output)) => sentence(stage.name, output),
        (None, None) => String::new(),
    };
    clip(&text, DETAIL_WIDTH)
}

/// A stage's recorded output in words. What an older version recorded, and this one does not know, is left out.
fn sentence(stage: Stage, output: &Value) -> String {
    if let Some(reason) = text(output, "reason") {
        return reason.to_owned();
    }
    let parts: Vec<String> = match stage {
        Stage::Pull => match (text(output, "commit"), text(output, "subject")) {
            (Some(commit), subject) => {
                vec![
                    format!("{} {}", commit.get(..10).unwrap_or(commit), subject.unwrap_or_default()).trim().to_owned(),
                ]
            }
            _ => Vec::new(),
        },
        Stage::Backup => {
            let parts = list(output, "parts").map(|parts| counted(parts.len(), "part"));
            let bytes = output.get("bytes").and_then(Value::as_u64).map(human_bytes);
            [parts, bytes, text(output, "set").map(str::to_owned)].into_iter().flatten().collect()
        }
        Stage::Test => list(output, "suites").into_iter().flatten().map(suite).collect(),
        Stage::Build => {
            let reused = output.get("reused").and_then(Value::as_bool) == Some(true);
            let how = if reused { " (unchanged, not built again)" } else { "" };
            text(output, "name").map(|name| format!("{}{how}", short_artefact(name))).into_iter().collect()
        }
        Stage::Tag => list(output, "tags").into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        Stage::Migrate => match (text(output, "before"), text(output, "after")) {
            (Some(before), Some(after)) if before == after => vec![format!("schema stays at {after}")],
            (Some(before), Some(after)) => vec![format!("schema {before} → {after}")],
            _ => Vec::new(),
        },
        Stage::Start => {
            let healthy = ms(output, "healthy_after_ms").map(|t| format!("healthy after {t}"));
            let gap = ms(output, "gap_ms").filter(|t| t != "0ms").map(|t| format!("users waited {t}"));
            healthy.into_iter().chain(gap).collect()
        }
        Stage::Smoke => {
            let checks = list(output, "checks").map(|checks| counted(checks.len(), "check"));
            let bake = ms(output, "bake_ms").filter(|t| t != "0ms").map(|t| format!("watched for {t}"));
            checks.into_iter().chain(bake).collect()
        }
    };
    parts.join(", ")
}

fn suite(suite: &Value) -> String {
    let name = text(suite, "name").unwrap_or_default();
    let took = ms(suite, "duration_ms").map(|t| format!(" {t}")).unwrap_or_default();
    let coverage = suite.get("coverage").and_then(Value::as_f64).map(|c| format!(" ({c:.1} % covered)"));
    format!("{name}{took}{}", coverage.unwrap_or_default())
}

/// A release directory by its own name; images have a short one.
pub fn short_artefact(name: &str) -> &str {
    if name.starts_with('/') { name.rsplit('/').next().unwrap_or(name) } else { name }
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn list<'a>(value: &'a Value, key: &str) -> Option<&'a Vec<Value>> {
    value.get(key).and_then(Value::as_array)
}

fn ms(value: &Value, key: &str) -> Option<String> {
    value.get(key).and_then(Value::as_i64).map(took)
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::sample;

    #[test]
    fn every_end_has_its_page() {
        let pages: Vec<String> = sample::all()
            .iter()
            .map(|story| page(story, Some("/srv/app/logs/7.log"), Paint::new(false), None, &sample::clock()))
            .collect();
        insta::assert_snapshot!(pages.join("\n────────\n\n"));
    }

    #[test]
    fn output_reads_like_words() {
        let said = |stage, output: Value| sentence(stage, &output);
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(said(Stage::Pull, json!({ "commit": commit, "subject": "Add a line" })), "0123456789 Add a line");
        let backup = json!({ "set": "app/production/2026-11-21_10-15-30", "parts": ["db.dump"], "bytes": 12_300 });
        assert_eq!(said(Stage::Backup, backup), "1 part, 12.3 kB, app/production/2026-11-21_10-15-30");
        let suites =
            json!({ "suites": [{ "name": "unit", "duration_ms": 1800, "coverage": 75.04 }, { "name": "lint" }] });
        assert_eq!(said(Stage::Test, suites), "unit 1.8s (75.0 % covered), lint");
        let built = json!({ "id": "x", "name": "/srv/.refit/process/app/production/releases/7-012", "reused": true });
        assert_eq!(said(Stage::Build, built), "7-012 (unchanged, not built again)");
        assert_eq!(said(Stage::Migrate, json!({ "before": "7", "after": "8" })), "schema 7 → 8");
        assert_eq!(said(Stage::Start, json!({ "healthy_after_ms": 380, "gap_ms": 0 })), "healthy after 380ms");
        let smoke = json!({ "checks": [{}, {}], "bake_ms": 10_000, "rounds": 9 });
        assert_eq!(said(Stage::Smoke, smoke), "2 checks, watched for 10.0s");
        assert_eq!(said(Stage::Smoke, json!({ "reason": "nothing is configured" })), "nothing is configured");
        assert_eq!(said(Stage::Start, json!("of another version")), "");
    }
}
