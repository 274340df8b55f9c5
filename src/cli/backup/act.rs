//! `refit backup create`, `restore`, `delete` and `prune`.

use super::{
    LATEST,
    args::{CreateArgs, DeleteArgs, PruneArgs, RestoreArgs, VerifyArgs},
    entries, find, place,
    watch::watch,
};
use crate::{
    cli::{
        args::{ActArgs, Format, FormatArgs, TargetArgs},
        context::Context,
        deploy::{conclude, detached, trigger},
        error::{CliError, Result, exit},
        follow::follow,
        hands::{Hands, Interrupts},
        style::{Paint, clip, plural, took},
    },
    control::{BackupRequest, BackupUpdate, BackupVerb, Created, Removed, RestoreWish, Restored},
    data::{Depth, VerifyReport},
    files::human_bytes,
    model::{DeploymentId, DeploymentView, EnvironmentKey, Name, TriggerKind},
};

/// A backup that is not whole; nothing was removed.
const NOT_WHOLE: u8 = 1;

/// How it ended.
enum Ended {
    Here(BackupUpdate),
    Deployed(Box<DeploymentView>),
    /// The daemon goes on with it.
    Queued(DeploymentId),
}

pub async fn create(context: &Context, args: CreateArgs) -> Result<u8> {
    let key = key(context, &args.target)?;
    let parts = parts(&args.parts, "`refit check` lists the [[backup]]s")?;
    let verb = BackupVerb::Create { reason: args.reason, parts };
    let Ended::Here(BackupUpdate::Created(created)) = act(context, &key, verb, args.no_wait).await? else {
        return Err(misunderstood());
    };
    match args.format.format {
        Format::Json => context.print_json(&created)?,
        Format::Table => context.print(&created_text(&key, &created, context.paint))?,
    }
    let good = created.verified.as_ref().is_none_or(|look| look.ok);
    let whole = created.report.set.is_some() && created.report.failures.is_empty() && good;
    Ok(if whole { exit::OK } else { NOT_WHOLE })
}

fn created_text(key: &EnvironmentKey, created: &Created, paint: Paint) -> String {
    let report = &created.report;
    let mut out = match &report.set {
        Some(set) if report.failures.is_empty() => paint.good(&format!("backed up {key}: {set}")),
        Some(set) => paint.warn(&format!("backed up {key}, not all of it: {set}")),
        None => paint.bad(&format!("{key} was not backed up")),
    };
    out.push('\n');
    for part in &report.parts {
        let ms = i64::try_from(part.duration_ms).unwrap_or(i64::MAX);
        out.push_str(&format!("  {}: {} in {}\n", part.name, human_bytes(part.bytes), took(ms)));
        if let Some(warning) = part.warning() {
            out.push_str(&format!("  warning: {warning}\n"));
        }
    }
    for failure in &report.failures {
        let required = if failure.required { " (required)" } else { "" };
        out.push_str(&format!("  {}{required}: {}\n", failure.name, clip(&failure.error, 400)));
    }
    if let Some(look) = created.verified.as_ref().filter(|look| !look.ok) {
        out.push_str(&verified_text(look, paint));
    }
    for set in &created.removed {
        out.push_str(&format!("  removed {set}, by the retention rule\n"));
    }
    if !report.failures.is_empty() {
        out.push_str("  try: `refit doctor` looks at what backups need\n");
    }
    out
}

pub async fn verify(context: &Context, mut args: VerifyArgs) -> Result<u8> {
    let set = args.set.as_ref().map(|set| place(set, &mut args.target));
    let key = key(context, &args.target)?;
    let set = set.filter(|set| set != LATEST);
    let depth = match (args.restore, args.checksums) {
        (true, _) => Depth::Restore,
        (_, true) => Depth::Checksums,
        _ => Depth::Catalogue,
    };
    let ended = act(context, &key, BackupVerb::Verify { set, depth }, args.no_wait).await?;
    let Ended::Here(BackupUpdate::Verified(report)) = ended else { return Err(misunderstood()) };
    match args.format.format {
        Format::Json => context.print_json(&report)?,
        Format::Table => context.print(&verified_text(&report, context.paint))?,
    }
    Ok(if report.ok { exit::OK } else { NOT_WHOLE })
}

fn verified_text(report: &VerifyReport, paint: Paint) -> String {
    let how = match report.depth {
        Depth::Checksums => "every file is what was written",
        Depth::Catalogue => "every file is what was written, and whole by its own signs",
        Depth::Restore => "it was restored, into something that was thrown away again",
    };
    let mut out = match report.ok {
        true => format!("{}: {how}\n", paint.good(&format!("{} is good", report.set))),
        false => format!("{}\n", paint.bad(&format!("{} is NOT good", report.set))),
    };
    for part in &report.parts {
        let ms = i64::try_from(part.duration_ms).unwrap_or(i64::MAX);
        let mark = if part.ok { paint.good("ok ") } else { paint.bad("BAD") };
        out.push_str(&format!("  {mark} {} ({})\n", clip(&part.name, 40), took(ms)));
        for check in &part.checks {
            let detail = clip(&check.detail, 300);
            out.push_str(&format!(
                "        {}{}\n",
                check.what,
                if detail.is_empty() { detail } else { format!(": {detail}") }
            ));
        }
    }
    if report.parts.is_empty() {
        out.extend(report.problems.iter().map(|problem| format!("  {}\n", clip(problem, 400))));
    }
    if !report.ok {
        out.push_str("  try: `refit backup create` takes a new one; `refit backup list` shows older ones\n");
    }
    out
}

pub async fn restore(context: &Context, mut args: RestoreArgs) -> Result<u8> {
    let set = place(&args.set, &mut args.target);
    let key = key(context, &args.target)?;
    let parts = parts(&args.parts, "`refit backup show SET` lists its parts")?;
    let config = context.config_to_read()?;
    let entry = find(entries(context, &config, &key).await?, &key, &set)?;
    if !args.yes {
        let only: Vec<&str> = parts.iter().map(Name::as_str).collect();
        let what = if only.is_empty() { "all of its data".to_owned() } else { format!("only {}", only.join(", ")) };
        let taken = context.clock.ago(entry.set.created_at);
        context.say(&format!(
            "this replaces the data of {key} ({what}) by that of {}, taken {taken}; what came since is backed up first, and the app is \
             stopped meanwhile",
            entry.set.name
        ));
        confirm_by_name(context, &key)?;
    }
    let wish = RestoreWish { set: entry.set.name, parts, reason: args.reason, force: args.force };
    match act_or_hand_over(context, &key, BackupVerb::Restore(wish), args.no_wait, args.detach).await? {
        Ended::Queued(id) => detached(context, args.format.format, id),
        Ended::Deployed(view) => {
            let format = FormatArgs { format: args.format.format };
            let act = ActArgs { follow: true, detach: false, no_wait: args.no_wait, format };
            Box::pin(conclude(context, &act, *view)).await
        }
        Ended::Here(BackupUpdate::Restored(restored)) => {
            match args.format.format {
                Format::Json => context.print_json(&restored)?,
                Format::Table => context.print(&restored_text(&key, &restored, context.paint))?,
            }
            Ok(exit::OK)
        }
        Ended::Here(_) => Err(misunderstood()),
    }
}

fn restored_text(key: &EnvironmentKey, restored: &Restored, paint: Paint) -> String {
    let report = &restored.report;
    let mut out = format!("{}\n", paint.good(&format!("the data of {key} was restored from {}", report.set)));
    for part in &report.restored {
        let rows = part.rows.map(|rows| format!(", {rows} rows")).unwrap_or_default();
        let tables = plural(usize::try_from(part.tables).unwrap_or(usize::MAX), "table");
        let ms = i64::try_from(part.duration_ms).unwrap_or(i64::MAX);
        out.push_str(&format!("  {} into {}: {tables}{rows} in {}\n", part.name, part.place, took(ms)));
        if let Some(note) = &part.note {
            out.push_str(&format!("    {}\n", clip(note, 300)));
        }
    }
    for part in &report.skipped {
        out.push_str(&format!("  {} was left alone: {}\n", part.name, clip(&part.why, 300)));
    }
    for name in &report.absent {
        out.push_str(&format!("  {name} is not in the backup: its data is as it was\n"));
    }
    out.extend(restored.checks.iter().map(|check| format!("  {}\n", clip(check, 200))));
    out.push_str(&match &restored.before {
        Some(set) => format!("  `refit backup restore {set}` puts back what was there before\n"),
        None => "  there was nothing before that could be backed up\n".to_owned(),
    });
    out.push_str("  nothing is live yet: `refit deploy` starts the app\n");
    out
}

pub async fn delete(context: &Context, mut args: DeleteArgs) -> Result<u8> {
    let sets: Vec<String> = args.sets.iter().map(|set| place(set, &mut args.target)).collect();
    let key = key(context, &args.target)?;
    let config = context.config_to_read()?;
    let all = entries(context, &config, &key).await?;
    for set in &sets {
        let entry = find(all.clone(), &key, set)?;
        if !args.yes {
            let (taken, size) = (context.clock.ago(entry.set.created_at), human_bytes(entry.set.bytes));
            context.say(&format!("{}, taken {taken}, {size}", entry.set.name));
        }
    }
    let question = format!("remove {} of {key} for good?", plural(sets.len(), "backup"));
    if !args.yes && !context.confirm(&question) {
        return Err(CliError::Failed {
            message: "nothing was removed: it was not confirmed".to_owned(),
            hint: Some("answer `y`, or give --yes where nobody can answer".to_owned()),
            code: exit::USAGE,
        });
    }
    let ended = act(context, &key, BackupVerb::Delete { sets }, args.no_wait).await?;
    told_removed(context, &args.format, &key, ended)
}

pub async fn prune(context: &Context, args: PruneArgs) -> Result<u8> {
    let key = key(context, &args.target)?;
    if args.dry_run {
        let config = context.config_to_read()?;
        let mut going = entries(context, &config, &key).await?;
        going.retain(|entry| entry.expires);
        going.reverse();
        let removed = Removed {
            bytes: going.iter().map(|entry| entry.set.bytes).sum(),
            removed: going.into_iter().map(|entry| entry.set.name).collect(),
        };
        match args.format.format {
            Format::Json => context.print_json(&removed)?,
            Format::Table => context.print(&removed_text(&key, &removed, "would go"))?,
        }
        return Ok(exit::OK);
    }
    let ended = act(context, &key, BackupVerb::Prune, args.no_wait).await?;
    told_removed(context, &args.format, &key, ended)
}

fn told_removed(context: &Context, format: &FormatArgs, key: &EnvironmentKey, ended: Ended) -> Result<u8> {
    let Ended::Here(BackupUpdate::Removed(removed)) = ended else { return Err(misunderstood()) };
    match format.format {
        Format::Json => context.print_json(&removed)?,
        Format::Table => context.print(&removed_text(key, &removed, "removed"))?,
    }
    Ok(exit::OK)
}

fn removed_text(key: &EnvironmentKey, removed: &Removed, verb: &str) -> String {
    if removed.removed.is_empty() {
        return format!("nothing to remove in {key}\n");
    }
    let mut out: String = removed.removed.iter().map(|set| format!("{verb}: {set}\n")).collect();
    out.push_str(&format!("{} of {key}, {}\n", plural(removed.removed.len(), "backup"), human_bytes(removed.bytes)));
    out
}

/// Data that is put back takes the place of what came since: nobody does that by accident, or in the wrong terminal.
fn confirm_by_name(context: &Context, key: &EnvironmentKey) -> Result<()> {
    let name = key.environment.as_str();
    let answer = context.ask(&format!("type the environment's name ({name}) to go on: "));
    if answer.as_deref() == Some(name) {
        return Ok(());
    }
    Err(CliError::Failed {
        message: "nothing was changed: the restore was not confirmed".to_owned(),
        hint: Some(format!("type `{name}`, or give --yes where nobody can answer")),
        code: exit::USAGE,
    })
}

fn parts(given: &[String], hint: &str) -> Result<Vec<Name>> {
    let names = given.iter().map(|part| part.parse()).collect::<std::result::Result<_, _>>();
    names.map_err(|error: crate::model::InvalidValue| CliError::usage(error.to_string(), hint))
}

fn key(context: &Context, target: &TargetArgs) -> Result<EnvironmentKey> {
    let config = context.config_to_read()?;
    Ok(config.environment(target.app.as_deref(), target.env.as_deref())?.key.clone())
}

async fn act(context: &Context, key: &EnvironmentKey, verb: BackupVerb, no_wait: bool) -> Result<Ended> {
    act_or_hand_over(context, key, verb, no_wait, false).await
}

async fn act_or_hand_over(
    context: &Context,
    key: &EnvironmentKey,
    verb: BackupVerb,
    no_wait: bool,
    detach: bool,
) -> Result<Ended> {
    let kind = if matches!(verb, BackupVerb::Restore(_)) { TriggerKind::Restore } else { TriggerKind::Cli };
    let (app, environment) = (Some(key.app.to_string()), Some(key.environment.to_string()));
    let request = BackupRequest { app, environment, trigger: trigger(kind), no_wait, verb };
    let mut interrupts = Interrupts::listen()?;
    let hands = match detach {
        true => Hands::find_daemon(context).await?,
        false => Box::pin(Hands::find(context, no_wait, &mut interrupts)).await?,
    };
    let ended = match watch(context, &hands, request, &mut interrupts).await {
        Ok(BackupUpdate::Queued { id }) if detach => Ok(Ended::Queued(id)),
        Ok(BackupUpdate::Queued { id }) => {
            Box::pin(follow(context, &hands, id, &mut interrupts)).await.map(|view| Ended::Deployed(Box::new(view)))
        }
        ended => ended.map(Ended::Here),
    };
    // Left in the middle: there is no time to tidy up, the journal remembers.
    if !matches!(ended, Err(CliError::Told(_))) {
        Box::pin(hands.release(context, &mut interrupts)).await;
    }
    ended
}

fn misunderstood() -> CliError {
    CliError::unavailable(
        "the daemon answered something else than what it was asked for",
        "restart the daemon, so that both are the same version",
    )
}
