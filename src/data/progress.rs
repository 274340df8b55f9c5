//! How far reading a set has come: a line every few seconds, with the rate and the time that is left.
//!
//! What is counted are the bytes of the part's file, as they are read; how many there are the manifest says. Once all is read, what is left is the
//! server's or the disk's own work (building indexes, a last `fsync`), whose end nobody knows.

use std::{
    ops::Deref,
    path::Path,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::part::{size, time};
use crate::runtime::Job;

/// Between two lines.
pub(super) const EVERY: Duration = Duration::from_secs(5);

/// Of so many lines that have nothing new to tell, one is told.
const SELDOM: u32 = 6;

/// Bytes of a part's files that were read.
#[derive(Debug, Default)]
pub(super) struct ReadMeter(AtomicU64);

impl ReadMeter {
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Relaxed);
    }
}

/// A set's directory, and who counts what is read of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct SetDir<'a> {
    pub path: &'a Path,
    pub meter: &'a Arc<ReadMeter>,
}

impl Deref for SetDir<'_> {
    type Target = Path;

    fn deref(&self) -> &Path {
        self.path
    }
}

/// Reading that takes a while.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading<'a> {
    /// For people: ``restoring `shop` ``.
    pub what: &'a str,
    /// Bytes that there are to read.
    pub total: u64,
    pub meter: &'a Arc<ReadMeter>,
}

impl Reading<'_> {
    /// Does the work, and tells how far it is.
    pub async fn told<F: Future>(self, job: &Job, work: F) -> F::Output {
        let before = self.meter.0.load(Relaxed);
        let begun = Instant::now();
        let mut work = pin!(work);
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + EVERY, EVERY);
        let mut quiet = 0;
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick() => {
                    let read = self.meter.0.load(Relaxed) - before;
                    if read < self.total || quiet % SELDOM == 0 {
                        job.log.line(self.line(read, begun.elapsed()));
                    }
                    quiet += u32::from(read >= self.total);
                }
            }
        }
    }

    fn line(&self, read: u64, elapsed: Duration) -> String {
        let (what, total) = (self.what, size(self.total));
        if read >= self.total {
            return format!("{what}: all {total} are read, and it goes on, for {} so far", time(elapsed.as_secs()));
        }
        let rate = u64::try_from(u128::from(read) * 1000 / elapsed.as_millis().max(1)).unwrap_or(u64::MAX);
        let left = match rate {
            0 => String::new(),
            rate => format!(", about {} left", time((self.total - read).div_ceil(rate))),
        };
        format!("{what}: {} of {total} read, {}/s{left}", size(read), size(rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{log::DeploymentLog, model::Stage, redact::Redactor};

    #[test]
    fn a_line_has_the_rate_and_the_time_that_is_left() {
        let meter = Arc::default();
        let reading = Reading { what: "restoring `shop`", total: 100 << 20, meter: &meter };
        let ten = Duration::from_secs(10);
        let said = "restoring `shop`: 40.0 MiB of 100.0 MiB read, 4.0 MiB/s, about 15 s left";
        assert_eq!(reading.line(40 << 20, ten), said);
        assert_eq!(reading.line(0, ten), "restoring `shop`: 0 bytes of 100.0 MiB read, 0 bytes/s");
        let said = "restoring `shop`: all 100.0 MiB are read, and it goes on, for 10 s so far";
        assert_eq!(reading.line(100 << 20, ten), said);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_read_everything_says_so_now_and_then() {
        let dir = tempfile::tempdir().unwrap();
        let log = DeploymentLog::open(&dir.path().join("log"), Redactor::default()).unwrap();
        let job = Job { log: log.stage(Stage::Backup), cancel: tokio_util::sync::CancellationToken::new() };
        let meter: Arc<ReadMeter> = Arc::default();
        // What was read of it before is nothing that counts.
        meter.add(500);
        let reading = Reading { what: "verifying `shop`", total: 1000, meter: &meter };
        let work = async {
            for _ in 0..2 {
                tokio::time::sleep(EVERY + Duration::from_millis(1)).await;
                meter.add(500);
            }
            tokio::time::sleep(EVERY * 8).await;
            7
        };
        assert_eq!(reading.told(&job, work).await, 7);
        let said = std::fs::read_to_string(log.path()).unwrap();
        let lines = |text: &str| said.lines().filter(|line| line.contains(text)).count();
        assert_eq!((lines("of 1000 bytes read"), lines("all 1000 bytes are read")), (2, 2), "{said}");
    }
}
