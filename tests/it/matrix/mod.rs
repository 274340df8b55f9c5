//! The matrix: every step and every undo of a real deployment, broken in every way that can be had on one machine.
//!
//! The app is one whose eight stages all do something ([`rig`]): it has a database to back up, a test target, a migration that counts, a smoke check.
//! The pipeline names the moments at which a crash could matter (`src/fault.rs`): before an effect, after it, after its record, of each step
//! and each undo, and around the end. At each of them a daemon is killed; the next one recovers; then the world is looked at ([`world`]): one live version
//! that answers with its own page, containers, images, names and files exactly as the store says, no migration twice, an end for
//! every deployment and every delivery; and the next push deploys. One release after the other is made on the same site, so that what one
//! fault leaves behind is in the way of the next.
//!
//! The same with the gate in front and two versions side by side ([`gated`]), where visitors who never stop must see no failure.
//!
//! A pass prints its figures: points, runs, violations, and how long recovery took, which nothing asserts.

#![expect(clippy::print_stdout, reason = "the figures are what a pass is for")]

use refit::model::{Stage, Status};

mod engine;
mod failing;
mod figure;
mod files;
mod gated;
mod kills;
mod outages;
mod rig;
mod rollbacks;
mod torture;
mod twice;
mod world;

const MOMENTS: [&str; 3] = ["intent", "effect", "record"];

/// Each moment of these stages, in their order.
fn points_at(kind: &str, stages: &[Stage]) -> Vec<String> {
    stages.iter().flat_map(|stage| MOMENTS.iter().map(move |moment| format!("{kind}:{stage}:{moment}"))).collect()
}

/// `step:<stage>:<moment>` or `undo:…`, in the order in which a deployment comes to them.
fn points_of(kind: &str) -> Vec<String> {
    let mut stages = Stage::ALL.to_vec();
    if kind == "undo" {
        stages.reverse();
    }
    points_at(kind, &stages)
}

/// The end that a deployment comes to which was cut off at a point of its way forward.
fn end_when_cut_off_at(point: &str) -> Status {
    match point.split(':').nth(1).unwrap_or_default() {
        // Every step was done: only the end was missing.
        _ if point.starts_with("end:") || point == "step:smoke:record" => Status::Succeeded,
        "start" | "smoke" => Status::RolledBack,
        _ => Status::Failed,
    }
}
