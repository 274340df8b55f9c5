//! The checked configuration. One struct a table of `pipeline.toml`.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use globset::GlobSet;
use serde::{Deserialize, Serialize};

use crate::{
    model::{Branch, EnvironmentKey, Name},
    redact::Redactor,
    secret::Secret,
};

/// One `pipeline.toml` with its includes.
#[derive(Debug, Clone)]
pub struct Config {
    /// The main file, absolute.
    pub file: PathBuf,
    /// It and what it includes, absolute.
    pub files: Vec<PathBuf>,
    pub server: Server,
    pub telegram: Option<Telegram>,
    /// There is a `[telegram]`, but its token is unset or empty.
    pub telegram_without_token: bool,
    /// In the order of the files; names are unique.
    pub apps: Vec<Arc<App>>,
    /// Masks every secret of this configuration.
    pub redactor: Redactor,
}

/// `[server]`: where the daemon listens and keeps its things.
#[derive(Debug, Clone)]
pub struct Server {
    /// Host and port of webhooks, API and status.
    pub listen: String,
    /// The registry, socket, lock, Git mirrors and releases; `.refit` beside the file by default.
    pub state_dir: PathBuf,
    /// `backups` beside the file.
    pub backups_dir: PathBuf,
    /// `logs` beside the file.
    pub logs_dir: PathBuf,
    /// How often the remotes are asked for pushes that nobody announced; zero turns it off.
    pub reconcile: Duration,
    /// The largest webhook body, in bytes; 25 MB is GitHub's own limit.
    pub max_body: u64,
    /// Open connections at once; more are closed at once.
    pub max_connections: usize,
    /// A deployment does not begin with less free space in the state and backup directories, in bytes.
    pub min_free_space: u64,
    /// Deployment logs older than this are deleted.
    pub log_keep_days: u32,
}

impl Server {
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("refit.sock")
    }

    pub fn registry(&self) -> PathBuf {
        self.state_dir.join("refit.db")
    }

    pub fn lock(&self) -> PathBuf {
        self.state_dir.join("refit.lock")
    }
}

/// `[telegram]`, present only with a token that is not empty.
#[derive(Debug, Clone)]
pub struct Telegram {
    pub token: Secret,
    pub chat: i64,
    /// A topic of a group with topics.
    pub thread: Option<i32>,
    /// User ids who may press buttons and give commands.
    pub operators: Vec<u64>,
    /// Further chats in which they may; reports go to `chat`.
    pub chats: Vec<i64>,
    /// The public URL that Telegram sends updates to; `None`: the bot asks for them.
    pub webhook: Option<String>,
    /// A success is told without a sound.
    pub quiet: bool,
    pub api_url: String,
}

/// `[app]` with its environments.
#[derive(Debug, Clone)]
pub struct App {
    pub name: Name,
    /// What Git fetches from; never taken from a payload.
    pub repository: String,
    /// `owner/name` on the Git host: what a webhook's `repository.full_name` must be. Derived from `repository` where it is
    /// a URL with a host; `None` for a local path, then every payload signed with this app's secret is taken.
    pub full_name: Option<String>,
    /// `[webhooks.github]`: one secret or more; empty when the webhook is not configured.
    pub github_secrets: Vec<Secret>,
    /// In alphabetical order of their names.
    pub environments: Vec<Arc<Environment>>,
}

/// One environment with every stage's settings merged.
#[derive(Debug, Clone)]
pub struct Environment {
    pub key: EnvironmentKey,
    pub repository: String,
    pub branch: Branch,
    /// The port the public uses; `None` for an app that serves none (a bot, a worker).
    pub port: Option<u16>,
    /// The address the public port is bound to.
    pub bind: IpAddr,
    /// Deploy a push only if one of these changed; empty: always.
    pub paths: PathRules,
    /// Containers that must be running before a deployment begins.
    pub requires: Vec<String>,
    /// Run backup, test and build at the same time.
    pub parallel: bool,
    /// A person has to say yes before migrate begins, within this time; `None`: nobody is asked.
    pub approval: Option<Duration>,
    pub pull: Pull,
    pub backups: Vec<Backup>,
    pub backup_retention: Retention,
    /// How often the daemon restores the newest set into something that is thrown away; `None`: never.
    pub rehearse_backups: Option<Duration>,
    pub tests: Vec<TestSuite>,
    pub build: Build,
    pub migrate: Option<Migrate>,
    pub start: Start,
    pub smoke: Smoke,
    pub rollback: Rollback,
}

/// Glob patterns as they were written, and compiled.
#[derive(Debug, Clone, Default)]
pub struct PathRules {
    pub patterns: Vec<String>,
    pub set: Option<GlobSet>,
}

#[derive(Debug, Clone)]
pub struct Pull {
    pub timeout: Duration,
    /// Further attempts after a failure of the network.
    pub retries: u32,
}

/// One `[[backup]]`.
#[derive(Debug, Clone)]
pub struct Backup {
    /// Unique in its environment; the file's stem in the set. Defaults to the database's name, or the kind.
    pub name: Name,
    pub source: BackupSource,
    /// A failure ends the deployment; otherwise it is a warning in the report.
    pub required: bool,
    pub timeout: Duration,
    pub compression: Compression,
    /// How far it is looked at once it was made.
    pub verify: VerifyBackup,
    /// A query that data which was put back has to answer: at least one row, whose first column is neither zero nor false.
    pub check: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VerifyBackup {
    Off,
    /// Every file is read again.
    Checksums,
    /// It is restored into something that is thrown away.
    Restore,
}

#[derive(Debug, Clone)]
pub enum BackupSource {
    /// `pg_dump` inside the container, over Docker's exec API.
    Postgres {
        container: String,
        database: String,
        user: String,
        password: Option<Secret>,
        format: PostgresFormat,
        /// The server's roles are backed up too.
        roles: bool,
    },
    /// A server anywhere: `pg_dump` on this host, or in a throw-away container.
    PostgresUrl { url: Secret, tools: DatabaseTools, format: PostgresFormat, roles: bool },
    /// `mariadb-dump` or `mysqldump` inside the container, over Docker's exec API.
    Mysql { container: String, database: String, user: String, password: Option<Secret> },
    /// A server anywhere: the programs of this host, or of a throw-away container.
    MysqlUrl { url: Secret, tools: DatabaseTools },
    /// A database file on this host, copied by SQLite's online backup.
    Sqlite { path: PathBuf },
    /// A directory of this host with everything below, but for what `exclude` names.
    Files { path: PathBuf, exclude: PathRules },
    /// A volume of the Docker Engine, but for what `exclude` names.
    Volume { volume: String, exclude: PathRules },
    /// The user's own way.
    Command(Box<BackupCommand>),
}

/// Commands run by `sh -c`: on this host, or in a container that runs.
#[derive(Debug, Clone)]
pub struct BackupCommand {
    /// Its standard output is the backup.
    pub dump: String,
    /// Gets the backup on its standard input.
    pub restore: String,
    /// Gets the backup on its standard input, and changes nothing: whether it could be restored.
    pub rehearse: Option<String>,
    /// `None`: on this host.
    pub container: Option<String>,
    pub env: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, Secret>,
}

/// Where the programs of a database that is reached by its URL come from: `pg_dump` and `psql`, `mariadb-dump` and `mariadb`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DatabaseTools {
    /// Those on this host's `PATH`.
    #[default]
    Host,
    /// An image that has them.
    Image(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostgresFormat {
    /// SQL text, restored by `psql`.
    Plain,
    /// `pg_dump --format=custom`, restored by `pg_restore`.
    Custom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    Gzip,
    Zstd,
    None,
}

/// How many sets are kept, of all of an environment's. A set is removed only if it is beyond `keep` *and* older than `keep_days`;
/// the newest complete one never is.
#[derive(Debug, Clone)]
pub struct Retention {
    pub keep: usize,
    pub keep_days: u32,
}

/// One `[[test]]`.
#[derive(Debug, Clone)]
pub struct TestSuite {
    pub name: Name,
    pub place: TestPlace,
    /// Run by `sh -c` in the container (or in the tree, for the process runtime).
    pub run: String,
    /// Networks the container joins.
    pub networks: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, Secret>,
    pub timeout: Duration,
    pub coverage: Option<Coverage>,
}

#[derive(Debug, Clone)]
pub enum TestPlace {
    /// A target of the Dockerfile.
    Target(String),
    /// An image with the commit's tree at `/src`, which is the working directory.
    Image(String),
    /// The commit's tree on this host: the process runtime.
    Tree,
}

#[derive(Debug, Clone)]
pub struct Coverage {
    /// The report in the container, relative to its working directory; Cobertura XML or LCOV, by content.
    pub report: String,
    /// Lines covered, in percent.
    pub min: f64,
}

#[derive(Debug, Clone)]
pub struct Build {
    /// The context, relative to the repository's root; `.` is the root.
    pub context: String,
    /// Relative to the context.
    pub dockerfile: String,
    /// The last stage where unset.
    pub target: Option<String>,
    pub args: BTreeMap<String, String>,
    pub builder: Builder,
    pub timeout: Duration,
    /// The process runtime's build: a command run by `sh -c` in the release's directory.
    pub run: Option<String>,
    /// Rebuild though an image of the same tree and arguments exists.
    pub no_cache: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builder {
    /// BuildKit where it is the engine's own default (23.0 and newer), else classic.
    Auto,
    Classic,
    BuildKit,
}

/// `[migrate]`.
#[derive(Debug, Clone)]
pub struct Migrate {
    pub with: MigrateWith,
    pub timeout: Duration,
    pub on_failure: OnMigrateFailure,
    /// A backup older than this when migrate begins is taken again, if there is something to migrate.
    pub max_backup_age: Duration,
    /// The live version is stopped before the migration begins, so that nothing is written meanwhile.
    pub hold: bool,
}

#[derive(Debug, Clone)]
pub enum MigrateWith {
    Command(MigrateCommand),
    Files(MigrationFiles),
}

/// The user's own tool. Each is run by `sh -c` in a one-off container of the new image.
#[derive(Debug, Clone)]
pub struct MigrateCommand {
    pub run: String,
    /// Prints the schema's version: run before and after, recorded.
    pub version: Option<String>,
    /// Prints what is pending, a line each; nothing where there is nothing to do.
    pub status: Option<String>,
    /// Takes the schema back to the version in `$REFIT_SCHEMA_BEFORE`.
    pub down: Option<String>,
}

/// SQL files of the commit's tree, in the format of sqlx.
#[derive(Debug, Clone)]
pub struct MigrationFiles {
    /// Relative to the repository's root.
    pub dir: String,
    pub database: MigrationDatabase,
    /// How long a statement waits for a lock: so long at most do queries of the app wait behind it.
    pub lock_timeout: Duration,
}

#[derive(Debug, Clone)]
pub enum MigrationDatabase {
    /// The database of the `[[backup]]` of this name.
    Backup(Name),
    /// `postgres://`, `mysql://` or `sqlite://`.
    Url(Secret),
}

/// What undo does about a migration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMigrateFailure {
    /// Leave the database as it is and say so.
    #[default]
    Keep,
    /// Take back what this deployment applied, newest first.
    Down,
    /// Put back the backup that was taken with the app stopped.
    Restore,
}

impl OnMigrateFailure {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Down => "down",
            Self::Restore => "restore",
        }
    }
}

/// `[start]`. A release keeps it (see `pipeline::kept`): a new field needs a `#[serde(default)]`, and so do those of its parts and of
/// [`Smoke`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    pub runtime: RuntimeKind,
    pub strategy: Strategy,
    /// Why, where it was chosen and not asked for: a few words for people.
    #[serde(default)]
    pub strategy_reason: Option<String>,
    /// The port inside the container; the public port where unset.
    pub container_port: Option<u16>,
    pub networks: Vec<String>,
    /// `name:/path[:ro]` or `/host/path:/path[:ro]`.
    pub volumes: Vec<String>,
    /// Replaces the image's command: its words. For the process runtime it is the app's command, always one element, run by `sh -c`.
    pub command: Option<Vec<String>>,
    pub env: BTreeMap<String, String>,
    /// Not written with the rest: see `pipeline::kept`.
    #[serde(skip)]
    pub secrets: BTreeMap<String, Secret>,
    pub user: Option<String>,
    /// Bytes.
    pub memory: Option<u64>,
    /// CPUs, such as 1.5.
    pub cpus: Option<f64>,
    /// Docker's own init as process 1: reaps children and passes signals on.
    pub init: bool,
    pub stop_timeout: Duration,
    pub log: LogRotation,
    pub health: Health,
    /// The public port belongs to the gate, which passes requests on; `None`: it is the app's own.
    #[serde(default)]
    pub gate: Option<BehindGate>,
}

impl Start {
    /// The strategy with its reason, for people.
    pub fn strategy_words(&self) -> String {
        let held = if self.strategy == Strategy::Recreate && self.gate.is_some() { " behind the gate" } else { "" };
        let why = self.strategy_reason.as_deref().unwrap_or("as configured");
        format!("{}{held} ({why})", self.strategy.as_str())
    }

    /// Whether two versions may run side by side for a while, and the traffic moves from one to the other.
    pub fn side_by_side(&self) -> bool {
        self.strategy == Strategy::BlueGreen && self.gate.is_some()
    }
}

/// How an app is served behind the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BehindGate {
    /// How long requests of the version that was replaced may take before it is stopped.
    pub drain: Duration,
    /// The same for WebSockets and other upgraded connections.
    pub drain_websockets: Duration,
    /// How long the version that was replaced goes on running, without the traffic, so that going back to it is a switch. Only where two versions may
    /// run side by side.
    #[serde(default)]
    pub keep_warm: Duration,
    /// How long a request waits at most while nothing can answer it.
    pub hold: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    Docker,
    Process,
}

impl std::str::FromStr for RuntimeKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Docker, Self::Process]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no runtime"))
    }
}

impl RuntimeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Process => "process",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// The old version is stopped, then the new one started.
    Recreate,
    /// The new version comes up beside the old one, and gets the traffic when it is good. Needs the gate.
    BlueGreen,
}

impl Strategy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recreate => "recreate",
            Self::BlueGreen => "blue-green",
        }
    }
}

/// The app's own log, rotated by the runtime.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogRotation {
    /// Bytes a file.
    pub max_size: u64,
    pub max_file: u32,
}

/// When a candidate counts as healthy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Health {
    pub probe: Probe,
    /// Between probes once one succeeded; before that the probing is faster.
    pub interval: Duration,
    /// A single probe's time.
    pub timeout: Duration,
    /// Good answers in a row.
    pub successes: u32,
    /// From the start of the candidate.
    pub deadline: Duration,
    /// Without a port or a probe: how long the candidate must keep running.
    pub settle: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Probe {
    /// HTTP GET on the app's port; any 2xx or 3xx is good.
    Http { path: String },
    /// A TCP connection to the app's port.
    Tcp,
    /// A command in the container; exit code 0 is good.
    Exec { command: Vec<String> },
    /// Docker's own `HEALTHCHECK` of the image.
    Image,
    /// Running for `settle` without exit or restart.
    Running,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Smoke {
    pub checks: Vec<SmokeCheck>,
    /// How long the checks go on after they all passed once.
    pub bake: Duration,
    /// Between rounds during the bake.
    pub interval: Duration,
    /// Until all checks passed once.
    pub timeout: Duration,
    /// By how much the share of the new version's errors may exceed the old one's during the bake, from 0 to 1. Needs the gate.
    #[serde(default)]
    pub max_error_rate: Option<f64>,
}

/// One `[[smoke.check]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SmokeCheck {
    /// For the report: what was asked for, such as `GET /health`.
    pub name: String,
    pub kind: SmokeKind,
    pub timeout: Duration,
    /// Attempts after a failed one, half a second apart.
    pub retries: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum SmokeKind {
    Http {
        /// A path on the public port, or a whole URL.
        url: String,
        /// 200 where unset.
        status: u16,
        contains: Vec<String>,
        absent: Vec<String>,
        /// Each key is a dotted path into the answer (`database.state`), each value what must stand there.
        json: BTreeMap<String, serde_json::Value>,
        max_latency: Option<Duration>,
    },
    /// `host:port`, or a port on the public address.
    Tcp {
        address: String,
    },
    Exec {
        command: Vec<String>,
    },
}

#[derive(Debug, Clone)]
pub struct Rollback {
    pub automatic: bool,
    /// Releases kept with their containers and images, the live one not counted.
    pub keep: usize,
}
