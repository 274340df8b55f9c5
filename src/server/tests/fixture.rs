//! A configuration, a recorder in the place of `Control`, a running server, and a client.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::Sha256;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{
        App, Build, Builder, Config, Environment, LogRotation, PathRules, Probe, Pull, Retention, Rollback,
        RuntimeKind, Server, Smoke, Start, Strategy,
    },
    control::{
        ApprovalRequest, BackupRequest, BackupUpdate, ControlError, DeployRequest, EnvironmentStatus, Health,
        RerunRequest, ResolveRequest, Result, RollbackRequest, Update,
    },
    model::{DeploymentId, EnvironmentKey, Name, Trigger, TriggerKind},
    redact::Redactor,
    registry::{Delivery, Outcome, Receipt, Registry},
    secret::Secret,
    server::{self, Limits, Verbs},
};

pub const SECRET: &str = "a secret of guestbook";
pub const OTHER_SECRET: &str = "a secret of wiki";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const BEFORE: &str = "1123456789abcdef0123456789abcdef01234567";
pub const ZEROS: &str = "0000000000000000000000000000000000000000";

/// No server of a test outlives this, and no client waits longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `done`; fails after [`PATIENCE`].
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let polling = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, polling).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub fn app(name: &str, full_name: Option<&str>, secrets: &[&str]) -> Arc<App> {
    let environment = |environment: &str, branch: &str| Arc::new(environment_of(name, environment, branch));
    Arc::new(App {
        name: name.parse().unwrap(),
        repository: "https://git.example/configured.git".to_owned(),
        full_name: full_name.map(str::to_owned),
        github_secrets: secrets.iter().map(|s| Secret::new(*s)).collect(),
        environments: vec![environment("dev", "dev"), environment("production", "main")],
    })
}

/// `guestbook` and `wiki`, with a secret each.
pub fn two_apps() -> Vec<Arc<App>> {
    vec![app("guestbook", Some("acme/guestbook"), &[SECRET]), app("wiki", Some("acme/wiki"), &[OTHER_SECRET])]
}

pub fn config(dir: &Path, apps: Vec<Arc<App>>) -> Config {
    let redactor = Redactor::new(apps.iter().flat_map(|app| &app.github_secrets));
    Config {
        file: dir.join("pipeline.toml"),
        files: vec![dir.join("pipeline.toml")],
        server: Server {
            listen: "127.0.0.1:0".to_owned(),
            state_dir: dir.join("state"),
            backups_dir: dir.join("backups"),
            logs_dir: dir.join("logs"),
            reconcile: Duration::ZERO,
            max_body: 25_000_000,
            max_connections: 512,
            min_free_space: 0,
            log_keep_days: 1,
        },
        telegram: None,
        telegram_without_token: false,
        apps,
        redactor,
    }
}

fn environment_of(app: &str, environment: &str, branch: &str) -> Environment {
    let minute = Duration::from_secs(60);
    Environment {
        key: EnvironmentKey { app: app.parse().unwrap(), environment: environment.parse().unwrap() },
        repository: "https://git.example/configured.git".to_owned(),
        branch: branch.parse().unwrap(),
        port: None,
        bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
        paths: PathRules::default(),
        requires: Vec::new(),
        parallel: true,
        approval: None,
        pull: Pull { timeout: minute, retries: 0 },
        backups: Vec::new(),
        backup_retention: Retention { keep: 1, keep_days: 1 },
        rehearse_backups: None,
        tests: Vec::new(),
        build: Build {
            context: ".".to_owned(),
            dockerfile: "Dockerfile".to_owned(),
            target: None,
            args: BTreeMap::new(),
            builder: Builder::Auto,
            timeout: minute,
            run: None,
            no_cache: false,
        },
        migrate: None,
        start: Start {
            runtime: RuntimeKind::Process,
            gate: None,
            strategy: Strategy::Recreate,
            strategy_reason: None,
            container_port: None,
            networks: Vec::new(),
            volumes: Vec::new(),
            command: None,
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            user: None,
            memory: None,
            cpus: None,
            init: false,
            stop_timeout: minute,
            log: LogRotation { max_size: 1, max_file: 1 },
            health: crate::config::Health {
                probe: Probe::Running,
                interval: minute,
                timeout: minute,
                successes: 1,
                deadline: minute,
                settle: minute,
            },
        },
        smoke: Smoke { checks: Vec::new(), bake: minute, interval: minute, timeout: minute, max_error_rate: None },
        rollback: Rollback { automatic: true, keep: 1 },
    }
}

/// Stands for `Control`: deliveries become real rows, the rest is remembered or made up.
pub struct Recorder {
    pub registry: Registry,
    pub healthy: bool,
    pub asked: Mutex<Vec<String>>,
    /// What `follow` yields, once.
    pub updates: Mutex<Option<mpsc::Receiver<Result<Update>>>>,
}

#[async_trait]
impl Verbs for Recorder {
    async fn receive(&self, delivery: Delivery) -> Result<Receipt> {
        Ok(self.registry.accept(&[delivery]).await?[0])
    }

    async fn outcome(&self, receipt: Receipt) -> Result<Vec<Outcome>> {
        let rows = self.registry.open_deliveries(10_000).await?;
        let row = rows.into_iter().find(|row| row.id == receipt.id).unwrap();
        let environment = EnvironmentKey { app: row.delivery.app, environment: "production".parse().unwrap() };
        Ok(vec![Outcome { environment: Some(environment), deployment: Some(DeploymentId(receipt.id)), ignored: None }])
    }

    async fn deploy(&self, request: DeployRequest) -> Result<DeploymentId> {
        if request.no_wait {
            return Err(ControlError::Busy { message: "another one runs".into(), hint: Some("wait".into()) });
        }
        self.asked.lock().unwrap().push(format!("deploy {:?} {:?}", request.environment, request.trigger.by));
        Ok(DeploymentId(41))
    }

    async fn rerun(&self, request: RerunRequest) -> Result<DeploymentId> {
        self.asked.lock().unwrap().push(format!("rerun {:?}", request.id));
        Ok(DeploymentId(42))
    }

    async fn rollback(&self, request: RollbackRequest) -> Result<DeploymentId> {
        self.asked.lock().unwrap().push(format!("rollback to {:?} because {}", request.target, request.reason));
        Ok(DeploymentId(43))
    }

    fn backup(&self, request: BackupRequest) -> BoxStream<'static, Result<BackupUpdate>> {
        self.asked.lock().unwrap().push(format!("backup {:?} {:?}", request.environment, request.verb));
        let updates = [
            Ok(BackupUpdate::Said { text: "removing it".to_owned() }),
            Err(ControlError::Failed { message: "it stays".to_owned(), hint: None, code: 1 }),
        ];
        stream::iter(updates).boxed()
    }

    async fn decide(&self, id: DeploymentId, request: ApprovalRequest) -> Result<()> {
        self.asked.lock().unwrap().push(format!("approval {} of {id} by {}", request.approved, request.by));
        Ok(())
    }

    async fn resolve(&self, id: DeploymentId, request: ResolveRequest) -> Result<()> {
        self.asked.lock().unwrap().push(format!("resolve {id}: {}", request.reason));
        Ok(())
    }

    async fn cancel(&self, id: DeploymentId, by: &str) -> Result<()> {
        if id.0 == 404 {
            return Err(ControlError::usage("there is no deployment 404", "see `refit history`"));
        }
        self.asked.lock().unwrap().push(format!("cancel {id} by {by}"));
        Ok(())
    }

    fn follow(&self, _: DeploymentId, _: i64) -> BoxStream<'static, Result<Update>> {
        match self.updates.lock().unwrap().take() {
            Some(updates) => tokio_stream::wrappers::ReceiverStream::new(updates).boxed(),
            None => stream::once(async { Err(ControlError::usage("there is no such deployment", "look")) }).boxed(),
        }
    }

    async fn health(&self) -> Health {
        let status = if self.healthy { "ok" } else { "unavailable" };
        let docker = if self.healthy { "ok".to_owned() } else { format!("refused {SECRET}") };
        Health { status: status.to_owned(), version: "0".to_owned(), store: "ok".to_owned(), docker }
    }

    async fn status(&self) -> Result<Vec<EnvironmentStatus>> {
        let status = json!({
            "app": "guestbook", "environment": "production", "branch": "main", "port": 8000, "runtime": "docker",
            "live": {"deployment": 7, "commit": COMMIT, "subject": format!("leak {SECRET}"), "version": "guestbook:0123456789",
                     "image": "sha256:1", "deployed_at": "2026-01-02T03:04:05Z"},
            "service": {"state": "running", "detail": format!("leak {SECRET}"), "restarts": 0},
            "gate": {"state": "unreachable", "detail": format!("leak {SECRET}"), "held": 0, "live": null},
            "databases": [{"name": "guestbook", "state": "running"}],
            "last": {"id": 8, "status": "failed", "error": format!("no access with {SECRET}"), "finished_at": null},
        });
        Ok(vec![serde_json::from_value(status).unwrap()])
    }
}

/// A server on a port of its own, and what it works on.
pub struct Running {
    pub address: SocketAddr,
    pub verbs: Arc<Recorder>,
    pub stop: CancellationToken,
    pub ended: JoinHandle<()>,
    pub dir: TempDir,
}

pub fn limits() -> Limits {
    Limits::new(512)
}

pub async fn recorder(dir: &Path) -> Recorder {
    let registry = Registry::open(&dir.join("state/refit.db")).await.unwrap();
    Recorder { registry, healthy: true, asked: Mutex::default(), updates: Mutex::default() }
}

impl Running {
    pub async fn start(apps: Vec<Arc<App>>) -> Self {
        Self::start_with(apps, limits(), |_, _| {}).await
    }

    pub async fn start_with(
        apps: Vec<Arc<App>>,
        limits: Limits,
        change: impl FnOnce(&mut Config, &mut Recorder),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), apps);
        let mut verbs = recorder(dir.path()).await;
        change(&mut config, &mut verbs);
        let verbs = Arc::new(verbs);
        let listener = TcpListener::bind(&config.server.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = {
            let (verbs, stop) = (verbs.clone(), stop.clone());
            async move { server::serve_within(listener, verbs, &config, None, limits, stop).await }
        };
        Self { address, verbs, stop, ended: tokio::spawn(serving), dir }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub async fn rows(&self) -> Vec<Delivery> {
        let rows = self.verbs.registry.open_deliveries(10_000).await.unwrap();
        rows.into_iter().map(|row| row.delivery).collect()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> (u16, Value) {
        let response = self.respond(request).await;
        (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap_or(Value::Null))
    }

    pub async fn respond(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        try_send(self.connect().await, request).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.send(request(Method::GET, path)).await
    }
}

/// One request on a connection of its own.
pub async fn try_send(stream: TcpStream, request: Request<Full<Bytes>>) -> hyper::Result<Response<Bytes>> {
    let exchange = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("the server answers or closes")
}

pub fn request(method: Method, path: &str) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(path).header("host", "test").body(Full::default()).unwrap()
}

/// Writes `head` as it is, then everything that `more` gives, and returns what came back until the end.
pub async fn raw(mut stream: TcpStream, bytes: &[u8]) -> String {
    let exchange = async {
        // A server that closes early makes the rest of the write fail; what it said before still counts.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("the server answers and closes")
}

pub fn sign(secret: &str, body: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap().chain_update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// What GitHub sends, as far as it matters, with some of what does not.
pub fn payload(repository: &str, reference: &str, after: &str) -> Value {
    json!({
        "ref": reference, "before": BEFORE, "after": after, "forced": false, "deleted": after == ZEROS,
        "repository": {"id": 1, "full_name": repository, "clone_url": "https://evil.example/elsewhere.git",
                       "ssh_url": "git@evil.example:elsewhere.git", "owner": {"login": "acme"}},
        "pusher": {"name": "ada", "email": "ada@example.org"},
        "head_commit": {"id": after, "message": "Say hello", "timestamp": "2026-01-02T03:04:05Z"},
        "commits": [{"id": after, "added": ["a"], "author": {"name": "ada"}}],
    })
}

/// A webhook request that can be bent out of shape.
#[derive(Clone)]
pub struct Hook {
    pub body: Vec<u8>,
    pub signature: Option<String>,
    pub event: Option<String>,
    pub delivery: Option<String>,
    pub content_type: Option<String>,
}

impl Hook {
    pub fn new(secret: &str, body: impl ToString) -> Self {
        let body = body.to_string().into_bytes();
        Self {
            signature: Some(sign(secret, &body)),
            body,
            event: Some("push".to_owned()),
            delivery: Some("72d3162e-cc78-11e3-81ab-4c9367dc0958".to_owned()),
            content_type: Some("application/json".to_owned()),
        }
    }

    pub fn push(reference: &str) -> Self {
        Self::new(SECRET, payload("acme/guestbook", reference, COMMIT))
    }

    pub fn delivery(self, id: &str) -> Self {
        Self { delivery: Some(id.to_owned()), ..self }
    }

    pub fn event(self, event: &str) -> Self {
        Self { event: Some(event.to_owned()), ..self }
    }

    pub fn signature(self, signature: Option<&str>) -> Self {
        Self { signature: signature.map(str::to_owned), ..self }
    }

    pub fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(Method::POST).uri("/hooks/github").header("host", "test");
        for (name, value) in [
            ("x-hub-signature-256", &self.signature),
            ("x-github-event", &self.event),
            ("x-github-delivery", &self.delivery),
            ("content-type", &self.content_type),
        ] {
            if let Some(value) = value {
                request = request.header(name, value.as_bytes());
            }
        }
        request.body(Full::new(self.body.clone().into())).unwrap()
    }
}

pub fn trigger() -> Trigger {
    Trigger { kind: TriggerKind::Cli, by: Some("ada".to_owned()), delivery: None, forced: false }
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}
