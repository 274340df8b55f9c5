//! `refit backup list` and `show`.

use serde_json::json;

use super::{
    args::{ListArgs, OneArgs},
    entries, find, place,
};
use crate::{
    cli::{
        args::Format,
        context::{Context, check_target, is_wanted},
        error::{CliError, Result, exit},
        history::since,
        style::{Clock, Paint, Tone, cell, clip, table_text, took},
    },
    control::BackupEntry,
    data::{self, Depth, Manifest, SetState},
    files::human_bytes,
    rollback::Target,
};

const TEXT_WIDTH: usize = 44;

pub async fn list(context: &Context, args: &ListArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    check_target(&config, &args.target)?;
    let time =
        |text: &Option<String>, flag: &str| text.as_deref().map(|text| since(text, flag, &context.clock)).transpose();
    let (older, newer) = (time(&args.older_than, "--older-than")?, time(&args.newer_than, "--newer-than")?);
    let commit = args.commit.as_deref().map(Target::digits).transpose();
    let commit =
        commit.map_err(|error| CliError::usage(error.to_string(), "--commit with the beginning of a commit's id"))?;
    let mut all = Vec::new();
    for environment in config.environments().filter(|environment| is_wanted(&environment.key, &args.target)) {
        all.extend(entries(context, &config, &environment.key).await?);
    }
    all.retain(|BackupEntry { set, .. }| {
        let taken_for = |digits: &String| set.commit.as_ref().is_some_and(|c| c.as_str().starts_with(digits.as_str()));
        older.is_none_or(|at| set.created_at < at)
            && newer.is_none_or(|at| set.created_at > at)
            && commit.as_ref().is_none_or(taken_for)
    });
    match args.format.format {
        Format::Json => context.print_json(&all)?,
        Format::Table if all.is_empty() => context.print("no backups (`refit backup create` takes one)\n")?,
        Format::Table => context.print(&table(&all, context.paint, context.width, &context.clock))?,
    }
    Ok(exit::OK)
}

fn table(all: &[BackupEntry], paint: Paint, width: Option<u16>, clock: &Clock) -> String {
    let header = ["SET", "ENVIRONMENT", "STATE", "TAKEN", "SIZE", "PARTS", "COMMIT", "WHY", "VERIFIED", "KEPT FOR"];
    let mut table = paint.table(&header, width);
    for entry in all {
        let set = &entry.set;
        let (tone, state) = state(entry);
        let missing = set.missing.iter().map(|part| format!("{part} missing"));
        let parts: Vec<String> = set.parts.iter().cloned().chain(missing).collect();
        table.add_row([
            cell(Tone::Plain, set.name.as_str()),
            cell(Tone::Plain, entry.key.to_string()),
            cell(tone, state),
            cell(Tone::Plain, clock.ago(set.created_at)),
            cell(Tone::Plain, human_bytes(set.bytes)),
            cell(if set.missing.is_empty() { Tone::Plain } else { Tone::Warn }, clip(&parts.join(", "), TEXT_WIDTH)),
            cell(Tone::Plain, set.commit.as_ref().map(|c| c.short().to_owned()).unwrap_or_default()),
            cell(Tone::Plain, clip(set.reason.as_deref().unwrap_or_default(), TEXT_WIDTH)),
            verified(entry, clock),
            cell(Tone::Plain, clip(&kept_for(entry), TEXT_WIDTH)),
        ]);
    }
    table_text(&table)
}

fn verified(entry: &BackupEntry, clock: &Clock) -> comfy_table::Cell {
    match &entry.set.verified {
        None => cell(Tone::Plain, "-"),
        Some(look) if look.ok => cell(Tone::Good, format!("{}, {}", depth(look.depth), clock.ago(look.at))),
        Some(look) => cell(Tone::Bad, format!("NOT good, {}", clock.ago(look.at))),
    }
}

/// What is known when it passed.
pub fn depth(depth: Depth) -> &'static str {
    match depth {
        Depth::Checksums => "checksums",
        Depth::Catalogue => "read through",
        Depth::Restore => "restored",
    }
}

fn kept_for(entry: &BackupEntry) -> String {
    match (&entry.needed_for, entry.expires) {
        (Some(why), _) => why.clone(),
        (None, true) => "nothing: the next backup removes it".to_owned(),
        (None, false) => String::new(),
    }
}

fn state(entry: &BackupEntry) -> (Tone, String) {
    match &entry.set.state {
        SetState::Complete if entry.set.verified.as_ref().is_some_and(|look| !look.ok) => {
            (Tone::Bad, "damaged".to_owned())
        }
        SetState::Complete if !entry.set.missing.is_empty() => (Tone::Warn, "lacks parts".to_owned()),
        SetState::Complete => (Tone::Good, "complete".to_owned()),
        SetState::Incomplete => (Tone::Warn, "incomplete".to_owned()),
        SetState::Unreadable(_) => (Tone::Bad, "unreadable".to_owned()),
    }
}

pub async fn show(context: &Context, mut args: OneArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    let name = place(&args.set, &mut args.target);
    let key = config.environment(args.target.app.as_deref(), args.target.env.as_deref())?.key.clone();
    let entry = find(entries(context, &config, &key).await?, &key, &name)?;
    let manifest = match &entry.set.state {
        SetState::Complete => Some(data::read_manifest(&entry.set.path).map_err(crate::control::ControlError::from)?),
        _ => None,
    };
    match args.format.format {
        Format::Json => context.print_json(&json!({ "backup": entry, "manifest": manifest }))?,
        Format::Table => {
            context.print(&page(&entry, manifest.as_ref(), context.paint, context.width, &context.clock))?
        }
    }
    Ok(exit::OK)
}

fn page(entry: &BackupEntry, manifest: Option<&Manifest>, paint: Paint, width: Option<u16>, clock: &Clock) -> String {
    let set = &entry.set;
    let (tone, state) = state(entry);
    let mut out = format!("{}\n\n", paint.bold(&format!("{}/{}", entry.key, set.name)));
    let mut line = |name: &str, text: String| out.push_str(&format!("{} {text}\n", paint.dim(&format!("{name:<10}"))));
    line("state", paint.tone(tone, &state));
    if let SetState::Unreadable(why) = &set.state {
        line("why", clip(why, 400));
    }
    if set.state == SetState::Incomplete {
        line("why", "it has no manifest: it is being made, or was interrupted; it is no backup".to_owned());
    }
    line("taken", format!("{} ({})", clock.local(set.created_at), clock.ago(set.created_at)));
    if let Some(reason) = &set.reason {
        line("reason", clip(reason, 200));
    }
    if let Some(id) = set.deployment {
        line("deployment", id.to_string());
    }
    if let Some(commit) = &set.commit {
        line("commit", commit.to_string());
    }
    line("size", human_bytes(set.bytes));
    line("place", set.path.display().to_string());
    if let Some(manifest) = manifest {
        line("made by", format!("refit {}", clip(&manifest.refit, 40)));
        for roles in manifest.parts.iter().filter_map(|part| part.roles.as_ref()) {
            let with = if roles.passwords { "with" } else { "without" };
            line("roles", format!("{}, {with} their passwords, in {}", roles.count, clip(&roles.file, 60)));
        }
    }
    if let Some(look) = &set.verified {
        let what = if look.ok { depth(look.depth) } else { "NOT good" };
        line("verified", format!("{what}, {} ({})", clock.local(look.at), clock.ago(look.at)));
        look.problems.iter().for_each(|problem| line("problem", clip(problem, 300)));
    }
    if !kept_for(entry).is_empty() {
        line("kept for", kept_for(entry));
    }
    if let Some(manifest) = manifest {
        for warning in &manifest.warnings {
            line("warning", clip(warning, 300));
        }
        out.push_str(&parts(manifest, paint, width));
        out.push_str(&by_hand(manifest, set, paint));
    }
    out
}

fn parts(manifest: &Manifest, paint: Paint, width: Option<u16>) -> String {
    let mut table =
        paint.table(&["PART", "KIND", "FILE", "SIZE", "BEFORE COMPRESSION", "TOOL", "SERVER", "TOOK"], width);
    for part in &manifest.parts {
        let kind = serde_json::to_value(part.kind).ok().and_then(|kind| kind.as_str().map(str::to_owned));
        table.add_row([
            cell(Tone::Plain, clip(&part.name, 40)),
            cell(Tone::Plain, kind.unwrap_or_default()),
            cell(Tone::Plain, clip(&part.file, 60)),
            cell(Tone::Plain, human_bytes(part.bytes)),
            cell(Tone::Plain, human_bytes(part.raw_bytes)),
            cell(Tone::Plain, clip(&part.tool, 40)),
            cell(Tone::Plain, clip(part.server.as_deref().unwrap_or_default(), 30)),
            cell(Tone::Plain, took(i64::try_from(part.duration_ms).unwrap_or(i64::MAX))),
        ]);
    }
    format!("\n{}", table_text(&table))
}

/// What a person does without Refit, part by part, in the set's directory.
fn by_hand(manifest: &Manifest, set: &data::SetSummary, paint: Paint) -> String {
    let restore = format!("refit backup restore {}", set.name);
    let mut out = format!("\nto put it back: {}\n", paint.bold(&restore));
    out.push_str("or by hand, without refit, with the app stopped; what is in capitals is yours to fill in:\n");
    out.push_str(&format!("  cd '{}'\n", set.path.display().to_string().replace('\'', r"'\''")));
    let roles = manifest.parts.iter().filter_map(|part| part.roles.as_ref()).map(|roles| &roles.restore);
    for command in roles.chain(manifest.parts.iter().map(|part| &part.restore)) {
        // From a file that anybody may have written, so it must not paint the terminal; whole, because it is to be copied.
        let line: Vec<String> = command.lines().map(crate::log::printable).collect();
        out.push_str(&format!("  {}\n", line.join("\n  ")));
    }
    out
}
