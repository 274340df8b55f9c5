//! SIGKILL with the gate in front: at the points of migrate, start and smoke, where two versions run and the traffic moves, on the way forward, on the way back, during a recovery,
//! and during a rollback. The other stages know nothing of the gate, and are killed elsewhere.
//!
//! Visitors come all the time. A version that is taken back may have had them for a while; nobody may ever see a failure.

use refit::model::{Stage, Status};

use super::{
    end_when_cut_off_at,
    figure::Figure,
    kills, points_at,
    rig::{Rig, Version},
    rollbacks,
};
use crate::support::load::Load;

const STAGES: [Stage; 2] = [Stage::Start, Stage::Smoke];
const BACK: [Stage; 3] = [Stage::Smoke, Stage::Start, Stage::Migrate];

fn way_back() -> Vec<String> {
    let ends = ["end:intent", "end:record"].map(str::to_owned);
    [points_at("undo", &BACK), ends.into()].concat()
}

/// The figure has one more run: the visitors'.
fn close(mut figure: Figure, load: Load) {
    load.goes_on();
    let seen = load.end();
    println!("matrix: visitors: {} answers, {} failures", seen.answers, seen.failures.len());
    figure.ran("the visitors", seen.failures.into_iter().take(10).collect());
    figure.close();
}

#[test]
fn docker_gated_killed_forward() {
    let ends = ["end:intent", "end:retired", "end:record"].map(str::to_owned);
    let points = [points_at("step", &STAGES), ends.into()].concat();
    let mut figure = Figure::new("behind the gate, SIGKILL on the way forward", points.len() + 1);
    let mut rig = Rig::gated();
    rig.begin();
    let load = Load::on(rig.site.port);
    for point in &points {
        kills::run(&mut rig, &mut figure, Version::Good, &[point], end_when_cut_off_at(point));
    }
    close(figure, load);
}

#[test]
fn docker_gated_killed_on_the_way_back() {
    let points = way_back();
    let mut figure = Figure::new("behind the gate, SIGKILL on the way back", points.len() + 1);
    let mut rig = Rig::gated();
    rig.begin();
    let load = Load::on(rig.site.port);
    for point in &points {
        kills::run(&mut rig, &mut figure, Version::Bad, &[point], Status::RolledBack);
    }
    close(figure, load);
}

#[test]
fn docker_gated_killed_in_a_recovery() {
    let points = way_back();
    let mut figure = Figure::new("behind the gate, SIGKILL, and SIGKILL during the recovery", points.len() + 1);
    let mut rig = Rig::gated();
    rig.begin();
    let load = Load::on(rig.site.port);
    for point in &points {
        let deaths = ["step:smoke:effect", point.as_str()];
        kills::run(&mut rig, &mut figure, Version::Good, &deaths, Status::RolledBack);
    }
    close(figure, load);
}

#[test]
fn docker_gated_killed_in_a_rollback() {
    let mut runs: Vec<(Vec<String>, Status)> = Vec::new();
    for point in points_at("step", &STAGES).into_iter().chain(["end:retired".to_owned()]) {
        let done = ["step:smoke:record", "end:retired"].contains(&point.as_str());
        runs.push((vec![point], if done { Status::Succeeded } else { Status::Failed }));
    }
    for point in points_at("undo", &BACK[..2]) {
        runs.push((vec!["step:smoke:effect".to_owned(), point], Status::Failed));
    }
    let mut figure = Figure::new("behind the gate, SIGKILL during a rollback and its recovery", runs.len() + 1);
    let mut rig = Rig::gated();
    rig.begin();
    rig.push(Version::Good);
    rig.site.deploy(0);
    let load = Load::on(rig.site.port);
    for (deaths, expected) in &runs {
        let mut recovery = None;
        let found = rig.observe(|rig| {
            recovery = rollbacks::run(rig, deaths, *expected)?;
            Ok(())
        });
        figure.recovered(recovery);
        figure.ran(&format!("a rollback killed at {}", deaths.join(", then ")), found);
    }
    close(figure, load);
}
