//! The gate, where a live version is behind it: that it answers, that it runs this program, and that what it sends requests to is there.

use std::{path::Path, time::Duration};

use tokio::{net::TcpStream, time::timeout};

use super::Finding;
use crate::{
    config::Config,
    control::EnvironmentStatus,
    gate::{
        Build,
        keeper::Keeper,
        wire::{GateStatus, RouteState},
    },
};

/// For the gate's answer, and for a connection to an app.
const PATIENCE: Duration = Duration::from_secs(5);

const RESTART: &str = "restart the daemon: it starts the gate, and makes the routes, where they are missing";

pub async fn check(config: &Config, program: &Path, all: &[EnvironmentStatus]) -> Vec<Finding> {
    let behind: Vec<String> = all.iter().filter(|s| s.gate.is_some()).map(|s| s.key.to_string()).collect();
    if behind.is_empty() {
        return vec![Finding::ok("gate", "not needed: nothing live is behind it")];
    }
    let keeper = Keeper::new(&config.server.state_dir, None);
    let status = match timeout(PATIENCE, keeper.client().status(None)).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) if error.is_absent() => {
            let detail = format!("{error}; nobody answers the visitors of {}", behind.join(", "));
            return vec![Finding::fail("gate", detail, RESTART)];
        }
        Ok(Err(error)) => return vec![Finding::fail("gate", error.to_string(), error.hint())],
        Err(_) => return vec![Finding::fail("gate", format!("does not answer within {PATIENCE:?}"), RESTART)],
    };
    let mut findings = vec![version(&status, Build::of(program).as_ref(), &keeper)];
    for name in &behind {
        findings.push(route(&status, name).await);
    }
    findings
}

fn version(status: &GateStatus, own: Option<&Build>, keeper: &Keeper) -> Finding {
    let what = format!("{}, process {}, since {}", status.program, status.pid, status.started_at);
    if own.is_none() || status.build.as_ref() == own {
        return Finding::ok("gate", what);
    }
    let fix = if status.by_daemon {
        let log = keeper.log_path();
        format!(
            "restart the daemon: it replaces the gate and drops nothing; if it could not, {} says why",
            log.display()
        )
    } else {
        "the daemon did not start it: `refit gate --take-over`, started as the gate was, replaces it and drops nothing"
            .to_owned()
    };
    let detail = format!("{what}; it runs another build of refit than this one, {}", env!("CARGO_PKG_VERSION"));
    Finding::warn("gate", detail, fix)
}

async fn route(status: &GateStatus, name: &str) -> Finding {
    let check = format!("gate {name}");
    let Some(route) = status.route(name) else {
        return Finding::fail(check, "the gate has no route for it: nobody answers its visitors", RESTART);
    };
    let Some(live) = &route.live else {
        return Finding::fail(check, "the gate has nothing to send its requests to", RESTART);
    };
    if let Err(why) = timeout(PATIENCE, TcpStream::connect(live.upstream)).await.map_or_else(
        |_| Err(format!("no connection within {PATIENCE:?}")),
        |tried| tried.map(drop).map_err(|error| error.to_string()),
    ) {
        let detail = format!("deployment {} does not answer on {}: {why}", live.id, live.upstream);
        return Finding::fail(check, detail, format!("`refit rerun {}` brings it back", live.id));
    }
    match route.state {
        RouteState::Maintenance => Finding::warn(
            check,
            "is in maintenance: visitors get a page that says so",
            "`refit maintenance off` ends it",
        ),
        RouteState::Held => Finding::warn(check, "requests are held", format!("`refit gate resume {name}`")),
        _ => Finding::ok(check, format!("{} goes to deployment {} on {}", route.listen, live.id, live.upstream)),
    }
}
