//! Several faults in one deployment, drawn by a seeded generator: `make torture ROUNDS=100 SEED=7`.
//!
//! A round is one deployment of a good or a bad version and up to three troubles one after the other: a SIGKILL at a point or at any moment,
//! Docker away, the disk full. Then a daemon that nothing happens to, the look at the world, and the next push.
//! A round's draws depend on the seed and its number alone, so that a round that went wrong is had again with `ROUNDS=1` and the
//! seed that was printed with it.

use std::{
    env, thread,
    time::{Duration, SystemTime},
};

use refit::model::{CommitId, Status};

use super::{
    figure::Figure,
    outages::Needed,
    points_of,
    rig::{Rig, Version},
};
use crate::support::{disk::Disk, poll, proxy::Proxy};

/// What `make test` does of it.
const ROUNDS: u64 = 6;
const SEED: u64 = 20_261_121;

/// The longest that a daemon is left alone before a SIGKILL that comes at any moment.
const LONGEST: u64 = 4_000;

/// `splitmix64` (Steele, Lea, Flood 2014).
#[derive(Debug)]
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).expect("it is below n")
    }

    fn one_of<'a>(&mut self, points: &'a [String]) -> &'a str {
        &points[self.below(points.len())]
    }
}

#[derive(Debug, Clone)]
enum Trouble {
    KillAt(String),
    /// After so many milliseconds, wherever that is.
    KillAfter(u64),
    DockerAwayAt(String),
    DiskFullAt(String),
}

#[derive(Debug)]
struct Round {
    version: Version,
    troubles: Vec<Trouble>,
}

impl Round {
    fn draw(seed: u64) -> Self {
        let mut draw = Draw(seed);
        let version = if draw.below(2) == 0 { Version::Good } else { Version::Bad };
        let forward = [points_of("step"), vec!["begun".to_owned(), "end:intent".to_owned()]].concat();
        let back = [points_of("undo"), vec!["end:intent".to_owned(), "end:record".to_owned()]].concat();
        let mut troubles = Vec::new();
        for n in 0..=draw.below(3) {
            let points = if n == 0 && (version == Version::Good || draw.below(2) == 0) { &forward } else { &back };
            troubles.push(match draw.below(5) {
                0 | 1 => Trouble::KillAt(draw.one_of(points).to_owned()),
                2 => Trouble::KillAfter(draw.below(usize::try_from(LONGEST).expect("small")) as u64),
                3 => Trouble::DockerAwayAt(draw.one_of(points).to_owned()),
                _ => Trouble::DiskFullAt(draw.one_of(points).to_owned()),
            });
        }
        Self { version, troubles }
    }
}

fn number(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        _ => default,
    }
}

#[test]
fn docker_torture() {
    let (rounds, seed) = (number("REFIT_TORTURE_ROUNDS", ROUNDS), number("REFIT_TORTURE_SEED", SEED));
    let points = points_of("step").len() + points_of("undo").len() + 3;
    let mut faults = 0;
    let mut figure = Figure::new("torture", 0);
    let (mut rig, disk) = Rig::with_disk();
    let proxy = Proxy::start(rig.site.path().join("engine.sock"));
    rig.site.set_env("DOCKER_HOST", &proxy.host());
    rig.begin();
    for n in 0..rounds {
        let round = Round::draw(seed.wrapping_add(n));
        faults += round.troubles.len();
        let mut recovery = None;
        let found = rig.observe(|rig| {
            recovery = suffer(rig, &round, &proxy, &disk)?;
            Ok(())
        });
        figure.recovered(recovery);
        figure.ran(&format!("seed {} {round:?}", seed.wrapping_add(n)), found);
    }
    println!("torture: seed {seed}: {points} points × 4 kinds of faults × {rounds} rounds: {faults} faults");
    figure.close();
}

/// One round up to the deployment's end; how long the last daemon needed for it.
fn suffer(rig: &mut Rig, round: &Round, proxy: &Proxy, disk: &Disk) -> Result<Option<Duration>, String> {
    let commit = rig.push(round.version);
    for (n, trouble) in round.troubles.iter().enumerate() {
        if n > 0 && rig.has_ended(&commit) {
            break;
        }
        let file = rig.pause_file();
        let order = match trouble {
            Trouble::KillAt(point) => format!("{point}=kill"),
            Trouble::KillAfter(_) => String::new(),
            Trouble::DockerAwayAt(point) | Trouble::DiskFullAt(point) => format!("{point}=pause:{}", file.display()),
        };
        rig.spawn(&order);
        if n == 0 {
            rig.site.daemon_is_up();
            rig.deliver(&commit);
        }
        match trouble {
            Trouble::KillAt(_) => dies_or_ends(rig, &commit)?,
            Trouble::KillAfter(ms) => thread::sleep(Duration::from_millis(*ms)),
            Trouble::DockerAwayAt(_) => goes_away(rig, proxy, &commit)?,
            Trouble::DiskFullAt(_) => goes_away(rig, disk, &commit)?,
        }
        rig.site.kill_daemon();
    }
    let began = SystemTime::now();
    if !rig.daemon("") {
        return Err("the daemon does not start".to_owned());
    }
    let ended = rig.ends(&commit, &[Status::Succeeded, Status::Failed, Status::RolledBack])?;
    rig.untidy = ended.status == Status::Succeeded;
    let at = ended.finished_at.map(SystemTime::from);
    Ok(at.and_then(|at| at.duration_since(began).ok()).filter(|d| *d > Duration::ZERO))
}

fn dies_or_ends(rig: &mut Rig, commit: &CommitId) -> Result<(), String> {
    let over = poll(|| (rig.site.daemon_has_ended() || rig.has_ended(commit)).then_some(()));
    over.ok_or_else(|| "the daemon neither died nor came to an end".to_owned())
}

/// What is needed is away from the point on, until it was missed; the daemon may never come to the point.
fn goes_away(rig: &mut Rig, needed: &dyn Needed, commit: &CommitId) -> Result<(), String> {
    let file = rig.pause_file();
    let there = poll(|| {
        let ended = rig.site.daemon_has_ended() || rig.has_ended(commit);
        (file.exists() || ended).then_some(())
    });
    there.ok_or("the daemon neither paused nor came to an end")?;
    if !file.exists() {
        return Ok(());
    }
    needed.take_away();
    rig.go_on();
    let missed = poll(|| (needed.is_missed(rig, commit) || rig.has_ended(commit)).then_some(()));
    needed.give_back();
    missed.ok_or_else(|| "nobody missed what was away, and there is no end".to_owned())
}
