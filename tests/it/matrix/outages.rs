//! What is needed goes away at a point, for a while: the engine, and the space on the disk.
//!
//! The engine of this machine is shared, so what is away is the way to it ([`Proxy`]): every connection breaks, none is taken.
//! Really stopping an engine is done to a private one, in `engine.rs`.

use std::{
    thread,
    time::{Duration, Instant},
};

use refit::model::{CommitId, Stage, Status};

use super::{
    figure::Figure,
    rig::{Rig, Version},
};
use crate::support::{disk::Disk, proxy::Proxy};

/// Something that can be away.
pub trait Needed {
    fn take_away(&self);
    /// Whether somebody has missed it since.
    fn is_missed(&self, rig: &Rig, commit: &CommitId) -> bool;
    fn give_back(&self);
}

/// Takes `needed` away at `point` of a push's deployment, waits until it was missed or the deployment has come to its end without,
/// and gives it back. The deployment may end well or badly, but a minute's outage makes no work for a person.
pub fn outage(rig: &mut Rig, needed: &dyn Needed, version: Version, point: &str) -> Vec<String> {
    rig.observe(|rig| {
        let commit = rig.push(version);
        rig.daemon(&format!("{point}=pause:{}", rig.pause_file().display()));
        rig.deliver(&commit);
        rig.paused()?;
        needed.take_away();
        rig.go_on();
        let missed = missed(rig, needed, &commit);
        needed.give_back();
        missed?;
        let ended = rig.ends(&commit, &[Status::Succeeded, Status::Failed, Status::RolledBack])?;
        rig.untidy = ended.status == Status::Succeeded;
        rig.restart("");
        Ok(())
    })
}

fn missed(rig: &Rig, needed: &dyn Needed, commit: &CommitId) -> Result<(), String> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        if needed.is_missed(rig, commit) || rig.has_ended(commit) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err("nobody missed what was away, and there is no end".to_owned())
}

/// Each step, what it needs gone as it begins, and each undo. (`torture` tries the other moments too.)
fn points() -> Vec<(Version, String)> {
    let forward = Stage::ALL.iter().map(|stage| (Version::Good, format!("step:{stage}:intent")));
    let back = Stage::ALL.iter().rev().map(|stage| (Version::Bad, format!("undo:{stage}:intent")));
    forward.chain(back).collect()
}

impl Needed for Proxy {
    fn take_away(&self) {
        self.cut();
    }

    fn is_missed(&self, _: &Rig, _: &CommitId) -> bool {
        self.refused() > 0
    }

    fn give_back(&self) {
        self.mend();
    }
}

#[test]
fn docker_is_away_for_a_while_at_every_step_and_undo() {
    let points = points();
    let mut figure = Figure::new("Docker away for a while", points.len());
    let mut rig = Rig::new();
    let proxy = Proxy::start(rig.site.path().join("engine.sock"));
    rig.site.set_env("DOCKER_HOST", &proxy.host());
    rig.begin();
    for (version, point) in &points {
        let found = outage(&mut rig, &proxy, *version, point);
        figure.ran(&format!("{version:?}, Docker away at {point}"), found);
    }
    figure.close();
}

impl Needed for Disk {
    fn take_away(&self) {
        self.fill();
    }

    fn is_missed(&self, rig: &Rig, _: &CommitId) -> bool {
        let log = rig.log();
        ["is full", "No space left", "cannot go on"].iter().any(|words| log.contains(words))
    }

    fn give_back(&self) {
        self.give_way();
    }
}

#[test]
fn docker_the_disk_is_full_for_a_while_at_every_step_and_undo() {
    let points = points();
    let mut figure = Figure::new("the disk full for a while", points.len());
    let (mut rig, disk) = Rig::with_disk();
    rig.begin();
    for (version, point) in &points {
        let found = outage(&mut rig, &disk, *version, point);
        figure.ran(&format!("{version:?}, disk full at {point}"), found);
    }
    figure.close();
}
