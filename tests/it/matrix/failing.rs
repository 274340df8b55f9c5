//! A step that fails at each stage, and an undo that fails at each stage.

use refit::model::{Stage, Status};

use super::{
    end_when_cut_off_at,
    figure::Figure,
    rig::{Rig, Version},
    world,
};

#[test]
fn docker_every_step_fails_in_turn() {
    let mut figure = Figure::new("the step fails", Stage::ALL.len());
    let mut rig = Rig::new();
    rig.begin();
    for stage in Stage::ALL {
        let expected = end_when_cut_off_at(&format!("step:{stage}:effect"));
        let found = rig.observe(|rig| {
            let commit = rig.push(Version::Good);
            rig.daemon(&format!("step:{stage}:effect=fail"));
            rig.deliver(&commit);
            let ended = rig.ends(&commit, &[expected])?;
            // Design, section 8.
            let code = match stage {
                Stage::Build => 2,
                Stage::Migrate | Stage::Start => 3,
                Stage::Smoke => 4,
                _ => 1,
            };
            if (ended.failed_stage, ended.exit_code) != (Some(*stage), Some(code)) {
                return Err(format!("it failed at {:?} with exit code {:?}", ended.failed_stage, ended.exit_code));
            }
            rig.restart("");
            Ok(())
        });
        figure.ran(&format!("{stage} fails"), found);
    }
    figure.close();
}

/// An undo that fails is for a person: `stuck`, exit code 5. What a person asks for then is deployed, and leaves nothing of
/// the stuck deployment behind.
#[test]
fn docker_every_undo_fails_in_turn() {
    let mut figure = Figure::new("the undo fails", Stage::ALL.len());
    let mut rig = Rig::new();
    rig.begin();
    for stage in Stage::ALL {
        let found = rig.observe(|rig| {
            let commit = rig.push(Version::Bad);
            rig.daemon(&format!("undo:{stage}:effect=fail"));
            rig.deliver(&commit);
            let stuck = rig.ends(&commit, &[Status::Stuck])?;
            if stuck.exit_code != Some(5) {
                return Err(format!("its exit code is {:?}", stuck.exit_code));
            }
            rig.restart("");
            let mended = rig.push(Version::Good);
            let asked = rig.site.refit(&["deploy"]);
            if asked.code != 0 {
                return Err(format!("`refit deploy` after it: {asked:?}"));
            }
            rig.ends(&mended, &[Status::Succeeded])?;
            rig.resolve(stuck.id);
            // What a person may have wanted to look at goes once it was looked at.
            rig.restart("");
            Ok(())
        });
        figure.ran(&format!("undo of {stage} fails"), found);
    }
    figure.close();
}

/// What [`world::violations`] says of a world without faults: nothing, also of every version in a row.
#[test]
fn docker_without_faults_there_are_no_violations() {
    let mut rig = Rig::new();
    rig.begin();
    let mut found = world::violations(&rig);
    for version in [Version::Good, Version::Bad, Version::Good] {
        found.extend(rig.observe(|rig| {
            let commit = rig.push(version);
            rig.daemon("");
            rig.deliver(&commit);
            let expected = if version == Version::Good { Status::Succeeded } else { Status::RolledBack };
            rig.ends(&commit, &[expected]).map(drop)
        }));
    }
    assert_eq!(found, Vec::<String>::new());
}
