//! The daemon's gate when refit was updated: replaced by one of the new program, or left in peace where that cannot be.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use refit::gate::{
    keeper::{Keeper, KeeperError, Renewal},
    wire::{GateStatus, RouteSpec},
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    backend::{Backend, Seen},
    support::{Connection, eventually, free_address, get},
};

/// A state directory whose gate is ended with the test.
struct Place {
    dir: tempfile::TempDir,
    app: Backend,
    public: std::net::SocketAddr,
}

impl Place {
    /// With a gate that was started from a copy of the program, as the one before an update.
    async fn with_older_gate() -> Self {
        let app = Backend::start("1", &Arc::new(Seen::default())).await;
        let place = Self { dir: tempfile::tempdir().unwrap(), app, public: free_address() };
        let older = place.dir.path().join("older");
        fs::copy(refit(), &older).unwrap();
        let gate = place.keeper(older);
        let route = RouteSpec::new("shop/production", place.public, Some(place.app.side()));
        gate.up().await.unwrap().route(route).await.unwrap();
        place
    }

    fn keeper(&self, program: PathBuf) -> Keeper {
        Keeper::new(self.dir.path(), Some(program))
    }

    /// A program that is no gate.
    fn broken(&self, script: &str) -> PathBuf {
        let file = self.dir.path().join("broken");
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).unwrap();
        file
    }

    async fn status(&self) -> GateStatus {
        self.keeper(refit()).client().status(None).await.unwrap()
    }

    async fn expect_served(&self) {
        let mut connection = Connection::open(self.public).await.unwrap();
        assert_eq!(connection.send(get("/")).await.unwrap().side(), "1");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let gates = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
            let ours = line.contains(&format!("\0{}\0", self.dir.path().join("gate").display()));
            entry.file_name().to_str()?.parse().ok().filter(|_| ours)
        });
        for gate in gates {
            let _ = kill_process(Pid::from_raw(gate).unwrap(), Signal::KILL);
        }
    }
}

fn refit() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_refit")).to_owned()
}

#[tokio::test]
async fn a_gate_of_another_build_hands_over_and_one_of_this_build_is_left_alone() {
    let place = Place::with_older_gate().await;
    let before = place.status().await;
    assert!(before.by_daemon && before.build.is_some(), "{before:?}");
    let mut kept = Connection::open(place.public).await.unwrap();
    kept.send(get("/")).await.unwrap();

    let keeper = place.keeper(refit());
    let after = keeper.renew().await.unwrap();
    let now = place.status().await;
    assert_eq!(after, Renewal::Replaced { old: before.pid, new: now.pid });
    assert!(now.by_daemon && now.build != before.build && now.predecessors == [before.pid], "{now:?}");
    let live = |status: &GateStatus| status.routes[0].live.clone().map(|side| (side.id, side.since));
    assert_eq!(live(&now), live(&before));
    place.expect_served().await;
    assert_eq!(kept.send(get("/")).await.unwrap().header("connection"), "close", "by the old gate");
    eventually("the old gate has ended", async || place.status().await.predecessors.is_empty()).await;

    assert_eq!(keeper.renew().await.unwrap(), Renewal::Needless);
    assert_eq!(place.status().await.pid, now.pid);
}

#[tokio::test]
async fn a_gate_that_somebody_else_started_is_left_alone() {
    let place = Place::with_older_gate().await;
    let by_hand = std::process::Command::new(place.dir.path().join("older"))
        .args(["gate", "--take-over", "--state-dir"])
        .arg(place.dir.path().join("gate"))
        .spawn();
    let by_hand = by_hand.unwrap().id();
    eventually("it has taken over", async || place.status().await.pid == by_hand).await;
    assert_eq!(place.keeper(refit()).renew().await.unwrap(), Renewal::NotOurs { pid: by_hand });
    assert_eq!(place.status().await.pid, by_hand);
    place.expect_served().await;
}

#[tokio::test]
async fn where_no_gate_runs_there_is_none_to_replace() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = Keeper::new(dir.path(), Some(refit()));
    assert_eq!(keeper.renew().await.unwrap(), Renewal::Needless);
    assert!(keeper.client().status(None).await.unwrap_err().is_absent());
}

/// Programs that fail at once, that do not start at all, and that die with the old gate's sockets in their hands.
#[tokio::test]
async fn a_new_gate_that_fails_leaves_the_old_one_serving() {
    let place = Place::with_older_gate().await;
    let before = place.status().await;
    let took = "#!/usr/bin/env python3\n\
                import json, socket, sys\n\
                s = socket.socket(socket.AF_UNIX)\n\
                s.connect(sys.argv[sys.argv.index('--state-dir') + 1] + '/gate.sock')\n\
                s.sendall(json.dumps({'v': 1, 'do': 'handover', 'pid': 1, 'program': 'x'}).encode() + b'\\n')\n\
                text, files, *_ = socket.recv_fds(s, 65536, 9)\n\
                sys.exit(f'died with {len(files)} files')\n";
    for (script, why) in [
        ("#!/bin/sh\necho 'the new release is broken' >&2\nexit 1\n", "the new release is broken"),
        ("#!/nowhere/at/all\n", "No such file"),
        (took, "died with 3 files"),
    ] {
        let error = place.keeper(place.broken(script)).renew().await.unwrap_err();
        assert!(matches!(&error, KeeperError::Start(told) if told.contains(why)), "{error}");
        place.expect_served().await;
        assert_eq!(place.status().await.pid, before.pid);
    }
    // And it can still be replaced, and told what to do.
    let replaced = place.keeper(refit()).renew().await.unwrap();
    assert!(matches!(replaced, Renewal::Replaced { old, .. } if old == before.pid), "{replaced:?}");
    let client = place.keeper(refit());
    client.client().remove("shop/production").await.unwrap();
}
