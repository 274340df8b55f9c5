//! Gates that handed their sockets to this one and still serve the connections they had.
//!
//! Each follows this gate's changes, so that a request on an old connection goes where it would go here, and reports what it has in flight, so that a drain here
//! counts it. A change is answered once they all have it, or after [`PATIENCE`]: one that hangs must not hold up a deployment.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time};

use super::{state::State, wire::InFlight};

const PATIENCE: Duration = Duration::from_secs(1);

/// What a side has in flight in another gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Load {
    pub(super) route: String,
    pub(super) side: String,
    #[serde(flatten)]
    pub(super) in_flight: InFlight,
}

/// A line to a gate that is leaving.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// The successor accepts connections: stop doing so.
    Ready,
    /// Be like this.
    Change { number: u64, state: Arc<State> },
}

/// A line from a gate that is leaving.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Report {
    /// The newest change that it follows.
    pub(super) number: u64,
    pub(super) loads: Vec<Load>,
    pub(super) connections: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Change {
    pub(super) number: u64,
    pub(super) state: Arc<State>,
}

#[derive(Debug)]
pub(super) struct Predecessors {
    all: Mutex<BTreeMap<u32, watch::Receiver<Report>>>,
    number: AtomicU64,
    changes: watch::Sender<Change>,
}

impl Default for Predecessors {
    fn default() -> Self {
        Self { all: Mutex::default(), number: AtomicU64::new(0), changes: watch::Sender::new(Change::default()) }
    }
}

impl Predecessors {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u32, watch::Receiver<Report>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.all().keys().copied().collect()
    }

    /// Enters one; returns where its reports go, and the changes to send it.
    pub(super) fn enter(&self, pid: u32, first: Report) -> (watch::Sender<Report>, watch::Receiver<Change>) {
        let (reports, seen) = watch::channel(first);
        self.all().insert(pid, seen);
        (reports, self.changes.subscribe())
    }

    pub(super) fn forget(&self, pid: u32) {
        self.all().remove(&pid);
    }

    pub(super) fn load(&self, route: &str, side: &str) -> InFlight {
        let mut sum = InFlight::default();
        for report in self.all().values() {
            for load in report.borrow().loads.iter().filter(|load| load.route == route && load.side == side) {
                sum.requests += load.in_flight.requests;
                sum.websockets += load.in_flight.websockets;
            }
        }
        sum
    }

    /// Tells all of them, and waits until they have it.
    pub(super) async fn tell(&self, state: State) {
        let number = self.number.fetch_add(1, SeqCst) + 1;
        self.changes.send_replace(Change { number, state: Arc::new(state) });
        let waiting: Vec<_> = self.all().values().cloned().collect();
        let heard = async {
            for mut report in waiting {
                // An error: it has ended, and serves nothing any more.
                let _ = report.wait_for(|report| report.number >= number).await;
            }
        };
        if time::timeout(PATIENCE, heard).await.is_err() {
            tracing::warn!("a gate that is leaving does not follow; its old connections may see what was live before");
        }
    }
}
