use std::collections::BTreeMap;

use super::*;
use crate::{
    cli::sample,
    model::{CommitId, RollbackKind},
    rollback::{Commits, DataChange, Migration, Side},
};

fn side(id: i64, digit: &str) -> Side {
    let commit: CommitId = digit.repeat(40).parse().unwrap();
    let version = format!("guestbook:{}", commit.short());
    Side { deployment: DeploymentId(id), version, image: format!("sha256:{id}"), commit }
}

fn check(name: &str, severity: Severity, message: &str) -> Check {
    Check { name: name.to_owned(), severity, message: message.to_owned(), forcible: true }
}

fn preview() -> Preview {
    let line = |digit: &str, subject: &str| CommitLine {
        commit: digit.repeat(40).parse().unwrap(),
        subject: subject.to_owned(),
    };
    Preview {
        key: serde_json::from_str(r#"{"app":"guestbook","environment":"production"}"#).unwrap(),
        kind: RollbackKind::Previous,
        from: side(5, "b"),
        to: side(3, "a"),
        commits: Commits {
            left: vec![line("b", "Greet in \u{1b}[31mred"), line("c", "Count guests")],
            left_count: 12,
            gained: Vec::new(),
            gained_count: 0,
            unknown: None,
        },
        instant: true,
        environment: vec![
            Change::Changed("GREETING".into()),
            Change::Added("OLD".into()),
            Change::Removed("NEW".into()),
        ],
        settings: vec!["start.health".into(), "smoke".into()],
        migrations: vec![Migration { deployment: DeploymentId(5), before: Some("0007".into()), after: None }],
        data: None,
        checks: vec![
            check("target", Severity::Ok, "deployment 3 was live and healthy"),
            check("schema", Severity::Warning, "migrations ran since"),
            check("live", Severity::Error, "the live version is healthy (deployment 5)"),
        ],
    }
}

#[test]
fn the_preview_reads_well() {
    let plain = |preview: &Preview| page(preview, Paint::new(false), None, &sample::clock());
    let first = preview();
    let mut second = preview();
    second.commits =
        Commits { left: Vec::new(), left_count: 0, unknown: Some("not fetched".into()), ..first.commits.clone() };
    second.instant = false;
    (second.environment, second.settings, second.migrations) = (Vec::new(), Vec::new(), Vec::new());
    second.data = Some(DataChange {
        set: "guestbook/production/2026-11-17_10-00-00".into(),
        taken_at: sample::at(7_200),
        parts: BTreeMap::from([("guestbook".to_owned(), 1_500_000)]),
    });
    insta::assert_snapshot!([plain(&first), plain(&second)].join("────────\n"));
}
