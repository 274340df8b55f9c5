//! SIGKILL at every point of a rollback that somebody asked for, and of the recovery that takes it back.
//!
//! What is live when a rollback was cut off is what was live before, unless everything was done already: the way back can be asked
//! for again.

use std::time::{Duration, SystemTime};

use refit::model::{DeploymentId, Status};

use super::{
    MOMENTS,
    figure::Figure,
    rig::{Rig, Version},
};

/// The stages of a rollback that do something.
const STAGES: [&str; 4] = ["backup", "tag", "start", "smoke"];

fn points_of(kind: &str) -> impl Iterator<Item = String> {
    STAGES.iter().flat_map(move |stage| MOMENTS.iter().map(move |moment| format!("{kind}:{stage}:{moment}")))
}

#[test]
fn docker_killed_at_every_point_of_a_rollback() {
    let done = ["step:smoke:record", "end:intent", "end:retired", "end:record"];
    let mut runs: Vec<(Vec<String>, Status)> = Vec::new();
    for point in ["begun".to_owned()].into_iter().chain(points_of("step")).chain(done[1..].iter().map(|p| (*p).into()))
    {
        let end = if done.contains(&point.as_str()) { Status::Succeeded } else { Status::Failed };
        runs.push((vec![point], end));
    }
    for point in points_of("undo").chain(["end:intent".to_owned(), "end:record".to_owned()]) {
        runs.push((vec!["step:smoke:effect".to_owned(), point], Status::Failed));
    }
    let mut figure = Figure::new("SIGKILL during a rollback and its recovery", runs.len());
    let mut rig = Rig::new();
    rig.begin();
    rig.push(Version::Good);
    rig.site.deploy(0);
    for (deaths, expected) in &runs {
        let mut recovery = None;
        let found = rig.observe(|rig| {
            recovery = run(rig, deaths, *expected)?;
            Ok(())
        });
        figure.recovered(recovery);
        figure.ran(&format!("a rollback killed at {}", deaths.join(", then ")), found);
    }
    figure.close();
}

pub fn run(rig: &mut Rig, deaths: &[String], expected: Status) -> Result<Option<Duration>, String> {
    for (n, point) in deaths.iter().enumerate() {
        if rig.daemon(&format!("{point}=kill")) && n == 0 {
            // It follows the deployment until the daemon is gone.
            rig.site.refit(&["rollback", "--force", "--reason", "to break it"]);
        }
        rig.dies()?;
    }
    let began = SystemTime::now();
    if !rig.daemon("") {
        return Err("the daemon does not start".to_owned());
    }
    let newest = rig.site.newest()["id"].as_i64().map(DeploymentId).ok_or("there is no deployment")?;
    let ended = rig.deployment_ends(newest)?;
    if ended.status != expected {
        return Err(format!("it ended {} and should be {expected}: {}", ended.status, ended.error.unwrap_or_default()));
    }
    let at = ended.finished_at.map(SystemTime::from);
    Ok(at.and_then(|at| at.duration_since(began).ok()).filter(|d| *d > Duration::ZERO))
}
