//! `refit gate`: the proxy itself, and small commands for people who ask it something.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub mod args;

use args::{GateArgs, GateCommand, OnOff, PlaceArgs, RunArgs};

use super::{
    args::Format,
    context::Context,
    error::{CliError, Result, exit},
    style::{Paint, Tone, cell, clip, table_text, took},
};
use crate::gate::{
    self, Build, Client, ClientError, GateError, Settings, build,
    wire::{
        Done, DrainBounds, GateStatus, HoldBounds, InFlight, Limits, MaintenanceRequest, RouteSpec, RouteState,
        RouteStatus, Side, SideStatus, SwitchRequest,
    },
};

/// Something is still in flight; as for a busy environment.
const BUSY: u8 = 75;

pub async fn run(context: &Context, args: GateArgs) -> Result<u8> {
    let GateArgs { place, run, command } = args;
    match command {
        None => serve(context, &place, run).await,
        Some(command) => {
            let client = Client::new(socket(context, &place)?);
            ask(context, &client, command).await
        }
    }
}

fn state_dir(context: &Context, place: &PlaceArgs) -> Result<PathBuf> {
    match &place.state_dir {
        Some(dir) => Ok(dir.clone()),
        None => Ok(context.config_to_read()?.server.state_dir.join("gate")),
    }
}

fn socket(context: &Context, place: &PlaceArgs) -> Result<PathBuf> {
    match &place.socket {
        Some(socket) => Ok(socket.clone()),
        None => Ok(state_dir(context, place)?.join("gate.sock")),
    }
}

async fn serve(context: &Context, place: &PlaceArgs, args: RunArgs) -> Result<u8> {
    let mut settings = Settings::new(state_dir(context, place)?, socket(context, place)?);
    settings.take_over = args.take_over;
    settings.build = Build::of(Path::new(build::OWN));
    settings.by_daemon = args.by_daemon;
    settings.trusted.extend(args.trust);
    settings.max_connections = args.max_connections;
    settings.linger = args.linger;
    settings.grace = args.grace;
    let stop = CancellationToken::new();
    let signals = |kind| signal(kind).map_err(|e| CliError::io("receiving signals", e));
    let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    let socket = settings.socket.clone();
    let ready = move || {
        tracing::info!("the gate serves; control socket {}", socket.display());
        // Only systemd listens, and only where it started us.
        let pid = std::process::id();
        let _ = sd_notify::notify(&[NotifyState::MainPid(pid), NotifyState::Ready]);
    };
    Box::pin(gate::run(settings, stop, ready)).await.map_err(|error| {
        let code = if matches!(error, GateError::Taken { .. }) { BUSY } else { exit::UNAVAILABLE };
        CliError::Failed { message: error.to_string(), hint: Some(error.hint().to_owned()), code }
    })?;
    Ok(exit::OK)
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let code = if matches!(error, ClientError::Refused(_)) { exit::USAGE } else { exit::UNAVAILABLE };
        Self::Failed { message: error.to_string(), hint: Some(error.hint().to_owned()), code }
    }
}

async fn ask(context: &Context, client: &Client, command: GateCommand) -> Result<u8> {
    match command {
        GateCommand::Status { name, format } => {
            let status = client.status(name.as_deref()).await?;
            if let Some(name) = name.filter(|name| status.route(name).is_none()) {
                return Err(CliError::usage(
                    format!("the gate has no route {name:?}"),
                    "`refit gate status` lists them",
                ));
            }
            match format.format {
                Format::Json => context.print_json(&status)?,
                Format::Table => context.print(&page(&status, context.paint, context.width))?,
            }
        }
        GateCommand::Route { .. } => make_route(context, client, command).await?,
        GateCommand::Switch { name, to, expect } => {
            let request = SwitchRequest { name: name.clone(), side: to, expect, drain: DrainBounds::default() };
            let switched = client.switch(request).await?;
            let left = left(switched.in_flight);
            let text = switched.previous.map_or_else(
                || format!("{name}: {} is live\n", side(&switched.live)),
                |previous| {
                    format!("{name}: {} is live; {} has {left} in flight\n", side(&switched.live), side(&previous))
                },
            );
            context.print(&text)?;
            warn_unkept(context, switched.kept);
        }
        GateCommand::Pause { name, max_requests, max_bytes, max_wait, at_most } => {
            let (max_wait_ms, at_most_ms) = (ms(max_wait), ms(at_most));
            let bounds = HoldBounds { max_requests, max_bytes, max_wait_ms, at_most_ms };
            say_done(context, &name, "new requests wait", client.pause(&name, bounds).await?)?;
        }
        GateCommand::Resume { name } => {
            let resumed = client.resume(&name).await?;
            context.print(&format!("{name}: {} requests went on\n", resumed.released))?;
            warn_unkept(context, resumed.kept);
        }
        GateCommand::Drain { name, side, within, websockets } => {
            return drain(context, client, &name, &side, within, websockets).await;
        }
        GateCommand::Maintenance { name, state, message, retry_after } => {
            let on = state == OnOff::On;
            let retry_after = u32::try_from(retry_after.as_secs()).unwrap_or(u32::MAX);
            let request = MaintenanceRequest { name: name.clone(), on, message, retry_after };
            let words = if on { "in maintenance" } else { "out of maintenance" };
            say_done(context, &name, words, client.maintenance(request).await?)?;
        }
        GateCommand::Remove { name } => say_done(context, &name, "removed", client.remove(&name).await?)?,
    }
    Ok(exit::OK)
}

async fn make_route(context: &Context, client: &Client, command: GateCommand) -> Result<()> {
    let GateCommand::Route {
        name,
        listen,
        host,
        prefix,
        speaks,
        to,
        max_body,
        connect_within,
        app_silence,
        client_silence,
    } = command
    else {
        return Ok(());
    };
    let limits = Limits {
        connect_ms: ms(connect_within),
        app_silence_ms: ms(app_silence),
        client_silence_ms: ms(client_silence),
        max_body,
    };
    let spec = RouteSpec { name: name.clone(), listen, host, prefix, protocol: speaks.into(), side: to, limits };
    let routed = client.route(spec).await?;
    let verb = if routed.made { "made" } else { "changed" };
    let live =
        routed.live.as_ref().map_or_else(|| "nothing is live yet".to_owned(), |live| format!("{} is live", side(live)));
    context.print(&format!("{name}: {verb}; {live}\n"))?;
    warn_unkept(context, routed.kept);
    Ok(())
}

async fn drain(
    context: &Context,
    client: &Client,
    name: &str,
    side: &str,
    within: Option<Duration>,
    websockets: Option<Duration>,
) -> Result<u8> {
    let usual = DrainBounds::default();
    let bounds = (within.is_some() || websockets.is_some()).then(|| DrainBounds {
        requests_ms: within.map_or(usual.requests_ms, ms),
        websockets_ms: websockets.map_or(usual.websockets_ms, ms),
    });
    let drained = client.drain(name, side, bounds).await?;
    let waited = took(i64::try_from(drained.waited_ms).unwrap_or(i64::MAX));
    if drained.is_empty() {
        context.print(&format!("{name}: side {side} has nothing in flight (waited {waited})\n"))?;
        return Ok(exit::OK);
    }
    Err(CliError::Failed {
        message: format!("{name}: side {side} still has {} in flight after {waited}", left(drained.left)),
        hint: Some("wait longer with --within and --websockets; ending the app breaks what is left".to_owned()),
        code: BUSY,
    })
}

fn say_done(context: &Context, name: &str, words: &str, done: Done) -> Result<()> {
    context.print(&format!("{name}: {words}\n"))?;
    warn_unkept(context, done.kept);
    Ok(())
}

pub fn warn_unkept(context: &Context, kept: bool) {
    if !kept {
        context
            .say("the gate could not write this to disk yet and tries again; if it ends before, it will not know it");
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn side(side: &Side) -> String {
    format!("side {} ({})", side.id, side.upstream)
}

fn left(in_flight: InFlight) -> String {
    match (in_flight.requests, in_flight.websockets) {
        (requests, 0) => format!("{requests} requests"),
        (requests, websockets) => format!("{requests} requests and {websockets} WebSockets"),
    }
}

fn page(status: &GateStatus, paint: Paint, width: Option<u16>) -> String {
    let header = ["ROUTE", "PUBLIC", "STATE", "SIDE", "IN FLIGHT", "REQUESTS", "ERRORS", "P50", "P99"];
    let mut table = paint.table(&header, width);
    for route in &status.routes {
        let mut first = true;
        let busy = route.retired.iter().filter(|side| !side.in_flight.is_empty());
        for side in route.live.iter().map(Some).chain(busy.map(Some)).chain(route.live.is_none().then_some(None)) {
            table.add_row(row(route, side, first));
            first = false;
        }
    }
    let mut out = table_text(&table);
    for route in &status.routes {
        out.push_str(&notes(route));
    }
    out.push_str(&format!(
        "\n{} of {} connections, process {}, since {}\n",
        status.connections, status.max_connections, status.pid, status.started_at
    ));
    if !status.predecessors.is_empty() {
        let pids: Vec<String> = status.predecessors.iter().map(u32::to_string).collect();
        out.push_str(&format!("still finishing before it: process {}\n", pids.join(", ")));
    }
    if !status.kept {
        out.push_str(&format!("{}: its state could not be written to disk\n", paint.bad("warning")));
    }
    out
}

fn row(route: &RouteStatus, side: Option<&SideStatus>, first: bool) -> Vec<comfy_table::Cell> {
    let host = route.host.as_deref().unwrap_or("");
    let prefix = if route.prefix == "/" { "" } else { &route.prefix };
    let public = format!("{} {host}{prefix}", route.listen);
    let (tone, state) = match route.state {
        RouteState::Serving => (Tone::Good, "serving"),
        RouteState::Held => (Tone::Warn, "held"),
        RouteState::Maintenance => (Tone::Warn, "maintenance"),
        RouteState::Empty => (Tone::Bad, "empty"),
    };
    let once = |text: String| if first { text } else { String::new() };
    let mut row = vec![
        cell(Tone::Plain, once(clip(&route.name, 60))),
        cell(Tone::Plain, once(public.trim_end().to_owned())),
        cell(if first { tone } else { Tone::Plain }, if first { state } else { "draining" }),
    ];
    let Some(side) = side else {
        row.push(cell(Tone::Plain, "-"));
        return row;
    };
    let reach = if side.reachable == Some(false) { ", does not answer" } else { "" };
    let counters = &side.counters;
    let time = |us: u64| took(i64::try_from(us.div_ceil(1000)).unwrap_or(i64::MAX));
    let errors = counters.errors + counters.failed;
    let tone = if errors > 0 { Tone::Bad } else { Tone::Plain };
    row.extend([
        cell(if reach.is_empty() { Tone::Plain } else { Tone::Bad }, format!("{} ({}{reach})", side.id, side.upstream)),
        cell(Tone::Plain, format!("{} + {} ws", side.in_flight.requests, side.in_flight.websockets)),
        cell(Tone::Plain, counters.requests.to_string()),
        cell(tone, errors.to_string()),
        cell(Tone::Plain, time(counters.latency.p50_us)),
        cell(Tone::Plain, time(counters.latency.p99_us)),
    ]);
    row
}

fn notes(route: &RouteStatus) -> String {
    let mut out = String::new();
    let held = &route.held;
    if held.now > 0 || held.refused > 0 {
        out.push_str(&format!("{}: {} requests wait, {} were refused\n", route.name, held.now, held.refused));
    }
    if let Some(message) = &route.maintenance {
        out.push_str(&format!("{}: the maintenance page says {:?}\n", route.name, clip(message, 100)));
    }
    out
}
