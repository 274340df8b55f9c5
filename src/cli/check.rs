//! `refit check`: validates the configuration, and says what a push would do.

use std::time::Duration;

use serde::Serialize;

use super::{
    args::{CheckArgs, Format},
    context::Context,
    error::{Result, exit},
    style::{Paint, Tone, cell, table_text, took},
};
use crate::{
    config::{
        BackupSource, Config, DatabaseTools, Environment, Migrate, MigrateWith, MigrationDatabase, MissingSecrets,
        Probe, TestPlace,
    },
    model::Stage,
};

pub fn run(context: &Context, args: &CheckArgs) -> Result<u8> {
    let missing = if args.without_secrets { MissingSecrets::Ignore } else { MissingSecrets::Error };
    let config = context.config(missing)?;
    let plan = Plan::of(&config);
    match args.format.format {
        Format::Json => context.print_json(&plan)?,
        Format::Table => context.print(&page(&plan, context.paint))?,
    }
    Ok(exit::OK)
}

/// What the configuration means.
#[derive(Debug, Serialize)]
struct Plan {
    file: String,
    listen: String,
    telegram: bool,
    environments: Vec<EnvironmentPlan>,
}

#[derive(Debug, Serialize)]
struct EnvironmentPlan {
    app: String,
    environment: String,
    repository: String,
    branch: String,
    port: Option<u16>,
    runtime: &'static str,
    /// `recreate` or `blue-green`: what `auto` came to.
    strategy: &'static str,
    /// Why `auto` came to it; null where the strategy is written in the file.
    strategy_reason: Option<String>,
    /// Whether the public port is the gate's.
    gate: bool,
    #[serde(skip)]
    strategy_words: String,
    /// Patterns of paths that deploy; empty: every push does.
    paths: Vec<String>,
    webhook: bool,
    stages: Vec<StagePlan>,
}

#[derive(Debug, Serialize)]
struct StagePlan {
    name: Stage,
    on: bool,
    /// What it does, in a few words; why it is off, where it is.
    what: String,
}

impl Plan {
    fn of(config: &Config) -> Self {
        let environments = config.apps.iter().flat_map(|app| {
            let webhook = !app.github_secrets.is_empty();
            app.environments.iter().map(move |environment| EnvironmentPlan::of(environment, webhook))
        });
        Self {
            file: config.file.display().to_string(),
            listen: config.server.listen.clone(),
            telegram: config.telegram.is_some(),
            environments: environments.collect(),
        }
    }
}

impl EnvironmentPlan {
    fn of(environment: &Environment, webhook: bool) -> Self {
        let start = &environment.start;
        Self {
            app: environment.key.app.to_string(),
            environment: environment.key.environment.to_string(),
            repository: environment.repository.clone(),
            branch: environment.branch.to_string(),
            port: environment.port,
            runtime: start.runtime.as_str(),
            strategy: start.strategy.as_str(),
            strategy_reason: start.strategy_reason.clone(),
            gate: start.gate.is_some(),
            strategy_words: start.strategy_words(),
            paths: environment.paths.patterns.clone(),
            webhook,
            stages: Stage::ALL.iter().map(|stage| stage_plan(*stage, environment)).collect(),
        }
    }
}

fn stage_plan(name: Stage, environment: &Environment) -> StagePlan {
    let (on, what) = match name {
        Stage::Pull => (true, format!("branch {} of {}", environment.branch, environment.repository)),
        Stage::Backup if environment.backups.is_empty() => (false, "no [[backup]]".to_owned()),
        Stage::Backup => (true, environment.backups.iter().map(|b| backup(&b.source)).collect::<Vec<_>>().join(", ")),
        Stage::Test if environment.tests.is_empty() => (false, "no [[test]]".to_owned()),
        Stage::Test => (true, environment.tests.iter().map(test).collect::<Vec<_>>().join(", ")),
        Stage::Build => (true, build(environment)),
        Stage::Tag => (true, "remember what is live as the way back".to_owned()),
        Stage::Migrate => match &environment.migrate {
            Some(migrate) => (true, migration(migrate)),
            None => (false, "no [migrate]".to_owned()),
        },
        Stage::Start => (true, start(environment)),
        Stage::Smoke => smoke(&environment.smoke),
    };
    StagePlan { name, on, what }
}

/// What migrates, and what becomes of it when the deployment fails.
fn migration(migrate: &Migrate) -> String {
    let with = match &migrate.with {
        MigrateWith::Command(command) => command.run.clone(),
        MigrateWith::Files(files) => {
            let database = match &files.database {
                MigrationDatabase::Backup(name) => format!("the database of backup {name}"),
                MigrationDatabase::Url(_) => "the database of `url`".to_owned(),
            };
            format!("SQL files of {} to {database}, locks waited for {}", files.dir, span(files.lock_timeout))
        }
    };
    let hold = if migrate.hold { ", with the app stopped" } else { "" };
    format!("{with}{hold} (on failure: {})", migrate.on_failure.as_str())
}

fn smoke(smoke: &crate::config::Smoke) -> (bool, String) {
    let checks: Vec<&str> = smoke.checks.iter().map(|check| check.name.as_str()).collect();
    let what = match (checks.is_empty(), smoke.bake.is_zero()) {
        (true, true) => return (false, "no [[smoke.check]]".to_owned()),
        (true, false) => format!("watched for {}", span(smoke.bake)),
        (false, true) => checks.join(", "),
        (false, false) => format!("{}, then watched for {}", checks.join(", "), span(smoke.bake)),
    };
    (true, what)
}

fn span(span: Duration) -> String {
    took(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))
}

fn backup(source: &BackupSource) -> String {
    match source {
        BackupSource::Postgres { container, database, .. } => format!("postgres {database} in {container}"),
        BackupSource::Mysql { container, database, .. } => format!("mysql {database} in {container}"),
        BackupSource::PostgresUrl { tools, .. } => by_url("postgres", tools),
        BackupSource::MysqlUrl { tools, .. } => by_url("mysql", tools),
        BackupSource::Sqlite { path } => format!("sqlite {}", path.display()),
        BackupSource::Files { path, .. } => format!("files {}", path.display()),
        BackupSource::Volume { volume, .. } => format!("volume {volume}"),
        BackupSource::Command(command) => match &command.container {
            Some(container) => format!("`{}` in {container}", command.dump),
            None => format!("`{}`", command.dump),
        },
    }
}

fn by_url(kind: &str, tools: &DatabaseTools) -> String {
    match tools {
        DatabaseTools::Host => format!("{kind} by its url"),
        DatabaseTools::Image(image) => format!("{kind} by its url, with the tools of {image}"),
    }
}

fn test(suite: &crate::config::TestSuite) -> String {
    let place = match &suite.place {
        TestPlace::Target(target) => format!("target {target}"),
        TestPlace::Image(image) => format!("image {image}"),
        TestPlace::Tree => "the commit's tree".to_owned(),
    };
    let floor = suite.coverage.as_ref().map(|c| format!(", coverage at least {}%", c.min)).unwrap_or_default();
    format!("{} (`{}` in {place}{floor})", suite.name, suite.run)
}

fn build(environment: &Environment) -> String {
    let build = &environment.build;
    match environment.start.runtime {
        crate::config::RuntimeKind::Docker => format!("{} in {}", build.dockerfile, build.context),
        crate::config::RuntimeKind::Process => {
            build.run.clone().unwrap_or_else(|| "the commit's tree as it is".to_owned())
        }
    }
}

fn start(environment: &Environment) -> String {
    let health = &environment.start.health;
    let probe = match &health.probe {
        Probe::Http { path } => format!("GET {path}"),
        Probe::Tcp => "a TCP connection".to_owned(),
        Probe::Exec { command } => format!("`{}`", command.join(" ")),
        Probe::Image => "the image's HEALTHCHECK".to_owned(),
        Probe::Running => return format!("healthy after running for {}", span(health.settle)),
    };
    format!("healthy when {probe} answers {} times within {}", health.successes, span(health.deadline))
}

fn page(plan: &Plan, paint: Paint) -> String {
    let mut out = format!("{} {}\n", paint.good("valid:"), plan.file);
    for environment in &plan.environments {
        let port = environment.port.map_or_else(|| "no port".to_owned(), |port| format!("port {port}"));
        let name = format!("{}/{}", environment.app, environment.environment);
        out.push_str(&format!(
            "\n{}  a push to {} is deployed ({port}, {})\n",
            paint.bold(&name),
            environment.branch,
            environment.runtime,
        ));
        out.push_str(&format!("  strategy: {}\n", environment.strategy_words));
        if !environment.paths.is_empty() {
            out.push_str(&format!("  only if one of these changed: {}\n", environment.paths.join(", ")));
        }
        let mut table = paint.table(&[], None);
        for stage in &environment.stages {
            let (tone, state) = if stage.on { (Tone::Good, "on") } else { (Tone::Plain, "off") };
            table.add_row([
                cell(Tone::Plain, stage.name.as_str()),
                cell(tone, state),
                cell(Tone::Plain, super::style::clip(&stage.what, 110)),
            ]);
        }
        for line in table_text(&table).lines() {
            out.push_str(&format!("  {line}\n"));
        }
    }
    out.push('\n');
    let hooked = plan.environments.iter().all(|e| e.webhook);
    out.push_str(&format!(
        "webhooks  {}\n",
        if hooked { "on, at http://HOST/hooks/github" } else { "off: no secret in [webhooks.github]" }
    ));
    out.push_str(&format!("telegram  {}\n", if plan.telegram { "on" } else { "off" }));
    out.push_str(&format!("listens   {}\n", plan.listen));
    out
}
