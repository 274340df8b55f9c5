//! The proof end to end: deployments, forced rollbacks, restarts with hold, daemons that are killed and gates that are replaced, all under constant load
//! on containers. No request fails, every POST arrives once, and every answer is of a version that was live when its request began.

#![expect(clippy::print_stdout, reason = "the figures are what these tests are for")]

use std::{collections::HashMap, fs, net::SocketAddr, sync::Arc, time::Duration};

use serde_json::json;
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    support::{Site, http, poll},
    visitors::{Done, Load},
};

/// Between two requests of one of a dozen visitors: some hundreds a second, which Python serves beside a deployment.
const PAUSE: Duration = Duration::from_millis(25);

const APP: &str = include_str!("under_load.py");

/// A version that fails its smoke checks only with the traffic.
const SICK: &str = "sick";

struct Street {
    site: Site,
    runtime: Runtime,
    load: Arc<Load>,
    clients: JoinSet<()>,
    /// What the pages of the live version say it is.
    live: String,
}

impl Street {
    fn new(sockets: bool) -> Self {
        let site = Site::docker();
        let seen = site.path().join("seen");
        fs::create_dir(&seen).unwrap();
        site.write("Dockerfile", "FROM refit-test/python:3\nCOPY . /app\nCMD [\"python3\", \"-u\", \"/app/app.py\"]\n");
        site.write("app.py", APP);
        let port = site.port;
        let site = site.with(&format!(
            "[smoke]\nbake = \"200ms\"\ninterval = \"50ms\"\n[[smoke.check]]\nhttp = \"/health\"\n\
             [[smoke.check]]\nhttp = \"http://127.0.0.1:{port}/version\"\nabsent = [\"{SICK}\"]\n"
        ));
        site.edit_config(
            "strategy = \"recreate\"\n",
            &format!("strategy = \"blue-green\"\nvolumes = [\"{}:/seen\"]\n", seen.display()),
        );
        write_version(&site, "v0");
        site.push("v0");
        site.deploy(0);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let load = Load::on(SocketAddr::from(([127, 0, 0, 1], port)), "v0", PAUSE);
        let clients = {
            let _inside = runtime.enter();
            load.begin(sockets)
        };
        let street = Self { site, runtime, load, clients, live: "v0".to_owned() };
        street.pass();
        street
    }

    fn pass(&self) {
        self.runtime.block_on(self.load.pass(30));
    }

    /// Both versions may answer while `work` lasts; afterwards only what is live then.
    fn change(&mut self, to: &str, work: impl FnOnce(&mut Site)) {
        self.load.history.begins(to);
        work(&mut self.site);
        let page = http(self.site.port, "GET", "/version", &[], b"").unwrap();
        assert_eq!(page.status, 200, "{page:?}");
        self.live = page.body;
        self.load.history.is_alone(&self.live);
        self.pass();
    }

    fn deploy(&mut self, version: &str) {
        write_version(&self.site, version);
        let code = if version.starts_with(SICK) { 4 } else { 0 };
        let before = self.live.clone();
        self.change(version, |site| {
            site.push(version);
            site.deploy(code);
        });
        assert_eq!(self.live, if code == 0 { version } else { &before });
    }

    /// The newest deployment's id.
    fn newest(&self) -> i64 {
        self.site.newest()["id"].as_i64().unwrap()
    }

    fn roll_back(&mut self, deployment: i64, version: &str) {
        let to = deployment.to_string();
        self.change(version, |site| {
            site.refit(&["rollback", "--to", &to, "--reason", "to try it", "--force"]).expect(0);
        });
        assert_eq!(self.live, version);
    }

    /// A deployment whose daemon dies at `point`; the next daemon ends it.
    fn kill_at(&mut self, point: &str, version: &str) {
        write_version(&self.site, version);
        self.change(version, |site| {
            site.push(version);
            site.set_env("REFIT_FAULT", &format!("{point}=kill"));
            site.serve();
            site.refit(&["deploy", "--detach"]).expect(0);
            assert!(site.daemon_ends(), "it dies at {point}");
            site.set_env("REFIT_FAULT", "");
            site.serve();
            let ended = site.settled();
            assert!(["succeeded", "rolled_back", "failed"].map(|s| json!(s)).contains(&ended["status"]), "{ended:#}");
            assert_eq!(site.stop_daemon(), 0);
        });
    }

    /// A new gate takes the place of the one that runs.
    fn replace_gate(&self) {
        let mut gate = self.site.refit_command(&["gate", "--take-over", "--linger", "60s"]);
        let mut gate = gate.spawn().unwrap();
        let pid = gate.id();
        // It outlives this function, and leaves no zombie.
        std::thread::spawn(move || gate.wait());
        let serves = || self.site.refit(&["gate", "status", "--format", "json"]).expect(0).json()["pid"] == json!(pid);
        poll(|| serves().then_some(())).expect("the new gate serves");
        self.pass();
    }

    /// Sends the visitors home, and counts what arrived.
    fn end(self) -> Done {
        let done = self.runtime.block_on(self.load.end(self.clients));
        let posts = fs::read_to_string(self.site.path().join("seen/posts")).unwrap();
        let mut seen: HashMap<&str, u32> = HashMap::new();
        posts.lines().for_each(|name| *seen.entry(name).or_default() += 1);
        let twice: Vec<_> = seen.iter().filter(|(_, times)| **times != 1).collect();
        assert!(twice.is_empty(), "arrived more than once: {twice:?}");
        assert_eq!(seen.len() as u64, done.posted, "every POST arrived");
        done
    }
}

fn write_version(site: &Site, version: &str) {
    site.write("version", version);
}

#[test]
fn docker_nobody_sees_versions_rollbacks_kills_and_new_gates() {
    let mut street = Street::new(true);
    for n in 1..=20 {
        street.deploy(&format!("v{n}"));
        // Half of the ways back are automatic, when the traffic shows what is wrong; half are asked for.
        if n % 2 == 0 {
            street.deploy(&format!("{SICK}{n}"));
        }
        if n == 7 || n == 14 {
            street.replace_gate();
        }
    }
    // The last one was sick.
    let newest = street.newest() - 1;
    let before = newest - 1;
    assert_eq!(street.site.show(newest)["live"], json!(true));
    for n in 0..10 {
        match n % 2 {
            0 => street.roll_back(before, "v19"),
            _ => street.roll_back(newest, "v20"),
        }
    }
    let kills = ["step:build:effect", "step:start:effect", "step:start:record", "step:smoke:effect", "end:intent"];
    for (n, point) in kills.into_iter().enumerate() {
        street.kill_at(point, &format!("k{n}"));
    }
    let done = street.end();
    println!(
        "20 deployments, 20 forced rollbacks, 5 killed daemons and 2 new gates under {} requests ({} of them POST) and {} WebSockets",
        done.requests, done.posted, done.sockets
    );
    assert!(done.requests > 2_000 && done.posted > 500 && done.sockets > 50, "{done:?}");
}

#[test]
fn docker_nobody_sees_versions_that_replace_each_other() {
    // A WebSocket does not outlive its app, and cannot be held.
    let mut street = Street::new(false);
    street.site.edit_config("strategy = \"blue-green\"", "strategy = \"recreate\"\ngate = true");
    street.deploy("r1");
    let first = street.newest();
    street.deploy("r2");
    let second = street.newest();
    for n in 0..20 {
        match n % 2 {
            0 => street.roll_back(first, "r1"),
            _ => street.roll_back(second, "r2"),
        }
    }
    let done = street.end();
    println!("20 restarts with hold under {} requests ({} of them POST)", done.requests, done.posted);
    assert!(done.requests > 1_000 && done.posted > 200, "{done:?}");
}
