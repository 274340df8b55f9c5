//! A site: an app's repository, its bare origin, a `pipeline.toml`, and the refit binary at work on them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

pub mod disk;
mod http;
pub mod load;
mod ports;
#[expect(dead_code, reason = "the notifier's own tests, which share it, order the other kinds of trouble")]
pub mod telegram;

pub mod proxy;
pub mod servers;

pub use http::{Answer, http, sign};
pub use ports::free_port;

/// How long anything is waited for; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(90);

pub const WEBHOOK_SECRET: &str = "It's a Secret to Everybody";

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Docker,
    Process,
}

/// An app with its repository and configuration in a directory of its own.
#[derive(Debug)]
pub struct Site {
    dir: TempDir,
    /// Unique on this machine: also the app's name.
    pub app: String,
    pub port: u16,
    pub http: u16,
    kind: Kind,
    daemon: Option<Child>,
    env: Vec<(String, String)>,
    /// More tables for `pipeline.toml`.
    extra: String,
    environment_extra: String,
}

impl Site {
    /// An app on the Docker runtime: busybox' httpd behind a shell script.
    pub fn docker() -> Self {
        Self::new(Kind::Docker)
    }

    /// An app on the process runtime: Python's http.server.
    pub fn process() -> Self {
        Self::new(Kind::Process)
    }

    fn new(kind: Kind) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let app = format!("t{}-{n}", std::process::id());
        let dir = tempfile::Builder::new().prefix("refit-it-").tempdir().expect("a temporary directory");
        let site = Self {
            dir,
            app,
            port: free_port(),
            http: free_port(),
            kind,
            daemon: None,
            env: vec![("GITHUB_WEBHOOK_SECRET".into(), WEBHOOK_SECRET.into())],
            extra: String::new(),
            environment_extra: String::new(),
        };
        for dir in [site.work(), site.home()] {
            fs::create_dir_all(dir).expect("a directory");
        }
        site.git_in(site.path(), &["init", "-q", "--bare", "-b", "main", "origin.git"]);
        site.git(&["init", "-q", "-b", "main"]);
        site.git(&["remote", "add", "origin", &site.origin().display().to_string()]);
        site.write_app();
        site.version("one");
        site.write_config();
        site
    }

    fn write_app(&self) {
        match self.kind {
            Kind::Docker => {
                self.write(
                    "Dockerfile",
                    "FROM refit-test/busybox:1 AS base\nCOPY . /app\nWORKDIR /app\n\
                     FROM base AS test\n\
                     FROM base AS app\nCMD [\"sh\", \"/app/run.sh\"]\n",
                );
                self.write("run.sh", "exec httpd -f -p 8080 -h /app/www\n");
            }
            Kind::Process => {
                self.write("run.sh", "exec python3 -m http.server --bind 127.0.0.1 --directory www $PORT\n")
            }
        }
        self.write("test.sh", "echo tests ran\n");
        self.write("www/health", "ok");
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn work(&self) -> PathBuf {
        self.path().join("work")
    }

    pub fn home(&self) -> PathBuf {
        self.path().join("home")
    }

    pub fn origin(&self) -> PathBuf {
        self.path().join("origin.git")
    }

    pub fn config_file(&self) -> PathBuf {
        self.path().join("pipeline.toml")
    }

    /// Adds to `pipeline.toml`, after the tables that are there.
    pub fn with(mut self, extra: &str) -> Self {
        self.extra.push_str(extra);
        self.extra.push('\n');
        self.write_config();
        self
    }

    /// Adds keys to `[environments.production]`.
    pub fn with_environment(mut self, extra: &str) -> Self {
        self.environment_extra.push_str(extra);
        self.environment_extra.push('\n');
        self.write_config();
        self
    }

    /// `[build]` of the process runtime: its build waits between `hold` and `let_go`.
    pub fn with_held_build(self) -> Self {
        let hold = self.hold_file();
        self.with(&format!("[build]\nrun = \"while [ -e {} ]; do sleep 0.05; done\"", hold.display()))
    }

    fn hold_file(&self) -> PathBuf {
        self.path().join("hold")
    }

    pub fn hold(&self) {
        fs::write(self.hold_file(), "").expect("a file");
    }

    pub fn let_go(&self) {
        fs::remove_file(self.hold_file()).expect("it was held");
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.set_env(key, value);
        self
    }

    /// A variable of every process from now on.
    pub fn set_env(&mut self, key: &str, value: &str) {
        self.env.retain(|(k, _)| k != key);
        self.env.push((key.into(), value.into()));
    }

    fn write_config(&self) {
        let start = match self.kind {
            Kind::Docker => "[start]\nstrategy = \"recreate\"\ncontainer_port = 8080\nstop_timeout = \"2s\"\n",
            Kind::Process => {
                "[start]\nstrategy = \"recreate\"\nruntime = \"process\"\ncommand = \"sh run.sh\"\nstop_timeout = \"2s\"\n"
            }
        };
        // A test that brings its own [smoke] replaces the quick one.
        let smoke = if self.extra.contains("[smoke]") {
            ""
        } else {
            "[smoke]\nbake = \"0s\"\n[[smoke.check]]\nhttp = \"/health\"\ncontains = [\"ok\"]\n"
        };
        let health = if self.extra.contains("[start.health]") {
            ""
        } else {
            "[start.health]\npath = \"/health\"\ninterval = \"50ms\"\ndeadline = \"15s\"\n"
        };
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:{}\"\nreconcile = \"0s\"\n\
             [webhooks.github]\nsecret = [{{ env = \"GITHUB_WEBHOOK_SECRET\" }}]\n\
             [app]\nname = \"{}\"\nrepository = \"origin.git\"\nfull_name = \"acme/{}\"\n\
             [environments.production]\nbranch = \"main\"\nport = {}\nbind = \"127.0.0.1\"\n{}\n\
             {start}{health}{smoke}{}\n",
            self.http, self.app, self.app, self.port, self.environment_extra, self.extra
        );
        fs::write(self.config_file(), text).expect("pipeline.toml");
    }

    /// Replaces text that stands in `pipeline.toml` once, after everything that `with` added.
    #[track_caller]
    pub fn edit_config(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config_file()).expect("pipeline.toml");
        assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
        fs::write(self.config_file(), text.replace(from, to)).expect("pipeline.toml");
    }

    /// Adds `[telegram]` for a stand-in; the token comes from the environment.
    pub fn with_telegram(self, api: &telegram::BotApi) -> Self {
        let table = format!(
            "[telegram]\ntoken = {{ env = \"TELEGRAM_API_TOKEN\" }}\nchat = {}\napi_url = \"{}\"\n",
            telegram::CHAT,
            api.url()
        );
        // That a report was settled is a matter for the log's details.
        self.env("TELEGRAM_API_TOKEN", telegram::TOKEN).env("REFIT_LOG", "info,refit=debug").with(&table)
    }

    /// Waits until the daemon, in all its lives, has noted that Telegram took so many reports: later than Telegram took
    /// them. Before that a kill makes it send the last one again.
    #[track_caller]
    pub fn wait_for_settled_reports(&self, wanted: usize) {
        let is_one = |line: &&str| line.contains("reported to Telegram") && line.contains("kind=\"end\"");
        let settled = || self.daemon_log().lines().filter(is_one).count();
        let all = poll(|| (settled() >= wanted).then_some(()));
        all.unwrap_or_else(|| panic!("{} of {wanted} reports were settled: {}", settled(), self.daemon_log()));
    }

    pub fn write(&self, path: &str, content: &str) {
        let path = self.work().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, content).expect("a file");
    }

    /// What the app's start page says.
    pub fn version(&self, text: &str) {
        self.write("www/index.html", &format!("version {text}\n"));
    }

    pub fn git(&self, args: &[&str]) -> String {
        self.git_in(&self.work(), args)
    }

    fn git_in(&self, dir: &Path, args: &[&str]) -> String {
        self.run_git(dir, args).expect(0).stdout.trim().to_owned()
    }

    /// What `git` said and how it ended.
    pub fn try_git(&self, args: &[&str]) -> Ran {
        self.run_git(&self.work(), args)
    }

    fn run_git(&self, dir: &Path, args: &[&str]) -> Ran {
        let mut git = self.command(Path::new("git"));
        git.current_dir(dir).args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]).args(args);
        git.output().expect("git runs").into()
    }

    /// Commits everything and returns the commit's id.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Commits and pushes to `main` without telling anybody.
    pub fn push(&self, message: &str) -> String {
        let commit = self.commit(message);
        self.git(&["push", "-q", "--force", "origin", "HEAD:main"]);
        commit
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.home());
        command.env("GIT_CONFIG_NOSYSTEM", "1").envs(self.env.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null());
        command
    }

    /// The binary with this site's configuration.
    pub fn refit_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(Path::new(env!("CARGO_BIN_EXE_refit")));
        command.current_dir(self.path()).arg("--config").arg(self.config_file()).args(args);
        command
    }

    pub fn refit(&self, args: &[&str]) -> Ran {
        self.refit_command(args).output().expect("refit runs").into()
    }

    /// `refit deploy` and the deployment it made.
    #[track_caller]
    pub fn deploy(&self, code: i32) -> Value {
        self.refit(&["deploy"]).expect(code);
        self.newest()
    }

    pub fn show(&self, id: i64) -> Value {
        self.refit(&["show", &id.to_string(), "--format", "json"]).expect(0).json()
    }

    pub fn history(&self) -> Vec<Value> {
        let all = self.refit(&["history", "--format", "json", "--limit", "1000"]).expect(0).json();
        all.as_array().expect("an array").clone()
    }

    #[track_caller]
    pub fn newest(&self) -> Value {
        self.history().first().expect("a deployment").clone()
    }

    /// The log of a deployment.
    pub fn log_of(&self, deployment: &Value) -> String {
        let name = deployment["log"].as_str().expect("a log");
        let path = Path::new(name);
        let path = if path.is_absolute() { path.to_owned() } else { self.path().join("logs").join(path) };
        fs::read_to_string(path).expect("the log can be read")
    }

    // ---- the daemon

    pub fn serve(&mut self) {
        self.spawn_daemon();
        assert!(self.daemon_is_up(), "the daemon is not up: {}", self.daemon_log());
    }

    /// Starts the daemon and does not wait for it: one that was ordered to die may never answer.
    pub fn spawn_daemon(&mut self) {
        let log =
            fs::File::options().create(true).append(true).open(self.path().join("daemon.log")).expect("a log file");
        let mut serve = self.refit_command(&["serve"]);
        let child = serve.stdout(log.try_clone().expect("a handle")).stderr(log).spawn();
        self.daemon = Some(child.expect("the daemon starts"));
    }

    /// Waits until the daemon answers; `false` if it ended instead.
    pub fn daemon_is_up(&mut self) -> bool {
        let up = poll(|| {
            if self.daemon_has_ended() {
                return Some(false);
            }
            // 503 is an answer too: the daemon is up, and Docker may not be.
            http(self.http, "GET", "/_deploy/health", &[], b"").ok().map(|_| true)
        });
        up.unwrap_or_else(|| panic!("the daemon is not up: {}", self.daemon_log()))
    }

    /// Whether it is gone, however it went.
    pub fn daemon_has_ended(&mut self) -> bool {
        let ended = self.daemon.as_mut().is_none_or(|child| child.try_wait().expect("a child").is_some());
        if ended {
            self.daemon = None;
        }
        ended
    }

    /// Waits until the daemon ended by itself; `false` if it does not.
    pub fn daemon_ends(&mut self) -> bool {
        poll(|| self.daemon_has_ended().then_some(())).is_some()
    }

    pub fn daemon_pid(&self) -> i32 {
        i32::try_from(self.daemon.as_ref().expect("a daemon").id()).expect("a process id")
    }

    pub fn daemon_log(&self) -> String {
        fs::read_to_string(self.path().join("daemon.log")).unwrap_or_default()
    }

    /// Waits until the daemon has said `words`.
    #[track_caller]
    pub fn wait_for_log(&self, words: &str) {
        let said = poll(|| self.daemon_log().contains(words).then_some(()));
        said.unwrap_or_else(|| panic!("no word of `{words}`: {}", self.daemon_log()));
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, name: &str) {
        let pid = self.daemon_pid().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs");
        assert!(sent.success(), "kill -s {name} {pid}");
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill_daemon(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            child.kill().expect("the daemon is killed");
            child.wait().expect("the daemon is gone");
        }
    }

    /// SIGTERM, and its exit code.
    pub fn stop_daemon(&mut self) -> i32 {
        self.signal("TERM");
        self.wait_for_the_daemons_end()
    }

    /// Its exit code.
    pub fn wait_for_the_daemons_end(&mut self) -> i32 {
        let mut child = self.daemon.take().expect("a daemon");
        let status = poll(|| child.try_wait().expect("the daemon can be waited for"));
        status.expect("the daemon ends after SIGTERM").code().unwrap_or(-1)
    }

    /// Waits until the newest deployment satisfies `wanted`.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = poll(|| self.history().first().filter(|d| wanted(d)).cloned());
        found.unwrap_or_else(|| panic!("{what} did not happen: {:#?}\n{}", self.history().first(), self.daemon_log()))
    }

    /// Waits until no deployment is under way, and returns the newest.
    #[track_caller]
    pub fn settled(&self) -> Value {
        self.wait_for("an end", |d| !matches!(d["status"].as_str(), Some("queued" | "running" | "awaiting_approval")))
    }

    /// What the store says of a delivery, once it was settled without a deployment.
    pub fn ignored_delivery(&self, delivery: &str) -> Option<String> {
        let store = self.path().join(".refit/refit.db");
        let script = "import sqlite3, sys\n\
                      rows = sqlite3.connect(sys.argv[1]).execute('SELECT outcome FROM deliveries WHERE delivery = ?', sys.argv[2:])\n\
                      print(*[row[0] or '' for row in rows])";
        let mut python = self.command(Path::new("python3"));
        let ran: Ran = python.args(["-c", script]).arg(store).arg(delivery).output().expect("python3 runs").into();
        Some(ran.expect(0).stdout).filter(|outcome| outcome.contains("\"ignored\":\""))
    }

    /// A signed push delivery, as GitHub would send it.
    pub fn webhook(&self, delivery: &str, body: &str) -> Answer {
        let signature = sign(WEBHOOK_SECRET, body);
        self.post(delivery, "push", &signature, body)
    }

    pub fn post(&self, delivery: &str, event: &str, signature: &str, body: &str) -> Answer {
        let headers = [
            ("content-type", "application/json"),
            ("x-github-event", event),
            ("x-github-delivery", delivery),
            ("x-hub-signature-256", signature),
        ];
        http(self.http, "POST", "/hooks/github", &headers, body.as_bytes()).expect("the daemon answers")
    }

    /// The body of a push of `commit` to `branch`.
    pub fn push_body(&self, branch: &str, commit: &str) -> String {
        serde_json::json!({
            "ref": format!("refs/heads/{branch}"),
            "before": "0000000000000000000000000000000000000001",
            "after": commit,
            "created": false, "deleted": false, "forced": false,
            "repository": {
                "full_name": format!("acme/{}", self.app),
                "clone_url": "https://evil.example/other.git",
            },
            "pusher": { "name": "ada" },
            "head_commit": { "id": commit, "message": "a change", "timestamp": "2026-11-21T10:00:00Z" },
        })
        .to_string()
    }

    // ---- what users see

    /// The start page on the public port; `None` while nobody answers.
    pub fn page(&self) -> Option<String> {
        http(self.port, "GET", "/", &[], b"").ok().filter(|a| a.status == 200).map(|a| a.body)
    }

    #[track_caller]
    pub fn expect_page(&self, version: &str) {
        assert_eq!(self.page().as_deref().map(str::trim), Some(format!("version {version}").as_str()));
    }

    /// Names of this app's containers, running or not.
    pub fn containers(&self, running_only: bool) -> Vec<String> {
        let filter = format!("label=refit.app={}", self.app);
        let mut args = vec!["ps", "--filter", &filter, "--format", "{{.Names}}"];
        if !running_only {
            args.push("-a");
        }
        let mut names: Vec<String> = docker(&args).lines().map(str::to_owned).collect();
        names.sort();
        names
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let filter = format!("label=refit.app={}", self.app);
        match self.kind {
            Kind::Docker => {
                let ids = docker(&["ps", "-aq", "--filter", &filter]);
                let ids: Vec<&str> = ids.split_whitespace().collect();
                if !ids.is_empty() {
                    docker(&[&["rm", "-f", "-v"], ids.as_slice()].concat());
                }
                let images = docker(&["images", "-q", "--no-trunc", "--filter", &filter]);
                let mut images: Vec<&str> = images.split_whitespace().collect();
                images.sort_unstable();
                images.dedup();
                if !images.is_empty() {
                    let _ = Command::new("docker").arg("rmi").arg("-f").args(images).output();
                }
            }
            Kind::Process => end_all(self.path(), "supervise", "TERM"),
        }
        end_all(self.path(), "gate", "KILL");
    }
}

/// The processes of refit that do `what` below a directory: their arguments name both.
pub fn processes_of(dir: &Path, what: &str) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let (dir, what) = (dir.display().to_string(), format!("\0{what}\0"));
    let ids = processes.flatten().filter_map(|e| e.file_name().to_str().and_then(|n| n.parse::<u32>().ok()));
    ids.filter(|pid| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains(&dir) && line.contains(&what)
    })
    .collect()
}

fn end_all(dir: &Path, what: &str, signal: &str) {
    for pid in processes_of(dir, what) {
        let _ = Command::new("kill").args(["-s", signal, &pid.to_string()]).status();
        poll(|| (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    }
}

/// Runs the docker program and returns what it printed.
#[track_caller]
pub fn docker(args: &[&str]) -> String {
    let ran: Ran = Command::new("docker").args(args).output().expect("docker runs").into();
    if ran.code != 0 {
        panic!("docker {args:?}: {}", ran.stderr);
    }
    ran.stdout
}

/// Asks again and again, for a bounded time.
pub fn poll<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(found) = ask() {
            return Some(found);
        }
        thread::sleep(Duration::from_millis(20));
    }
    None
}
