//! The tables of pull, backup, test, build and rollback.

use super::{
    backups,
    read::Reader,
    types::{
        Backup, BackupSource, Build, Builder, Compression, Coverage, DatabaseTools, PostgresFormat, Pull, Retention,
        Rollback, RuntimeKind, TestPlace, TestSuite, VerifyBackup,
    },
    values::{self, Complaint, boolean, choice, docker_name, duration, integer, text},
};
use crate::{model::Name, secret::Secret};

pub(super) fn pull(table: &Reader<'_>) -> Pull {
    Pull { timeout: table.get("timeout", duration), retries: table.get("retries", integer(0..=100)) }
}

/// The entries of `[[backup]]`, and how long their common sets are kept: the most that any of them asks for. Without an
/// entry `defaults` still serve sets that were made by hand. What is lost with production's last sets is more than with another's.
pub(super) fn backups(tables: &[Reader<'_>], defaults: &Reader<'_>, environment: &Name) -> (Vec<Backup>, Retention) {
    let usual_keep = if environment.as_str() == "production" { 10 } else { 5 };
    let mut backups: Vec<Backup> = Vec::new();
    for table in tables {
        if let Some(backup) = backup(table) {
            unique(table, &backup.name, backups.iter().map(|other| &other.name), "backup");
            backups::refuse_nested(table, &backup, &backups);
            backups.push(backup);
        }
    }
    let tables = if tables.is_empty() { std::slice::from_ref(defaults) } else { tables };
    let keep = tables.iter().map(|table| table.read("keep", integer(1..=100_000)).unwrap_or(usual_keep)).max();
    let keep = keep.unwrap_or(usual_keep);
    let keep_days = tables.iter().map(|table| table.get("keep_days", integer(0..=36_500))).max().unwrap_or_default();
    (backups, Retention { keep, keep_days })
}

fn unique<'n>(table: &Reader<'_>, name: &Name, mut others: impl Iterator<Item = &'n Name>, what: &str) {
    if others.any(|other| other == name) {
        let complaint = Complaint::new(format!("there is another {what} called `{name}` in this environment"));
        table.complain("name", complaint.help("give each a `name` of its own"));
    }
}

#[derive(Clone, Copy, PartialEq)]
enum BackupKind {
    Postgres,
    Mysql,
    Sqlite,
    Files,
    Volume,
    Command,
    Later,
}

fn backup(table: &Reader<'_>) -> Option<Backup> {
    const KINDS: &[(&str, BackupKind)] = &[
        ("postgres", BackupKind::Postgres),
        ("mysql", BackupKind::Mysql),
        ("sqlite", BackupKind::Sqlite),
        ("files", BackupKind::Files),
        ("volume", BackupKind::Volume),
        ("command", BackupKind::Command),
        ("mongodb", BackupKind::Later),
    ];
    let kind = table.required("kind", choice(KINDS));
    let required = table.get("required", boolean);
    let timeout = table.get("timeout", duration);
    let compression = table.get(
        "compression",
        choice(&[
            ("gzip", Some(Compression::Gzip)),
            ("zstd", Some(Compression::Zstd)),
            ("none", Some(Compression::None)),
        ]),
    );
    let verify = table.get(
        "verify",
        choice(&[
            ("off", Some(VerifyBackup::Off)),
            ("checksums", Some(VerifyBackup::Checksums)),
            ("restore", Some(VerifyBackup::Restore)),
        ]),
    );
    let check = table.read("check", values::filled);
    let name = table.read("name", values::checked::<Name>);
    let (source, fallback) = match kind? {
        BackupKind::Postgres => postgres(table)?,
        BackupKind::Mysql => mysql(table)?,
        BackupKind::Sqlite => sqlite(table)?,
        BackupKind::Files => backups::files(table)?,
        BackupKind::Volume => backups::volume(table)?,
        BackupKind::Command => backups::command(table)?,
        BackupKind::Later => {
            let complaint = Complaint::new("this version cannot make this kind of backup yet");
            let known = "it knows `postgres`, `mysql`, `sqlite`, `files`, `volume` and `command`; remove the entry";
            table.complain("kind", complaint.help(known));
            return None;
        }
    };
    Some(Backup {
        name: name.or(fallback)?,
        source,
        required,
        timeout,
        compression: compression?,
        verify: verify?,
        check,
    })
}

fn postgres(table: &Reader<'_>) -> Option<(BackupSource, Option<Name>)> {
    table.refuse(&["path"], "a `postgres` backup has no `path`", "name its `container` and `database`");
    backups::refuse_foreign(
        table,
        "postgres",
        &["check", "container", "database", "user", "password", "format", "roles", "path", "url", "tools"],
    );
    let tools = table.get("tools", values::tools);
    if table.has("url") {
        return postgres_url(table, tools);
    }
    let container = table.required("container", docker_name);
    let database = table.required("database", values::database_word);
    let user = table.required("user", values::database_word);
    let password = table.read("password", |value| table.secret(value));
    let formats = &[("plain", Some(PostgresFormat::Plain)), ("custom", Some(PostgresFormat::Custom))];
    let format = table.get("format", choice(formats));
    let roles = table.get("roles", boolean);
    let database = database?;
    let name = name_from(&database, "postgres");
    let source =
        BackupSource::Postgres { container: container?, database, user: user?, password, format: format?, roles };
    Some((source, name))
}

fn mysql(table: &Reader<'_>) -> Option<(BackupSource, Option<Name>)> {
    let help = "name its `container`, `database` and `user`, or its `url`";
    table.refuse(&["path", "format"], "a `mysql` backup is of a database on a server", help);
    let known = ["check", "container", "database", "user", "password", "path", "format", "url", "tools"];
    backups::refuse_foreign(table, "mysql", &known);
    let tools = table.get("tools", values::tools);
    if table.has("url") {
        let url = url(table)?;
        return Some((BackupSource::MysqlUrl { url, tools }, name_from("mysql", "mysql")));
    }
    let container = table.required("container", docker_name);
    let database = table.required("database", values::database_word);
    let user = table.required("user", values::database_word);
    let password = table.read("password", |value| table.secret(value));
    let database = database?;
    let name = name_from(&database, "mysql");
    Some((BackupSource::Mysql { container: container?, database, user: user?, password }, name))
}

fn postgres_url(table: &Reader<'_>, tools: DatabaseTools) -> Option<(BackupSource, Option<Name>)> {
    let url = url(table);
    let formats = &[("plain", Some(PostgresFormat::Plain)), ("custom", Some(PostgresFormat::Custom))];
    let format = table.get("format", choice(formats));
    let roles = table.get("roles", boolean);
    Some((BackupSource::PostgresUrl { url: url?, tools, format: format?, roles }, name_from("postgres", "postgres")))
}

/// Says all that `container`, `database`, `user` and `password` would.
fn url(table: &Reader<'_>) -> Option<Secret> {
    let foreign = ["container", "database", "user", "password"];
    table.refuse(&foreign, "the `url` says where the database is", "remove the key, or remove `url`");
    table.read("url", |value| table.secret(value))
}

fn sqlite(table: &Reader<'_>) -> Option<(BackupSource, Option<Name>)> {
    let foreign = ["container", "database", "user", "password", "format", "url", "tools"];
    table.refuse(&foreign, "a `sqlite` backup has only a `path`", "remove the key");
    backups::refuse_foreign(
        table,
        "sqlite",
        &["check", "container", "database", "user", "password", "format", "path", "url", "tools"],
    );
    let path = table.required("path", values::host_path(table.dir))?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    Some((BackupSource::Sqlite { path }, name_from(&stem, "sqlite")))
}

/// A backup's name from what it holds, else from its kind.
pub(super) fn name_from(text: &str, kind: &str) -> Option<Name> {
    text.to_lowercase().parse().or_else(|_| kind.parse()).ok()
}

pub(super) fn tests(tables: &[Reader<'_>], runtime: RuntimeKind) -> Vec<TestSuite> {
    let mut suites: Vec<TestSuite> = Vec::new();
    for table in tables {
        if let Some(suite) = test(table, runtime) {
            unique(table, &suite.name, suites.iter().map(|other| &other.name), "test suite");
            suites.push(suite);
        }
    }
    suites
}

fn test(table: &Reader<'_>, runtime: RuntimeKind) -> Option<TestSuite> {
    let name = table.required("name", values::checked::<Name>);
    let place = test_place(table, runtime);
    let run = table.required("run", values::filled);
    let (env, secrets) = environment_and_secrets(table);
    let networks = table.list("networks", docker_name);
    let timeout = table.get("timeout", duration);
    let coverage = table.has("coverage").then(|| coverage(&table.child("coverage", "test.coverage"))).flatten();
    Some(TestSuite { name: name?, place: place?, run: run?, networks, env, secrets, timeout, coverage })
}

fn test_place(table: &Reader<'_>, runtime: RuntimeKind) -> Option<TestPlace> {
    let target = table.read("target", values::target);
    let image = table.read("image", values::image);
    if runtime == RuntimeKind::Process {
        let why = "the process runtime has no containers: its tests run in the commit's tree on this host";
        table.refuse(&["target", "image", "networks"], why, "remove the key");
        return Some(TestPlace::Tree);
    }
    match (table.has("target"), table.has("image")) {
        (true, true) => table.complain("image", Complaint::new("a test has either a `target` or an `image`, not both")),
        (false, false) => {
            let help = "add `target = \"…\"` (a stage of the Dockerfile) or `image = \"…\"`";
            table.cx.problem(&table.at, Complaint::new("a test needs a place to run in").help(help));
        }
        _ => {}
    }
    target.map(TestPlace::Target).or(image.map(TestPlace::Image))
}

fn coverage(table: &Reader<'_>) -> Option<Coverage> {
    let report = table.required("report", values::inner_path);
    let min = table.required("min", values::number(0.0..=100.0));
    Some(Coverage { report: report?, min: min? })
}

/// `env` and `secrets`, which must not set the same variable.
pub(super) fn environment_and_secrets(table: &Reader<'_>) -> (Variables<String>, Variables<Secret>) {
    let env = table.variables("env", text);
    let secrets = table.variables("secrets", |value| table.secret(value));
    for name in env.keys().filter(|name| secrets.contains_key(*name)) {
        let complaint = Complaint::new(format!("`{name}` stands in both `env` and `secrets`"));
        table.complain("env", complaint.help("keep one of them"));
    }
    (env, secrets)
}

type Variables<T> = std::collections::BTreeMap<String, T>;

pub(super) fn build(table: &Reader<'_>, runtime: RuntimeKind) -> Build {
    match runtime {
        RuntimeKind::Docker => {
            let why = "`run` is the build of the process runtime; an image is built from its Dockerfile";
            table.refuse(&["run"], why, "remove the key, or set `runtime = \"process\"` in `[start]`");
        }
        RuntimeKind::Process => {
            let why = "the process runtime builds no image";
            table.refuse(&["dockerfile", "target", "builder"], why, "remove the key; `run` is its build command");
        }
    }
    let builders = &[("auto", Builder::Auto), ("classic", Builder::Classic), ("buildkit", Builder::BuildKit)];
    Build {
        context: table.get("context", values::inner_path),
        dockerfile: table.get("dockerfile", values::inner_path),
        target: table.read("target", values::target),
        args: table.variables("args", text),
        builder: table.read("builder", choice(builders)).unwrap_or(Builder::Auto),
        timeout: table.get("timeout", duration),
        run: table.read("run", values::filled),
        no_cache: table.get("no_cache", boolean),
    }
}

pub(super) fn rollback(table: &Reader<'_>) -> Rollback {
    Rollback { automatic: table.get("automatic", boolean), keep: table.get("keep", integer(1..=1000)) }
}
