//! `refit show`: one deployment, stage by stage.

use super::{
    args::{Format, ShowArgs},
    context::{Context, find_deployment, log_file, open_registry},
    deploy::headline_tone,
    error::{Result, exit},
    outputs,
    story::Story,
    style::{Clock, Paint, Tone, cell, clip, stage_tone, table_text, took, words},
};
use crate::model::{DeploymentView, StageStatus};

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
    match story.rollback_line() {
        Some(rollback) => line(story.order(), rollback),
        None => line("from", story.origin()),
    }
    if let Some(reason) = story.reason() {
        line("reason", reason);
    }
    line("asked by", story.asked());
    line("queued", format!("{} ({})", clock.local(view.queued_at), clock.ago(view.queued_at)));
    if let Some(took) = story.took() {
        line("time", took);
    }
    line("live", story.live_now());
    for (name, said) in [("approval", story.approval()), ("resolved", story.resolved())] {
        if let Some(said) = said {
            line(name, said);
        }
    }
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
    if let Some(freed) = story.freed() {
        line("freed", freed);
    }
    if let Some(next) = story.next_step() {
        line("next", next);
    }
    out.push('\n');
    out.push_str(&stages(view, paint, width));
    out
}

fn stages(view: &DeploymentView, paint: Paint, width: Option<u16>) -> String {
    let mut table = paint.table(&["STAGE", "STATUS", "TOOK", "DETAIL"], width);
    for stage in &view.stages {
        let status = match stage.status {
            StageStatus::Pending if view.status.is_end() => "not reached".to_owned(),
            status => words(status.as_str()),
        };
        table.add_row([
            cell(Tone::Plain, stage.name.as_str()),
            cell(stage_tone(stage.status), status),
            cell(Tone::Plain, stage.duration_ms.map(took).unwrap_or_default()),
            cell(Tone::Plain, outputs::sentence(stage)),
        ]);
    }
    table_text(&table)
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
}
