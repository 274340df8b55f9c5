//! One instance of the app, and what it has in flight.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
};

use tokio::sync::Notify;

use super::{
    counters::Counters,
    wire::{self, InFlight},
};

#[derive(Debug)]
pub(super) struct Side {
    pub(super) id: String,
    pub(super) upstream: SocketAddr,
    /// Never given twice in a process: a connection to what listened on an address before is not used for what listens there now.
    pub(super) key: u64,
    pub(super) counters: Counters,
    requests: AtomicU64,
    websockets: AtomicU64,
    emptied: Notify,
    reachable: AtomicU8,
}

const UNTRIED: u8 = 0;
const REACHED: u8 = 1;
const UNREACHED: u8 = 2;

impl Side {
    pub(super) fn new(side: &wire::Side) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: side.id.clone(),
            upstream: side.upstream,
            key: NEXT.fetch_add(1, Relaxed),
            counters: Counters::default(),
            requests: AtomicU64::new(0),
            websockets: AtomicU64::new(0),
            emptied: Notify::new(),
            reachable: AtomicU8::new(UNTRIED),
        })
    }

    pub(super) fn is(&self, side: &wire::Side) -> bool {
        self.id == side.id && self.upstream == side.upstream
    }

    pub(super) fn named(&self) -> wire::Side {
        wire::Side { id: self.id.clone(), upstream: self.upstream }
    }

    pub(super) fn in_flight(&self) -> InFlight {
        InFlight { requests: self.requests.load(SeqCst), websockets: self.websockets.load(SeqCst) }
    }

    /// Ends when a request of this side has ended as the last one, which may be too late by the time it is heard.
    pub(super) async fn emptied(&self) {
        self.emptied.notified().await;
    }

    pub(super) fn saw(&self, reached: bool) {
        self.reachable.store(if reached { REACHED } else { UNREACHED }, Relaxed);
    }

    pub(super) fn reachable(&self) -> Option<bool> {
        match self.reachable.load(Relaxed) {
            UNTRIED => None,
            seen => Some(seen == REACHED),
        }
    }
}

/// A request's membership of a side, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    side: Arc<Side>,
    websocket: bool,
}

impl Ticket {
    pub(super) fn new(side: &Arc<Side>) -> Self {
        side.requests.fetch_add(1, SeqCst);
        Self { side: side.clone(), websocket: false }
    }

    pub(super) fn side(&self) -> &Arc<Side> {
        &self.side
    }

    /// From now on it counts as a WebSocket.
    pub(super) fn upgraded(&mut self) {
        if !self.websocket {
            self.websocket = true;
            self.side.websockets.fetch_add(1, SeqCst);
            self.side.requests.fetch_sub(1, SeqCst);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let counter = if self.websocket { &self.side.websockets } else { &self.side.requests };
        if counter.fetch_sub(1, SeqCst) == 1 {
            self.side.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_counts_once_and_as_what_it_became() {
        let side = Side::new(&wire::Side { id: "1".into(), upstream: "127.0.0.1:1".parse().unwrap() });
        let mut ticket = Ticket::new(&side);
        let other = Ticket::new(&side);
        ticket.upgraded();
        ticket.upgraded();
        assert_eq!(side.in_flight(), InFlight { requests: 1, websockets: 1 });
        drop(other);
        assert_eq!(side.in_flight(), InFlight { requests: 0, websockets: 1 });
        drop(ticket);
        assert!(side.in_flight().is_empty());
    }
}
