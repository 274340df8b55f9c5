//! What must hold whenever nothing is under way, whatever happened before: the store, Docker, the disk and the port are compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use refit::{
    model::{DeploymentView, Status, TriggerKind},
    registry::{Filter, Release},
};

use super::rig::Rig;
use crate::support::processes_of;

/// What the store says.
struct Store {
    live: Option<Release>,
    kept: Vec<Release>,
    all: Vec<DeploymentView>,
    open_deliveries: usize,
}

impl Store {
    fn read(rig: &Rig) -> Self {
        rig.ask(async |registry| {
            Ok(Self {
                live: registry.live(&rig.key).await?,
                kept: registry.kept_releases(&rig.key).await?,
                all: registry.deployments(&Filter::default()).await?,
                open_deliveries: registry.newest_open_deliveries().await?.len(),
            })
        })
    }
}

/// How long after the begin of a daemon the last of its clearing may be: that of builds which the engine went on with.
const TIDY: Duration = Duration::from_secs(20);

/// What is wrong; looked at again for a while, because a daemon tidies up after an end was told.
pub fn violations(rig: &Rig) -> Vec<String> {
    let began = Instant::now();
    loop {
        let found = look(rig);
        if found.is_empty() || began.elapsed() > TIDY {
            return found;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn look(rig: &Rig) -> Vec<String> {
    let store = Store::read(rig);
    let mut found = Vec::new();
    for deployment in &store.all {
        if !deployment.status.is_end() {
            found.push(format!("deployment {} has no end: it is {}", deployment.id, deployment.status));
        }
    }
    if store.open_deliveries > 0 {
        found.push(format!("{} deliveries have no end", store.open_deliveries));
    }
    let Some(live) = &store.live else {
        found.push("nothing is live".to_owned());
        return found;
    };
    let page = rig.site.page().map(|page| page.trim().to_owned());
    if page.as_deref() != rig.page_of(&live.commit) {
        found.push(format!("deployment {} is live, and the public page says {page:?}", live.deployment));
    }
    traffic(rig, live, &mut found);
    containers(rig, &store, live, &mut found);
    images(rig, &store, live, &mut found);
    ledger(rig, &store, &mut found);
    found.extend(super::files::strangers(rig, &store.kept, &store.all));
    found
}

/// Where there is a gate, it gives what is live its requests, holds none, and is the only one.
fn traffic(rig: &Rig, live: &Release, found: &mut Vec<String>) {
    if !rig.state.join("gate").exists() {
        return;
    }
    let gates = processes_of(rig.site.path(), "gate");
    if gates.len() != 1 {
        found.push(format!("the gates are the processes {gates:?}"));
    }
    let asked = rig.site.refit(&["gate", "status", "--format", "json"]);
    if asked.code != 0 {
        return found.push(format!("the gate does not answer: {asked:?}"));
    }
    let status = asked.json();
    let [route] = status["routes"].as_array().map_or(&[][..], Vec::as_slice) else {
        return found.push(format!("the gate's routes are {:#}", status["routes"]));
    };
    let side = route["live"]["id"].as_str();
    if side != Some(live.deployment.to_string().as_str()) || route["state"] != "serving" {
        found.push(format!("deployment {} is live, and the gate serves {side:?}: {}", live.deployment, route["state"]));
    }
}

/// The containers are those of the kept releases, and the live one alone runs.
fn containers(rig: &Rig, store: &Store, live: &Release, found: &mut Vec<String>) {
    let filter = format!("label=refit.app={}", rig.site.app);
    let list = rig.docker(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}} {{.State}}"]);
    let is: BTreeMap<&str, &str> = list.lines().filter_map(|line| line.split_once(' ')).collect();
    let state = |release: &Release| if release.deployment == live.deployment { "running" } else { "exited" };
    let should: BTreeMap<&str, &str> = store.kept.iter().map(|r| (r.instance.name.as_str(), state(r))).collect();
    if is != should {
        found.push(format!("containers are {is:?} and should be {should:?}"));
    }
    let networks =
        rig.docker(&["network", "ls", "--filter", &format!("name={}", rig.site.app), "--format", "{{.Name}}"]);
    if !networks.is_empty() {
        found.push(format!("networks are left: {networks:?}"));
    }
}

/// Finished images are those of the kept releases, the names `latest` and `rollback` are where the store says, and what else has the
/// app's label is the cache of the last build.
fn images(rig: &Rig, store: &Store, live: &Release, found: &mut Vec<String>) {
    let app = &rig.site.app;
    let kept: BTreeSet<&str> = store.kept.iter().map(|r| r.artefact.as_str()).collect();
    let ours = format!("label=refit.app={app}");
    let list = |filters: &[&str]| {
        let mut args = vec!["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"];
        filters.iter().for_each(|filter| args.extend(["--filter", filter]));
        rig.docker(&args)
    };
    let finished = list(&[&ours, "label=refit.build-key"]);
    let finished: Vec<(&str, &str)> = finished.lines().filter_map(|line| line.split_once(' ')).collect();
    for (id, name) in &finished {
        let cached = name.starts_with(&format!("{app}-cache:"));
        let tested = rig.untidy && name.starts_with(&format!("{app}-test:"));
        if !kept.contains(id) && !cached && !tested {
            found.push(format!("an image of no release is left: {name} {id}"));
        }
    }
    for artefact in &kept {
        if !finished.iter().any(|(id, _)| id == artefact) {
            found.push(format!("the image {artefact} of a kept release is gone"));
        }
    }
    for line in list(&[&ours]).lines() {
        let of_a_step_or_test = line.ends_with("<none>:<none>") || line.contains(&format!("{app}-test:"));
        if of_a_step_or_test && !rig.untidy {
            found.push(format!("an image of a step or a test is left: {line}"));
        }
    }
    let tag = |tag: &str| {
        let wanted = format!("{app}:{tag}");
        finished.iter().find(|(_, name)| *name == wanted).map(|(id, _)| *id)
    };
    if tag("latest") != Some(live.artefact.as_str()) {
        found.push(format!("{app}:latest is {:?} and should be {}", tag("latest"), live.artefact));
    }
    // What was live before the last deployment that came to a good end.
    let last = store.all.iter().find(|d| d.status == Status::Succeeded);
    let before = last.and_then(|d| d.previous);
    let way_back = store.kept.iter().find(|r| Some(r.deployment) == before).map(|r| r.artefact.as_str());
    if tag("rollback") != way_back {
        found.push(format!("{app}:rollback is {:?} and should be {way_back:?}", tag("rollback")));
    }
}

/// Nothing was applied twice, nothing that is live is missing, and no deployment ran the command more than once.
fn ledger(rig: &Rig, store: &Store, found: &mut Vec<String>) {
    for name in ["applied", "runs"] {
        let lines = rig.ledger(name);
        let unique: BTreeSet<&String> = lines.iter().collect();
        let repeats = rig.repeats && name == "runs";
        if unique.len() != lines.len() && !repeats {
            found.push(format!("a migration is there twice in `{name}`: {lines:?}"));
        }
        let migrated = |d: &&DeploymentView| d.status == Status::Succeeded && d.trigger.kind != TriggerKind::Rollback;
        for deployment in store.all.iter().filter(migrated) {
            let page = deployment.commit.as_ref().and_then(|commit| rig.page_of(commit));
            if page.is_none_or(|page| !lines.iter().any(|line| line == page)) {
                found.push(format!("the migration of deployment {} is not in `{name}`", deployment.id));
            }
        }
    }
}

/// Every file below a directory, relative to it.
pub fn files_below(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(path);
            } else if let Ok(path) = path.strip_prefix(dir) {
                files.push(path.display().to_string());
            }
        }
    }
    files.sort();
    files
}
