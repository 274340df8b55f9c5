//! What is counted of one side, without locks: a request adds to a few atomics.
//!
//! Latencies go into buckets of a fixed table, four for each power of two of microseconds. So a quantile is off by at most a quarter, the whole range up to
//! four minutes takes 900 bytes, and buckets of different sides or gates can be added.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::wire::{self, Bucket, Latency};

/// Buckets: 0..4 µs singly, then four for each power of two up to 2^28 µs; the last one has everything above.
const BUCKETS: usize = 4 + 4 * 26 + 1;

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) requests: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) abandoned: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) latency: Histogram,
}

impl Counters {
    pub(super) fn read(&self) -> wire::Counters {
        wire::Counters {
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            failed: self.failed.load(Relaxed),
            abandoned: self.abandoned.load(Relaxed),
            retries: self.retries.load(Relaxed),
            latency: self.latency.read(),
        }
    }
}

pub(super) fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

#[derive(Debug)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
    max_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            sum_us: AtomicU64::new(0),
            max_us: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    pub(super) fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        add_one(&self.buckets[index(us)]);
        self.sum_us.fetch_add(us, Relaxed);
        self.max_us.fetch_max(us, Relaxed);
    }

    fn read(&self) -> Latency {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let count = counts.iter().sum();
        let max_us = self.max_us.load(Relaxed);
        let quantile = |percent: u64| {
            // The rank of the value that `percent` of all values do not exceed.
            let rank = (u64::saturating_mul(count, percent)).div_ceil(100).max(1);
            let mut seen = 0;
            let found = counts.iter().position(|n| {
                seen += n;
                seen >= rank
            });
            found.map_or(0, |i| bound(i).min(max_us))
        };
        let filled = counts.iter().enumerate().filter(|(_, n)| **n > 0);
        Latency {
            count,
            sum_us: self.sum_us.load(Relaxed),
            p50_us: quantile(50),
            p90_us: quantile(90),
            p99_us: quantile(99),
            max_us,
            buckets: filled.map(|(i, n)| Bucket { le_us: bound(i), count: *n }).collect(),
        }
    }
}

fn index(us: u64) -> usize {
    if us < 4 {
        return usize::try_from(us).unwrap_or(0);
    }
    let power = us.ilog2();
    let quarter = (us >> (power - 2)) & 3;
    let index = u64::from(power - 1) * 4 + quarter;
    usize::try_from(index).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn bound(index: usize) -> u64 {
    if index >= BUCKETS - 1 {
        return u64::MAX;
    }
    let index = index as u64;
    if index < 4 {
        return index;
    }
    let (power, quarter) = (index / 4 + 1, index % 4);
    ((4 + quarter + 1) << (power - 2)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_buckets_are_narrow() {
        for us in (0..5_000).chain([10_000, 123_456, 59_999_999, 200_000_000]) {
            let i = index(us);
            assert!(us <= bound(i), "{us} is above its bucket");
            assert!(i == 0 || us > bound(i - 1), "{us} belongs to an earlier bucket");
            assert!(us < 4 || bound(i) - us <= us / 4, "the bucket of {us} ends at {}", bound(i));
        }
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read(), Latency::default());
        (1..=100).for_each(|ms| histogram.record(Duration::from_millis(ms)));
        let read = histogram.read();
        assert_eq!((read.count, read.sum_us, read.max_us), (100, 5_050_000, 100_000));
        for (found, exact) in [(read.p50_us, 50_000), (read.p90_us, 90_000), (read.p99_us, 99_000)] {
            assert!((exact..=exact * 5 / 4).contains(&found), "{found} is not about {exact}");
        }
    }
}
