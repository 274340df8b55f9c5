//! Somebody who keeps asking for the page, so that the demo can say what users noticed.
//!
//! Twenty requests a second, each on a connection of its own, to this machine's loopback address only. One that hangs does not hold up
//! the next, and is given up after [`PATIENCE`]. Times are by when a request was sent: "nobody answered for 400 ms" means that who came in
//! those 400 ms got no answer. Counted is from the first good answer on: before it nothing was there to be asked. From then on every request counts.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};

use super::scene::is_whole;

const EVERY: Duration = Duration::from_millis(50);

/// A visitor who waited longer than this has gone away.
const PATIENCE: Duration = Duration::from_secs(10);

/// The counter is shown after this many more requests: once a second.
const SHOWN_EVERY: u64 = 20;

/// Every request that was answered or given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    pub requests: u64,
    /// Not answered, not answered with success, or with a page that is not whole.
    pub failed: u64,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests, {} failed", self.requests, self.failed)
    }
}

/// What visitors saw in a stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    pub good: u32,
    pub failed: u32,
    /// Answered with a page that is not whole.
    pub broken: u32,
    pub without_answer: Duration,
    pub with_broken_page: Duration,
    /// The longest that a good answer took.
    pub slowest: Duration,
}

impl Seen {
    fn of(asked: &[Asked]) -> Self {
        let mut seen = Self::default();
        let answers: Vec<_> = asked.iter().filter_map(|a| Some((a.sent, a.answer?))).collect();
        for (n, (sent, (answer, took))) in answers.iter().enumerate() {
            let until = answers.get(n + 1).map_or(*sent + *took, |(next, _)| *next);
            let lasted = until.saturating_duration_since(*sent);
            match answer {
                Answer::Good => {
                    seen.good += 1;
                    seen.slowest = seen.slowest.max(*took);
                }
                Answer::Failed => {
                    seen.failed += 1;
                    seen.without_answer += lasted;
                }
                Answer::Broken => {
                    seen.broken += 1;
                    seen.with_broken_page += lasted;
                }
            }
        }
        seen
    }

    pub fn and(self, other: Self) -> Self {
        Self {
            good: self.good + other.good,
            failed: self.failed + other.failed,
            broken: self.broken + other.broken,
            without_answer: self.without_answer + other.without_answer,
            with_broken_page: self.with_broken_page + other.with_broken_page,
            slowest: self.slowest.max(other.slowest),
        }
    }

    /// One sentence without its full stop.
    pub fn words(&self) -> String {
        let all = self.good + self.failed + self.broken;
        let slowest = format!("the slowest in {} ms", self.slowest.as_millis());
        if self.good == all {
            return format!("{all} requests, all answered well, {slowest}");
        }
        let mut parts = vec![format!("{all} requests, {} answered well ({slowest})", self.good)];
        if self.failed > 0 {
            parts.push(format!("{} failed (nobody answered for {} ms)", self.failed, self.without_answer.as_millis()));
        }
        if self.broken > 0 {
            parts.push(format!("{} got the broken page (for {} ms)", self.broken, self.with_broken_page.as_millis()));
        }
        parts.join(", ")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Good,
    Failed,
    Broken,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    n: u64,
    sent: Instant,
    /// And how long it took; `None` while it is awaited.
    answer: Option<(Answer, Duration)>,
}

/// What was asked, and what became of it.
#[derive(Debug, Default)]
struct Book {
    asked: Vec<Asked>,
    /// The first request that got a good answer.
    first: Option<u64>,
    count: Count,
    /// How many requests there were when the counter was shown last.
    shown: u64,
}

impl Book {
    fn note(&mut self, n: u64, answer: Answer, took: Duration) {
        if self.first.is_none() {
            if answer != Answer::Good {
                self.asked.retain(|asked| asked.n != n);
                return;
            }
            self.first = Some(n);
            self.asked.retain(|asked| asked.n >= n);
        }
        let Some(asked) = self.asked.iter_mut().find(|asked| asked.n == n) else { return };
        asked.answer = Some((answer, took));
        self.count.requests += 1;
        self.count.failed += u64::from(answer != Answer::Good);
    }
}

type Log = Arc<Mutex<Book>>;

/// They ask until this is dropped.
#[derive(Debug)]
pub struct Visitors {
    log: Log,
    task: tokio::task::JoinHandle<()>,
}

impl Visitors {
    pub fn start(http: reqwest::Client, url: String) -> Self {
        let log = Log::default();
        let task = tokio::spawn(keep_asking(http, url, log.clone()));
        Self { log, task }
    }

    /// What those saw who asked between the last call and this one. Waits for their answers.
    pub async fn take(&self) -> Seen {
        let Some(last) = lock(&self.log).asked.last().map(|asked| asked.n) else { return Seen::default() };
        loop {
            {
                let mut book = lock(&self.log);
                let count = book.asked.partition_point(|asked| asked.n <= last);
                if book.asked.iter().take(count).all(|asked| asked.answer.is_some()) {
                    let asked: Vec<_> = book.asked.drain(..count).collect();
                    return Seen::of(&asked);
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Of all requests so far.
    pub fn count(&self) -> Count {
        lock(&self.log).count
    }

    /// The same, where it is time to show it again.
    pub fn count_to_show(&self) -> Option<Count> {
        let mut book = lock(&self.log);
        let due = book.count.requests >= book.shown + SHOWN_EVERY;
        due.then(|| {
            book.shown = book.count.requests;
            book.count
        })
    }
}

impl Drop for Visitors {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(log: &Log) -> std::sync::MutexGuard<'_, Book> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keep_asking(http: reqwest::Client, url: String, log: Log) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Ends what is under way together with this task.
    let mut under_way = tokio::task::JoinSet::new();
    for n in 0.. {
        ticks.tick().await;
        while under_way.try_join_next().is_some() {}
        let sent = Instant::now();
        lock(&log).asked.push(Asked { n, sent, answer: None });
        let (http, url, log) = (http.clone(), url.clone(), log.clone());
        under_way.spawn(async move {
            let answer = match page(&http, &url).await {
                Some(page) if is_whole(&page) => Answer::Good,
                Some(_) => Answer::Broken,
                None => Answer::Failed,
            };
            lock(&log).note(n, answer, sent.elapsed());
        });
    }
}

/// The page as a user gets it; `None` where nobody answers in time, or not with success.
pub async fn page(http: &reqwest::Client, url: &str) -> Option<String> {
    let asked = async { http.get(url).send().await?.error_for_status()?.text().await };
    tokio::time::timeout(PATIENCE, asked).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_is_from_the_first_good_answer_on() {
        let mut book = Book::default();
        let ask = |book: &mut Book, n| book.asked.push(Asked { n, sent: Instant::now(), answer: None });
        let took = Duration::from_millis(1);
        (0..3).for_each(|n| ask(&mut book, n));
        book.note(0, Answer::Failed, took);
        book.note(2, Answer::Good, took);
        // Asked when there was nothing yet, and answered late.
        book.note(1, Answer::Failed, took);
        assert_eq!(book.count.to_string(), "1 requests, 0 failed");
        (3..5).for_each(|n| ask(&mut book, n));
        book.note(4, Answer::Broken, took);
        book.note(3, Answer::Failed, took);
        assert_eq!(book.count.to_string(), "3 requests, 2 failed");
        assert_eq!(Seen::of(&book.asked).good, 1);
    }

    #[test]
    fn times_are_by_when_a_request_was_sent() {
        let start = Instant::now();
        let asked: Vec<Asked> = [
            (0, Answer::Good, 10),
            (100, Answer::Failed, 900),
            (200, Answer::Failed, 1),
            (300, Answer::Broken, 10),
            (400, Answer::Failed, 10),
            (500, Answer::Good, 30),
            (600, Answer::Good, 20),
        ]
        .into_iter()
        .map(|(ms, answer, took)| Asked {
            n: ms,
            sent: start + Duration::from_millis(ms),
            answer: Some((answer, Duration::from_millis(took))),
        })
        .collect();
        assert_eq!(
            Seen::of(&asked).words(),
            "7 requests, 3 answered well (the slowest in 30 ms), 3 failed (nobody answered for 300 ms), \
             1 got the broken page (for 100 ms)"
        );
    }
}
