use jiff::Timestamp;
use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{
    model::{CommitId, EnvironmentKey},
    registry::{Known, Release},
    runtime::{SeenHelper, instance_name},
};

const DOCKER: RuntimeKind = RuntimeKind::Docker;

fn key() -> EnvironmentKey {
    EnvironmentKey { app: "site".parse().unwrap(), environment: "production".parse().unwrap() }
}

fn commit(id: i64) -> CommitId {
    format!("{id:x}").repeat(40)[..40].parse().unwrap()
}

fn instance(id: i64) -> Instance {
    let deployment = DeploymentId(id);
    Instance { id: format!("c{id}"), name: instance_name(&key(), deployment), deployment }
}

fn seen(id: i64, runs: bool) -> SeenInstance {
    SeenInstance { instance: instance(id), commit: Some(commit(id).to_string()), runs }
}

fn artefact(id: i64) -> SeenArtefact {
    let (deployment, commit) = (DeploymentId(id), Some(commit(id).to_string()));
    SeenArtefact { id: format!("sha256:{id}"), name: format!("site:{id}"), deployment, commit }
}

fn release(id: i64) -> Release {
    Release {
        deployment: DeploymentId(id),
        key: key(),
        commit: commit(id),
        artefact: format!("sha256:{id}"),
        artefact_name: format!("site:{id}"),
        runtime: DOCKER,
        instance: instance(id),
        live_since: Timestamp::UNIX_EPOCH,
    }
}

/// Deployments by id and status; of those that succeeded `kept` are kept, the last of them live.
fn standing(deployments: &[(i64, Status)], kept: &[i64]) -> Standing {
    let known =
        |(id, status): &(i64, Status)| (DeploymentId(*id), Known { status: *status, commit: Some(commit(*id)) });
    Standing {
        live: kept.last().map(|id| release(*id)),
        kept: kept.iter().copied().map(DeploymentId).collect(),
        deployments: deployments.iter().map(known).collect(),
        needed: kept.iter().map(|id| format!("sha256:{id}")).collect(),
        ..Standing::default()
    }
}

fn instances(seen: &[SeenInstance]) -> Vec<(RuntimeKind, Sight)> {
    vec![(DOCKER, Sight { instances: seen.to_vec(), ..Sight::default() })]
}

/// What is planned, each as a word and a deployment.
fn words(plan: &Plan) -> Vec<String> {
    let action = |action: &Action| match action {
        Action::Remove { instance, .. } => format!("remove {}", instance.deployment),
        Action::Stop { instance, .. } => format!("stop {}", instance.deployment),
        Action::Sweep { deployment, .. } => format!("sweep {deployment}"),
        Action::Start { instance, .. } => format!("start {}", instance.deployment),
        Action::RemoveArtefact { deployment, .. } => format!("remove artefact {deployment}"),
    };
    let finding = |finding: &Finding| match finding {
        Finding::Unknown { deployment, .. } => format!("unknown {deployment}"),
        Finding::LiveMissing { instance, .. } => format!("missing {}", instance.deployment),
        Finding::NotStarted { instance, .. } => format!("not started {}", instance.deployment),
        Finding::Spared { instance, .. } => format!("spared {}", instance.deployment),
        Finding::HandsOff { stuck, waiting } => format!("hands off {stuck}: {waiting}"),
    };
    plan.actions.iter().map(action).chain(plan.findings.iter().map(finding)).collect()
}

use Status::{Failed, Queued, RolledBack, Running, Stuck, Succeeded};

const HISTORY: &[(i64, Status)] = &[(1, Succeeded), (2, Succeeded), (3, Failed), (4, Succeeded)];

#[test]
fn each_instance_gets_what_it_deserves() {
    const UP: bool = true;
    const DOWN: bool = false;
    // 4 is live, 2 is kept, 1 was given up, 3 failed, 9 nobody knows.
    type Case<'c> = (&'c [(i64, bool)], &'c [&'c str]);
    let cases: &[Case] = &[
        (&[(4, UP), (2, DOWN)], &[]),
        (&[(4, UP), (2, UP)], &["stop 2"]),
        (&[(4, DOWN), (2, UP)], &["stop 2", "start 4"]),
        (&[(4, DOWN)], &["start 4"]),
        (&[(4, UP), (3, UP), (1, DOWN)], &["remove 3", "remove 1"]),
        (&[(4, DOWN), (3, UP)], &["remove 3", "start 4"]),
        (&[(2, UP)], &["missing 4", "spared 2"]),
        (&[(3, UP), (1, DOWN)], &["remove 1", "missing 4", "spared 3"]),
        (&[(4, UP), (9, UP)], &["unknown 9"]),
        (&[(4, DOWN), (9, DOWN)], &["start 4", "unknown 9"]),
        (&[(4, DOWN), (9, UP), (2, UP)], &["not started 4", "unknown 9", "spared 2"]),
    ];
    for (shown, wanted) in cases {
        let shown: Vec<_> = shown.iter().map(|(id, runs)| seen(*id, *runs)).collect();
        assert_eq!(words(&plan(&standing(HISTORY, &[2, 4]), &instances(&shown), true)), *wanted, "{shown:?}");
    }
}

#[test]
fn what_is_kept_warm_runs_on_while_somebody_watches_over_it() {
    let mut standing = standing(HISTORY, &[1, 2, 4]);
    standing.warm = Some(DeploymentId(2));
    let shown = |live| instances(&[seen(4, live), seen(2, true), seen(1, true)]);
    assert_eq!(words(&plan(&standing, &shown(true), true)), ["stop 1"]);
    assert_eq!(words(&plan(&standing, &shown(false), true)), ["stop 1", "start 4"]);
    // A single command would leave it running for ever.
    assert_eq!(words(&plan(&standing, &shown(true), false)), ["stop 2", "stop 1"]);
    // Its time is over, or it was given up.
    standing.warm = None;
    assert_eq!(words(&plan(&standing, &shown(true), true)), ["stop 2", "stop 1"]);
    standing.warm = Some(DeploymentId(2));
    standing.kept.remove(&DeploymentId(2));
    assert_eq!(words(&plan(&standing, &shown(true), true)), ["remove 2", "stop 1"]);
}

#[test]
fn nothing_live_yet_protects_no_stray() {
    let standing = standing(&[(1, Failed)], &[]);
    assert_eq!(words(&plan(&standing, &instances(&[seen(1, true)]), true)), ["remove 1"]);
    assert!(plan(&Standing::default(), &instances(&[]), true) == Plan::default());
}

#[test]
fn a_number_alone_is_no_proof() {
    let mut stranger = seen(3, false);
    stranger.commit = Some(commit(7).to_string());
    let standing = standing(HISTORY, &[2, 4]);
    assert_eq!(words(&plan(&standing, &instances(&[seen(4, true), stranger.clone()]), true)), ["unknown 3"]);
    // One without a commit makes no claim.
    stranger.commit = None;
    assert_eq!(words(&plan(&standing, &instances(&[seen(4, true), stranger]), true)), ["remove 3"]);
    let mut live = seen(4, true);
    live.commit = Some(commit(7).to_string());
    assert_eq!(words(&plan(&standing, &instances(&[live]), true)), ["missing 4", "unknown 4"]);
}

#[test]
fn what_is_under_way_is_let_be() {
    let mut standing = standing(&[(1, Succeeded), (2, Succeeded), (3, Running), (4, Queued)], &[1, 2]);
    standing.app_busy = true;
    let shown = instances(&[seen(1, true), seen(2, false), seen(3, true), seen(4, false)]);
    assert_eq!(words(&plan(&standing, &shown, true)), [""; 0]);
}

#[test]
fn without_the_right_to_start_nothing_that_runs_is_taken_down() {
    let standing = standing(HISTORY, &[2, 4]);
    let shown = instances(&[seen(4, false), seen(2, true), seen(1, false)]);
    assert_eq!(words(&plan(&standing, &shown, false)), ["remove 1", "spared 2"]);
    // Nor while the runtime of the live version cannot be asked.
    let elsewhere: Vec<_> = shown.into_iter().map(|(_, sight)| (RuntimeKind::Process, sight)).collect();
    assert_eq!(words(&plan(&standing, &elsewhere, true)), ["remove 1", "spared 2"]);
}

#[test]
fn a_stuck_deployment_is_kept_for_who_looks_at_it() {
    let mut standing = standing(&[(1, Succeeded), (2, Stuck)], &[1]);
    standing.stuck = Some(DeploymentId(2));
    let mut shown = instances(&[seen(1, false), seen(2, true)]);
    shown[0].1.artefacts.push(artefact(2));
    assert_eq!(words(&plan(&standing, &shown, true)), ["stop 2", "start 1"]);
    standing.stuck_in_rollback = true;
    assert_eq!(words(&plan(&standing, &shown, true)), ["hands off 2: 2"]);
    // A person has looked.
    (standing.stuck, standing.stuck_in_rollback) = (None, false);
    assert_eq!(words(&plan(&standing, &shown, true)), ["remove 2", "start 1", "remove artefact 2"]);
}

#[test]
fn helpers_and_artefacts_follow_their_deployments() {
    let history = &[(1, Succeeded), (2, RolledBack), (3, Running), (4, Succeeded)];
    let mut standing = standing(history, &[4]);
    let helper = |id: i64| SeenHelper { name: format!("h{id}"), deployment: DeploymentId(id) };
    let mut sight = Sight { instances: vec![seen(4, true)], ..Sight::default() };
    sight.helpers = [1, 2, 2, 3, 9].map(helper).into();
    sight.artefacts = [1, 2, 3, 4, 9].map(artefact).into();
    let sights = [(DOCKER, sight)];
    standing.app_busy = true;
    assert_eq!(words(&plan(&standing, &sights, true)), ["sweep 1", "sweep 2", "unknown 9", "unknown 9"]);
    standing.app_busy = false;
    standing.needed.insert("sha256:1".to_owned());
    let wanted = ["sweep 1", "sweep 2", "remove artefact 2", "unknown 9", "unknown 9"];
    assert_eq!(words(&plan(&standing, &sights, true)), wanted);
}

#[test]
fn people_are_told_what_and_what_to_do() {
    let mut standing = standing(HISTORY, &[2, 4]);
    let mut sight = Sight { instances: vec![seen(4, false), seen(2, true), seen(3, true)], ..Sight::default() };
    sight.helpers = vec![SeenHelper { name: "site-3-migrate".to_owned(), deployment: DeploymentId(3) }];
    sight.artefacts = vec![artefact(3), artefact(9)];
    let mut text = String::new();
    let mut say = |plan: Plan| {
        plan.actions.iter().for_each(|action| text.push_str(&format!("{action}: {}\n", action.done())));
        plan.findings.iter().for_each(|found| text.push_str(&format!("{found}\n    {}\n", found.fix())));
    };
    say(plan(&standing, &[(DOCKER, sight.clone())], true));
    sight.instances.push(seen(9, true));
    say(plan(&standing, &[(DOCKER, sight.clone())], true));
    sight.instances.clear();
    say(plan(&standing, &[(DOCKER, sight)], true));
    standing.stuck = Some(DeploymentId(5));
    standing.stuck_in_rollback = true;
    say(plan(&standing, &instances(&[seen(4, false)]), true));
    insta::assert_snapshot!(text);
}

/// The world after the plan.
fn carried_out(mut sights: Vec<(RuntimeKind, Sight)>, plan: &Plan) -> Vec<(RuntimeKind, Sight)> {
    for action in &plan.actions {
        for (kind, sight) in &mut sights {
            let same = |runtime: &RuntimeKind, a: &Instance, b: &Instance| runtime == kind && a == b;
            match action {
                Action::Remove { runtime, instance, .. } => {
                    sight.instances.retain(|seen| !same(runtime, &seen.instance, instance));
                }
                Action::Stop { runtime, instance } | Action::Start { runtime, instance } => {
                    for seen in sight.instances.iter_mut().filter(|seen| same(runtime, &seen.instance, instance)) {
                        seen.runs = matches!(action, Action::Start { .. });
                    }
                }
                Action::Sweep { runtime, deployment, .. } => {
                    sight.helpers.retain(|helper| runtime != kind || helper.deployment != *deployment);
                }
                Action::RemoveArtefact { runtime, id, .. } => {
                    sight.artefacts.retain(|seen| runtime != kind || seen.id != *id);
                }
            }
        }
    }
    sights
}

/// Deployments 1 to 8 as a store may hold them: at most one runs, one is live, of the others that succeeded some are kept.
fn any_standing() -> impl Strategy<Value = Standing> {
    let status = prop_oneof![3 => Just(Succeeded), 1 => Just(Failed), 1 => Just(RolledBack), 1 => Just(Stuck), 1 => Just(Queued)];
    let known = (status, any::<bool>());
    (vec(option::weighted(0.9, known), 8), option::of(1..=8_i64), any::<[bool; 3]>(), any::<prop::sample::Index>())
        .prop_map(|(all, running, [app_busy, in_rollback, resolved], live)| {
            let mut deployments = Vec::new();
            let mut kept = Vec::new();
            for (id, known) in (1..).zip(all) {
                let Some((status, is_kept)) = known else { continue };
                if Some(id) == running {
                    deployments.push((id, Running));
                    continue;
                }
                if status == Succeeded && is_kept {
                    kept.push(id);
                }
                deployments.push((id, status));
            }
            let mut standing = standing(&deployments, &kept);
            // After a rollback it is not the newest.
            standing.live = (!kept.is_empty()).then(|| release(kept[live.index(kept.len())]));
            standing.app_busy = app_busy || standing.under_way();
            let stuck = deployments.iter().rev().find(|(_, status)| *status == Stuck && !resolved);
            standing.stuck = stuck.map(|(id, _)| DeploymentId(*id));
            standing.stuck_in_rollback = in_rollback && standing.stuck.is_some();
            standing
        })
}

fn any_sight() -> impl Strategy<Value = Sight> {
    let shown = (1..=10_i64, any::<bool>(), option::weighted(0.1, 1..=10_i64)).prop_map(|(id, runs, stranger)| {
        SeenInstance { commit: Some(commit(stranger.unwrap_or(id)).to_string()), ..seen(id, runs) }
    });
    let helper = (1..=10_i64).prop_map(|id| SeenHelper { name: format!("h{id}"), deployment: DeploymentId(id) });
    (vec(shown, 0..8), vec(helper, 0..4), vec((1..=10_i64).prop_map(artefact), 0..6)).prop_map(
        |(mut instances, helpers, mut artefacts)| {
            // The engine has each name and id once.
            instances.sort_by_key(|seen| seen.instance.deployment);
            instances.dedup_by_key(|seen| seen.instance.deployment);
            artefacts.sort_by_key(|seen| seen.deployment);
            artefacts.dedup();
            Sight { instances, helpers, artefacts }
        },
    )
}

proptest! {
    #[test]
    fn what_is_needed_is_never_touched(standing in any_standing(), sight in any_sight(), may_start: bool) {
        let sights = vec![(DOCKER, sight)];
        let plan = plan(&standing, &sights, may_start);
        let live = standing.live.as_ref().map(|live| live.deployment);
        let is_open = |id| standing.deployments.get(&id).is_some_and(|known| !known.status.is_end());
        for action in &plan.actions {
            let id = match action {
                Action::Remove { instance, .. } | Action::Stop { instance, .. } => {
                    prop_assert_ne!(Some(instance.deployment), live);
                    let commit = sights[0].1.instances.iter().find(|s| s.instance == *instance).and_then(|s| s.commit.clone());
                    prop_assert_eq!(commit, Some(commit_of(&standing, instance.deployment)), "a stranger");
                    instance.deployment
                }
                Action::Start { instance, .. } => {
                    prop_assert!(may_start && !standing.under_way());
                    prop_assert_eq!(Some(instance.deployment), live);
                    instance.deployment
                }
                Action::RemoveArtefact { id, deployment, .. } => {
                    prop_assert!(!standing.needed.contains(id) && !standing.app_busy);
                    *deployment
                }
                Action::Sweep { deployment, .. } => *deployment,
            };
            prop_assert!(standing.deployments.contains_key(&id), "unknown: {:?}", action);
            prop_assert!(!is_open(id), "open: {:?}", action);
            if let Action::Remove { .. } | Action::RemoveArtefact { .. } = action {
                prop_assert!(!standing.kept.contains(&id) && standing.stuck != Some(id), "{:?}", action);
            }
        }
    }

    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do(standing in any_standing(), sight in any_sight(), may_start: bool) {
        let sights = vec![(DOCKER, sight)];
        let after = carried_out(sights.clone(), &plan(&standing, &sights, may_start));
        let again = plan(&standing, &after, may_start);
        prop_assert_eq!(&again.actions, &[], "{:?}", again);
    }

    #[test]
    fn something_that_runs_goes_on_until_something_better_does(standing in any_standing(), sight in any_sight()) {
        let sights = vec![(DOCKER, sight)];
        let running = |sights: &[(RuntimeKind, Sight)]| -> Vec<DeploymentId> {
            sights[0].1.instances.iter().filter(|seen| seen.runs).map(|seen| seen.instance.deployment).collect()
        };
        let before = running(&sights);
        let after = running(&carried_out(sights.clone(), &plan(&standing, &sights, true)));
        prop_assert!(standing.live.is_none() || before.is_empty() || !after.is_empty(), "{before:?} became nothing");
        let live = standing.live.as_ref().map(|live| live.deployment);
        let only_known = sights[0].1.instances.iter().all(|seen| {
            seen.commit == standing.deployments.get(&seen.instance.deployment).and_then(|k| k.commit.as_ref()).map(|c| c.to_string())
        });
        // With the live version there, nothing in the dark and nobody at work, one version is left.
        if only_known && !standing.under_way() && !standing.stuck_in_rollback && live.is_some_and(|live| {
            sights[0].1.instances.iter().any(|seen| seen.instance.deployment == live)
        }) {
            let open = |id: &DeploymentId| standing.deployments.get(id).is_some_and(|known| !known.status.is_end());
            let ended: Vec<_> = after.into_iter().filter(|id| !open(id)).collect();
            prop_assert_eq!(ended, live.into_iter().collect::<Vec<_>>());
        }
    }
}

fn commit_of(standing: &Standing, id: DeploymentId) -> String {
    standing.deployments.get(&id).and_then(|known| known.commit.as_ref()).map(ToString::to_string).unwrap_or_default()
}
