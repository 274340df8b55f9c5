//! What the bot says. Every foreign word (a subject, an author, a person's reason) goes through [`Redactor`] and stands in `<code>`, where
//! Telegram looks for no markup, mentions or links.

use jiff::Timestamp;

use super::{command::MENU, order::Deed};
use crate::{
    control::{ControlError, EnvironmentStatus},
    model::{DeploymentView, Status},
    notify::{
        Message,
        render::{Canvas, LIMIT},
        words::one_line,
    },
    redact::Redactor,
    rollback::{Change, CommitLine, Preview, Severity},
};

const SUBJECT: usize = 80;
const NAME: usize = 60;
const REASON: usize = 300;

/// Commits, settings and the like that a preview lists at most, of each kind.
const LISTED: usize = 8;

/// Safety checks that a preview tells, and their length: with all the rest at its longest it still fits in a message, as a test says.
const CHECKS: usize = 4;
const CHECK: usize = 200;

/// Room that is kept for the line which says that something was left out.
const REST: usize = 80;

/// A text of our own words.
pub fn plain(text: &str) -> Message {
    let mut canvas = Canvas::default();
    canvas.words(text);
    canvas.message()
}

/// What cannot be done, and what to do.
pub fn refused(what: &str, error: &ControlError, redactor: &Redactor) -> Message {
    let mut canvas = Canvas::default();
    canvas.words(&format!("⚠️ {what}: "));
    canvas.code(&one_line(&error.to_string(), redactor, 1000));
    if let Some(hint) = error.hint() {
        canvas.words("\ntry: ");
        canvas.code(&one_line(hint, redactor, 500));
    }
    canvas.message()
}

pub fn misread(why: &str, usage: &str) -> Message {
    let mut canvas = Canvas::default();
    canvas.words(&format!("⚠️ {why}\n"));
    canvas.code(usage);
    canvas.message()
}

pub fn help() -> Message {
    let mut canvas = Canvas::default();
    for (name, arguments, what) in MENU {
        canvas.code(format!("/{name} {arguments}").trim());
        canvas.words(&format!(" {what}\n"));
    }
    canvas.words("\nWhat changes something is asked once more, and is done when you say yes.");
    canvas.message()
}

pub fn status(all: &[EnvironmentStatus], redactor: &Redactor) -> Message {
    let blocks = all.iter().map(|status| {
        let mut block = Canvas::default();
        environment(&mut block, status, redactor);
        block
    });
    joined(blocks.collect(), "`refit status` on the server shows all")
}

fn environment(out: &mut Canvas, status: &EnvironmentStatus, redactor: &Redactor) {
    let line = |text: &str, max| one_line(text, redactor, max);
    let bad = status.stuck.is_some() || matches!(status.service.state.as_str(), "restarting" | "exited" | "missing");
    let mark = match (bad, &status.live) {
        (true, _) => "🔴",
        (false, Some(_)) if status.service.state == "running" => "🟢",
        _ => "⚪️",
    };
    out.words(&format!("{mark} "));
    out.bold(&status.key.to_string());
    match &status.live {
        None => out.words(": nothing is live\n"),
        Some(live) => {
            out.words(&format!(": deployment {}, {}\n", live.deployment, ago(live.deployed_at)));
            out.code(live.commit.short());
            if let Some(subject) = &live.subject {
                out.words(" ");
                out.code(&line(subject, SUBJECT));
            }
            out.words("\n");
        }
    }
    let mut facts = vec![format!("service {}", line(&status.service.state, NAME))];
    if status.service.restarts > 0 {
        facts.push(format!("{} restarts", status.service.restarts));
    }
    facts.extend(status.databases.iter().map(|db| format!("{} {}", line(&db.name, NAME), line(&db.state, NAME))));
    out.words(&format!("{}\n", facts.join(" · ")));
    if let Some(id) = status.stuck {
        out.words(&format!("🆘 deployment {id} is stuck: a person is needed\n"));
    }
    if let Some(waiting) = &status.awaiting_approval {
        let until = waiting.expires_at.strftime("%Y-%m-%d %H:%M UTC");
        out.words(&format!("⏳ deployment {0} waits for approval until {until}: /approve {0}\n", waiting.id));
    }
    if let Some(id) = status.running {
        out.words(&format!("⏳ deployment {id} runs\n"));
    }
    if let Some(id) = status.queued {
        out.words(&format!("⏳ deployment {id} waits in the queue\n"));
    }
}

pub fn history(views: &[DeploymentView], redactor: &Redactor) -> Message {
    if views.is_empty() {
        return plain("no deployments yet: /deploy makes one");
    }
    let blocks = views.iter().map(|view| {
        let mut block = Canvas::default();
        block.words(&format!("{} ", mark(view.status)));
        block.bold(&view.id.to_string());
        block.words(&format!(" {}/{}, {}", view.app, view.environment, ago(view.queued_at)));
        let failed = view.failed_stage.map(|stage| format!(" in {stage}")).unwrap_or_default();
        let live = if view.live { ", live" } else { "" };
        block.words(&format!(", {}{failed}{live}\n", view.status.as_str().replace('_', " ")));
        commit(&mut block, view, redactor);
        block
    });
    joined(blocks.collect(), "`refit history` on the server shows all")
}

/// A deployment's commit on a line; nothing where it is not known.
fn commit(out: &mut Canvas, view: &DeploymentView, redactor: &Redactor) {
    let Some(commit) = &view.commit else { return };
    out.code(commit.short());
    if let Some(subject) = &view.subject {
        out.words(" ");
        out.code(&one_line(subject, redactor, SUBJECT));
    }
    out.words("\n");
}

/// What a yes will do. `about`: the deployment, and what is live where a place is meant.
pub fn question(deed: &Deed, about: Option<&DeploymentView>, who: &str, redactor: &Redactor) -> Message {
    let mut canvas = Canvas::default();
    heading(&mut canvas, deed, redactor);
    match (deed, about) {
        (Deed::Deploy { reference, .. }, live) => {
            canvas.words("what: ");
            match reference {
                Some(reference) => canvas.code(&one_line(reference, redactor, SUBJECT)),
                None => canvas.words("the tip of its branch"),
            }
            match live {
                Some(live) => {
                    canvas.words(&format!("\nlive now: deployment {}\n", live.id));
                    commit(&mut canvas, live, redactor);
                }
                None => canvas.words("\nlive now: nothing\n"),
            }
        }
        (_, Some(view)) => {
            canvas.words(&format!("{}/{}, {}\n", view.app, view.environment, view.status.as_str().replace('_', " ")));
            commit(&mut canvas, view, redactor);
        }
        (_, None) => {}
    }
    match deed {
        Deed::Cancel { .. } => canvas.words("What it did is undone; what is live stays live.\n"),
        Deed::Approve { .. } => canvas.words("It goes on with migrate.\n"),
        Deed::Reject { reason, .. } => {
            canvas.words("What it did is undone. Because: ");
            canvas.code(&one_line(reason, redactor, REASON));
            canvas.words("\n");
        }
        Deed::Deploy { .. } | Deed::Rerun { .. } | Deed::Rollback { .. } => {}
    }
    foot(&mut canvas, who, redactor);
    canvas.message()
}

/// What a rollback will do.
pub fn preview(preview: &Preview, deed: &Deed, errors: &[&str], who: &str, redactor: &Redactor) -> Message {
    let line = |text: &str, max| one_line(text, redactor, max);
    let mut canvas = Canvas::default();
    heading(&mut canvas, deed, redactor);
    let side = |side: &crate::rollback::Side| format!("deployment {} ({})", side.deployment, side.commit.short());
    canvas.words(&format!("{} → {}\n", side(&preview.from), side(&preview.to)));
    if let Deed::Rollback { reason, .. } = deed {
        canvas.words("because: ");
        canvas.code(&line(reason, REASON));
        canvas.words("\n");
    }
    commits(&mut canvas, "goes", &preview.commits.left, preview.commits.left_count, redactor);
    commits(&mut canvas, "comes", &preview.commits.gained, preview.commits.gained_count, redactor);
    if !preview.instant {
        canvas.words("its container is gone and is made again from its image\n");
    }
    let named = preview.environment.iter().map(|change| match change {
        Change::Added(name) => format!("+{name}"),
        Change::Removed(name) => format!("-{name}"),
        Change::Changed(name) => format!("~{name}"),
    });
    let settings: Vec<String> = named.chain(preview.settings.iter().cloned()).collect();
    if !settings.is_empty() {
        let rest = settings.len().saturating_sub(LISTED);
        let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        canvas.words("settings: ");
        canvas.code(&line(&settings[..settings.len().min(LISTED)].join(" "), REASON));
        canvas.words(&format!("{more}\n"));
    }
    if !preview.migrations.is_empty() {
        canvas.words(&format!(
            "{} migrations since then stay: the schema is not rolled back\n",
            preview.migrations.len()
        ));
    }
    canvas.words("data stays as it is\n");
    for check in preview.checks.iter().filter(|check| check.severity == Severity::Warning).take(CHECKS) {
        canvas.words("⚠️ ");
        canvas.code(&line(&check.message, CHECK));
        canvas.words("\n");
    }
    for error in errors.iter().take(CHECKS) {
        canvas.words("⛔️ ");
        canvas.code(&line(error, CHECK));
        canvas.words("\n");
    }
    match deed {
        Deed::Rollback { force: true, .. } => {
            canvas.words("A safety check says no. If you know better, say so below.\n");
            foot(&mut canvas, who, redactor);
        }
        _ if !errors.is_empty() => canvas.words("This cannot be done, and was not begun.\n"),
        _ => foot(&mut canvas, who, redactor),
    }
    canvas.message()
}

fn commits(out: &mut Canvas, what: &str, list: &[CommitLine], count: usize, redactor: &Redactor) {
    if count == 0 {
        return;
    }
    out.words(&format!("{count} {} {what}:\n", if count == 1 { "commit" } else { "commits" }));
    for line in list.iter().take(LISTED) {
        out.words("· ");
        out.code(&format!("{} {}", line.commit.short(), one_line(&line.subject, redactor, NAME)));
        out.words("\n");
    }
    if count > LISTED.min(list.len()) {
        out.words(&format!("· and {} more\n", count - LISTED.min(list.len())));
    }
}

fn heading(out: &mut Canvas, deed: &Deed, redactor: &Redactor) {
    out.words("❓ ");
    out.bold(&capital(&one_line(&deed.line(), redactor, REASON)));
    out.words("?\n");
}

/// A question is put to one person.
fn foot(out: &mut Canvas, who: &str, redactor: &Redactor) {
    out.words("for ");
    out.code(&one_line(who, redactor, NAME));
    out.words(", within five minutes");
}

/// What became of a question: `✋ deploy guestbook/production: not done, said @ada`.
pub fn settled(mark: &str, deed: &Deed, what: &str, who: &str, redactor: &Redactor) -> Message {
    let mut canvas = Canvas::default();
    canvas.words(&format!("{mark} {}: {what}, said ", one_line(&deed.line(), redactor, REASON)));
    canvas.code(&one_line(who, redactor, NAME));
    canvas.message()
}

/// Blocks as long as they fit; then a word on the rest.
fn joined(blocks: Vec<Canvas>, elsewhere: &str) -> Message {
    let mut out = Canvas::default();
    let count = blocks.len();
    for (n, block) in blocks.into_iter().enumerate() {
        if out.units + block.units + REST > LIMIT {
            out.words(&format!("… and {} more: {elsewhere}\n", count - n));
            break;
        }
        if n > 0 {
            out.words("\n");
        }
        out.append(block);
    }
    out.message()
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn ago(at: Timestamp) -> String {
    let ms = Timestamp::now().as_millisecond() - at.as_millisecond();
    match ms {
        ..60_000 => "just now".to_owned(),
        60_000..3_600_000 => format!("{} min ago", ms / 60_000),
        3_600_000..172_800_000 => format!("{} h ago", ms / 3_600_000),
        _ => format!("{} days ago", ms / 86_400_000),
    }
}

/// The mark of a status.
pub fn mark(status: Status) -> &'static str {
    match status {
        Status::Succeeded => "✅",
        Status::Failed => "❌",
        Status::RolledBack => "↩️",
        Status::Stuck => "🆘",
        Status::Cancelled => "🚫",
        Status::Superseded | Status::Skipped => "⏭",
        Status::Queued | Status::Running | Status::AwaitingApproval => "⏳",
    }
}
