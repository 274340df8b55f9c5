//! Requests that wait while the app is away.
//!
//! A waiting request keeps its head in memory and nothing else: its body stays with the client, since nobody reads it. The room is bounded in number and bytes;
//! whoever comes beyond that sends the oldest away. Each request has its own bound in time. A place that is given up, because the client went away or the
//! time was over, is free at once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time};

use super::{
    counters::add_one,
    wire::{HeldStatus, HoldBounds},
};

/// What becomes of a request that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look again what is live.
    Go,
    /// A bound was over.
    Refused,
}

#[derive(Debug, Default)]
pub(super) struct Hold {
    room: Mutex<Room>,
    total: AtomicU64,
    refused: AtomicU64,
    abandoned: AtomicU64,
    longest_ms: AtomicU64,
}

#[derive(Debug, Default)]
struct Room {
    /// In the order of arrival.
    waiting: BTreeMap<u64, Waiter>,
    bytes: u64,
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    since: Instant,
    tell: oneshot::Sender<Verdict>,
}

impl Room {
    fn remove(&mut self, number: u64) -> Option<Waiter> {
        let waiter = self.waiting.remove(&number)?;
        self.bytes = self.bytes.saturating_sub(waiter.bytes);
        Some(waiter)
    }
}

impl Hold {
    fn room(&self) -> std::sync::MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place at the end of the queue; the oldest leave where it is too long now.
    pub(super) fn wait(self: &Arc<Self>, bytes: u64, bounds: &HoldBounds) -> Place {
        let (tell, told) = oneshot::channel();
        add_one(&self.total);
        let mut room = self.room();
        let number = room.next;
        room.next += 1;
        if bytes > bounds.max_bytes {
            // It would send everybody away and then leave as well.
            add_one(&self.refused);
            let _ = tell.send(Verdict::Refused);
        } else {
            room.bytes = room.bytes.saturating_add(bytes);
            room.waiting.insert(number, Waiter { bytes, since: Instant::now(), tell });
            self.trim(&mut room, bounds);
        }
        Place { hold: self.clone(), number, told: Some(told), at_most: Duration::from_millis(bounds.max_wait_ms) }
    }

    /// Sends the oldest away until the bounds are kept.
    fn trim(&self, room: &mut Room, bounds: &HoldBounds) {
        while room.waiting.len() as u64 > u64::from(bounds.max_requests) || room.bytes > bounds.max_bytes {
            let Some(oldest) = room.waiting.keys().next().copied() else { break };
            if let Some(waiter) = room.remove(oldest) {
                add_one(&self.refused);
                // Its client may have gone at this moment.
                let _ = waiter.tell.send(Verdict::Refused);
            }
        }
    }

    /// Other bounds hold from now on.
    pub(super) fn rebound(&self, bounds: &HoldBounds) {
        self.trim(&mut self.room(), bounds);
    }

    /// Lets everyone go on, the oldest first. How many.
    pub(super) fn release(&self) -> u64 {
        let mut room = self.room();
        room.bytes = 0;
        let waiting = std::mem::take(&mut room.waiting);
        drop(room);
        let mut released = 0;
        for waiter in waiting.into_values() {
            let waited = u64::try_from(waiter.since.elapsed().as_millis()).unwrap_or(u64::MAX);
            if waiter.tell.send(Verdict::Go).is_ok() {
                released += 1;
                self.longest_ms.fetch_max(waited, Relaxed);
            }
        }
        released
    }

    pub(super) fn read(&self) -> HeldStatus {
        let (now, bytes) = {
            let room = self.room();
            (room.waiting.len() as u64, room.bytes)
        };
        HeldStatus {
            now,
            bytes,
            total: self.total.load(Relaxed),
            refused: self.refused.load(Relaxed),
            abandoned: self.abandoned.load(Relaxed),
            longest_ms: self.longest_ms.load(Relaxed),
        }
    }
}

/// One request's place in the queue.
#[derive(Debug)]
pub(super) struct Place {
    hold: Arc<Hold>,
    number: u64,
    told: Option<oneshot::Receiver<Verdict>>,
    at_most: Duration,
}

impl Place {
    /// Waits for the verdict, at most as long as one request may wait. Dropped before: the place is given up.
    pub(super) async fn turn(mut self) -> Verdict {
        let Some(told) = &mut self.told else { return Verdict::Go };
        let verdict = time::timeout(self.at_most, told).await;
        let verdict = match verdict {
            Ok(verdict) => verdict.unwrap_or(Verdict::Go),
            Err(_) => self.too_long(),
        };
        self.told = None;
        verdict
    }

    fn too_long(&self) -> Verdict {
        if self.hold.room().remove(self.number).is_some() {
            add_one(&self.hold.refused);
            Verdict::Refused
        } else {
            // Released at this very moment.
            Verdict::Go
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.told.is_some() && self.hold.room().remove(self.number).is_some() {
            add_one(&self.hold.abandoned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(max_requests: u32, max_bytes: u64) -> HoldBounds {
        HoldBounds { max_requests, max_bytes, max_wait_ms: 60_000, at_most_ms: 60_000 }
    }

    #[tokio::test]
    async fn beyond_the_bounds_the_oldest_leave() {
        let hold = Arc::new(Hold::default());
        let by_number = bounds(2, 1_000);
        let (first, second, third) = (hold.wait(10, &by_number), hold.wait(10, &by_number), hold.wait(10, &by_number));
        assert_eq!(first.turn().await, Verdict::Refused);
        let fourth = hold.wait(995, &by_number);
        assert_eq!(second.turn().await, Verdict::Refused);
        assert_eq!(third.turn().await, Verdict::Refused);
        assert_eq!(hold.read(), HeldStatus { now: 1, bytes: 995, total: 4, refused: 3, ..hold.read() });
        assert_eq!(hold.release(), 1);
        assert_eq!(fourth.turn().await, Verdict::Go);
        assert_eq!((hold.read().now, hold.read().bytes), (0, 0));
    }

    #[tokio::test]
    async fn one_that_is_larger_than_the_room_is_refused_alone() {
        let hold = Arc::new(Hold::default());
        let small = hold.wait(1, &bounds(9, 100));
        let large = hold.wait(101, &bounds(9, 100));
        assert_eq!(large.turn().await, Verdict::Refused);
        assert_eq!(hold.release(), 1);
        assert_eq!(small.turn().await, Verdict::Go);
    }

    #[tokio::test]
    async fn a_place_that_is_given_up_is_free() {
        let hold = Arc::new(Hold::default());
        drop(hold.wait(10, &bounds(1, 100)));
        assert_eq!((hold.read().now, hold.read().abandoned, hold.read().bytes), (0, 1, 0));
        assert_eq!(hold.release(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_a_request_may() {
        let hold = Arc::new(Hold::default());
        let place = hold.wait(10, &HoldBounds { max_wait_ms: 500, ..bounds(5, 100) });
        assert_eq!(place.turn().await, Verdict::Refused);
        assert_eq!((hold.read().now, hold.read().refused, hold.read().abandoned), (0, 1, 0));
    }
}
