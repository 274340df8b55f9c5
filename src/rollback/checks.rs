//! The safety checks: what is known before anything is changed, judged.
//!
//! Pure: [`Facts`] were gathered by `look`. An error stops the rollback; most of them a person may overrule with `--force`, because
//! they know something that Refit does not. Those that cannot be overruled are the ones where the way there does not exist.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::schema::{self, Past};
use crate::{
    files::human_bytes,
    model::{DeploymentId, RollbackKind},
    registry::Release,
    runtime::{InstanceState, Lacking},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    Warning,
    /// Stops the rollback.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One check, judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub severity: Severity,
    pub message: String,
    /// Of an error: whether `--force` goes on in spite of it.
    pub forcible: bool,
}

/// What was found out.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    pub kind: RollbackKind,
    pub live: &'a Release,
    pub target: &'a Release,
    /// Why the live version is not healthy.
    pub live_trouble: Option<String>,
    pub instance: InstanceState,
    pub artefact: bool,
    /// An instance that stands needs its artefact no more.
    pub instance_suffices: bool,
    /// The schema's history, the oldest first.
    pub past: &'a [Past],
    /// The database beside the target's SQL files, where those migrate: more is known then than was recorded.
    pub files: Option<FileSchema>,
    /// Why the target's kept settings cannot be read.
    pub unreadable: Option<String>,
    pub lacking: Lacking,
    /// The public port: the target's, and as configured now.
    pub ports: (Option<u16>, Option<u16>),
    /// What `requires` names and does not run.
    pub away: Vec<String>,
    pub data: Data,
}

/// The database's migrations beside the target's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSchema {
    pub at: String,
    /// In the database, and not among the target's files.
    pub unknown: Vec<String>,
    /// The number to go down to, for that to be so no more.
    pub down_to: i64,
    /// Among the target's files, and not in the database.
    pub lacking: Vec<String>,
}

/// What is known of backups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Nothing is configured to be backed up.
    NotConfigured,
    /// Data stays; the newest whole set, if there is one.
    Stays {
        newest: Option<String>,
    },
    /// No set has the data as the target left it.
    NoSet(String),
    /// The set to put back cannot be used.
    Damaged {
        set: String,
        why: String,
    },
    /// Its parts and what is configured are not the same.
    Differs {
        set: String,
        missing: Vec<String>,
        unknown: Vec<String>,
    },
    Good {
        set: String,
        bytes: u64,
    },
}

/// Every check, in the order in which a person would ask.
pub fn judge(facts: &Facts<'_>) -> Vec<Check> {
    vec![
        target(facts),
        artefact(facts),
        live(facts),
        schema_check(facts),
        configuration(facts),
        dependencies(facts),
        backup(facts),
    ]
}

/// The errors that stop a rollback: all of them, or with `force` those that cannot be overruled.
pub fn blocking(checks: &[Check], force: bool) -> Vec<&Check> {
    checks.iter().filter(|c| c.severity == Severity::Error && !(force && c.forcible)).collect()
}

fn check(name: &str, severity: Severity, message: impl Into<String>) -> Check {
    Check { name: name.to_owned(), severity, message: message.into(), forcible: true }
}

fn never(name: &str, message: impl Into<String>) -> Check {
    Check { forcible: false, ..check(name, Severity::Error, message) }
}

fn target(facts: &Facts<'_>) -> Check {
    let at = facts.target.live_since.strftime("%Y-%m-%d %H:%M UTC");
    let text = format!("deployment {} was live and healthy, last from {at}", facts.target.deployment);
    check("target", Severity::Ok, text)
}

fn artefact(facts: &Facts<'_>) -> Check {
    let (name, image) = (&facts.target.instance.name, &facts.target.artefact_name);
    let stands = !matches!(facts.instance, InstanceState::Missing);
    let runs =
        matches!(facts.instance, InstanceState::Running { .. }) && facts.target.deployment != facts.live.deployment;
    match (stands, facts.artefact) {
        (true, true) if runs => check("image", Severity::Ok, format!("{name} runs still")),
        (true, true) => check("image", Severity::Ok, format!("{name} stands and is started as it is")),
        (true, false) if facts.instance_suffices => {
            let text = format!("{image} is gone; {name} still stands and is started, but could not be made again");
            check("image", Severity::Warning, text)
        }
        (false, true) => {
            let text = format!("{name} is gone and is made again from {image}, with the settings it had");
            check("image", Severity::Ok, text)
        }
        (_, false) => {
            let commit = facts.target.commit.short();
            let text = format!(
                "neither {name} nor {image} is here any more: nothing is left to go back to; `refit deploy --commit {commit}` \
                 builds it again"
            );
            never("image", text)
        }
    }
}

fn live(facts: &Facts<'_>) -> Check {
    let id = facts.live.deployment;
    match &facts.live_trouble {
        None if facts.target.deployment == id => {
            never("live", format!("deployment {id} is live and healthy: there is nothing to bring back"))
        }
        Some(why) => check("live", Severity::Ok, format!("deployment {id} is not healthy: {why}")),
        None if facts.kind == RollbackKind::Undo => check(
            "live",
            Severity::Ok,
            format!("deployment {id} is healthy, and is what the last rollback brought back"),
        ),
        None => check("live", Severity::Error, format!("the live version is healthy (deployment {id})")),
    }
}

fn schema_check(facts: &Facts<'_>) -> Check {
    use schema::Verdict;
    let with_data = matches!(facts.data, Data::Good { .. });
    if let Some(files) = &facts.files {
        return file_check(files, with_data, facts.target.deployment);
    }
    match schema::compare(facts.past, facts.target.deployment) {
        Verdict::Same(None) => check("schema", Severity::Ok, "no migration was recorded"),
        Verdict::Same(Some(version)) => {
            check("schema", Severity::Ok, format!("the schema is at {version}, as it was then"))
        }
        _ if with_data => check("schema", Severity::Ok, "the schema goes back with the data"),
        Verdict::Changed { then, now, by } => check(
            "schema",
            Severity::Error,
            format!(
                "the schema went from {} to {now} since ({}), and no migration takes it back: put the data back too \
                 (--restore-data), or go on (--force) if that version works with this schema",
                then.as_deref().unwrap_or("its beginning"),
                deployments(&by),
            ),
        ),
        Verdict::Unknown { by } => check(
            "schema",
            Severity::Warning,
            format!(
                "migrations ran since ({}), and `migrate.version` did not record what they changed",
                deployments(&by)
            ),
        ),
    }
}

fn file_check(files: &FileSchema, with_data: bool, target: DeploymentId) -> Check {
    let FileSchema { at, unknown, down_to, lacking } = files;
    if unknown.is_empty() && lacking.is_empty() {
        return check("schema", Severity::Ok, format!("the schema is at {at}, as that version's migrations leave it"));
    }
    if with_data {
        return check("schema", Severity::Ok, "the schema goes back with the data");
    }
    let mut text = Vec::new();
    if !unknown.is_empty() {
        text.push(format!(
            "the schema is newer than deployment {target}, which does not know {}: take that back first (`refit migrate down --to {down_to}`), put the data \
             back too (--restore-data), or go on (--force) if that version works with this schema",
            unknown.join(", ")
        ));
    }
    if !lacking.is_empty() {
        text.push(format!(
            "deployment {target} needs {}, which the database does not have: apply that first (`refit migrate up --commit` with its commit)",
            lacking.join(", ")
        ));
    }
    check("schema", Severity::Error, text.join("; "))
}

fn deployments(ids: &[DeploymentId]) -> String {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    match ids.as_slice() {
        [one] => format!("deployment {one}"),
        _ => format!("deployments {}", ids.join(", ")),
    }
}

fn configuration(facts: &Facts<'_>) -> Check {
    if let Some(why) = &facts.unreadable {
        let text = format!("the settings it ran with cannot be read ({why}): it would run with today's");
        return check("configuration", Severity::Error, text);
    }
    let Lacking { networks, places } = &facts.lacking;
    if !networks.is_empty() {
        let text = format!("it needs {}, which is not there: `docker network create NAME`", list("network", networks));
        return check("configuration", Severity::Error, text);
    }
    if !places.is_empty() {
        let text = format!("{} is not there and would be made anew, empty", list("volume", places));
        return check("configuration", Severity::Warning, text);
    }
    match facts.ports {
        (then, now) if then != now => {
            let port = |port: Option<u16>| port.map_or("no public port".to_owned(), |port| format!("port {port}"));
            let text = format!("it listens on {}, and {} is configured now", port(then), port(now));
            check("configuration", Severity::Warning, text)
        }
        _ => check("configuration", Severity::Ok, "its settings are kept, and what they name is there"),
    }
}

fn list(what: &str, names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    format!("{what}{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

fn dependencies(facts: &Facts<'_>) -> Check {
    if facts.away.is_empty() {
        return check("dependencies", Severity::Ok, "what it requires runs");
    }
    let names: Vec<String> = facts.away.iter().map(|name| format!("`{name}`")).collect();
    check("dependencies", Severity::Error, format!("{} does not run, and is required", names.join(", ")))
}

fn backup(facts: &Facts<'_>) -> Check {
    match &facts.data {
        Data::NotConfigured => check("backup", Severity::Ok, "no [[backup]] is configured; data stays as it is"),
        Data::Stays { newest: Some(set) } => {
            check("backup", Severity::Ok, format!("data stays as it is; the newest backup is {set}"))
        }
        Data::Stays { newest: None } => {
            check("backup", Severity::Warning, "data stays as it is, and there is no whole backup of it")
        }
        Data::NoSet(why) => never("backup", format!("there is no data to put back: {why}")),
        Data::Damaged { set, why } => never("backup", format!("{set} cannot be put back: {why}")),
        Data::Differs { set, missing, unknown } => {
            let mut what = Vec::new();
            if !missing.is_empty() {
                what.push(format!("it has no {}", list("part", missing)));
            }
            if !unknown.is_empty() {
                what.push(format!("{} is not configured any more", list("part", unknown)));
            }
            never("backup", format!("{set} is not what is configured: {}", what.join("; ")))
        }
        Data::Good { set, bytes } => {
            check("backup", Severity::Ok, format!("{set} is whole ({}) and is put back", human_bytes(*bytes)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::RuntimeKind, runtime::Instance};

    fn release(id: i64) -> Release {
        Release {
            deployment: DeploymentId(id),
            key: serde_json::from_str(r#"{"app":"shop","environment":"production"}"#).unwrap(),
            artefact: format!("sha256:{id}"),
            artefact_name: format!("shop:{id}"),
            commit: format!("{id:0>40}").replace("0000", "abcd").parse().unwrap(),
            runtime: RuntimeKind::Docker,
            instance: Instance {
                id: "c".into(),
                name: format!("refit-shop-production-{id}"),
                deployment: DeploymentId(id),
            },
            live_since: "2026-11-21T10:00:00Z".parse().unwrap(),
        }
    }

    fn stands(unknown: &[&str], lacking: &[&str]) -> FileSchema {
        let owned = |of: &[&str]| of.iter().map(|one| (*one).to_owned()).collect();
        FileSchema { at: "6 (colour)".to_owned(), unknown: owned(unknown), down_to: 4, lacking: owned(lacking) }
    }

    /// The checks that are not `ok`, as `severity name: message`.
    fn told(change: impl FnOnce(&mut Facts<'_>)) -> Vec<String> {
        told_with(&[], change)
    }

    fn told_with(past: &[Past], change: impl FnOnce(&mut Facts<'_>)) -> Vec<String> {
        let (live, target) = (release(5), release(3));
        let mut facts = Facts {
            kind: RollbackKind::Previous,
            live: &live,
            target: &target,
            live_trouble: Some("GET /health answered 500".to_owned()),
            instance: InstanceState::Exited { code: 0, out_of_memory: false },
            artefact: true,
            instance_suffices: true,
            past,
            files: None,
            unreadable: None,
            lacking: Lacking::default(),
            ports: (Some(8000), Some(8000)),
            away: Vec::new(),
            data: Data::NotConfigured,
        };
        change(&mut facts);
        let judged = judge(&facts);
        assert!(blocking(&judged, false).len() >= blocking(&judged, true).len());
        let line = |c: &Check| {
            let mark = if c.severity == Severity::Error && !c.forcible { "!" } else { "" };
            format!("{}{mark} {}: {}", c.severity, c.name, c.message)
        };
        judged.iter().filter(|c| c.severity != Severity::Ok).map(line).collect()
    }

    #[test]
    fn a_sick_version_is_left_without_a_word() {
        assert_eq!(told(|_| ()), [""; 0]);
    }

    #[test]
    fn a_version_that_is_kept_warm_is_said_to_run() {
        let mut text = String::new();
        told(|f| {
            let stopped = artefact(f).message;
            f.instance = InstanceState::Running { address: None, restarts: 0, health: None };
            text = format!("{stopped}; {}", artefact(f).message);
        });
        let name = release(3).instance.name;
        assert_eq!(text, format!("{name} stands and is started as it is; {name} runs still"));
    }

    #[test]
    fn every_trouble_has_its_words() {
        let changed = [Past::Migrated { by: DeploymentId(5), after: Some("0008".to_owned()) }];
        let unknown = [Past::Migrated { by: DeploymentId(4), after: None }];
        let all: Vec<Vec<String>> = vec![
            told(|f| f.live_trouble = None),
            told(|f| (f.live_trouble, f.kind) = (None, RollbackKind::Undo)),
            told(|f| f.artefact = false),
            told(|f| (f.artefact, f.instance_suffices) = (false, false)),
            told(|f| (f.artefact, f.instance) = (false, InstanceState::Missing)),
            told(|f| f.instance = InstanceState::Missing),
            told_with(&changed, |_| ()),
            told_with(&changed, |f| f.data = Data::Good { set: "s".to_owned(), bytes: 1 }),
            told_with(&unknown, |_| ()),
            told(|f| f.files = Some(stands(&["5 (mood)", "6 (colour)"], &[]))),
            told(|f| f.files = Some(stands(&[], &["4 (notes)"]))),
            told(|f| {
                f.files = Some(stands(&["5 (mood)"], &[]));
                f.data = Data::Good { set: "s".to_owned(), bytes: 1 };
            }),
            told_with(&changed, |f| f.files = Some(stands(&[], &[]))),
            told(|f| f.unreadable = Some("no such file".to_owned())),
            told(|f| f.lacking.networks = vec!["back".to_owned(), "front".to_owned()]),
            told(|f| f.lacking.places = vec!["uploads".to_owned()]),
            told(|f| f.ports = (Some(8000), None)),
            told(|f| f.away = vec!["shop-db".to_owned()]),
            told(|f| f.data = Data::Stays { newest: None }),
            told(|f| f.data = Data::NoSet("deployment 4 took none".to_owned())),
            told(|f| f.data = Data::Damaged { set: "s".to_owned(), why: "a.gz has another SHA-256".to_owned() }),
            told(|f| {
                f.data = Data::Differs {
                    set: "s".to_owned(),
                    missing: vec!["db".to_owned()],
                    unknown: vec!["old".to_owned(), "older".to_owned()],
                }
            }),
        ];
        let text: Vec<String> = all.iter().map(|lines| lines.join("\n")).collect();
        insta::assert_snapshot!(text.join("\n"));
    }
}
