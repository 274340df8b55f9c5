//! `refit migrate`: what is applied and pending, and SQL files by hand.

use tokio_util::sync::CancellationToken;

use super::{
    args::{Format, MigrateActArgs, MigrateCommand, MigrateStatusArgs},
    context::Context,
    error::{CliError, Result, exit},
    hands::Interrupts,
    style::{Paint, Tone, cell, clip, plural, table_text},
};
use crate::{
    control::{MigrateReport, MigrateRequest, MigrateVerb, Migrations, Observer},
    migrate::RowState,
};

pub async fn run(context: &Context, command: MigrateCommand) -> Result<u8> {
    match command {
        MigrateCommand::Status(args) => status(context, &args).await,
        MigrateCommand::Up(args) => act(context, &args, MigrateVerb::Up { to: args.to }).await,
        MigrateCommand::Down(args) => act(context, &args, MigrateVerb::Down { to: args.to }).await,
        MigrateCommand::Redo(args) => act(context, &args, MigrateVerb::Redo { to: args.to }).await,
    }
}

async fn status(context: &Context, args: &MigrateStatusArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    let key = config.environment(args.files.target.app.as_deref(), args.files.target.env.as_deref())?.key.clone();
    let observer = Observer::new(config, None, &context.options()?)?;
    let found = Box::pin(observer.migrations(&key, args.files.revision.named())).await?;
    match args.format.format {
        Format::Json => context.print_json(&found)?,
        Format::Table => context.print(&page(&found, context.paint, context.width))?,
    }
    Ok(exit::OK)
}

async fn act(context: &Context, args: &MigrateActArgs, verb: MigrateVerb) -> Result<u8> {
    let config = context.config(crate::config::MissingSecrets::Error)?;
    let key = config.environment(args.files.target.app.as_deref(), args.files.target.env.as_deref())?.key.clone();
    if verb.takes_back() && !args.yes {
        confirm(context, key.environment.as_str(), &key.to_string())?;
    }
    let observer = Observer::new(config, None, &context.options()?)?;
    let request = MigrateRequest {
        key,
        verb,
        reference: args.files.revision.named().map(str::to_owned),
        backup: !args.no_backup,
    };
    let cancel = CancellationToken::new();
    let mut interrupts = Interrupts::listen()?;
    let mut say = |line: &str| context.say(line);
    let report = {
        let work = observer.migrate(&request, &cancel, &mut say);
        let mut work = Box::pin(work);
        tokio::select! {
            report = &mut work => report?,
            () = interrupts.next() => {
                cancel.cancel();
                // What was applied stays, and is told.
                work.await?
            }
        }
    };
    match args.format.format {
        Format::Json => context.print_json(&report)?,
        Format::Table => context.print(&summary(&report))?,
    }
    Ok(exit::OK)
}

/// What a down file takes away is gone: nobody does that by accident.
fn confirm(context: &Context, environment: &str, key: &str) -> Result<()> {
    if context.confirm(&format!("take migrations of {key} back, with the data that they hold?")) {
        return Ok(());
    }
    Err(CliError::Failed {
        message: format!("nothing was changed in {environment}: it was not confirmed"),
        hint: Some("answer `y`, or give --yes where nobody can answer".to_owned()),
        code: exit::USAGE,
    })
}

fn summary(report: &MigrateReport) -> String {
    let MigrateReport { before, after, taken_back, applied, backup } = report;
    if taken_back.is_empty() && applied.is_empty() {
        return format!("nothing to do: the schema is at {after}\n");
    }
    let counts = [(taken_back.len(), "taken back"), (applied.len(), "applied")];
    let what: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", plural(*count, "migration")))
        .collect();
    let kept = backup.as_ref().map(|set| format!("; the data before is in backup {set}")).unwrap_or_default();
    format!("{}: the schema went from {before} to {after}{kept}\n", what.join(", "))
}

fn page(found: &Migrations, paint: Paint, width: Option<u16>) -> String {
    let mut out = format!(
        "{}/{}: {}, at {}; files of commit {}\n\n",
        found.app,
        found.environment,
        found.database,
        paint.bold(&found.version),
        found.commit.short()
    );
    let mut table = paint.table(&["VERSION", "NAME", "STATE", "APPLIED", "WAY BACK"], width);
    for row in &found.migrations {
        let tone = match row.state {
            RowState::Applied => Tone::Good,
            RowState::Pending => Tone::Busy,
            _ => Tone::Bad,
        };
        table.add_row([
            cell(Tone::Plain, row.version.to_string()),
            cell(Tone::Plain, clip(&row.name, 48)),
            cell(tone, row.state.as_str()),
            cell(Tone::Plain, row.applied_at.clone().unwrap_or_default()),
            cell(Tone::Plain, if row.reversible { "yes" } else { "no" }),
        ]);
    }
    out.push_str(&table_text(&table));
    let pending = found.migrations.iter().filter(|row| row.state == RowState::Pending).count();
    match (&found.problem, pending) {
        (Some(problem), _) => out.push_str(&format!("\n{} {problem}\n", paint.bad("nothing can be applied:"))),
        (None, 0) => out.push_str("\nno migration is pending\n"),
        (None, n) => out.push_str(&format!(
            "\n{}: `refit deploy` applies them, or `refit migrate up`\n",
            plural(n, "pending migration")
        )),
    }
    if let Some(note) = &found.note {
        out.push_str(&format!("{} {note}\n", paint.warn("note:")));
    }
    out
}
