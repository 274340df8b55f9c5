//! `refit history --rollbacks`: releases that came back.

use super::{
    args::{Format, HistoryArgs},
    context::Context,
    error::Result,
    style::{Clock, Paint, Tone, cell, clip, status_tone, table_text, took, words},
};
use crate::model::RollbackEvent;

const REASON_WIDTH: usize = 44;

pub fn print(context: &Context, args: &HistoryArgs, events: &[RollbackEvent]) -> Result<()> {
    match args.format.format {
        Format::Json => context.print_json(&events),
        Format::Table if events.is_empty() => context.print("no rollbacks\n"),
        Format::Table => context.print(&table(events, context.paint, context.width, &context.clock)),
    }
}

fn table(events: &[RollbackEvent], paint: Paint, width: Option<u16>, clock: &Clock) -> String {
    let header = ["ID", "STARTED", "ENVIRONMENT", "TYPE", "STATUS", "FROM", "TO", "REASON", "BY", "TOOK", "NOTIFIED"];
    let mut table = paint.table(&header, width);
    for event in events {
        let id = |id: Option<crate::model::DeploymentId>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let lasted =
            event.started_at.zip(event.finished_at).map(|(from, to)| to.as_millisecond() - from.as_millisecond());
        table.add_row([
            cell(Tone::Plain, event.id.to_string()),
            cell(Tone::Plain, event.started_at.map_or_else(|| "-".to_owned(), |at| clock.ago(at))),
            cell(Tone::Plain, format!("{}/{}", event.app, event.environment)),
            cell(Tone::Plain, event.kind.as_str()),
            cell(status_tone(event.status), words(event.status.as_str())),
            cell(Tone::Plain, id(event.from)),
            cell(Tone::Plain, id(event.to)),
            cell(Tone::Plain, clip(event.reason.as_deref().unwrap_or_default(), REASON_WIDTH)),
            cell(Tone::Plain, event.by.as_deref().map_or_else(|| "refit".to_owned(), |by| clip(by, 20))),
            cell(Tone::Plain, lasted.map(took).unwrap_or_default()),
            cell(Tone::Plain, event.notified_at.map_or_else(|| "-".to_owned(), |at| clock.ago(at))),
        ]);
    }
    table_text(&table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::sample,
        model::{DeploymentId, RollbackKind, Status},
    };

    fn event(id: i64, kind: RollbackKind, status: Status) -> RollbackEvent {
        RollbackEvent {
            id: DeploymentId(id),
            app: "guestbook".parse().unwrap(),
            environment: "production".parse().unwrap(),
            kind,
            status,
            reason: Some(
                "GET /health: expected 200, got \u{1b}[31m500 and a body that says a great deal more".to_owned(),
            ),
            by: Some("ada".to_owned()),
            from: Some(DeploymentId(id - 1)),
            to: Some(DeploymentId(3)),
            started_at: Some(sample::at(7_300)),
            finished_at: Some(sample::at(7_298)),
            notified_at: Some(sample::at(7_297)),
        }
    }

    #[test]
    fn every_kind_has_its_row() {
        let mut automatic = event(9, RollbackKind::Automatic, Status::Succeeded);
        (automatic.by, automatic.from) = (None, Some(DeploymentId(9)));
        let mut first = event(5, RollbackKind::Automatic, Status::Stuck);
        (first.by, first.from, first.to, first.notified_at) = (None, Some(DeploymentId(5)), None, None);
        let mut running = event(12, RollbackKind::Undo, Status::Running);
        (running.finished_at, running.notified_at) = (None, None);
        let mut queued = event(13, RollbackKind::Previous, Status::Queued);
        (queued.started_at, queued.finished_at, queued.notified_at, queued.from) = (None, None, None, None);
        let all = [queued, running, event(11, RollbackKind::Specific, Status::Succeeded), automatic, first];
        insta::assert_snapshot!(table(&all, Paint::new(false), None, &sample::clock()));
    }
}
