//! Docker really stopped and started: a private engine with its own data, socket and network, because the machine's is shared.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use refit::model::CommitId;

use super::{
    figure::Figure,
    outages::{Needed, outage},
    rig::{Rig, Version},
};
use crate::support::poll;

/// A `dockerd` that belongs to one test. Its containers reach this host through a bridge of their own and the engine's own port
/// forwarder, without a rule in the host's firewall.
#[derive(Debug)]
struct Engine {
    dir: PathBuf,
    bridge: String,
    daemon: Mutex<Option<Child>>,
}

fn run(program: &str, args: &[&str]) {
    let ran = Command::new(program).args(args).output();
    let ran = ran.unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
    let why = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "a private engine needs root: {program} {args:?}: {why}");
}

impl Engine {
    fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("a directory");
        let pid = std::process::id();
        let bridge = format!("refit{pid}");
        run("ip", &["link", "add", &bridge, "type", "bridge"]);
        let engine = Self { dir: dir.to_owned(), bridge, daemon: Mutex::default() };
        let address = format!("10.213.{}.1/24", pid % 250);
        run("ip", &["address", "add", &address, "dev", &engine.bridge]);
        run("ip", &["link", "set", &engine.bridge, "up"]);
        engine.up();
        engine.copy_image("refit-test/busybox:1");
        engine
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn host(&self) -> String {
        format!("unix://{}", self.path("sock"))
    }

    fn up(&self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log")).expect("a log");
        let bridge = format!("--bridge={}", self.bridge);
        let mut dockerd = Command::new("dockerd");
        dockerd.args(["--data-root", &self.path("data"), "--exec-root", &self.path("exec")]);
        dockerd.args(["--pidfile", &self.path("pid"), "--host", &self.host(), &bridge]);
        dockerd.args(["--iptables=false", "--ip-masq=false", "--ip-forward=false"]);
        let child = dockerd.stdout(log.try_clone().expect("a handle")).stderr(log).spawn().expect("dockerd starts");
        *self.daemon.lock().expect("a lock") = Some(child);
        let host = self.host();
        let answers = || Command::new("docker").args(["--host", &host, "info"]).output().expect("docker runs").status;
        let up = poll(|| answers().success().then_some(()));
        up.unwrap_or_else(|| {
            panic!("the engine is not up: {}", fs::read_to_string(self.path("log")).unwrap_or_default())
        });
    }

    /// As its service is stopped: every container is stopped too.
    fn down(&self) {
        let Some(mut child) = self.daemon.lock().expect("a lock").take() else { return };
        let _ = Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
        if poll(|| child.try_wait().ok().flatten()).is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn copy_image(&self, image: &str) {
        let saved = Command::new("docker").args(["save", image]).output().expect("docker runs").stdout;
        let mut load = Command::new("docker");
        load.args(["--host", &self.host(), "load", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut load = load.spawn().expect("docker runs");
        load.stdin.take().expect("a pipe").write_all(&saved).expect("the image is sent");
        assert!(load.wait().expect("docker ends").success(), "{image} was not loaded");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.down();
        let _ = Command::new("ip").args(["link", "delete", &self.bridge]).output();
    }
}

impl Needed for Engine {
    fn take_away(&self) {
        self.down();
    }

    fn is_missed(&self, rig: &Rig, commit: &CommitId) -> bool {
        rig.was_hurt(commit)
    }

    fn give_back(&self) {
        self.up();
    }
}

#[test]
fn docker_stops_and_starts_in_the_middle() {
    let points = [
        (Version::Good, "step:build:intent"),
        (Version::Good, "step:migrate:intent"),
        (Version::Good, "step:start:intent"),
        (Version::Good, "step:start:effect"),
        (Version::Bad, "undo:start:intent"),
    ];
    let mut figure = Figure::new("the engine stopped and started", points.len());
    let mut rig = Rig::new();
    let engine = Engine::start(&rig.site.path().join("engine"));
    rig.use_engine(&engine.host());
    rig.begin();
    for (version, point) in points {
        let found = outage(&mut rig, &engine, version, point);
        figure.ran(&format!("{version:?}, the engine stopped at {point}"), found);
    }
    figure.close();
}
