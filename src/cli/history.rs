//! `refit history`: deployments, the newest first.

use jiff::{SignedDuration, Timestamp, civil::Date};

use super::{
    args::{Format, HistoryArgs},
    context::{Context, check_target, filter},
    error::{CliError, Result, exit},
    rollbacks,
    style::{Clock, Paint, Tone, cell, clip, status_tone, table_text, took, words},
};
use crate::{
    model::{DeploymentView, Status},
    registry::{Filter, Registry},
};

const SUBJECT_WIDTH: usize = 44;

pub async fn run(context: &Context, args: &HistoryArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    check_target(&config, &args.target)?;
    let since = args.since.as_deref().map(|text| since(text, "--since", &context.clock)).transpose()?;
    let status = args.status.as_deref().and_then(|text| text.parse::<Status>().ok());
    let filter = Filter { status, since, limit: Some(args.limit), ..filter(&args.target) };
    if args.rollbacks {
        let events = match Registry::open_existing(&config.server.registry()).await? {
            Some(registry) => registry.rollbacks(&filter).await?,
            None => Vec::new(),
        };
        rollbacks::print(context, args, &events)?;
        return Ok(exit::OK);
    }
    let views = match Registry::open_existing(&config.server.registry()).await? {
        Some(registry) => registry.deployments(&filter).await?,
        None => Vec::new(),
    };
    match args.format.format {
        Format::Json => context.print_json(&views)?,
        Format::Table if views.is_empty() => context.print("no deployments (`refit deploy` makes one)\n")?,
        Format::Table => context.print(&table(&views, context.paint, context.width, &context.clock))?,
    }
    Ok(exit::OK)
}

fn table(views: &[DeploymentView], paint: Paint, width: Option<u16>, clock: &Clock) -> String {
    let mut table = paint.table(&["ID", "QUEUED", "ENVIRONMENT", "STATUS", "COMMIT", "SUBJECT", "BY", "TOOK"], width);
    for view in views {
        let status = match (view.live, view.failed_stage) {
            (true, _) => "live".to_owned(),
            (false, Some(stage)) => format!("{} ({stage})", words(view.status.as_str())),
            (false, None) => words(view.status.as_str()),
        };
        table.add_row([
            cell(Tone::Plain, view.id.to_string()),
            cell(Tone::Plain, clock.ago(view.queued_at)),
            cell(Tone::Plain, format!("{}/{}", view.app, view.environment)),
            cell(status_tone(view.status), status),
            cell(Tone::Plain, view.commit.as_ref().map_or_else(|| clip(origin(view), 20), |c| c.short().to_owned())),
            cell(Tone::Plain, clip(view.subject.as_deref().unwrap_or_default(), SUBJECT_WIDTH)),
            cell(Tone::Plain, by(view)),
            cell(Tone::Plain, view.duration_ms.map(took).unwrap_or_default()),
        ]);
    }
    table_text(&table)
}

/// What stands for a commit that is not known: the branch.
fn origin(view: &DeploymentView) -> &str {
    view.reference.strip_prefix("refs/heads/").unwrap_or(&view.reference)
}

fn by(view: &DeploymentView) -> String {
    match &view.trigger.by {
        Some(by) => format!("{} ({})", clip(by, 20), view.trigger.kind),
        None => view.trigger.kind.to_string(),
    }
}

/// `90m`, `12h`, `7d`, `2w`; a date in the reader's time zone; or an RFC 3339 time.
pub fn since(text: &str, flag: &str, clock: &Clock) -> Result<Timestamp> {
    let wrong = || {
        CliError::usage(
            format!("`{}` is no time for {flag}", clip(text, 40)),
            format!("{flag} 90m, 12h, 7d, or a date such as 2026-11-01"),
        )
    };
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Ok(date) = text.parse::<Date>() {
        return date.to_zoned(clock.zone.clone()).map(|zoned| zoned.timestamp()).map_err(|_| wrong());
    }
    let (number, unit) = text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    let count: u32 = number.parse().map_err(|_| wrong())?;
    clock.now.checked_sub(SignedDuration::from_secs(i64::from(count) * seconds)).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::cli::sample;

    #[test]
    fn every_state_has_its_row() {
        let views: Vec<_> = sample::all().into_iter().map(|story| story.deployment).collect();
        insta::assert_snapshot!(table(&views, Paint::new(false), None, &sample::clock()));
    }

    #[test]
    fn since_takes_spans_and_dates() {
        let clock = Clock { now: "2026-11-21T12:00:00Z".parse().unwrap(), zone: TimeZone::UTC };
        let at = |text: &str| since(text, "--since", &clock).map(|t| t.to_string()).map_err(|e| e.exit_code());
        assert_eq!(at("90m"), Ok("2026-11-21T10:30:00Z".to_owned()));
        assert_eq!(at("7d"), Ok("2026-11-14T12:00:00Z".to_owned()));
        assert_eq!(at("2026-11-01"), Ok("2026-11-01T00:00:00Z".to_owned()));
        assert_eq!(at("2026-11-01T01:00:00+01:00"), Ok("2026-11-01T00:00:00Z".to_owned()));
        for bad in ["", "d", "7", "7y", "-1d", "é", "99999999999999d", "4294967295w"] {
            assert_eq!(at(bad), Err(64), "{bad:?}");
        }
    }
}
