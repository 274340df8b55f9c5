//! Every step and every undo, done twice: the world afterwards is the one of a deployment that was done once.
//!
//! What may differ is said in numbers only, so numbers are replaced before two worlds are compared: releases, images and commits by their
//! place in the row of kept releases. A backup taken twice is two backups of one deployment: complete sets are kept, whatever
//! becomes of what follows them.

use std::{collections::BTreeSet, fs};

use refit::{
    model::{Stage, Status},
    registry::{Filter, Release},
};

use super::{
    figure::Figure,
    rig::{Rig, Version},
    world::{self, files_below},
};

#[test]
fn docker_every_step_and_undo_twice_gives_the_same_world() {
    let mut figure = Figure::new("done twice", 2 * Stage::ALL.len());
    let mut rig = Rig::new();
    rig.begin();
    // Until as many releases are kept as will be.
    for _ in 0..2 {
        once(&mut rig, Version::Good, "").expect("a release");
    }
    for (version, kind) in [(Version::Good, "step"), (Version::Bad, "undo")] {
        let undisturbed = once(&mut rig, version, "").expect("an undisturbed deployment");
        for stage in Stage::ALL {
            rig.repeats |= *stage == Stage::Migrate;
            let point = format!("{kind}:{stage}:effect=twice");
            let found = match once(&mut rig, version, &point) {
                Ok(world) => [world::violations(&rig), difference(&undisturbed, &world)].concat(),
                Err(why) => vec![format!("{why}\n{}", rig.log())],
            };
            figure.ran(&point, found);
        }
    }
    rig.site.kill_daemon();
    figure.close();
}

/// Deploys one version, and says what the world is then.
fn once(rig: &mut Rig, version: Version, faults: &str) -> Result<Vec<String>, String> {
    let commit = rig.push(version);
    rig.restart(faults);
    rig.deliver(&commit);
    let expected = if version == Version::Good { Status::Succeeded } else { Status::RolledBack };
    rig.ends(&commit, &[expected])?;
    // Whatever the daemon tidies up after the end is done then.
    match world::violations(rig) {
        found if found.is_empty() => Ok(world(rig)),
        found => Err(found.join("; ")),
    }
}

fn difference(should: &[String], is: &[String]) -> Vec<String> {
    let missing = should.iter().filter(|line| !is.contains(line)).map(|line| format!("missing: {line}"));
    let added = is.iter().filter(|line| !should.contains(line)).map(|line| format!("added: {line}"));
    missing.chain(added).collect()
}

/// Containers with all that they were made with, images and their names, files with their contents, data, and rows of releases.
fn world(rig: &Rig) -> Vec<String> {
    let (live, kept, all) = rig.ask(async |registry| {
        let all = registry.deployments(&Filter::default()).await?;
        Ok((registry.live(&rig.key).await?, registry.kept_releases(&rig.key).await?, all))
    });
    let plain = |text: &str| kept.iter().enumerate().fold(text.to_owned(), |text, (n, r)| without_numbers(&text, n, r));
    let mut world = Vec::new();
    for release in &kept {
        let format = "{{.Name}} {{.State.Status}} {{.Image}} {{json .Config}} {{json .HostConfig}}";
        let container = rig.docker(&["inspect", "--format", format, &release.instance.name]);
        // The host name is the container's id.
        let id = rig.docker(&["inspect", "--format", "{{.Config.Hostname}}", &release.instance.name]);
        world.push(plain(&container.replace(id.trim(), "HOSTNAME")));
        let is_live = live.as_ref().is_some_and(|live| live.deployment == release.deployment);
        world.push(plain(&format!(
            "release {} {} of {} live {is_live}",
            release.deployment, release.artefact_name, release.artefact
        )));
    }
    let ours = format!("label=refit.app={}", rig.site.app);
    let images =
        rig.docker(&["images", "--no-trunc", "--filter", &ours, "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]);
    world.extend(images.lines().map(|line| match plain(line) {
        // What is in the cache is different with every tree.
        cache if cache.contains("-cache:") => cache.split(' ').next().unwrap_or_default().to_owned(),
        image => image,
    }));
    for path in files_below(&rig.state).iter().filter(|path| path.starts_with("releases/")) {
        let content = fs::read_to_string(rig.state.join(path)).unwrap_or_default();
        world.push(plain(&format!("{path} {content}")));
    }
    let data = fs::read(rig.site.path().join("data.db")).unwrap_or_default();
    world.push(format!("data {} {:?}", data.len(), data.iter().map(|b| u64::from(*b)).sum::<u64>()));
    world.push(format!("deployments without a backup: {}", all.len() - backed_up(rig).len()));
    world.push(format!("deployments without a migration: {}", all.len() - rig.ledger("applied").len()));
    world.sort();
    world
}

fn without_numbers(text: &str, n: usize, release: &Release) -> String {
    let key = format!("{}/{}", release.key.app, release.key.environment);
    text.replace(&release.instance.name, &format!("INSTANCE-{n}"))
        .replace(&release.artefact, &format!("IMAGE-{n}"))
        .replace(release.commit.as_str(), &format!("COMMIT-{n}"))
        .replace(release.commit.short(), &format!("COMMIT-{n}"))
        .replace(&format!("\"refit.deployment\":\"{}\"", release.deployment), &format!("DEPLOYMENT-{n}"))
        .replace(&format!("releases/{key}/{}/", release.deployment), &format!("releases/{n}/"))
        .replace(&format!("release {} ", release.deployment), &format!("release {n} "))
}

/// The deployments of which there is a complete backup.
fn backed_up(rig: &Rig) -> BTreeSet<String> {
    let manifests = files_below(&rig.backups).into_iter().filter(|path| path.ends_with("/manifest.json"));
    let deployment = |path: String| {
        let text = fs::read(rig.backups.join(path)).ok()?;
        let manifest: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(manifest["deployment"].to_string())
    };
    manifests.filter_map(deployment).collect()
}
