//! Deployments made by hand, one for each way to end: what the views are tested with.

use jiff::{Timestamp, tz::TimeZone};
use serde_json::json;

use super::{
    story::{Live, Story},
    style::Clock,
};
use crate::model::{
    ApprovalState, ApprovalView, DeploymentId, DeploymentView, Resolution, RollbackKind, RollbackView, Stage,
    StageStatus, StageView, Status, Trigger, TriggerKind,
};

const NOW: i64 = 1_795_000_000;

pub fn clock() -> Clock {
    Clock { now: at(0), zone: TimeZone::UTC }
}

/// Seconds before now.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW - seconds).unwrap()
}

fn stages(ends: &[(Stage, StageStatus)]) -> Vec<StageView> {
    let view = |name: &Stage| {
        let status = ends.iter().find(|(stage, _)| stage == name).map_or(StageStatus::Pending, |(_, status)| *status);
        let ran = !matches!(status, StageStatus::Pending | StageStatus::Skipped);
        StageView {
            name: *name,
            status,
            started_at: ran.then(|| at(300)),
            duration_ms: (ran && status != StageStatus::Running).then_some(1_250),
            output: match status {
                StageStatus::Skipped => Some(json!({ "reason": "not configured" })),
                StageStatus::Succeeded if *name == Stage::Build => {
                    Some(json!({ "name": "guestbook:0123456789", "reused": false }))
                }
                _ => None,
            },
            error: matches!(status, StageStatus::Failed | StageStatus::Warned | StageStatus::UndoFailed)
                .then(|| format!("{name} said no\n\u{1b}[31mand more")),
        }
    };
    Stage::ALL.iter().map(view).collect()
}

fn until(last: Stage, end: StageStatus, before: StageStatus) -> Vec<StageView> {
    let ends: Vec<_> = Stage::ALL
        .iter()
        .copied()
        .take_while(|stage| *stage <= last)
        .map(|stage| match stage {
            stage if stage == last => (stage, end),
            Stage::Migrate => (stage, StageStatus::Skipped),
            stage => (stage, before),
        })
        .collect();
    stages(&ends)
}

fn view(id: i64, status: Status, code: Option<u8>, stages: Vec<StageView>) -> DeploymentView {
    let failed = stages.iter().find(|s| matches!(s.status, StageStatus::Failed)).map(|s| s.name);
    DeploymentView {
        id: DeploymentId(id),
        app: "guestbook".parse().unwrap(),
        environment: "production".parse().unwrap(),
        commit: Some("0123456789abcdef0123456789abcdef01234567".parse().unwrap()),
        reference: "refs/heads/main".to_owned(),
        trigger: Trigger {
            kind: TriggerKind::Github,
            by: Some("ada".to_owned()),
            delivery: Some("d-1".to_owned()),
            forced: false,
        },
        status,
        failed_stage: failed,
        error: failed.map(|stage| format!("{stage} said no\n\u{1b}[31mand more")),
        exit_code: code,
        queued_at: at(305),
        started_at: (status != Status::Queued).then(|| at(300)),
        finished_at: status.is_end().then(|| at(240)),
        duration_ms: (status != Status::Queued).then_some(60_000),
        stages,
        image: None,
        previous: Some(DeploymentId(3)),
        backup: None,
        live: false,
        subject: Some("Greet in \u{1b}[31mred\u{202e} and in a way that takes more room than any table has".to_owned()),
        author: Some("Ada <ada@example.org>".to_owned()),
        log: Some("/srv/app/logs/7.log".to_owned()),
        undone: Vec::new(),
        freed: None,
        rollback: None,
        retired: Vec::new(),
        approval: None,
        resolved: None,
    }
}

fn approval(state: ApprovalState) -> ApprovalView {
    let said = matches!(state, ApprovalState::Approved | ApprovalState::Rejected);
    ApprovalView {
        state,
        by: said.then(|| "grace".to_owned()),
        reason: (state == ApprovalState::Rejected).then(|| "not before \u{1b}[31mMonday".to_owned()),
        at: said.then(|| at(250)),
        requested_at: at(270),
        expires_at: at(-3_600),
    }
}

fn story(deployment: DeploymentView, live: Option<i64>, tail: &[&str]) -> Story {
    let own = deployment.commit.clone().filter(|_| live == Some(deployment.id.0));
    let commit = own.unwrap_or_else(|| "89abcdef0123456789abcdef0123456789abcdef".parse().unwrap());
    let live =
        live.map(|id| Live { deployment: DeploymentId(id), version: format!("guestbook:{}", commit.short()), commit });
    Story { deployment, live, tail: tail.iter().map(|&line| line.to_owned()).collect() }
}

/// The states in the order in which a deployment may meet them.
pub fn all() -> Vec<Story> {
    use StageStatus as S;
    let queued = view(10, Status::Queued, None, stages(&[]));
    let running = view(
        11,
        Status::Running,
        None,
        stages(&[
            (Stage::Pull, S::Succeeded),
            (Stage::Test, S::Running),
            (Stage::Build, S::Running),
            (Stage::Backup, S::Skipped),
        ]),
    );
    let mut good = view(12, Status::Succeeded, Some(0), until(Stage::Smoke, S::Succeeded, S::Succeeded));
    (good.live, good.image, good.backup) =
        (true, Some("sha256:4bf5122f".to_owned()), Some("guestbook/production/2026-11-17_10-00-00".to_owned()));
    (good.freed, good.retired) = (Some(12_345_678), vec![DeploymentId(1), DeploymentId(2)]);
    good.stages[1].status = S::Warned;
    good.stages[1].error = Some("pg_dump: connection refused".to_owned());
    let tests = view(13, Status::Failed, Some(1), until(Stage::Test, S::Failed, S::Succeeded));
    let mut away = view(14, Status::Failed, Some(69), until(Stage::Pull, S::Failed, S::Succeeded));
    (away.commit, away.subject, away.author) = (None, None, None);
    let mut back = view(15, Status::RolledBack, Some(4), until(Stage::Smoke, S::Failed, S::Undone));
    back.undone = vec![
        "start: guestbook 3 is started again and healthy".to_owned(),
        "migrate: the schema was left as it is".to_owned(),
    ];
    let mut first = view(16, Status::Failed, Some(3), until(Stage::Start, S::Failed, S::Undone));
    first.previous = None;
    let mut stuck = view(17, Status::Stuck, Some(5), until(Stage::Start, S::UndoFailed, S::Succeeded));
    stuck.failed_stage = Some(Stage::Start);
    stuck.error = Some("exited with 1 after 0.2s".to_owned());
    stuck.undone = vec!["start: could not be undone: port 8000 is taken".to_owned()];
    let mut superseded = view(18, Status::Superseded, Some(1), stages(&[]));
    superseded.error = Some("deployment 19 is newer".to_owned());
    let cancelled = view(19, Status::Cancelled, Some(130), until(Stage::Build, S::Undone, S::Undone));
    let mut skipped = view(20, Status::Skipped, Some(0), stages(&[]));
    skipped.error = Some("no path of `paths` changed".to_owned());
    let gate = |id, status, code, state| {
        let ends = if status == Status::Failed { S::Undone } else { S::Succeeded };
        let mut view = view(id, status, code, until(Stage::Tag, ends, S::Succeeded));
        view.approval = Some(approval(state));
        view
    };
    let awaiting = gate(21, Status::AwaitingApproval, None, ApprovalState::Waiting);
    let mut rejected = gate(22, Status::Failed, Some(1), ApprovalState::Rejected);
    rejected.error = Some("rejected by grace: not before Monday".to_owned());
    let mut expired = gate(23, Status::Failed, Some(1), ApprovalState::Expired);
    expired.error = Some("nobody approved it in time".to_owned());
    let mut broken = view(24, Status::Stuck, Some(5), until(Stage::Start, S::Failed, S::Succeeded));
    broken.trigger.kind = TriggerKind::Rollback;
    let mut looked = view(25, Status::Stuck, Some(5), until(Stage::Start, S::UndoFailed, S::Succeeded));
    looked.resolved = Some(Resolution { by: "grace".to_owned(), reason: "port 8000 was taken".to_owned(), at: at(60) });
    let rollback = RollbackView {
        kind: RollbackKind::Previous,
        to: DeploymentId(2),
        reason: "orders fail \u{1b}[31msince 14:00".to_owned(),
        forced: true,
        restore: None,
        parts: Vec::new(),
        checks: json!([]),
    };
    let trigger = Trigger { kind: TriggerKind::Rollback, by: Some("ada".to_owned()), delivery: None, forced: false };
    let rolled = |id, status, code, stages| DeploymentView {
        rollback: Some(rollback.clone()),
        trigger: trigger.clone(),
        ..view(id, status, code, stages)
    };
    let restored = |id, status, code, stages| {
        let set = "guestbook/production/2026-11-21_10-15-30".to_owned();
        let (kind, parts) = (RollbackKind::Restore, vec!["db".parse().unwrap()]);
        let rollback =
            RollbackView { kind, to: DeploymentId(3), restore: Some(set), parts, forced: false, ..rollback.clone() };
        let mut view = DeploymentView { rollback: Some(rollback), ..rolled(id, status, code, stages) };
        view.trigger.kind = TriggerKind::Restore;
        view.backup = Some("guestbook/production/2026-11-21_12-00-00".to_owned());
        view
    };
    let data_back = restored(29, Status::Succeeded, Some(0), until(Stage::Smoke, S::Succeeded, S::Skipped));
    let data_kept = restored(30, Status::RolledBack, Some(4), until(Stage::Smoke, S::Failed, S::Undone));
    let back_again = rolled(26, Status::Succeeded, Some(0), until(Stage::Smoke, S::Succeeded, S::Skipped));
    let not_begun = rolled(27, Status::Failed, Some(1), until(Stage::Backup, S::Failed, S::Skipped));
    let mut failed_back = rolled(28, Status::Stuck, Some(5), until(Stage::Smoke, S::Failed, S::Undone));
    failed_back.undone = vec!["start: deployment 3 (89abcdef01) is live again".to_owned()];
    vec![
        story(back_again, Some(2), &[]),
        story(not_begun, Some(3), &[]),
        story(failed_back, Some(3), &[]),
        story(data_back, Some(3), &[]),
        story(data_kept, Some(3), &[]),
        story(queued, Some(3), &[]),
        story(running, Some(3), &[]),
        story(good, Some(12), &[]),
        story(tests, Some(3), &["FAILED test_greeting", "3 of 40 failed"]),
        story(away, Some(3), &[]),
        story(back, Some(3), &["GET /health: 500"]),
        story(first, None, &["panic: no database"]),
        story(stuck, Some(3), &[]),
        story(superseded, Some(3), &[]),
        story(cancelled, Some(3), &[]),
        story(skipped, Some(3), &[]),
        story(awaiting, Some(3), &[]),
        story(rejected, Some(3), &[]),
        story(expired, Some(3), &[]),
        story(broken, Some(3), &[]),
        story(looked, Some(3), &[]),
    ]
}
