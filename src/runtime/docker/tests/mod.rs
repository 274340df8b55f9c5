//! Against the real engine, with images made of busybox. Each test has an app name of its own and removes what carries it.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::TryStreamExt;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    config::{
        Build, Builder, Health, LogRotation, PathRules, Probe, Pull, Retention, Rollback, RuntimeKind, Smoke, Start,
        Strategy,
    },
    git::Mirror,
    log::DeploymentLog,
    model::{CommitId, Stage},
    redact::Redactor,
    runtime::{RuntimeError, SeenArtefact, SeenHelper, SeenInstance},
    secret::Secret,
};

mod building;
mod life;
mod one_off;

const SECOND: Duration = Duration::from_secs(1);

struct Fixture {
    runtime: DockerRuntime,
    environment: Environment,
    repo: tempfile::TempDir,
    base: String,
    job: Job,
    env: BTreeMap<String, String>,
    secrets: BTreeMap<String, Secret>,
}

impl Fixture {
    /// An app, and an image `base` with a shell.
    async fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let app = format!("rt{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let engine = Engine::connect(None).expect("engine");
        let fixture = Self {
            runtime: DockerRuntime::new(engine),
            environment: environment(&app),
            repo: tempfile::tempdir().expect("tempdir"),
            base: format!("{app}-base:1"),
            job: Job {
                log: DeploymentLog::discard(Redactor::new([&Secret::new("s3cret-value")])).stage(Stage::Build),
                cancel: CancellationToken::new(),
            },
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
        };
        fixture.git(&["init", "-q", "-b", "main", "."]);
        let options = CreateImageOptionsBuilder::new().from_src("-").repo(&format!("{app}-base")).tag("1").build();
        let body = bollard::body_full(busybox().into());
        let created = fixture.runtime.docker.create_image(Some(options), Some(body), None);
        created.try_collect::<Vec<_>>().await.expect("import");
        fixture
    }

    fn app(&self) -> &str {
        self.environment.key.app.as_str()
    }

    fn git(&self, args: &[&str]) -> String {
        let out = Command::new("git")
            .current_dir(self.repo.path())
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"])
            .args(args)
            .output()
            .expect("git");
        assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.repo.path().join(path);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        std::fs::write(path, text).expect("write");
    }

    /// Commits everything, with a Dockerfile of these lines after `FROM base`.
    fn commit(&self, dockerfile: &str) -> CommitId {
        self.write("Dockerfile", &format!("FROM {}\n{dockerfile}\n", self.base));
        self.git(&["add", "-A", "."]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "c"]);
        self.git(&["rev-parse", "HEAD"]).parse().expect("id")
    }

    fn mirror(&self) -> Mirror {
        Mirror::new(self.repo.path().join(".git"), "")
    }

    async fn build(&self, commit: &CommitId, target: Option<&str>) -> Result<Artefact> {
        let mirror = self.mirror();
        let request = BuildRequest {
            environment: &self.environment,
            deployment: DeploymentId(7),
            commit,
            mirror: &mirror,
            target,
        };
        self.runtime.build(&request, &self.job).await
    }

    /// A one-off of the base image, to be changed with `..`.
    fn one_off<'a>(&'a self, run: &'a str) -> OneOff<'a> {
        OneOff {
            environment: &self.environment,
            deployment: DeploymentId(7),
            role: "test-unit",
            artefact: &self.base,
            run,
            env: &self.env,
            secrets: &self.secrets,
            networks: &[],
            with_volumes: false,
            tree: None,
            collect: None,
        }
    }

    async fn run(&self, one_off: OneOff<'_>) -> Result<OneOffResult> {
        self.runtime.run_once(&one_off, &self.job).await
    }

    async fn prepare(&self, deployment: i64) -> Result<Instance> {
        let commit = "0123456789abcdef0123456789abcdef01234567".parse().expect("id");
        let spec = CandidateSpec {
            environment: &self.environment,
            deployment: DeploymentId(deployment),
            commit: &commit,
            artefact: &self.base,
            env: &self.env,
            secrets: &self.secrets,
        };
        self.runtime.prepare(&spec).await
    }

    /// Runs this shell script as the app.
    fn app_runs(&mut self, script: &str) {
        self.environment.start.command = Some(["/bin/sh", "-c", script].map(str::to_owned).to_vec());
    }

    /// Inspects until `wanted` says yes.
    async fn until(&self, instance: &Instance, wanted: impl Fn(&InstanceState) -> bool) -> InstanceState {
        let mut last = None;
        for _ in 0..600 {
            let state = self.runtime.inspect(instance).await.expect("inspect");
            if wanted(&state) {
                return state;
            }
            last = Some(state);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never came: {last:?}");
    }

    /// Every container of this app.
    async fn containers(&self) -> Vec<String> {
        let all = instances::labelled(&self.runtime.docker, &[("refit.app", self.app())]).await.expect("list");
        all.iter().map(container_name).collect()
    }

    fn said(&self) -> String {
        self.job.log.tail().join("\n")
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Blocking, so that it also works while a failed test unwinds. The nameless images are those of steps and of failed builds.
        let script = format!(
            "docker ps -aq --filter label=refit.app={app} | xargs -r docker rm -fv; \
             base=$(docker images -q --no-trunc {app}-base:1); \
             for image in $(docker images -q --filter dangling=true); do \
               [ -n \"$base\" ] && docker history -q --no-trunc $image | grep -q \"$base\" && docker rmi -f $image; \
             done; \
             docker images --format '{{{{.Repository}}}}:{{{{.Tag}}}}' | grep -E '^{app}(-test|-base)?:' | xargs -r docker rmi -f; \
             docker images -q --filter label=refit.app={app} | xargs -r docker rmi -f; \
             docker network ls -q --filter label=refit.app={app} | xargs -r docker network rm; \
             docker volume ls -q | grep '^{app}-' | xargs -r docker volume rm",
            app = self.app()
        );
        drop(Command::new("/bin/sh").arg("-c").arg(script).output());
    }
}

/// Whether something on this host runs with `marker` in its arguments.
fn runs(marker: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes.filter_map(|p| std::fs::read(p.path().join("cmdline")).ok()).any(|line| {
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(marker)
    })
}

async fn until_gone(marker: &str) {
    for _ in 0..600 {
        if !runs(marker) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{marker} still runs");
}

/// A number of seconds that no other test sleeps.
fn marker() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("sleep {}{:03}", 1000 + std::process::id() % 9000, COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// A root file system: busybox and links to it.
fn busybox() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind, size: usize, mode| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(mode);
        header
    };
    for dir in ["bin/", "tmp/", "etc/"] {
        tar.append_data(&mut header(tar::EntryType::Directory, 0, 0o1777), dir, std::io::empty()).expect("dir");
    }
    let program = std::fs::read("/bin/busybox").expect("/bin/busybox");
    let mut head = header(tar::EntryType::Regular, program.len(), 0o755);
    tar.append_data(&mut head, "bin/busybox", program.as_slice()).expect("busybox");
    for name in
        ["sh", "sleep", "cat", "echo", "ls", "mkdir", "tail", "id", "pwd", "test", "httpd", "kill", "env", "seq"]
    {
        let mut head = header(tar::EntryType::Symlink, 0, 0o777);
        tar.append_link(&mut head, format!("bin/{name}"), "/bin/busybox").expect("link");
    }
    tar.into_inner().expect("tar")
}

fn environment(app: &str) -> Environment {
    let text = str::to_owned;
    let start = Start {
        runtime: RuntimeKind::Docker,
        gate: None,
        strategy: Strategy::Recreate,
        strategy_reason: None,
        container_port: None,
        networks: Vec::new(),
        volumes: Vec::new(),
        command: Some(["/bin/sh", "-c", "exec sleep 1000"].map(text).to_vec()),
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
        user: None,
        memory: None,
        cpus: None,
        init: true,
        stop_timeout: SECOND,
        log: LogRotation { max_size: 1024 * 1024, max_file: 2 },
        health: Health {
            probe: Probe::Running,
            interval: SECOND,
            timeout: SECOND,
            successes: 1,
            deadline: SECOND,
            settle: SECOND,
        },
    };
    Environment {
        key: EnvironmentKey { app: app.parse().expect("name"), environment: "production".parse().expect("name") },
        repository: "https://git.example/acme/app.git".to_owned(),
        branch: "main".parse().expect("branch"),
        port: None,
        bind: Ipv4Addr::LOCALHOST.into(),
        paths: PathRules::default(),
        requires: Vec::new(),
        parallel: true,
        approval: None,
        pull: Pull { timeout: SECOND, retries: 0 },
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
            timeout: 120 * SECOND,
            run: None,
            no_cache: false,
        },
        migrate: None,
        start,
        smoke: Smoke { checks: Vec::new(), bake: SECOND, interval: SECOND, timeout: SECOND, max_error_rate: None },
        rollback: Rollback { automatic: true, keep: 1 },
    }
}

#[tokio::test]
async fn an_engine_says_what_it_is_and_one_that_is_away_how_to_get_it_back() {
    let runtime = DockerRuntime::new(Engine::connect(None).expect("engine"));
    let info = runtime.check().await.expect("check");
    assert!(info.kind == "docker" && !info.version.is_empty() && info.detail.starts_with("API 1."), "{info:?}");

    let dir = tempfile::tempdir().expect("tempdir");
    let socket = dir.path().join("docker.sock");
    let host = format!("unix://{}", socket.display());
    let away = DockerRuntime::new(Engine::connect(Some(&host)).expect("connecting does not need the engine"));
    let error = away.check().await.expect_err("away");
    assert!(matches!(error, RuntimeError::Unavailable { .. }), "{error:?}");
    let told = error.to_string();
    assert!(
        told.contains(&host) && told.contains("(DOCKER_HOST) cannot be reached: it is not running; start it with"),
        "{told}"
    );

    // Something listens and never answers: no hang.
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
    let error = away.check().await.expect_err("hung");
    assert!(error.to_string().contains("did not answer within 5 s"), "{error}");
    assert!(Engine::connect(Some("ssh://host")).is_err_and(|e| e.to_string().contains("ssh://")));
}
