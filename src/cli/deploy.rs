//! `refit deploy` and `refit rerun`.

use super::{
    args::{ActArgs, DeployArgs, Format, RerunArgs},
    context::{Context, check_target, log_file, open_registry, user},
    error::{CliError, Result, exit},
    follow::follow,
    hands::{Hands, Interrupts},
    story::Story,
    style::{Paint, Tone, status_tone},
};
use crate::{
    control::{DeployRequest, RerunRequest},
    model::{DeploymentId, DeploymentView, Trigger, TriggerKind},
};

/// Lines of the failed stage that the summary quotes; the log has all of them.
const QUOTED: usize = 15;

pub async fn run(context: &Context, args: DeployArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    config.environment(args.target.app.as_deref(), args.target.env.as_deref())?;
    let request = DeployRequest {
        app: args.target.app,
        environment: args.target.env,
        reference: args.revision.named().map(str::to_owned),
        trigger: trigger(TriggerKind::Cli),
        no_wait: args.act.no_wait,
    };
    act(context, &args.act, async |hands| hands.deploy(request).await).await
}

pub async fn rerun(context: &Context, args: RerunArgs) -> Result<u8> {
    check_target(&*context.config_to_read()?, &args.target)?;
    let request = RerunRequest {
        id: args.id.map(DeploymentId),
        app: args.target.app,
        environment: args.target.env,
        trigger: trigger(TriggerKind::Rerun),
        no_wait: args.act.no_wait,
    };
    act(context, &args.act, async |hands| hands.rerun(request).await).await
}

pub fn trigger(kind: TriggerKind) -> Trigger {
    Trigger { kind, by: user(), delivery: None, forced: false }
}

/// Asks for a deployment and watches it to its end. The exit code is the deployment's.
pub async fn act(
    context: &Context,
    args: &ActArgs,
    ask: impl AsyncFnOnce(&Hands) -> Result<DeploymentId>,
) -> Result<u8> {
    if args.detach {
        let hands = Hands::find_daemon(context).await?;
        let id = ask(&hands).await?;
        return detached(context, args.format.format, id);
    }
    let mut interrupts = Interrupts::listen()?;
    let hands = Box::pin(Hands::find(context, args.no_wait, &mut interrupts)).await?;
    let ended = match ask(&hands).await {
        Ok(id) => Box::pin(follow(context, &hands, id, &mut interrupts)).await,
        Err(error) => Err(error),
    };
    // Left in the middle: there is no time to tidy up, the journal remembers.
    if !matches!(ended, Err(CliError::Told(_))) {
        Box::pin(hands.release(context, &mut interrupts)).await;
    }
    Box::pin(conclude(context, args, ended?)).await
}

/// Says that it is queued, and leaves it to the daemon.
pub fn detached(context: &Context, format: Format, id: DeploymentId) -> Result<u8> {
    match format {
        Format::Json => context.print_json(&serde_json::json!({ "id": id }))?,
        Format::Table => context.print(&format!("deployment {id} is queued (`refit logs -f {id}` watches it)\n"))?,
    }
    Ok(exit::OK)
}

/// Prints how it ended. The exit code is the deployment's, whoever reads the output.
pub async fn conclude(context: &Context, args: &ActArgs, view: DeploymentView) -> Result<u8> {
    let code = view.exit_code.unwrap_or(exit::UNAVAILABLE);
    let printed = match args.format.format {
        Format::Json => context.print_json(&view),
        Format::Table => {
            let config = context.config_to_read()?;
            let log = log_file(&config, &view).map(|file| file.display().to_string());
            let registry = open_registry(&config).await?;
            let story = Story::load(&registry, view).await?;
            context.print(&summary(&story, log.as_deref(), context.paint))
        }
    };
    match printed {
        Ok(()) | Err(CliError::OutputClosed) => Ok(code),
        Err(error) => Err(error),
    }
}

/// The block at the end of a deployment.
fn summary(story: &Story, log: Option<&str>, paint: Paint) -> String {
    let view = &story.deployment;
    let mut out = format!("\n{}", paint.tone(headline_tone(story), &story.headline()));
    if let Some(took) = story.took() {
        out.push_str(&format!(" ({took})"));
    }
    out.push('\n');
    let mut line = |name: &str, text: &str| out.push_str(&format!("  {} {text}\n", paint.dim(&format!("{name:<8}"))));
    line("commit", &story.commit_line());
    for (name, text) in [(story.order(), story.rollback_line()), ("reason", story.reason())] {
        if let Some(text) = text {
            line(name, &text);
        }
    }
    line("live", &story.live_now());
    if let Some(error) = &view.error {
        line("why", &indented(error));
    }
    if let Some(approval) = story.approval() {
        line("approval", &approval);
    }
    for undone in &view.undone {
        line("undone", &indented(undone));
    }
    if let Some(freed) = story.freed() {
        line("freed", &freed);
    }
    if let Some(next) = story.next_step() {
        line("next", &next);
    }
    if let Some(log) = log {
        line("log", log);
    }
    if !story.tail.is_empty() {
        let place = view.failed_stage.map(|stage| format!(" of {stage}")).unwrap_or_default();
        out.push_str(&paint.dim(&format!("\n  the last lines{place}:\n")));
        for quoted in story.tail.iter().skip(story.tail.len().saturating_sub(QUOTED)) {
            out.push_str(&format!("    {quoted}\n"));
        }
    }
    out
}

pub fn headline_tone(story: &Story) -> Tone {
    status_tone(story.deployment.status)
}

/// Text of several lines beside a name.
fn indented(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(crate::log::printable).collect();
    lines.join("\n           ")
}

#[cfg(test)]
#[path = "deploy_test.rs"]
mod tests;
