//! Visitors who do not stop: requests to an app's public port, one after the other and several at a time, with what came of them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::poll;

/// Half of them keep their connection, half make one for each request.
const VISITORS: usize = 6;

/// Between two requests of a visitor: a few hundred requests a second in all, which these machines bear beside a deployment.
const PAUSE: Duration = Duration::from_millis(5);

/// Longer than anything is held.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the visitors saw.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub answers: u64,
    /// What was wrong with requests that failed.
    pub failures: Vec<String>,
    /// How often each start page was seen.
    pub pages: BTreeMap<String, u64>,
}

/// Visitors that come until this is dropped.
#[derive(Debug)]
pub struct Load {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Returns when the first of them have been served.
    pub fn on(port: u16) -> Self {
        let (seen, over) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (noted, stopped) = (Arc::clone(&seen), Arc::clone(&over));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let visitors = (0..VISITORS).map(|n| visit(port, n % 2 == 0, &noted, &stopped));
                futures_util::future::join_all(visitors).await;
            });
        });
        let load = Self { seen, over, thread: Some(thread) };
        load.goes_on();
        load
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().expect("nobody panicked").clone()
    }

    /// Waits until some more requests were answered.
    pub fn goes_on(&self) {
        let wanted = self.seen().answers + 20;
        poll(|| (self.seen().answers >= wanted).then_some(()))
            .unwrap_or_else(|| panic!("no answers: {:?}", self.seen()));
    }

    /// Sends them home, and tells what they saw.
    pub fn end(mut self) -> Seen {
        self.stop();
        self.seen()
    }

    fn stop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the visitors go home");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop();
        }
        self.over.store(true, Ordering::Relaxed);
    }
}

async fn visit(port: u16, keeps: bool, seen: &Mutex<Seen>, over: &AtomicBool) {
    let pool = if keeps { 1 } else { 0 };
    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(pool).timeout(PATIENCE).build();
    let client = client.expect("an HTTP client");
    let url = format!("http://127.0.0.1:{port}/");
    while !over.load(Ordering::Relaxed) {
        let answer = async {
            let answer = client.get(&url).send().await?.error_for_status()?;
            answer.text().await
        };
        let answer = answer.await;
        {
            let mut seen = seen.lock().expect("nobody panicked");
            match answer {
                Ok(page) => {
                    seen.answers += 1;
                    *seen.pages.entry(page.trim().to_owned()).or_default() += 1;
                }
                Err(error) => seen.failures.push(format!("{error:?}")),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
