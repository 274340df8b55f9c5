//! How an environment behind the gate is served, for `refit status` and `GET /_deploy/status`.
//!
//! The gate is asked once for each environment whose live version it serves, and may be away: that is then what is told. Its figures are those of
//! the live side, since that became live in the gate that runs now.

use std::{path::Path, time::Duration};

use super::{GateView, SideView};
use crate::{
    config::Environment,
    gate::{
        client::ClientError,
        keeper::Keeper,
        wire::{RouteState, RouteStatus, SideStatus},
    },
    pipeline::kept,
    registry::Release,
};

/// None where the live version has its port itself, or nothing is live.
pub(super) async fn look(
    state_dir: &Path,
    environment: &Environment,
    live: &Release,
    patience: Duration,
) -> Option<GateView> {
    if !kept::is_behind_gate(state_dir, environment, live.deployment) {
        return None;
    }
    let keeper = Keeper::new(state_dir, None);
    let name = environment.key.to_string();
    Some(match tokio::time::timeout(patience, keeper.client().status(Some(&name))).await {
        Ok(Ok(status)) => status.route(&name).map_or_else(|| GateView::without("missing", None), view),
        Ok(Err(ClientError::Absent { source, .. })) => {
            GateView::without("unreachable", Some(format!("no gate answers: {source}")))
        }
        Ok(Err(error)) => GateView::without("unreachable", Some(error.to_string())),
        Err(_) => GateView::without("unreachable", Some("the gate does not answer".to_owned())),
    })
}

impl GateView {
    fn without(state: &str, detail: Option<String>) -> Self {
        Self { state: state.to_owned(), detail, held: 0, live: None }
    }
}

fn view(route: &RouteStatus) -> GateView {
    let state = match route.state {
        RouteState::Serving => "serving",
        RouteState::Held => "held",
        RouteState::Maintenance => "maintenance",
        RouteState::Empty => "empty",
    };
    GateView {
        state: state.to_owned(),
        detail: route.maintenance.clone(),
        held: route.held.now,
        live: route.live.as_ref().map(side),
    }
}

fn side(side: &SideStatus) -> SideView {
    let counters = &side.counters;
    SideView {
        deployment: side.id.clone(),
        since: side.since.clone(),
        reachable: side.reachable,
        requests: counters.requests,
        errors: counters.errors + counters.failed,
        p50_us: counters.latency.p50_us,
        p99_us: counters.latency.p99_us,
        in_flight: side.in_flight.requests,
        websockets: side.in_flight.websockets,
    }
}
