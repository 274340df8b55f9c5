//! Where a route's requests go: the pointer to the live side, and what stands in its way (a pause, maintenance).
//!
//! Every request asks once, under a read lock, and is counted there. So when a change has had the write lock, each request either belongs to the old side and is in
//! its count, or goes the new way: nothing is lost between the two. A request that has to wait gets its place under the same lock, which is why
//! none can miss the end of a pause.

use std::{
    collections::VecDeque,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    hold::{Hold, Place},
    side::{Side, Ticket},
    wire::{self, DrainBounds, HoldBounds, InFlight, RouteState, SideStatus},
};

/// Sides that are remembered after they were live; one that is still at work in any case.
const REMEMBERED: usize = 8;

/// However many are at work: more switches than anybody makes within a drain.
const MOST_REMEMBERED: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Traffic {
    now: RwLock<Now>,
    pub(super) hold: Arc<Hold>,
    pub(super) turned_away: AtomicU64,
}

#[derive(Debug, Default)]
struct Now {
    live: Option<Live>,
    /// The newest first.
    retired: VecDeque<Retired>,
    paused: Option<Paused>,
    maintenance: Option<Arc<Page>>,
}

#[derive(Debug, Clone)]
struct Live {
    side: Arc<Side>,
    since: Timestamp,
}

#[derive(Debug)]
struct Retired {
    live: Live,
    at: Instant,
    bounds: DrainBounds,
}

/// A pause, as it is kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Paused {
    pub(super) bounds: HoldBounds,
    /// When the gate resumes by itself.
    pub(super) until: Timestamp,
}

/// The maintenance page, as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Page {
    pub(super) message: Option<String>,
    pub(super) retry_after: u32,
}

/// What is kept on disk, and told to a gate that is leaving.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) live: Option<wire::Side>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<Timestamp>,
    /// Those that were live before, the newest first, so that they are still known by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) retired: Vec<wire::Side>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) paused: Option<Paused>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) maintenance: Option<Page>,
}

impl Kept {
    /// As [`Traffic::switch`] will leave it.
    pub(super) fn switch(&mut self, side: &wire::Side, since: Timestamp) {
        if self.live.as_ref() == Some(side) {
            return;
        }
        self.retired.retain(|retired| retired != side);
        if let Some(before) = self.live.replace(side.clone()) {
            self.retired.insert(0, before);
            self.retired.truncate(REMEMBERED);
        }
        self.since = Some(since);
    }
}

/// What a new request finds.
#[derive(Debug)]
pub(super) enum Entry {
    Go(Ticket),
    Wait(Place),
    Maintenance(Arc<Page>),
    Empty,
}

/// What a change left behind.
#[derive(Debug)]
pub(super) struct Replaced {
    pub(super) side: Option<Arc<Side>>,
    pub(super) in_flight: InFlight,
}

impl Traffic {
    fn read(&self) -> RwLockReadGuard<'_, Now> {
        self.now.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Now> {
        self.now.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a new request that keeps `bytes` in memory while it waits; they are only counted then.
    pub(super) fn enter(&self, bytes: impl FnOnce() -> u64) -> Entry {
        let now = self.read();
        if let Some(page) = &now.maintenance {
            return Entry::Maintenance(page.clone());
        }
        if let Some(paused) = &now.paused {
            return Entry::Wait(self.hold.wait(bytes(), &paused.bounds));
        }
        match &now.live {
            Some(live) => Entry::Go(Ticket::new(&live.side)),
            None => Entry::Empty,
        }
    }

    /// Makes `side` the live one. A side that was live before is the same one again, with its counters.
    pub(super) fn switch(&self, side: &wire::Side, since: Timestamp, bounds: DrainBounds) -> Replaced {
        let mut now = self.write();
        if now.live.as_ref().is_some_and(|live| live.side.is(side)) {
            return Replaced { side: None, in_flight: InFlight::default() };
        }
        let known = now.retired.iter().position(|retired| retired.live.side.is(side));
        let known = known.and_then(|i| now.retired.remove(i)).map(|retired| retired.live.side);
        let live = Live { side: known.unwrap_or_else(|| Side::new(side)), since };
        let before = now.live.replace(live);
        let in_flight = before.as_ref().map(|live| live.side.in_flight()).unwrap_or_default();
        let side = before.as_ref().map(|live| live.side.clone());
        now.retired.extend_front_one(before, bounds);
        Replaced { side, in_flight }
    }

    pub(super) fn live(&self) -> Option<Arc<Side>> {
        self.read().live.as_ref().map(|live| live.side.clone())
    }

    /// Every side that has this id: an instance that moved to another address has two.
    pub(super) fn sides(&self, id: &str) -> Vec<Arc<Side>> {
        let now = self.read();
        let all = now.live.iter().chain(now.retired.iter().map(|retired| &retired.live));
        all.filter(|live| live.side.id == id).map(|live| live.side.clone()).collect()
    }

    /// When a side was replaced, and the bounds given then; none for the live one.
    pub(super) fn retirement(&self, id: &str) -> Option<(Instant, DrainBounds)> {
        let now = self.read();
        now.retired.iter().find(|retired| retired.live.side.id == id).map(|retired| (retired.at, retired.bounds))
    }

    pub(super) fn pause(&self, paused: Paused) {
        self.write().paused = Some(paused);
        self.hold.rebound(&paused.bounds);
    }

    /// Ends a pause, or only the given one. How many requests went on.
    pub(super) fn resume(&self, only: Option<Paused>) -> u64 {
        let mut now = self.write();
        if only.is_some() && now.paused != only {
            return 0;
        }
        now.paused = None;
        drop(now);
        self.hold.release()
    }

    /// None ends it.
    pub(super) fn maintain(&self, page: Option<Page>) {
        let on = page.is_some();
        self.write().maintenance = page.map(Arc::new);
        if on {
            // Those that wait are told as well; if a pause goes on, the next ones wait again once maintenance is over.
            self.hold.release();
        }
    }

    pub(super) fn turn_away(&self) {
        self.turned_away.fetch_add(1, Relaxed);
    }

    pub(super) fn kept(&self) -> Kept {
        let now = self.read();
        Kept {
            live: now.live.as_ref().map(|live| live.side.named()),
            since: now.live.as_ref().map(|live| live.since),
            retired: now.retired.iter().map(|retired| retired.live.side.named()).collect(),
            paused: now.paused,
            maintenance: now.maintenance.as_deref().cloned(),
        }
    }

    /// Becomes what was kept. A side that is unchanged stays the same one.
    pub(super) fn become_kept(&self, kept: &Kept) {
        self.recall(kept);
        if let Some(side) = &kept.live {
            let since = kept.since.unwrap_or_else(Timestamp::now);
            self.switch(side, since, DrainBounds::default());
        }
        self.maintain(kept.maintenance.clone());
        match kept.paused {
            Some(paused) => self.pause(paused),
            None => {
                self.resume(None);
            }
        }
    }

    /// Learns of sides that were live in another gate.
    fn recall(&self, kept: &Kept) {
        let mut now = self.write();
        for side in &kept.retired {
            let known = now.live.iter().chain(now.retired.iter().map(|retired| &retired.live));
            if now.retired.len() < REMEMBERED && !known.into_iter().any(|live| live.side.is(side)) {
                let live = Live { side: Side::new(side), since: kept.since.unwrap_or_else(Timestamp::now) };
                now.retired.push_back(Retired { live, at: Instant::now(), bounds: DrainBounds::default() });
            }
        }
    }

    pub(super) fn state(&self) -> (RouteState, Option<String>) {
        let now = self.read();
        match (&now.maintenance, now.paused, &now.live) {
            (Some(page), ..) => (RouteState::Maintenance, page.message.clone()),
            (None, Some(_), _) => (RouteState::Held, None),
            (None, None, Some(_)) => (RouteState::Serving, None),
            (None, None, None) => (RouteState::Empty, None),
        }
    }

    pub(super) fn paused(&self) -> Option<Paused> {
        self.read().paused
    }

    /// The live side and the retired ones; `elsewhere` has what gates that are leaving still do for a side.
    pub(super) fn statuses(&self, elsewhere: impl Fn(&str) -> InFlight) -> (Option<SideStatus>, Vec<SideStatus>) {
        let now = self.read();
        let status = |live: &Live| {
            let (here, there) = (live.side.in_flight(), elsewhere(&live.side.id));
            SideStatus {
                id: live.side.id.clone(),
                upstream: live.side.upstream,
                since: live.since.to_string(),
                in_flight: InFlight {
                    requests: here.requests + there.requests,
                    websockets: here.websockets + there.websockets,
                },
                reachable: live.side.reachable(),
                counters: live.side.counters.read(),
            }
        };
        (now.live.as_ref().map(status), now.retired.iter().map(|retired| status(&retired.live)).collect())
    }
}

impl Paused {
    pub(super) fn from_now(bounds: HoldBounds) -> Self {
        let until = Timestamp::now().checked_add(Duration::from_millis(bounds.at_most_ms)).unwrap_or(Timestamp::MAX);
        Self { bounds, until }
    }

    /// What is left until the gate resumes by itself.
    pub(super) fn left(&self) -> Duration {
        Duration::try_from(self.until.duration_since(Timestamp::now())).unwrap_or_default()
    }
}

trait Remember {
    fn extend_front_one(&mut self, live: Option<Live>, bounds: DrainBounds);
}

impl Remember for VecDeque<Retired> {
    fn extend_front_one(&mut self, live: Option<Live>, bounds: DrainBounds) {
        if let Some(live) = live {
            self.push_front(Retired { live, at: Instant::now(), bounds });
        }
        while self.len() > REMEMBERED {
            match self.iter().rposition(|retired| retired.live.side.in_flight().is_empty()) {
                Some(idle) => drop(self.remove(idle)),
                None if self.len() > MOST_REMEMBERED => drop(self.pop_back()),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::hold::Verdict;

    fn side(id: &str) -> wire::Side {
        wire::Side { id: id.into(), upstream: "127.0.0.1:1".parse().unwrap() }
    }

    fn switch(traffic: &Traffic, id: &str) -> Replaced {
        traffic.switch(&side(id), Timestamp::now(), DrainBounds::default())
    }

    fn enter(traffic: &Traffic) -> Ticket {
        match traffic.enter(|| 1) {
            Entry::Go(ticket) => ticket,
            other => panic!("not let in: {other:?}"),
        }
    }

    #[test]
    fn a_request_belongs_to_the_side_that_was_live_when_it_came() {
        let traffic = Traffic::default();
        assert!(matches!(traffic.enter(|| 1), Entry::Empty));
        assert!(switch(&traffic, "1").side.is_none());
        let old = enter(&traffic);
        let replaced = switch(&traffic, "2");
        assert_eq!(replaced.side.unwrap().id, "1");
        assert_eq!(replaced.in_flight, InFlight { requests: 1, websockets: 0 });
        let new = enter(&traffic);
        assert_eq!((old.side().id.as_str(), new.side().id.as_str()), ("1", "2"));
        assert!(switch(&traffic, "2").side.is_none(), "it is live already");
        assert_eq!(traffic.sides("1")[0].in_flight().requests, 1);
        drop(old);
        assert!(traffic.sides("1")[0].in_flight().is_empty());
    }

    #[test]
    fn going_back_finds_the_same_side_again() {
        let traffic = Traffic::default();
        switch(&traffic, "1");
        let first = enter(&traffic).side().clone();
        switch(&traffic, "2");
        switch(&traffic, "1");
        assert!(Arc::ptr_eq(&first, enter(&traffic).side()));
        assert!(traffic.retirement("1").is_none());
        assert!(traffic.retirement("2").is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_prefers_what_is_at_work() {
        let traffic = Traffic::default();
        switch(&traffic, "0");
        let at_work = enter(&traffic);
        (1..50).for_each(|i| drop(switch(&traffic, &i.to_string())));
        let (_, retired) = traffic.statuses(|_| InFlight::default());
        assert_eq!(retired.len(), REMEMBERED);
        assert_eq!(retired.last().unwrap().id, "0");
        drop(at_work);
    }

    #[tokio::test]
    async fn who_waits_sees_the_end_of_the_pause() {
        let traffic = Traffic::default();
        switch(&traffic, "1");
        traffic.pause(Paused::from_now(HoldBounds::default()));
        let Entry::Wait(place) = traffic.enter(|| 1) else { panic!("not held") };
        switch(&traffic, "2");
        assert_eq!(traffic.state().0, RouteState::Held);
        assert_eq!(traffic.resume(None), 1);
        assert_eq!(place.turn().await, Verdict::Go);
        assert_eq!(enter(&traffic).side().id, "2");
    }

    #[tokio::test]
    async fn maintenance_comes_before_a_pause_and_ends_into_it() {
        let traffic = Traffic::default();
        switch(&traffic, "1");
        let paused = Paused::from_now(HoldBounds::default());
        traffic.pause(paused);
        let Entry::Wait(place) = traffic.enter(|| 1) else { panic!("not held") };
        traffic.maintain(Some(Page { message: None, retry_after: 5 }));
        assert_eq!(place.turn().await, Verdict::Go);
        assert!(matches!(traffic.enter(|| 1), Entry::Maintenance(_)));
        traffic.maintain(None);
        assert!(matches!(traffic.enter(|| 1), Entry::Wait(_)));
        let other = Paused { until: Timestamp::MAX, ..paused };
        traffic.resume(Some(other));
        assert!(traffic.paused().is_some(), "another pause than the one whose time is over");
        traffic.resume(Some(paused));
        assert!(traffic.paused().is_none());
    }

    #[test]
    fn what_is_kept_comes_back() {
        let traffic = Traffic::default();
        switch(&traffic, "6");
        let mut planned = traffic.kept();
        let since = Timestamp::now();
        planned.switch(&side("7"), since);
        traffic.switch(&side("7"), since, DrainBounds::default());
        assert_eq!(traffic.kept(), planned);
        traffic.pause(Paused::from_now(HoldBounds::default()));
        traffic.maintain(Some(Page { message: Some("soon".into()), retry_after: 9 }));
        let kept = traffic.kept();
        let text = serde_json::to_string(&kept).unwrap();
        let again = Traffic::default();
        again.become_kept(&serde_json::from_str(&text).unwrap());
        assert_eq!(again.kept(), kept);
        assert_eq!(again.sides("6").len(), 1);
        let live = again.live().unwrap();
        again.become_kept(&kept);
        assert!(Arc::ptr_eq(&live, &again.live().unwrap()), "the same side stays the same");
    }
}
