//! A root, a repository and an environment of its own for each test; everything that still runs at its end is ended.

use std::{
    collections::BTreeMap,
    future::Future,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use refit::{
    config::{
        Build, Builder, Environment, Health, LogRotation, PathRules, Probe, Pull, Retention, Rollback, RuntimeKind,
        Smoke, Start, Strategy,
    },
    git::Mirror,
    log::DeploymentLog,
    model::{CommitId, DeploymentId, EnvironmentKey},
    redact::Redactor,
    runtime::{
        Artefact, BuildRequest, CandidateSpec, Instance, InstanceState, Job, OneOff, Result, Runtime,
        process::ProcessRuntime,
    },
    secret::Secret,
};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Fixture {
    pub runtime: ProcessRuntime,
    pub mirror: Mirror,
    pub commit: CommitId,
    pub environment: Environment,
    pub env: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, Secret>,
    /// The value of `MARK` in every app of this test.
    pub mark: String,
    pub dir: tempfile::TempDir,
}

/// A runtime on the same root, as another daemon would make it.
pub fn runtime_in(dir: &Path) -> ProcessRuntime {
    ProcessRuntime::new(dir.join("process"), PathBuf::from(env!("CARGO_BIN_EXE_refit")))
}

impl Fixture {
    pub fn new(command: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let repository = dir.path().join("repository");
        git(dir.path(), &["init", "--quiet", "--bare", "repository"]);
        let commit = commit_files(&repository, &[("hello.txt", "hello\n")]);
        let mark = format!("refit-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        Self {
            runtime: runtime_in(dir.path()),
            mirror: Mirror::new(repository, "unused"),
            commit,
            environment: environment(command),
            env: BTreeMap::from([("MARK".to_owned(), mark.clone())]),
            secrets: BTreeMap::new(),
            mark,
            dir,
        }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("process")
    }

    pub fn environment_dir(&self) -> PathBuf {
        self.root().join("guestbook/production")
    }

    pub fn instance_dir(&self, instance: &Instance) -> PathBuf {
        self.root().join(".instances").join(&instance.name)
    }

    /// A new commit with these files only, on top of nothing.
    pub fn commit(&mut self, files: &[(&str, &str)]) {
        self.commit = commit_files(&self.mirror.dir, files);
    }

    pub async fn build(&self, deployment: i64, job: &Job) -> Result<Artefact> {
        let deployment = DeploymentId(deployment);
        let (environment, commit, mirror) = (&self.environment, &self.commit, &self.mirror);
        self.runtime.build(&BuildRequest { environment, deployment, commit, mirror, target: None }, job).await
    }

    /// Builds and prepares deployment 1.
    pub async fn prepared(&self) -> Instance {
        let artefact = self.build(1, &job()).await.expect("a build");
        self.prepare(1, &artefact.id).await.expect("an instance")
    }

    pub async fn prepare(&self, deployment: i64, artefact: &str) -> Result<Instance> {
        let (environment, commit, env, secrets) = (&self.environment, &self.commit, &self.env, &self.secrets);
        let deployment = DeploymentId(deployment);
        self.runtime.prepare(&CandidateSpec { environment, deployment, commit, artefact, env, secrets }).await
    }

    pub async fn started(&self) -> Instance {
        let instance = self.prepared().await;
        self.runtime.start(&instance).await.expect("a start");
        instance
    }

    pub async fn inspect(&self, instance: &Instance) -> InstanceState {
        self.runtime.inspect(instance).await.expect("a state")
    }

    pub fn one_off<'a>(&'a self, role: &'a str, run: &'a str) -> OneOff<'a> {
        OneOff {
            environment: &self.environment,
            deployment: DeploymentId(1),
            role,
            artefact: "",
            run,
            env: &self.env,
            secrets: &self.secrets,
            networks: &[],
            with_volumes: false,
            tree: Some((&self.mirror, &self.commit)),
            collect: None,
        }
    }

    /// A number out of `state.json`, such as `/app/leader/pid`.
    pub fn state(&self, instance: &Instance, pointer: &str) -> i64 {
        let text = std::fs::read_to_string(self.instance_dir(instance).join("state.json")).expect("a state file");
        let state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        state.pointer(pointer).and_then(serde_json::Value::as_i64).unwrap_or_else(|| panic!("{pointer} in {text}"))
    }

    /// Pids of every living process that carries this test's mark.
    pub fn marked(&self) -> Vec<i64> {
        let wanted = format!("MARK={}", self.mark);
        let mut pids = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environ.split(|b| *b == 0).any(|pair| pair == wanted.as_bytes()) {
                pids.push(pid);
            }
        }
        pids
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let runtime = self.runtime.clone();
        let key = self.environment.key.clone();
        // On a thread of its own: this one may be inside a runtime.
        let cleaned = std::thread::spawn(move || {
            let tokio = tokio::runtime::Runtime::new().expect("a runtime");
            tokio.block_on(async {
                for instance in runtime.instances(&key).await.unwrap_or_default() {
                    let _ = runtime.remove(&instance).await;
                }
            });
        });
        let _ = cleaned.join();
    }
}

fn git(dir: &Path, args: &[&str]) -> String {
    let out = Command::new("git").args(args).current_dir(dir).output().expect("git");
    assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// Commits straight into a bare repository, by way of a work tree that is thrown away.
fn commit_files(repository: &Path, files: &[(&str, &str)]) -> CommitId {
    let tree = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in files {
        std::fs::write(tree.path().join(name), text).expect("a file");
    }
    git(tree.path(), &["init", "--quiet"]);
    git(tree.path(), &["add", "--all"]);
    let who = ["-c", "user.name=T", "-c", "user.email=t@example.org"];
    git(tree.path(), &[&who[..], &["commit", "--quiet", "--allow-empty", "--message", "files"]].concat());
    let branch = format!("HEAD:refs/heads/b{}", tree.path().file_name().unwrap_or_default().display());
    git(tree.path(), &["push", "--quiet", &repository.display().to_string(), &branch]);
    git(tree.path(), &["rev-parse", "HEAD"]).parse().expect("a commit id")
}

pub fn job() -> Job {
    Job { log: DeploymentLog::discard(Redactor::default()).section("test"), cancel: CancellationToken::new() }
}

/// Polls until `condition` holds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn alive(pid: i64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z")
}

pub fn kill(pid: i64) {
    let status = Command::new("kill").args(["-KILL", &pid.to_string()]).status().expect("kill");
    assert!(status.success(), "no process {pid}");
}

fn environment(command: &str) -> Environment {
    let second = Duration::from_secs(1);
    Environment {
        key: EnvironmentKey {
            app: "guestbook".parse().expect("a name"),
            environment: "production".parse().expect("a name"),
        },
        repository: "unused".to_owned(),
        branch: "main".parse().expect("a branch"),
        port: None,
        bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
        paths: PathRules::default(),
        requires: Vec::new(),
        parallel: true,
        approval: None,
        pull: Pull { timeout: second, retries: 0 },
        backups: Vec::new(),
        rehearse_backups: None,
        backup_retention: Retention { keep: 1, keep_days: 1 },
        tests: Vec::new(),
        build: Build {
            context: ".".to_owned(),
            dockerfile: "Dockerfile".to_owned(),
            target: None,
            args: BTreeMap::new(),
            builder: Builder::Auto,
            timeout: second,
            run: None,
            no_cache: false,
        },
        migrate: None,
        start: start(command),
        smoke: Smoke { checks: Vec::new(), bake: second, interval: second, timeout: second, max_error_rate: None },
        rollback: Rollback { automatic: true, keep: 1 },
    }
}

fn start(command: &str) -> Start {
    let second = Duration::from_secs(1);
    Start {
        gate: None,
        runtime: RuntimeKind::Process,
        strategy: Strategy::Recreate,
        strategy_reason: None,
        container_port: None,
        networks: Vec::new(),
        volumes: Vec::new(),
        command: Some(vec![command.to_owned()]),
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
        user: None,
        memory: None,
        cpus: None,
        init: false,
        stop_timeout: 10 * second,
        log: LogRotation { max_size: 1024 * 1024, max_file: 2 },
        health: Health {
            probe: Probe::Running,
            interval: second,
            timeout: second,
            successes: 1,
            deadline: second,
            settle: second,
        },
    }
}
