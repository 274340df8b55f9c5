//! A gate process to try things on.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use refit::gate::{
    Client,
    wire::{DrainBounds, RouteSpec, Side, SwitchRequest, Switched},
};
use tokio::time;

pub use crate::connection::{Body, Connection, Reply, get, post};

#[path = "../it/support/ports.rs"]
mod ports;

/// On this machine, and nobody's.
pub fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], ports::free_port()))
}

/// Long enough for a loaded machine; nothing waits this long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A directory with gates in it, which end with the test.
#[derive(Debug)]
pub struct Gates {
    dir: tempfile::TempDir,
    running: Vec<Child>,
    pub public: SocketAddr,
    args: Vec<String>,
}

impl Gates {
    /// Starts the first one.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(args: &[&str]) -> Self {
        let mut gates = Self::nowhere(args);
        gates.spawn(&[]).await;
        gates
    }

    /// None runs yet.
    pub fn nowhere(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let public = free_address();
        Self { dir, running: Vec::new(), public, args: args.iter().map(|arg| (*arg).to_owned()).collect() }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("gate.sock")
    }

    pub fn client(&self) -> Client {
        Client::new(self.socket())
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
        command.arg("gate").arg("--state-dir").arg(self.dir.path()).args(&self.args).args(args);
        command.stdin(Stdio::null()).env_remove("REFIT_LOG").env_remove("NOTIFY_SOCKET");
        command
    }

    /// Another process, which answers as the gate once this returns. Its log is beside its state.
    pub async fn spawn(&mut self, args: &[&str]) -> u32 {
        let log = self.dir.path().join(format!("log.{}", self.running.len()));
        let log = std::fs::File::create(log).unwrap();
        let child = self.command(args).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        self.running.push(child);
        let client = self.client();
        eventually("the gate answers", async || client.status(None).await.is_ok_and(|status| status.pid == pid)).await;
        pid
    }

    pub fn kill(&mut self) {
        let mut child = self.running.pop().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM to the newest; its exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        let mut child = self.running.pop().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut code = None;
        eventually("the gate ends", async || {
            code = child.try_wait().unwrap();
            code.is_some()
        })
        .await;
        code.unwrap().code()
    }

    /// Whether the process that was started as the n-th has ended.
    pub fn has_ended(&mut self, n: usize) -> bool {
        self.running[n].try_wait().unwrap().is_some()
    }

    pub fn logs(&self) -> String {
        let files =
            (0..9).map(|n| std::fs::read_to_string(self.dir.path().join(format!("log.{n}"))).unwrap_or_default());
        files.collect()
    }

    pub fn spec(&self, side: Option<Side>) -> RouteSpec {
        RouteSpec::new("shop/production", self.public, side)
    }

    pub async fn route(&self, side: Side) {
        self.client().route(self.spec(Some(side))).await.unwrap();
    }

    pub async fn switch(&self, side: Side) -> Switched {
        let request =
            SwitchRequest { name: "shop/production".into(), side, expect: None, drain: DrainBounds::default() };
        self.client().switch(request).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Reply {
        Connection::open(self.public).await.unwrap().send(get(path)).await.unwrap()
    }
}

impl Drop for Gates {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// Polls until it is so.
pub async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is().await {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        time::sleep(Duration::from_millis(5)).await;
    }
}
