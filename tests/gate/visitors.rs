//! Constant load of every kind: with kept connections and without, GET, POST with bodies, slow downloads, WebSockets.
//!
//! Nobody here tries anything twice. Each request notes when it began and when its answer began; the answer must come from a side that was live at some moment in
//! between, be complete, and have the right content. Every POST has a name of its own, so that apps can count how often they saw it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::{task::JoinSet, time};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use crate::connection::{Connection, Reply, get, post};

/// Which side was live when. A switch lasts from its call to its answer; in between both are.
#[derive(Debug, Default)]
pub struct History {
    spans: Mutex<Vec<(String, Instant, Option<Instant>)>>,
}

impl History {
    pub fn begins(&self, side: &str) {
        self.spans.lock().unwrap().push((side.to_owned(), Instant::now(), None));
    }

    /// Every other side than this ends.
    pub fn is_alone(&self, side: &str) {
        let now = Instant::now();
        for (other, _, end) in self.spans.lock().unwrap().iter_mut() {
            if other != side && end.is_none() {
                *end = Some(now);
            }
        }
    }

    fn was_live(&self, side: &str, from: Instant, to: Instant) -> bool {
        let spans = self.spans.lock().unwrap();
        spans.iter().any(|(s, begin, end)| s == side && *begin <= to && end.is_none_or(|end| end >= from))
    }
}

/// What visitors did, all of it well.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    pub requests: u64,
    pub sockets: u64,
    /// Of the requests.
    pub posted: u64,
}

/// Visitors of every kind, who come until [`Load::end`].
#[derive(Debug)]
pub struct Load {
    public: SocketAddr,
    pub history: History,
    pause: Duration,
    over: AtomicBool,
    done: AtomicU64,
    sockets: AtomicU64,
    posted: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn check(&self, what: &str, began: Instant, result: Result<Reply, String>, right: impl FnOnce(&Reply) -> bool) {
        let wrong = match result {
            Err(error) => error,
            Ok(reply) if reply.status != 200 => format!("{} {}", reply.status, reply.text()),
            Ok(reply) if !self.history.was_live(reply.side(), began, reply.head_at) => {
                format!("side {} was not live", reply.side())
            }
            Ok(reply) if !right(&reply) => "a wrong answer".to_owned(),
            Ok(_) => {
                self.done.fetch_add(1, SeqCst);
                return;
            }
        };
        self.failures.lock().unwrap().push(format!("{what}: {wrong}"));
    }

    async fn getting(self: Arc<Self>, keep: bool, path: &'static str) {
        let mut connection: Option<Connection> = None;
        while !self.over.load(SeqCst) {
            time::sleep(self.pause).await;
            let began = Instant::now();
            let result = async {
                if connection.is_none() {
                    connection = Some(Connection::open(self.public).await?);
                }
                connection.as_mut().unwrap().send(get(path)).await
            };
            let result = result.await;
            let expected = path.strip_prefix("/slow/").and_then(|n| n.parse::<usize>().ok());
            self.check(&format!("GET {path}, kept: {keep}"), began, result, |reply| match expected {
                Some(pieces) => reply.text() == format!("{}\n", reply.side()).repeat(pieces),
                None => reply.text() == format!("GET {path}"),
            });
            let open = match &mut connection {
                Some(connection) if keep => connection.is_open().await,
                _ => false,
            };
            if !open {
                connection = None;
            }
        }
    }

    async fn posting(self: Arc<Self>, who: usize, keep: bool, size: usize) {
        let body = Bytes::from(vec![1; size]);
        let sum = (0..size).fold(0_u64, |sum, _| sum.wrapping_mul(31).wrapping_add(1));
        let mut connection: Option<Connection> = None;
        let mut n = 0;
        while !self.over.load(SeqCst) {
            n += 1;
            let name = format!("{who}-{n}");
            time::sleep(self.pause).await;
            let began = Instant::now();
            self.posted.fetch_add(1, SeqCst);
            let result = async {
                if connection.is_none() {
                    connection = Some(Connection::open(self.public).await?);
                }
                connection.as_mut().unwrap().send(post("/post", &name, body.clone())).await
            };
            let result = result.await;
            self.check("POST", began, result, |reply| reply.text() == format!("{size} {sum}"));
            let open = match &mut connection {
                Some(connection) if keep => connection.is_open().await,
                _ => false,
            };
            if !open {
                connection = None;
            }
        }
    }

    async fn talking(self: Arc<Self>) {
        while !self.over.load(SeqCst) {
            time::sleep(self.pause).await;
            if let Err(error) = self.talk().await {
                self.failures.lock().unwrap().push(format!("WebSocket: {error}"));
            } else {
                self.sockets.fetch_add(1, SeqCst);
            }
        }
    }

    async fn talk(&self) -> Result<(), String> {
        let began = Instant::now();
        let request = format!("ws://{}/ws", self.public).into_client_request().map_err(|e| e.to_string())?;
        let (mut socket, head) = tokio_tungstenite::connect_async(request).await.map_err(|e| format!("{e:?}"))?;
        let side = head.headers()["side"].to_str().unwrap().to_owned();
        let told = |n: u32, e: &dyn std::fmt::Debug| format!("side {side}, message {n}, {:?}: {e:?}", began.elapsed());
        if !self.history.was_live(&side, began, Instant::now()) {
            return Err(format!("side {side} was not live"));
        }
        for n in 0..10 {
            let text = format!("message {n}");
            socket.send(Message::text(&text)).await.map_err(|e| told(n, &e))?;
            let echo = socket.next().await.ok_or("closed")?.map_err(|e| told(n, &e))?;
            if echo.into_text().map_err(|e| e.to_string())?.as_str() != text {
                return Err("another echo".to_owned());
            }
            time::sleep(Duration::from_millis(10)).await;
        }
        socket.close(None).await.map_err(|e| format!("{e:?}"))?;
        while socket.next().await.is_some() {}
        Ok(())
    }

    /// On this address, where `side` is live; each of them waits so long between two requests.
    pub fn on(public: SocketAddr, side: &str, pause: Duration) -> Arc<Self> {
        let load = Self {
            public,
            history: History::default(),
            pause,
            over: AtomicBool::new(false),
            done: AtomicU64::new(0),
            sockets: AtomicU64::new(0),
            posted: AtomicU64::new(0),
            failures: Mutex::default(),
        };
        load.history.begins(side);
        Arc::new(load)
    }

    /// Sends them home, and tells what they did. Fails if anything that they saw was wrong.
    pub async fn end(&self, clients: JoinSet<()>) -> Done {
        self.over.store(true, SeqCst);
        clients.join_all().await;
        let failures = self.failures.lock().unwrap();
        let (requests, sockets, posted) = (self.done.load(SeqCst), self.sockets.load(SeqCst), self.posted.load(SeqCst));
        let some = &failures[..failures.len().min(20)];
        assert!(failures.is_empty(), "{} of {requests} failed: {some:#?}", failures.len());
        Done { requests, sockets, posted }
    }

    /// With WebSockets, or without.
    pub fn begin(self: &Arc<Self>, sockets: bool) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        for keep in [true, true, false] {
            clients.spawn(self.clone().getting(keep, "/things"));
        }
        clients.spawn(self.clone().getting(true, "/slow/10"));
        clients.spawn(self.clone().getting(false, "/slow/25"));
        for (who, (keep, size)) in [(true, 10), (false, 10), (true, 300_000), (false, 100_000)].into_iter().enumerate()
        {
            clients.spawn(self.clone().posting(who, keep, size));
        }
        if sockets {
            clients.spawn(self.clone().talking());
            clients.spawn(self.clone().talking());
        }
        clients
    }

    /// Lets so many more requests pass.
    pub async fn pass(&self, requests: u64) {
        let goal = self.done.load(SeqCst) + requests;
        let began = Instant::now();
        while self.done.load(SeqCst) < goal && began.elapsed() < Duration::from_secs(10) {
            time::sleep(Duration::from_millis(1)).await;
        }
    }
}
