//! SIGKILL at every point: on the way forward, on the way back, and during the recovery that follows.

use std::time::{Duration, SystemTime};

use refit::model::{CommitId, Status};

use super::{
    end_when_cut_off_at,
    figure::Figure,
    points_of,
    rig::{Rig, Version},
};

/// One run: daemons that die one after the other, and one that does not.
pub fn run(rig: &mut Rig, figure: &mut Figure, version: Version, deaths: &[&str], expected: Status) {
    let mut recovery = None;
    let what = format!("{version:?} killed at {}", deaths.join(", then "));
    let found = rig.observe(|rig| {
        let commit = rig.push(version);
        for (n, point) in deaths.iter().enumerate() {
            // The first one hears of the push; those after it recover, and may die before they answer anybody.
            if rig.daemon(&format!("{point}=kill")) && n == 0 {
                rig.deliver(&commit);
            }
            rig.dies()?;
        }
        recovery = recover(rig, &commit, expected)?;
        Ok(())
    });
    figure.recovered(recovery);
    figure.ran(&what, found);
}

/// Starts a daemon that nothing happens to, and waits for the deployment's end: how long after the daemon's start that was, if it had
/// none before.
fn recover(rig: &mut Rig, commit: &CommitId, expected: Status) -> Result<Option<Duration>, String> {
    let began = SystemTime::now();
    if !rig.daemon("") {
        return Err("the daemon does not start".to_owned());
    }
    let ended = rig.ends(commit, &[expected])?;
    let at = ended.finished_at.map(SystemTime::from);
    Ok(at.and_then(|at| at.duration_since(began).ok()).filter(|d| *d > Duration::ZERO))
}

#[test]
fn docker_killed_at_every_point_of_the_way_forward() {
    let mut points = vec!["begun".to_owned()];
    points.extend(points_of("step"));
    points.extend(["end:intent", "end:retired", "end:record"].map(str::to_owned));
    let mut figure = Figure::new("SIGKILL on the way forward", points.len());
    let mut rig = Rig::new();
    rig.begin();
    for point in &points {
        run(&mut rig, &mut figure, Version::Good, &[point], end_when_cut_off_at(point));
    }
    figure.close();
}

#[test]
fn docker_killed_at_every_point_of_the_way_back() {
    let mut points = points_of("undo");
    points.extend(["end:intent".to_owned(), "end:record".to_owned()]);
    let mut figure = Figure::new("SIGKILL on the way back", points.len());
    let mut rig = Rig::new();
    rig.begin();
    for point in &points {
        run(&mut rig, &mut figure, Version::Bad, &[point], Status::RolledBack);
    }
    figure.close();
}

#[test]
fn docker_killed_at_every_point_of_a_recovery() {
    let mut points = points_of("undo");
    points.extend(["end:intent".to_owned(), "end:record".to_owned()]);
    let mut figure = Figure::new("SIGKILL, and SIGKILL during the recovery", points.len());
    let mut rig = Rig::new();
    rig.begin();
    for point in &points {
        run(&mut rig, &mut figure, Version::Good, &["step:smoke:effect", point], Status::RolledBack);
    }
    figure.close();
}
