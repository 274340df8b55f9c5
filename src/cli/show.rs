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
use crate::model::StageView;

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
    match (&stage.error, &stage.output) {
        (Some(error), _) => clip(error, DETAIL_WIDTH),
        (None, Some(output)) => clip(&flat(output), DETAIL_WIDTH),
        (None, None) => String::new(),
    }
}

/// JSON as people would write it: `reused: yes, name: guestbook:0123456789`.
fn flat(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Array(items) => items.iter().map(flat).collect::<Vec<_>>().join("; "),
        Value::Object(fields) => {
            let shown = |(name, value): (&String, &Value)| {
                let value = flat(value);
                (!value.is_empty())
                    .then(|| if name == "reason" { value } else { format!("{}: {}", words(name), value) })
            };
            fields.iter().filter_map(shown).collect::<Vec<_>>().join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
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
        let output = serde_json::json!({ "name": "app:1", "reused": true, "suites": [{ "coverage_percent": 81.5 }], "none": null });
        assert_eq!(flat(&output), "name: app:1, reused: yes, suites: coverage percent: 81.5");
    }
}
