//! What nobody recorded: containers, processes and artefacts that carry Refit's labels and should not be there, or not as they are.
//!
//! Recovery first takes up what the journal knows of. This looks from the other side: at what the runtime *shows* of an environment.
//! [`plan`] compares it with what the registry says and is pure; [`tidy`] looks, plans and acts, with errors only logged, and
//! `refit doctor` shows what would be done. Who calls [`tidy`] must own the environment: recovery under the lock, then its worker.
//!
//! The rules, each on the careful side:
//!
//! - What is live, kept as a way back, or belongs to a deployment that has not ended is never removed.
//! - Only what the registry knows to have ended is removed. A label is no proof: another state directory may have an app of this name, or the
//!   registry may be younger than the container. So where a commit is labelled too it has to be the recorded one, and what
//!   is unknown is reported to a person and let be.
//! - Nothing that runs is taken down unless the live version runs or can be started. Something that answers is better than nothing.
//! - The live version is started if it does not run: the registry says that users should see it. Only the daemon does this, and
//!   only at its start: whoever stops the app by hand while the daemon runs is left in peace. It is not started beside something
//!   that the registry does not know: that may be what users see.
//! - A version that is kept warm runs on beside the live one until its time is over. Without a daemon nobody would stop it then, so it is stopped now.
//! - Of a `stuck` deployment nothing is removed: a person is about to look at it. It is stopped, for the live version's sake. After a
//!   rollback that got stuck, data may be half restored, and nothing is touched at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

pub use self::tidy::{Look, look, settle_all, sweep_data, tidy};
use crate::{
    config::RuntimeKind,
    model::{DeploymentId, Status},
    registry::Standing,
    runtime::{Instance, SeenArtefact, SeenInstance, Sight},
};

#[cfg(test)]
mod tests;
mod tidy;

/// What should be done. In the order in which it is to be done: what runs for nobody makes room, then the live version starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// What only a person can judge.
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// An instance whose deployment ended without becoming a release, or whose release was given up.
    Remove {
        runtime: RuntimeKind,
        instance: Instance,
        status: Status,
        runs: bool,
    },
    /// An instance that runs beside the live one.
    Stop {
        runtime: RuntimeKind,
        instance: Instance,
    },
    /// Helpers of a deployment that ended.
    Sweep {
        runtime: RuntimeKind,
        deployment: DeploymentId,
        helpers: Vec<String>,
    },
    /// The live instance.
    Start {
        runtime: RuntimeKind,
        instance: Instance,
    },
    RemoveArtefact {
        runtime: RuntimeKind,
        id: String,
        name: String,
        deployment: DeploymentId,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It carries our labels, and the registry does not know its deployment.
    Unknown { runtime: RuntimeKind, thing: Thing, name: String, deployment: DeploymentId },
    /// The live instance is gone.
    LiveMissing { runtime: RuntimeKind, instance: Instance },
    /// It should run, and is not started because of what the registry does not know.
    NotStarted { runtime: RuntimeKind, instance: Instance, beside: String },
    /// It should not run, and is let be because the live version does not run and cannot be started.
    Spared { runtime: RuntimeKind, instance: Instance },
    /// Nothing is touched until a person has looked at a rollback that got stuck; so many actions wait.
    HandsOff { stuck: DeploymentId, waiting: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    Instance { runs: bool },
    Helper,
    Artefact,
}

/// Whose a labelled thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Live,
    Kept,
    /// Its deployment has not ended.
    Open,
    Stuck,
    Ended(Status),
    Unknown,
}

/// What to do about what `sights` shows, one entry for each runtime that could be asked. `may_start`: whether the live
/// version is to be started where it does not run, and one that is kept warm is to run on: as the daemon does it.
pub fn plan(standing: &Standing, sights: &[(RuntimeKind, Sight)], may_start: bool) -> Plan {
    let mut planner = Planner { standing, may_start, plan: Plan::default(), staying: BTreeSet::new() };
    let live = planner.live(sights);
    for (runtime, sight) in sights {
        for seen in &sight.instances {
            planner.instance(*runtime, seen, live);
        }
    }
    for (runtime, sight) in sights {
        planner.helpers(*runtime, sight);
    }
    if let (Live::Down, Some(release)) = (live, &standing.live) {
        let start = Action::Start { runtime: release.runtime, instance: release.instance.clone() };
        planner.plan.actions.push(start);
    }
    for (runtime, sight) in sights {
        sight.artefacts.iter().for_each(|seen| planner.artefact(*runtime, seen));
    }
    planner.finish()
}

/// How the live version does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Live {
    /// Nothing was ever live: there is nothing to protect.
    None,
    Up,
    /// It does not run, and is to be started.
    Down,
    /// It does not run and is not to be started, or was not seen at all.
    Absent,
}

struct Planner<'a> {
    standing: &'a Standing,
    may_start: bool,
    plan: Plan,
    /// Deployments that have an instance which is not removed.
    staying: BTreeSet<DeploymentId>,
}

impl Planner<'_> {
    fn owner(&self, deployment: DeploymentId, commit: Option<&str>) -> Owner {
        let Some(known) = self.standing.deployments.get(&deployment) else { return Owner::Unknown };
        if commit.is_some_and(|commit| known.commit.as_ref().is_none_or(|known| known.as_str() != commit)) {
            return Owner::Unknown;
        }
        if self.standing.live.as_ref().is_some_and(|live| live.deployment == deployment) {
            Owner::Live
        } else if self.standing.kept.contains(&deployment) {
            Owner::Kept
        } else if !known.status.is_end() {
            Owner::Open
        } else if self.standing.stuck == Some(deployment) {
            Owner::Stuck
        } else {
            Owner::Ended(known.status)
        }
    }

    fn live(&mut self, sights: &[(RuntimeKind, Sight)]) -> Live {
        let Some(release) = &self.standing.live else { return Live::None };
        let (runtime, instance) = (release.runtime, release.instance.clone());
        // What cannot be asked now may be there.
        let Some((_, sight)) = sights.iter().find(|(kind, _)| *kind == runtime) else { return Live::Absent };
        let Some(seen) = sight.instances.iter().find(|seen| self.owner_of(seen) == Owner::Live) else {
            self.plan.findings.push(Finding::LiveMissing { runtime, instance });
            return Live::Absent;
        };
        if seen.runs {
            return Live::Up;
        }
        // A deployment that runs has perhaps stopped it, and will start it again if it has to.
        if !self.may_start || self.standing.under_way() {
            return Live::Absent;
        }
        let unknown = |seen: &&SeenInstance| seen.runs && self.owner_of(seen) == Owner::Unknown;
        if let Some(other) = sights.iter().flat_map(|(_, sight)| &sight.instances).find(unknown) {
            let beside = other.instance.name.clone();
            self.plan.findings.push(Finding::NotStarted { runtime, instance, beside });
            return Live::Absent;
        }
        Live::Down
    }

    fn owner_of(&self, seen: &SeenInstance) -> Owner {
        self.owner(seen.instance.deployment, seen.commit.as_deref())
    }

    fn instance(&mut self, runtime: RuntimeKind, seen: &SeenInstance, live: Live) {
        let (instance, runs) = (seen.instance.clone(), seen.runs);
        let deployment = instance.deployment;
        let replaceable = !runs || live != Live::Absent;
        let removed = match self.owner_of(seen) {
            Owner::Live | Owner::Open => false,
            Owner::Kept if self.may_start && self.standing.warm == Some(deployment) => false,
            Owner::Unknown => {
                self.unknown(runtime, Thing::Instance { runs }, &instance.name, deployment);
                false
            }
            // The way back may be on its way to being live.
            Owner::Kept | Owner::Stuck if !runs || self.standing.under_way() => false,
            Owner::Kept | Owner::Stuck | Owner::Ended(_) if !replaceable => {
                self.plan.findings.push(Finding::Spared { runtime, instance });
                false
            }
            Owner::Kept | Owner::Stuck => {
                self.plan.actions.push(Action::Stop { runtime, instance });
                false
            }
            Owner::Ended(status) => {
                self.plan.actions.push(Action::Remove { runtime, instance, status, runs });
                true
            }
        };
        if !removed {
            self.staying.insert(deployment);
        }
    }

    fn helpers(&mut self, runtime: RuntimeKind, sight: &Sight) {
        let mut by_deployment: BTreeMap<DeploymentId, Vec<String>> = BTreeMap::new();
        for helper in &sight.helpers {
            by_deployment.entry(helper.deployment).or_default().push(helper.name.clone());
        }
        for (deployment, helpers) in by_deployment {
            match self.owner(deployment, None) {
                Owner::Open => {}
                Owner::Unknown => {
                    helpers.iter().for_each(|name| self.unknown(runtime, Thing::Helper, name, deployment));
                }
                _ => self.plan.actions.push(Action::Sweep { runtime, deployment, helpers }),
            }
        }
    }

    fn artefact(&mut self, runtime: RuntimeKind, seen: &SeenArtefact) {
        if self.standing.needed.contains(&seen.id) {
            return;
        }
        match self.owner(seen.deployment, seen.commit.as_deref()) {
            Owner::Unknown => self.unknown(runtime, Thing::Artefact, &seen.name, seen.deployment),
            Owner::Ended(_) if !self.standing.app_busy && !self.staying.contains(&seen.deployment) => {
                let (id, name) = (seen.id.clone(), seen.name.clone());
                self.plan.actions.push(Action::RemoveArtefact { runtime, id, name, deployment: seen.deployment });
            }
            _ => {}
        }
    }

    fn unknown(&mut self, runtime: RuntimeKind, thing: Thing, name: &str, deployment: DeploymentId) {
        self.plan.findings.push(Finding::Unknown { runtime, thing, name: name.to_owned(), deployment });
    }

    fn finish(mut self) -> Plan {
        if let Some(stuck) = self.standing.stuck.filter(|_| self.standing.stuck_in_rollback) {
            let waiting = std::mem::take(&mut self.plan.actions).len();
            if waiting > 0 {
                self.plan.findings.push(Finding::HandsOff { stuck, waiting });
            }
        }
        self.plan
    }
}

fn noun(runtime: RuntimeKind, thing: Thing) -> &'static str {
    match (runtime, thing) {
        (RuntimeKind::Docker, Thing::Instance { .. } | Thing::Helper) => "container",
        (RuntimeKind::Docker, Thing::Artefact) => "image",
        (RuntimeKind::Process, Thing::Instance { .. }) => "process",
        (RuntimeKind::Process, Thing::Helper) => "working directory",
        (RuntimeKind::Process, Thing::Artefact) => "release",
    }
}

const IDLE: Thing = Thing::Instance { runs: false };

impl Action {
    /// What becomes of it, in one word.
    pub fn done(&self) -> &'static str {
        match self {
            Self::Remove { .. } | Self::Sweep { .. } | Self::RemoveArtefact { .. } => "removed",
            Self::Stop { .. } => "stopped",
            Self::Start { .. } => "started",
        }
    }
}

/// What is not as it should be.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remove { runtime, instance, status, runs } => {
                let (noun, verb) = (noun(*runtime, IDLE), if *runs { "runs" } else { "is there" });
                let Instance { name, deployment, .. } = instance;
                write!(f, "{noun} {name} {verb}, and deployment {deployment} ended ({status}) and is not kept")
            }
            Self::Stop { runtime, instance } => {
                let noun = noun(*runtime, IDLE);
                write!(f, "{noun} {} runs, and deployment {} is not live", instance.name, instance.deployment)
            }
            Self::Sweep { runtime, deployment, helpers } => {
                let (noun, names) = (noun(*runtime, Thing::Helper), helpers.join(", "));
                write!(f, "{noun} {names} is there, and deployment {deployment} has ended")
            }
            Self::Start { runtime, instance } => {
                let noun = noun(*runtime, IDLE);
                write!(f, "{noun} {} does not run, and deployment {} is live", instance.name, instance.deployment)
            }
            Self::RemoveArtefact { runtime, name, deployment, .. } => {
                let noun = noun(*runtime, Thing::Artefact);
                write!(f, "{noun} {name} of deployment {deployment} is there, and no release needs it")
            }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { runtime, thing, name, deployment } => {
                let noun = noun(*runtime, *thing);
                let verb = if *thing == (Thing::Instance { runs: true }) { "runs" } else { "is there" };
                write!(f, "{noun} {name} {verb}, and this registry knows of no such deployment {deployment}")
            }
            Self::LiveMissing { runtime, instance } => {
                let noun = noun(*runtime, IDLE);
                write!(f, "{noun} {} is gone, and deployment {} is live", instance.name, instance.deployment)
            }
            Self::NotStarted { runtime, instance, beside } => write!(
                f,
                "{} {} does not run, and deployment {} is live; it is not started beside {beside}",
                noun(*runtime, IDLE),
                instance.name,
                instance.deployment
            ),
            Self::Spared { runtime, instance } => write!(
                f,
                "{} {} runs, and deployment {} is not live; it is let be because the live version does not run",
                noun(*runtime, IDLE),
                instance.name,
                instance.deployment
            ),
            Self::HandsOff { stuck, waiting } => {
                write!(f, "leftovers ({waiting}) are let be, because deployment {stuck}, a rollback, is stuck")
            }
        }
    }
}

impl Finding {
    /// What a person can do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Unknown { runtime: RuntimeKind::Docker, thing, name, .. } => {
                let command = if *thing == Thing::Artefact { "rmi" } else { "rm -f" };
                format!("see that no other Refit on this machine needs it; then `docker {command} {name}`")
            }
            Self::Unknown { runtime: RuntimeKind::Process, thing, name, .. } => match thing {
                Thing::Instance { .. } => format!(
                    "end its supervisor (`pgrep -f 'supervise .*/{name}'` finds it), then remove the directory `{name}` in process/.instances of the state directory"
                ),
                Thing::Helper => "remove it from the app's `scratch` in the state directory".to_owned(),
                Thing::Artefact => format!("`rm -r {name}`"),
            },
            Self::LiveMissing { instance, .. } => format!("`refit rerun {}` deploys it again", instance.deployment),
            Self::NotStarted { beside, .. } => {
                format!("find out which of the two should run; without {beside}, restart the daemon")
            }
            Self::Spared { .. } => "bring the live version up; `refit status` names it".to_owned(),
            Self::HandsOff { stuck, .. } => {
                format!("`refit show {stuck}` tells what happened; docs/recovery.md what to do")
            }
        }
    }
}
