//! Threat 27: Docker down at the start, hung, and stopped in the middle. The engine of this machine is shared, so what is away is
//! the way to it: a socket of our own that leads to the real one, to nobody, or into silence.

use std::{
    io,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::support::{Site, docker, http, poll};

/// A Unix socket before the engine's, which can be cut.
struct Proxy {
    path: PathBuf,
    open: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

impl Proxy {
    fn start(path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).expect("a socket");
        let open = Arc::new(AtomicBool::new(true));
        let streams: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
        let (is_open, kept) = (Arc::clone(&open), Arc::clone(&streams));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if !is_open.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(engine) = UnixStream::connect("/var/run/docker.sock") else { continue };
                let mut kept = kept.lock().expect("a lock");
                for stream in [&client, &engine] {
                    kept.push(stream.try_clone().expect("a handle"));
                }
                pump(&client, &engine);
                pump(&engine, &client);
            }
        });
        Self { path, open, streams }
    }

    /// Ends every connection and takes no more.
    fn cut(&self) {
        self.open.store(false, Ordering::SeqCst);
        for stream in self.streams.lock().expect("a lock").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn mend(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    fn host(&self) -> String {
        format!("unix://{}", self.path.display())
    }
}

fn pump(from: &UnixStream, to: &UnixStream) {
    let (mut from, mut to) = (from.try_clone().expect("a handle"), to.try_clone().expect("a handle"));
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}

#[test]
fn docker_is_down_at_the_start() {
    let site = Site::docker().env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    site.push("first");
    let deployment = site.deploy(69);
    assert_eq!(deployment["status"], "failed");
    let error = deployment["error"].as_str().unwrap();
    assert!(error.to_lowercase().contains("docker"), "{error}");
    let doctor = site.refit(&["doctor"]);
    assert_eq!(doctor.code, 69, "{doctor:?}");
    assert!(doctor.stdout.to_lowercase().contains("docker"), "{doctor:?}");
}

#[test]
fn docker_is_down_at_the_daemons_start_and_comes_back() {
    let mut site = Site::docker();
    let proxy = Proxy::start(site.path().join("engine.sock"));
    proxy.cut();
    site = site.env("DOCKER_HOST", &proxy.host());
    let first = site.push("first");
    site.serve();
    let health = http(site.http, "GET", "/_deploy/health", &[], b"").unwrap();
    assert_eq!(health.status, 503, "{health:?}");
    assert!(health.json()["docker"].as_str().is_some_and(|why| why != "ok"), "{health:?}");
    assert_eq!(site.webhook("d-1", &site.push_body("main", &first)).status, 202, "pushes are taken all the same");
    let failed = site.settled();
    assert_eq!((&failed["status"], &failed["exit_code"]), (&"failed".into(), &69.into()), "{failed:#}");
    proxy.mend();
    site.refit(&["rerun"]).expect(0);
    site.expect_page("one");
    let health = http(site.http, "GET", "/_deploy/health", &[], b"").unwrap();
    assert_eq!(health.status, 200, "{health:?}");
}

#[test]
fn docker_comes_back_and_what_nobody_recorded_is_put_in_order() {
    let mut site = Site::docker();
    site.push("first");
    site.deploy(0);
    let name = site.containers(true).pop().unwrap();
    docker(&["stop", "--time", "1", &name]);
    let proxy = Proxy::start(site.path().join("engine.sock"));
    proxy.cut();
    site = site.env("DOCKER_HOST", &proxy.host());
    site.serve();
    assert!(site.daemon_log().contains("looked for again"), "{}", site.daemon_log());
    assert_eq!(site.page(), None);
    proxy.mend();
    poll(|| site.page()).expect("it is started");
    site.expect_page("one");
}

#[test]
fn docker_hangs_and_the_deployment_does_not() {
    let site = Site::docker();
    let silent = site.path().join("silent.sock");
    let listener = UnixListener::bind(&silent).unwrap();
    // Takes connections, reads nothing, answers nothing.
    let held = thread::spawn(move || listener.incoming().flatten().take(64).collect::<Vec<_>>());
    let site = site.env("DOCKER_HOST", &format!("unix://{}", silent.display()));
    site.push("first");
    let deployment = site.deploy(69);
    assert_eq!(deployment["status"], "failed", "{deployment:#}");
    drop(held);
}

#[test]
fn docker_goes_away_in_the_middle_and_comes_back() {
    let mut site = Site::docker();
    let proxy = Proxy::start(site.path().join("engine.sock"));
    site = site.env("DOCKER_HOST", &proxy.host());
    site.push("good");
    site.deploy(0);
    let good = site.containers(true);
    site.write("run.sh", "sleep 600\n");
    site.push("bad");
    site.serve();
    site.refit(&["deploy", "--detach"]).expect(0);
    // The new one runs, and nothing else: before that, another call may be cut, with another code to end with.
    site.wait_for("its start", |d| {
        let running = site.containers(true);
        d["stages"][6]["status"] == "running" && running.len() == 1 && running != good
    });
    proxy.cut();
    site.wait_for("the failure", |d| d["stages"][6]["status"] == "failed");
    assert_eq!(site.newest()["status"], "running", "it does not give up: the engine may only be restarting");
    proxy.mend();
    let ended = site.settled();
    assert_eq!((&ended["status"], &ended["exit_code"]), (&"rolled_back".into(), &3.into()), "{ended:#}");
    site.expect_page("one");
    assert_eq!(site.containers(true).len(), 1, "{:?}", site.containers(false));
    site.write("run.sh", "exec httpd -f -p 8080 -h /app/www\n");
    site.version("two");
    site.push("good again");
    site.refit(&["deploy"]).expect(0);
    site.expect_page("two");
}
