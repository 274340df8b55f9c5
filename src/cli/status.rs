//! `refit status`: what is live in each environment, and what happens now.

use super::{
    args::{Format, StatusArgs},
    context::{Context, check_target, is_wanted},
    error::{Result, exit},
    style::{Clock, Paint, Tone, cell, clip, status_tone, table_text, took, words},
};
use crate::{
    config::RuntimeKind,
    control::{EnvironmentStatus, GateView, Observer, ServiceStatus, SideView},
    data::Depth,
    model::Status,
    registry::{Registry, Release},
};

pub async fn run(context: &Context, args: &StatusArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    check_target(&config, &args.target)?;
    let registry = Registry::open_existing(&config.server.registry()).await?;
    let observer = Observer::new(config, registry, &context.options()?)?;
    let mut all = Box::pin(observer.status()).await?;
    all.retain(|status| is_wanted(&status.key, &args.target));
    match args.format.format {
        Format::Json => context.print_json(&all)?,
        Format::Table => {
            let mut strays = observer.strays().await?;
            strays.retain(|release| is_wanted(&release.key, &args.target));
            let page = page(&all, context.paint, context.width, &context.clock);
            context.print(&strays.iter().fold(page, |page, release| page + &stray(release)))?;
        }
    }
    Ok(exit::OK)
}

/// A release whose environment is configured no more.
fn stray(release: &Release) -> String {
    format!("\n{}: not in the configuration any more; {}\n", release.key, stray_fix(release))
}

pub fn stray_fix(release: &Release) -> String {
    let name = &release.instance.name;
    match release.runtime {
        RuntimeKind::Docker => format!("put it back, or remove what is left of it: `docker rm -f {name}`"),
        RuntimeKind::Process => format!("put it back, or end the processes of {name}"),
    }
}

fn page(all: &[EnvironmentStatus], paint: Paint, width: Option<u16>, clock: &Clock) -> String {
    let mut table =
        paint.table(&["ENVIRONMENT", "LIVE", "COMMIT", "SINCE", "SERVICE", "DATABASES", "BACKUP", "NOW"], width);
    for status in all {
        let (tone, service) = service(&status.service);
        let live = status.live.as_ref();
        table.add_row([
            cell(Tone::Plain, status.key.to_string()),
            cell(
                Tone::Plain,
                live.map_or_else(|| "-".to_owned(), |live| format!("{} ({})", version(&live.version), live.deployment)),
            ),
            cell(Tone::Plain, live.and_then(|live| live.subject.as_deref()).map(|s| clip(s, 36)).unwrap_or_default()),
            cell(Tone::Plain, live.map(|live| clock.ago(live.deployed_at)).unwrap_or_default()),
            cell(tone, service),
            cell(database_tone(status), databases(status)),
            backup(status, clock),
            cell(Tone::Busy, now(status)),
        ]);
    }
    let mut out = table_text(&table);
    for status in all {
        for note in notes(status, paint, clock) {
            out.push_str(&format!("\n{}: {note}\n", status.key));
        }
    }
    out
}

/// A release directory by its own name; images have a short one.
fn version(name: &str) -> &str {
    if name.starts_with('/') { name.rsplit('/').next().unwrap_or(name) } else { name }
}

fn service(service: &ServiceStatus) -> (Tone, String) {
    let tone = match service.state.as_str() {
        "running" if service.restarts == 0 => Tone::Good,
        "running" | "created" | "unknown" => Tone::Warn,
        "none" => Tone::Plain,
        _ => Tone::Bad,
    };
    let text = match (service.state.as_str(), service.restarts) {
        ("none", _) => "not deployed".to_owned(),
        (state, 0) => state.to_owned(),
        (state, 1) => format!("{state}, 1 restart"),
        (state, n) => format!("{state}, {n} restarts"),
    };
    (tone, text)
}

fn database_tone(status: &EnvironmentStatus) -> Tone {
    let state = |wanted: &[&str]| status.databases.iter().any(|db| wanted.contains(&db.state.as_str()));
    if state(&["stopped", "missing"]) {
        Tone::Bad
    } else if state(&["unknown"]) {
        Tone::Warn
    } else {
        Tone::Plain
    }
}

fn databases(status: &EnvironmentStatus) -> String {
    let mut parts: Vec<String> = status.databases.iter().map(|db| format!("{} {}", db.name, db.state)).collect();
    if let Some(version) = &status.migrations {
        parts.push(format!("schema {}", clip(version, 30)));
    }
    parts.join(", ")
}

/// The newest, and how well it is known to be good.
fn backup(status: &EnvironmentStatus, clock: &Clock) -> comfy_table::Cell {
    let Some(backups) = &status.backups else { return cell(Tone::Plain, "-") };
    let Some(newest) = &backups.newest else { return cell(Tone::Warn, "none") };
    let age = clock.ago(newest.at);
    match &backups.verified {
        Some(verified) if !verified.look.ok => cell(Tone::Bad, format!("{age}, NOT good")),
        _ if !newest.missing.is_empty() => {
            cell(Tone::Warn, format!("{age}, lacks {}", clip(&newest.missing.join(", "), 30)))
        }
        _ => cell(Tone::Plain, age),
    }
}

fn now(status: &EnvironmentStatus) -> String {
    let running = status.running.map(|id| format!("{id} running"));
    let awaiting = status.awaiting_approval.as_ref().map(|waits| format!("{} waits for approval", waits.id));
    let queued = status.queued.map(|id| format!("{id} queued"));
    running.into_iter().chain(awaiting).chain(queued).collect::<Vec<_>>().join(", ")
}

/// What needs a sentence: a last deployment that did not go live, a service that is not well.
fn notes(status: &EnvironmentStatus, paint: Paint, clock: &Clock) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(id) = status.stuck {
        let what = paint.tone(Tone::Bad, &format!("CRITICAL: deployment {id} is stuck, a person is needed"));
        notes.push(format!(
            "{what}; nothing is deployed by itself until `refit resolve {id} --reason \"…\"` (`refit report {id}` says what to do)"
        ));
    }
    notes.extend(status.gate.as_ref().map(|gate| served(gate, paint)));
    notes.extend(status.warm.as_ref().map(|warm| {
        let until = clock.local(warm.until);
        format!("deployment {} is kept warm until {until} (`refit rollback` to it starts nothing)", warm.deployment)
    }));
    if let Some(waits) = &status.awaiting_approval {
        let (id, until) = (waits.id, clock.local(waits.expires_at));
        let what = paint.tone(Tone::Warn, &format!("deployment {id} waits for approval until {until}"));
        notes.push(format!("{what}: `refit approve {id}`, or `refit reject {id} --reason \"…\"`"));
    }
    if let Some(verified) = status.backups.as_ref().and_then(|backups| backups.verified.as_ref()) {
        let (set, when) = (&verified.set, clock.ago(verified.look.at));
        if !verified.look.ok {
            let what = paint.tone(Tone::Bad, &format!("backup {set} is NOT good"));
            let why = verified.look.problems.first().map(|why| format!(": {}", clip(why, 160))).unwrap_or_default();
            notes.push(format!("{what}, as found {when}{why} (`refit backup create` takes another)"));
        } else if verified.look.depth == Depth::Restore {
            notes.push(format!("backup {set} was restored to try it {when}, and is good"));
        }
    }
    if !status.schema_ahead.is_empty() {
        let what = paint.tone(Tone::Warn, "the schema is newer than what is live");
        let ahead = clip(&status.schema_ahead.join(", "), 120);
        notes.push(format!("{what}, which does not know {ahead} (docs/migrations.md says what to do)"));
    }
    match (status.service.state.as_str(), &status.service.detail, &status.live) {
        // The detail is its address, or what the table says already.
        ("running" | "none", _, _) | (_, None, _) => {}
        ("missing" | "exited", Some(detail), Some(live)) if status.running.is_none() => {
            notes.push(format!("{} (`refit rerun {}` brings it back)", clip(detail, 160), live.deployment));
        }
        (_, Some(detail), _) => notes.push(clip(detail, 160)),
    }
    if let Some(last) = &status.last
        && matches!(last.status, Status::Failed | Status::RolledBack | Status::Stuck | Status::Cancelled)
    {
        let when = last.finished_at.map(|at| format!(" {}", clock.ago(at))).unwrap_or_default();
        let why = last.error.as_deref().map(|e| format!(": {}", clip(e, 120))).unwrap_or_default();
        let state = paint.tone(status_tone(last.status), &words(last.status.as_str()));
        notes.push(format!("the last deployment ({}) ended {state}{when}{why} (`refit report {0}`)", last.id));
    }
    notes
}

/// How the gate serves it, in a sentence.
fn served(gate: &GateView, paint: Paint) -> String {
    let (tone, state) = match gate.state.as_str() {
        "serving" => (Tone::Good, "serving".to_owned()),
        "held" => (Tone::Warn, "requests are held".to_owned()),
        "maintenance" => {
            let page = gate.detail.as_ref().map(|text| format!(", the page says {:?}", clip(text, 100)));
            (Tone::Warn, format!("in maintenance{}", page.unwrap_or_default()))
        }
        "empty" => (Tone::Bad, "nothing to send requests to (`refit doctor`)".to_owned()),
        "missing" => (Tone::Bad, "unknown to the gate (`refit doctor`)".to_owned()),
        state => {
            let why = gate.detail.as_ref().map(|why| format!(": {}", clip(why, 160))).unwrap_or_default();
            (Tone::Bad, format!("{state}{why} (`refit doctor`)"))
        }
    };
    let figures = gate.live.as_ref().map(|live| figures(live, gate.held)).unwrap_or_default();
    format!("gate: {}{figures}", paint.tone(tone, &state))
}

fn figures(live: &SideView, held: u64) -> String {
    let time = |us: u64| took(i64::try_from(us.div_ceil(1000)).unwrap_or(i64::MAX));
    let sockets = if live.websockets == 0 { String::new() } else { format!(" and {} WebSockets", live.websockets) };
    let away = if live.reachable == Some(false) { ", which does not answer" } else { "" };
    format!(
        "; deployment {}{away}: {} requests, {} errors, latency p50 {} p99 {}, {} in flight{sockets}, {held} held",
        live.deployment,
        live.requests,
        live.errors,
        time(live.p50_us),
        time(live.p99_us),
        live.in_flight,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::sample,
        control::{
            AwaitingApproval, BackupStatus, DatabaseStatus, LastDeployment, LiveStatus, NewestBackup, VerifiedBackup,
            WarmStatus,
        },
        data::LastLook,
        model::{DeploymentId, EnvironmentKey},
    };

    fn environment(name: &str) -> EnvironmentStatus {
        EnvironmentStatus {
            key: EnvironmentKey { app: "guestbook".parse().unwrap(), environment: name.parse().unwrap() },
            branch: "main".to_owned(),
            port: Some(8000),
            runtime: "docker".to_owned(),
            live: None,
            service: ServiceStatus { state: "none".to_owned(), detail: None, restarts: 0 },
            gate: None,
            warm: None,
            databases: Vec::new(),
            backups: None,
            migrations: None,
            schema_ahead: Vec::new(),
            running: None,
            queued: None,
            awaiting_approval: None,
            stuck: None,
            last: None,
        }
    }

    #[test]
    fn one_line_an_environment_and_a_sentence_for_trouble() {
        let mut production = environment("production");
        production.live = Some(LiveStatus {
            deployment: DeploymentId(7),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            subject: Some("Greet \u{1b}[31mred".to_owned()),
            version: "guestbook:0123456789".to_owned(),
            image: "sha256:4bf5122f".to_owned(),
            deployed_at: sample::at(7_300),
        });
        production.service = ServiceStatus { state: "running".to_owned(), detail: None, restarts: 2 };
        production.databases = vec![DatabaseStatus { name: "guestbook".to_owned(), state: "running".to_owned() }];
        let newest = NewestBackup {
            set: "2026-11-21_10-15-30".to_owned(),
            at: sample::at(7_200),
            bytes: 1_000,
            missing: Vec::new(),
        };
        let look =
            LastLook { at: sample::at(3_600), depth: Depth::Restore, ok: true, bad: Vec::new(), problems: Vec::new() };
        let verified = Some(VerifiedBackup { set: newest.set.clone(), look });
        production.backups = Some(BackupStatus { newest: Some(newest.clone()), verified });
        production.migrations = Some("0004".to_owned());
        production.schema_ahead = vec!["0004".to_owned()];
        (production.running, production.queued) = (Some(DeploymentId(9)), Some(DeploymentId(10)));
        production.last = Some(LastDeployment {
            id: DeploymentId(8),
            status: Status::RolledBack,
            error: Some("GET /health: expected 200, got 500".to_owned()),
            finished_at: Some(sample::at(600)),
        });
        let live = SideView {
            deployment: "7".to_owned(),
            since: "2026-11-18T09:00:00Z".to_owned(),
            reachable: Some(true),
            requests: 1_234,
            errors: 3,
            p50_us: 11_200,
            p99_us: 80_000,
            in_flight: 2,
            websockets: 1,
        };
        production.gate =
            Some(GateView { state: "serving".to_owned(), detail: None, held: 0, live: Some(live.clone()) });
        production.warm = Some(WarmStatus { deployment: DeploymentId(6), until: sample::at(-600) });
        let mut dev = environment("dev");
        let away = Some("no gate answers: Connection refused (os error 111)".to_owned());
        dev.gate = Some(GateView { state: "unreachable".to_owned(), detail: away, held: 0, live: None });
        dev.service.detail = Some("Docker cannot be reached".to_owned());
        let mut people = environment("people");
        let look = LastLook {
            at: sample::at(60),
            depth: Depth::Checksums,
            ok: false,
            bad: vec!["db".to_owned()],
            problems: vec!["`db`: SHA-256: `db.sql.gz` is missing".to_owned()],
        };
        let verified = Some(VerifiedBackup { set: newest.set.clone(), look });
        people.backups = Some(BackupStatus { newest: Some(newest), verified });
        let sentence = Some("back at 14:00".to_owned());
        let live = Some(SideView { reachable: Some(false), websockets: 0, ..live });
        people.gate = Some(GateView { state: "maintenance".to_owned(), detail: sentence, held: 0, live });
        dev.backups = Some(BackupStatus { newest: None, verified: None });
        people.stuck = Some(DeploymentId(17));
        people.awaiting_approval = Some(AwaitingApproval { id: DeploymentId(21), expires_at: sample::at(-3_600) });
        insta::assert_snapshot!(page(&[production, dev, people], Paint::new(false), None, &sample::clock()));
    }
}
