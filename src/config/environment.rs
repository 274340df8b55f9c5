//! An app's environments: the stage tables of the file with each environment's own laid over them.

use std::sync::Arc;

use super::{
    load::{Claims, read_app},
    migrate,
    read::Reader,
    schema::{COMMON, STAGES},
    smoke, stages, start,
    tree::{self, At, Value},
    types::{App, Environment},
    values::{self, Complaint, boolean, docker_name, integer},
};
use crate::{
    model::{Branch, EnvironmentKey, Name},
    secret::Secret,
};

/// One file with one app in it.
pub(super) struct AppFile<'a> {
    pub root: &'a Reader<'a>,
    pub github_secrets: Vec<Secret>,
}

/// The app of a file; `None` after a problem.
pub(super) fn app(file: &AppFile<'_>, claims: &mut Claims) -> Option<App> {
    let root = file.root;
    if !root.has("app") {
        root.missing("app", "add `[app]` with `name` and `repository`".to_owned());
    }
    let (name, repository) = if root.has("app") { read_app(root) } else { Default::default() };
    if let (Some(name), Some(value)) = (&name, root.own("app")) {
        let at = value.as_table().and_then(|table| table.get("name")).map_or(&value.at, |name| &name.at);
        claims.app(root.cx, name, at);
    }
    // Environments are read though the app has no good name: their problems are worth showing too.
    let app = name.clone().or_else(|| "app".parse().ok())?;
    let mut environments = Vec::new();
    let tables = root.own("environments").and_then(Value::as_table).map(|table| &table.entries[..]).unwrap_or_default();
    for entry in tables {
        match entry.key.parse::<Name>() {
            Ok(environment) => {
                let key = EnvironmentKey { app: app.clone(), environment };
                environments.extend(Overlay { root, own: &entry.value }.read(key, &repository.url, claims));
            }
            Err(error) => root.cx.problem(&entry.at, error.into()),
        }
    }
    if let Some(value) = root.own("environments").filter(|value| value.as_table().is_none()) {
        root.cx.problem(&value.at, values::wrong_type("a table such as `[environments.production]`", value));
    } else if tables.is_empty() {
        root.missing("environments", "add `[environments.production]` with its `branch`".to_owned());
    }
    environments.sort_by(|a, b| a.key.cmp(&b.key));
    Some(App {
        name: name?,
        repository: repository.url,
        full_name: repository.full_name,
        github_secrets: file.github_secrets.clone(),
        environments: environments.into_iter().map(Arc::new).collect(),
    })
}

/// An environment's table over the file's.
struct Overlay<'a> {
    root: &'a Reader<'a>,
    own: &'a Value,
}

impl Overlay<'_> {
    fn read(&self, key: EnvironmentKey, repository: &str, claims: &mut Claims) -> Option<Environment> {
        let cx = self.root.cx;
        let merged = self.with_common();
        let table = Reader::new(cx, &merged, "environments.*", self.root.dir);
        let branch = table.required("branch", values::checked::<Branch>);
        let port = table.read("port", integer::<u16>(1..=65_535));
        let bind = table.read("bind", values::address);
        if let (Some(port), Some(bind), Some(value)) = (port, bind, table.own("port")) {
            claims.port(cx, bind, port, &key, &value.at);
        }
        not_yet(&table);
        let [pull, backup, test, build, migrate, start, smoke, rollback] = STAGES.map(|name| self.stage(name));
        let dir = self.root.dir;
        let one = |value, name| Reader::new(cx, value, name, dir);
        let many = |value, name| if self.has(name) { Reader::each(cx, value, name, dir) } else { Vec::new() };
        let (backups, backup_retention) =
            stages::backups(&many(&backup, "backup"), &table.child_defaults("backup"), &key.environment);
        let start = start::start(&one(&start, "start"), port, &backups);
        let migrate = self.has("migrate").then(|| migrate::migrate(&one(&migrate, "migrate"), &backups)).flatten();
        Some(Environment {
            paths: table.get("paths", values::path_rules),
            requires: table.list("requires", docker_name),
            parallel: table.get("parallel", boolean),
            approval: Some(table.get("approval_timeout", values::duration)).filter(|_| table.get("approval", boolean)),
            pull: stages::pull(&one(&pull, "pull")),
            backups,
            backup_retention,
            rehearse_backups: Some(table.get("rehearse_backups", values::duration_or_zero))
                .filter(|every| !every.is_zero()),
            tests: stages::tests(&many(&test, "test"), start.runtime),
            build: stages::build(&one(&build, "build"), start.runtime),
            migrate,
            smoke: smoke::smoke(&one(&smoke, "smoke"), port, start.gate.is_some()),
            rollback: stages::rollback(&one(&rollback, "rollback")),
            start,
            key,
            repository: repository.to_owned(),
            branch: branch?,
            port,
            bind: bind?,
        })
    }

    /// The environment's table with the root's common keys under it.
    fn with_common(&self) -> Value {
        let entry =
            |key: &str, value: &Value| tree::Entry { key: key.into(), at: value.at.clone(), value: value.clone() };
        let common = COMMON.iter().filter_map(|key| Some(entry(key, self.root.own(key)?)));
        let base = tree::Kind::Table(tree::Table { entries: common.collect() });
        tree::merge(&Value { at: self.own.at.clone(), kind: base }, self.own, "")
    }

    /// Whether the file or the environment has a stage's table.
    fn has(&self, stage: &str) -> bool {
        self.root.has(stage) || self.own.as_table().is_some_and(|table| table.has(stage))
    }

    /// A stage's table, merged; an empty one where there is none.
    fn stage(&self, name: &str) -> Value {
        let base = self.root.own(name);
        let over = self.own.as_table().and_then(|table| table.get(name));
        match (base, over) {
            (Some(base), Some(over)) => tree::merge(base, over, name),
            (Some(only), None) | (None, Some(only)) => only.clone(),
            (None, None) => {
                let at = At { path: name.into(), ..self.own.at.clone() };
                Value { at, kind: tree::Kind::Table(tree::Table::default()) }
            }
        }
    }
}

/// Keys of later versions: their neutral value is taken, any other is a problem.
fn not_yet(table: &Reader<'_>) {
    if !table.list("windows", values::text).is_empty() {
        let complaint = Complaint::new("this version does not know deployment windows yet");
        table.complain("windows", complaint.help("remove the key"));
    }
}
