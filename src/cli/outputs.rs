//! What each stage recorded, as a sentence for people: `show` and `report` say it.
//!
//! Read from the JSON of the journal and not from the stages' types, because a journal may be older than this program: what is not there
//! is left out of the sentence.

use serde_json::Value;

use super::style::{clip, plural, took};
use crate::{
    files::human_bytes,
    model::{Stage, StageView},
};

/// A line in a table.
const WIDTH: usize = 90;

/// The error, or what the stage did, on one line; empty where it did nothing yet.
pub fn sentence(stage: &StageView) -> String {
    let text = match (&stage.error, &stage.output) {
        (Some(error), _) => error.clone(),
        (None, Some(output)) => match output.get("reason").and_then(Value::as_str) {
            Some(why_skipped) => why_skipped.to_owned(),
            None => of(stage.name, output),
        },
        (None, None) => String::new(),
    };
    clip(&text, WIDTH)
}

fn of(stage: Stage, output: &Value) -> String {
    let parts = match stage {
        Stage::Pull => return pull(output),
        Stage::Backup => backup(output),
        Stage::Test => list(output, "suites").iter().map(suite).collect(),
        Stage::Build => return build(output),
        Stage::Tag => list(output, "tags").iter().filter_map(|tag| tag.as_str().map(str::to_owned)).collect(),
        Stage::Migrate => migrate(output),
        Stage::Start => start(output),
        Stage::Smoke => smoke(output),
    };
    parts.join(", ")
}

/// `01fd5a02e9 Greet in green`.
fn pull(output: &Value) -> String {
    let commit = text(output, "commit").unwrap_or_default();
    let head = format!("{} {}", commit.get(..10).unwrap_or(commit), text(output, "subject").unwrap_or_default());
    match text(output, "skip") {
        Some(why) => format!("{head}; nothing to deploy: {why}"),
        None => head,
    }
}

/// `2 parts, 12.3 kB, guestbook/production/2026-11-21_10-00-00`.
fn backup(output: &Value) -> Vec<String> {
    let Some(set) = text(output, "set") else {
        return text(output, "state").map(|place| format!("the state before is in {place}")).into_iter().collect();
    };
    let size = number(output, "bytes").map(human_bytes);
    let parts = plural(list(output, "parts").len(), "part");
    std::iter::once(parts).chain(size).chain([set.to_owned()]).collect()
}

/// `unit 1.8s, coverage 75.0 %`.
fn suite(suite: &Value) -> String {
    let time = millis(suite, "duration_ms").map(|time| format!(" {time}")).unwrap_or_default();
    let coverage = suite.get("coverage").and_then(Value::as_f64);
    let coverage = coverage.map(|percent| format!(", coverage {percent:.1} %")).unwrap_or_default();
    format!("{}{time}{coverage}", text(suite, "name").unwrap_or_default())
}

/// `guestbook:01fd5a02e9 (new)`; a release directory by its own name.
fn build(output: &Value) -> String {
    let name = text(output, "name").unwrap_or_default();
    let name = if name.starts_with('/') { name.rsplit('/').next().unwrap_or(name) } else { name };
    match output.get("reused").and_then(Value::as_bool) {
        Some(true) => format!("{name} (reused)"),
        Some(false) => format!("{name} (new)"),
        None => name.to_owned(),
    }
}

/// `0007 → 0008`.
fn migrate(output: &Value) -> Vec<String> {
    let schema = match (text(output, "before"), text(output, "after")) {
        (Some(before), Some(after)) if before == after => Some(format!("still at {after}")),
        (Some(before), Some(after)) => Some(format!("{before} → {after}")),
        (None, Some(after)) => Some(format!("now at {after}")),
        _ => None,
    };
    let backup = text(output, "backup").map(|set| format!("the backup was taken again: {set}"));
    schema.into_iter().chain(backup).collect()
}

/// `healthy after 380ms, gap 452ms`.
fn start(output: &Value) -> Vec<String> {
    let healthy = millis(output, "healthy_after_ms").map(|time| format!("healthy after {time}"));
    // The first release interrupts nobody.
    let gap = number(output, "gap_ms").filter(|ms| *ms > 0).and_then(|_| millis(output, "gap_ms"));
    healthy.into_iter().chain(gap.map(|time| format!("gap {time}"))).collect()
}

/// `3 checks, baked 10.0s`.
fn smoke(output: &Value) -> Vec<String> {
    let checks = match list(output, "checks").len() {
        0 => "no checks".to_owned(),
        count => plural(count, "check"),
    };
    let bake = number(output, "bake_ms").filter(|ms| *ms > 0).and_then(|_| millis(output, "bake_ms"));
    std::iter::once(checks).chain(bake.map(|time| format!("baked {time}"))).collect()
}

fn text<'v>(value: &'v Value, name: &str) -> Option<&'v str> {
    value.get(name).and_then(Value::as_str)
}

fn number(value: &Value, name: &str) -> Option<u64> {
    value.get(name).and_then(Value::as_u64)
}

fn millis(value: &Value, name: &str) -> Option<String> {
    number(value, name).map(|ms| took(i64::try_from(ms).unwrap_or(i64::MAX)))
}

fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::StageStatus;

    fn told(name: Stage, output: Value) -> String {
        let status = StageStatus::Succeeded;
        sentence(&StageView { name, status, started_at: None, duration_ms: None, output: Some(output), error: None })
    }

    #[test]
    fn each_stage_has_its_sentence() {
        let commit = "01fd5a02e9aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
        let set = "guestbook/production/2026-11-21_10-00-00";
        for (stage, output, wanted) in [
            (
                Stage::Pull,
                json!({ "commit": commit, "subject": "th\u{1b}[31mree", "author": "A", "skip": null }),
                "01fd5a02e9 three",
            ),
            (
                Stage::Pull,
                json!({ "commit": commit, "subject": "x", "skip": "it is live" }),
                "01fd5a02e9 x; nothing to deploy: it is live",
            ),
            (
                Stage::Backup,
                json!({ "set": set, "parts": ["db"], "bytes": 12_345, "failures": [], "removed": [] }),
                &format!("1 part, 12.3 kB, {set}"),
            ),
            (
                Stage::Test,
                json!({ "suites": [{ "name": "unit", "duration_ms": 1827, "coverage": 75.0 }, { "name": "lint", "duration_ms": 90 }] }),
                "unit 1.8s, coverage 75.0 %, lint 90ms",
            ),
            (
                Stage::Build,
                json!({ "id": "sha256:ab", "name": "drv:01fd5a02e9", "reused": false }),
                "drv:01fd5a02e9 (new)",
            ),
            (
                Stage::Build,
                json!({ "name": "/srv/.refit/releases/drv-01fd5a02e9", "reused": true }),
                "drv-01fd5a02e9 (reused)",
            ),
            (
                Stage::Tag,
                json!({ "rollback": "sha256:ab", "tags": ["drv:rollback", "drv:latest"] }),
                "drv:rollback, drv:latest",
            ),
            (Stage::Migrate, json!({ "before": "0007", "after": "0008", "backup": null }), "0007 → 0008"),
            (Stage::Migrate, json!({ "before": "0008", "after": "0008" }), "still at 0008"),
            (
                Stage::Start,
                json!({ "instance": {}, "healthy_after_ms": 380, "gap_ms": 452 }),
                "healthy after 380ms, gap 452ms",
            ),
            (Stage::Start, json!({ "healthy_after_ms": 380, "gap_ms": 0 }), "healthy after 380ms"),
            (Stage::Smoke, json!({ "checks": [{}, {}, {}], "bake_ms": 10_004, "rounds": 11 }), "3 checks, baked 10.0s"),
            (Stage::Smoke, json!({ "checks": [], "bake_ms": 0, "rounds": 1 }), "no checks"),
            (Stage::Migrate, json!({ "reason": "no [migrate] is configured" }), "no [migrate] is configured"),
        ] {
            assert_eq!(told(stage, output), wanted);
        }
    }

    #[test]
    fn a_record_that_is_not_understood_is_no_panic() {
        for stage in Stage::ALL {
            for odd in [json!(null), json!([1]), json!({ "commit": "é", "suites": 3, "checks": {}, "bytes": -1 })] {
                assert!(told(*stage, odd).len() < 40);
            }
        }
    }
}
