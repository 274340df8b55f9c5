//! `refit rollback`: back to a release that was good, and the preview of that.

use std::sync::Arc;

use super::{
    args::{Format, RollbackArgs},
    context::{Context, open_registry},
    deploy::{act, trigger},
    error::{CliError, Result, exit},
    hands::Hands,
    style::{Clock, Paint, Tone, cell, clip, plural, table_text},
};
use crate::{
    config::Config,
    control::{ControlError, Observer, RollbackRequest, Target},
    files::human_bytes,
    model::{DeploymentId, EnvironmentKey, TriggerKind},
    registry::Registry,
    rollback::{Change, Check, CommitLine, PlanError, Preview, Severity, Wanted},
};

const SUBJECT_WIDTH: usize = 60;

pub async fn run(context: &Context, args: RollbackArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    let key = config.environment(args.target.app.as_deref(), args.target.env.as_deref())?.key.clone();
    let wanted = Wanted { target: wanted(&args), restore_data: args.restore_data };
    if let Target::Commit(text) = &wanted.target {
        Target::digits(text).map_err(|error| ControlError::from(PlanError::from(error)))?;
    }
    if args.preview {
        let preview = look(context, &config, &key, &wanted).await?;
        match args.act.format.format {
            Format::Json => context.print_json(&preview)?,
            Format::Table => context.print(&page(&preview, context.paint, context.width, &context.clock))?,
        }
        return Ok(exit::OK);
    }
    if args.restore_data && !args.yes {
        confirm(context, &config, &key, &wanted).await?;
    }
    let request = RollbackRequest {
        app: args.target.app,
        environment: args.target.env,
        service: args.service,
        target: wanted.target,
        reason: args.reason.unwrap_or_default(),
        force: args.force,
        restore_data: args.restore_data,
        trigger: trigger(TriggerKind::Rollback),
        no_wait: args.act.no_wait,
    };
    let format = args.act.format.format;
    act(context, &args.act, async |hands| ask(context, &config, hands, request, format).await).await
}

fn wanted(args: &RollbackArgs) -> Target {
    match (args.to, &args.commit, &args.version) {
        (Some(id), _, _) => Target::Deployment(DeploymentId(id)),
        (_, Some(commit), _) => Target::Commit(commit.clone()),
        (_, _, Some(version)) => Target::Version(version.clone()),
        _ if args.undo => Target::Undo,
        _ => Target::Previous,
    }
}

async fn look(context: &Context, config: &Arc<Config>, key: &EnvironmentKey, wanted: &Wanted) -> Result<Preview> {
    let registry = Registry::open_existing(&config.server.registry()).await?;
    let observer = Observer::new(config.clone(), registry, &context.options()?)?;
    Ok(observer.preview(key, wanted).await?)
}

/// Data that is put back takes the place of what came since: nobody does that by accident.
async fn confirm(context: &Context, config: &Arc<Config>, key: &EnvironmentKey, wanted: &Wanted) -> Result<()> {
    let preview = look(context, config, key, wanted).await?;
    context.say(&page(&preview, context.paint_errors, context.width, &context.clock));
    if context.confirm(&format!("put the data of {key} back?")) {
        return Ok(());
    }
    Err(CliError::Failed {
        message: "nothing was changed: putting data back was not confirmed".to_owned(),
        hint: Some("answer `y`, or give --yes where nobody can answer".to_owned()),
        code: exit::USAGE,
    })
}

/// Asks for it, and shows what the safety checks said: before it goes on, or why it does not.
async fn ask(
    context: &Context,
    config: &Config,
    hands: &Hands,
    request: RollbackRequest,
    format: Format,
) -> Result<DeploymentId> {
    let shown = |checks: &[Check]| {
        if format == Format::Table && !checks.is_empty() {
            context.say(&table(checks, context.paint_errors, context.width));
        }
    };
    match hands.rollback(request).await {
        Ok(id) => {
            let order = open_registry(config).await?.rollback_order(id).await?;
            let checks = order.and_then(|order| serde_json::from_value::<Vec<Check>>(order.checks).ok());
            shown(&checks.unwrap_or_default());
            Ok(id)
        }
        Err(error) => {
            if let ControlError::Refused { message, checks, .. } = &error {
                shown(checks);
                if format == Format::Json {
                    context.print_json(&serde_json::json!({ "refused": message, "checks": checks }))?;
                }
            }
            Err(error.into())
        }
    }
}

fn table(checks: &[Check], paint: Paint, width: Option<u16>) -> String {
    let mut table = paint.table(&["CHECK", "RESULT", "DETAIL"], width);
    for check in checks {
        let tone = match check.severity {
            Severity::Ok => Tone::Good,
            Severity::Warning => Tone::Warn,
            Severity::Error => Tone::Bad,
        };
        table.add_row([
            cell(Tone::Plain, check.name.as_str()),
            cell(tone, check.severity.to_string()),
            cell(Tone::Plain, clip(&check.message, 400)),
        ]);
    }
    table_text(&table)
}

/// What would change, then the checks.
fn page(preview: &Preview, paint: Paint, width: Option<u16>, clock: &Clock) -> String {
    let (from, to) = (&preview.from, &preview.to);
    let title = format!(
        "{}: deployment {} ({}) → deployment {} ({})",
        preview.key,
        from.deployment,
        from.commit.short(),
        to.deployment,
        to.commit.short()
    );
    let mut out = format!("{}\n\n", paint.bold(&title));
    let mut line = |name: &str, text: &str| out.push_str(&format!("{} {text}\n", paint.dim(&format!("{name:<11}"))));
    for text in commits(preview) {
        line("commits", &text);
    }
    let how = if preview.instant { "its container stands and is started" } else { "its container is made again" };
    line("image", &format!("{} → {}; {how}", clip(&from.version, 80), clip(&to.version, 80)));
    line("environment", &environment(&preview.environment));
    if !preview.settings.is_empty() {
        line("settings", &format!("differ: {}", preview.settings.join(", ")));
    }
    let goes = if preview.data.is_some() { "goes back with the data" } else { "stays" };
    for migration in &preview.migrations {
        let version = |text: &Option<String>| text.as_deref().map_or("?".to_owned(), |text| clip(text, 40));
        let (before, after) = (version(&migration.before), version(&migration.after));
        line("migrations", &format!("deployment {}: {before} → {after} {goes}", migration.deployment));
    }
    if preview.migrations.is_empty() {
        line("migrations", "none since");
    }
    match &preview.data {
        None => line("data", "stays as it is"),
        Some(data) => {
            let parts = data.parts.iter().map(|(name, bytes)| format!("{name} ({})", human_bytes(*bytes)));
            let (at, parts) = (clock.ago(data.taken_at), parts.collect::<Vec<_>>().join(", "));
            line("data", &format!("{parts} as of {at}, from {}; what came since is backed up first", data.set));
        }
    }
    out.push('\n');
    out.push_str(&table(&preview.checks, paint, width));
    out
}

fn commits(preview: &Preview) -> Vec<String> {
    let commits = &preview.commits;
    if let Some(why) = &commits.unknown {
        return vec![format!("not known: {}", clip(why, 200))];
    }
    let mut lines = Vec::new();
    for (count, listed, verb) in
        [(commits.left_count, &commits.left, "left"), (commits.gained_count, &commits.gained, "come back")]
    {
        if count == 0 {
            continue;
        }
        lines.push(format!("{} {}", plural(count, "commit"), if verb == "left" { "would be left" } else { verb }));
        lines.extend(listed.iter().map(subject));
        if count > listed.len() {
            lines.push(format!("  and {} more", count - listed.len()));
        }
    }
    if lines.is_empty() {
        lines.push("the same commit".to_owned());
    }
    lines
}

fn subject(line: &CommitLine) -> String {
    format!("  {} {}", line.commit.short(), clip(&line.subject, SUBJECT_WIDTH))
}

/// Names only: the values are nobody's business here.
fn environment(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "the same".to_owned();
    }
    let text = |change: &Change| match change {
        Change::Added(name) => format!("+{name}"),
        Change::Removed(name) => format!("-{name}"),
        Change::Changed(name) => format!("{name} has another value"),
    };
    changes.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "rollback_test.rs"]
mod tests;
