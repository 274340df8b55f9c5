//! What the hook calls: the push goes to the daemon, the stages come back to the pusher's terminal.
//!
//! Git shows each line with `remote: ` before it, and waits for this process; so lines are short, plain, and the waiting has
//! an end. The hook's script has taken away what Git set in the environment; nothing is started from here.

use std::{env, io, time::Duration};

use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::{
    cli::{
        client::{Daemon, PushOutcome, PushRequest},
        context::Context,
        error::{CliError, Result, exit},
        progress::{Line, Narrator},
        story::Story,
        style::clip,
    },
    control::Update,
    model::{DeploymentId, Name},
    pipeline::journal::Event,
    registry::Registry,
};

/// 80 columns without Git's `remote: `.
const WIDTH: usize = 72;

/// Of one message, in characters; the report has the whole.
const LONGEST_TEXT: usize = 300;

/// For the daemon's answer to the push itself.
const ANSWER: Duration = Duration::from_secs(30);

/// After this the pusher is let go; the deployments go on.
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// More than a push of every ref of a large repository.
const MAX_INPUT: u64 = 4 * 1024 * 1024;

/// Exits with 0 if the push was announced, whatever becomes of it.
pub async fn run(context: &Context, app: &str, follow: bool) -> Result<u8> {
    let app: Name = app.parse().map_err(|e| CliError::usage(format!("{e}"), "`refit hook install` again"))?;
    let lines = pushed_lines().await?;
    if lines.is_empty() {
        return Ok(exit::OK);
    }
    let config = context.config_to_read()?;
    let away =
        || CliError::unavailable("the daemon does not answer", "`refit serve`; it finds the push when it starts");
    let daemon = tokio::time::timeout(ANSWER, Daemon::connect(&config.server.socket())).await;
    let daemon = daemon.ok().flatten().ok_or_else(away)?;
    let request = PushRequest { app, by: pusher(), lines };
    let outcomes = tokio::time::timeout(ANSWER, daemon.push(&request)).await.map_err(|_| away())??;
    let ids = announce(context, &outcomes)?;
    if follow && !ids.is_empty() {
        let registry = Registry::open_existing(&config.server.registry()).await?;
        let all = async {
            for id in ids {
                watch(context, &daemon, registry.as_ref(), id).await?;
            }
            Ok(exit::OK)
        };
        return match tokio::time::timeout(LONGEST, all).await {
            Ok(done) => done,
            Err(_) => {
                say(context, "still running after 30 minutes; `refit logs -f` watches it")?;
                Ok(exit::OK)
            }
        };
    }
    Ok(exit::OK)
}

async fn pushed_lines() -> Result<Vec<String>> {
    let read = async {
        let mut input = BufReader::new(tokio::io::stdin().take(MAX_INPUT)).lines();
        let mut lines = Vec::new();
        while let Some(line) = input.next_line().await? {
            lines.extend(Some(line).filter(|line| !line.trim().is_empty()));
        }
        Ok::<_, io::Error>(lines)
    };
    read.await.map_err(|e| CliError::io("reading the pushed refs", e))
}

/// Who pushed, as the server that took the push knows it.
fn pusher() -> Option<String> {
    let names = ["GL_USERNAME", "GITEA_PUSHER_NAME", "REMOTE_USER", "LOGNAME", "USER"];
    names.iter().find_map(|name| env::var(name).ok()).filter(|name| !name.is_empty())
}

/// A line for each ref and environment; the deployments that follow.
fn announce(context: &Context, outcomes: &[PushOutcome]) -> Result<Vec<DeploymentId>> {
    let mut ids = Vec::new();
    for pushed in outcomes {
        if let Some(why) = &pushed.ignored {
            say(context, &format!("{}: ignored: {why}", pushed.reference))?;
        }
        for outcome in &pushed.outcomes {
            let place = outcome.environment.as_ref().map_or_else(|| pushed.reference.clone(), ToString::to_string);
            match (&outcome.deployment, &outcome.ignored) {
                (Some(id), None) => {
                    say(context, &format!("{place}: deployment {id}"))?;
                    ids.push(*id);
                }
                (_, Some(why)) => say(context, &format!("{place}: not deployed: {why}"))?,
                (None, None) => say(context, &format!("{place}: taken"))?,
            }
        }
    }
    Ok(ids)
}

async fn watch(context: &Context, daemon: &Daemon, registry: Option<&Registry>, id: DeploymentId) -> Result<()> {
    let mut narrator = Narrator::new(id);
    let mut updates = daemon.follow(id, 0);
    while let Some(update) = updates.next().await {
        match update? {
            Update::Event(recorded) => {
                if let Some(Line::Says { text, .. }) = narrator.line(&recorded)
                    && !text.is_empty()
                {
                    say(context, &text)?;
                }
                // That may take a day; the push itself is taken.
                if matches!(recorded.event, Event::ApprovalRequested { .. }) {
                    return say(context, &format!("not watching any longer: `refit logs -f {id}` does"));
                }
            }
            Update::End { deployment } => {
                let story = match registry {
                    Some(registry) => Story::load(registry, *deployment).await?,
                    None => Story { deployment: *deployment, live: None, tail: Vec::new() },
                };
                for line in verdict(&story) {
                    say(context, &line)?;
                }
                return Ok(());
            }
        }
    }
    say(context, &format!("the daemon went away; `refit show {id}` tells how it ended"))
}

/// Live or not, and why.
fn verdict(story: &Story) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(error) = story.deployment.error.as_ref().filter(|_| !story.deployment.live) {
        lines.push(format!("why: {error}"));
    }
    let answer = if story.deployment.live { "LIVE" } else { "NOT LIVE" };
    lines.push(format!("{answer}: {}", story.headline()));
    if !story.deployment.live {
        lines.push(story.live_now());
        lines.push(format!("more: refit report {}", story.deployment.id));
    }
    lines
}

fn say(context: &Context, text: &str) -> Result<()> {
    let lines = wrapped(&clip(text, LONGEST_TEXT));
    context.print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
}

/// Lines of at most [`WIDTH`] characters, broken between words; a longer word is broken too.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        for (n, piece) in word.chars().collect::<Vec<_>>().chunks(WIDTH - 2).enumerate() {
            let piece: String = piece.iter().collect();
            let width = lines.last().map_or(0, |line| line.chars().count());
            let gap = usize::from(width > 0 && n == 0);
            match lines.last_mut() {
                Some(line) if width + gap + piece.chars().count() <= WIDTH && n == 0 => {
                    line.push_str(&" ".repeat(gap));
                    line.push_str(&piece);
                }
                _ => lines.push(format!("  {piece}")),
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    #[test]
    fn every_end_fits_a_terminal() {
        let all: Vec<String> = sample::all()
            .iter()
            .filter(|story| story.deployment.status.is_end())
            .flat_map(|story| {
                verdict(story).into_iter().flat_map(|line| wrapped(&clip(&line, LONGEST_TEXT))).chain([String::new()])
            })
            .collect();
        assert!(all.iter().all(|line| line.chars().count() <= WIDTH));
        insta::assert_snapshot!(all.join("\n"));
    }

    #[test]
    fn long_lines_are_wrapped() {
        let text = format!("{} {} end", "word ".repeat(20), "x".repeat(150));
        let lines = wrapped(&text);
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{lines:?}");
        assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""));
    }
}
