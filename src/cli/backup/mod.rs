//! `refit backup`: sets taken, looked at, put back and removed by hand.
//!
//! What looks reads the disk and the store itself; what acts goes through the daemon, else through this process under the same lock.

use super::{
    args::TargetArgs,
    context::Context,
    error::{CliError, Result},
};
use crate::{
    config::Config,
    control::{BackupEntry, Observer},
    data::SetState,
    model::EnvironmentKey,
    registry::Registry,
};

mod act;
pub mod args;
mod look;
mod watch;

use args::{BackupArgs, BackupCommand};

/// The word for the newest set that can be used.
const LATEST: &str = "latest";

pub async fn run(context: &Context, args: BackupArgs) -> Result<u8> {
    match args.command {
        BackupCommand::Create(args) => act::create(context, args).await,
        BackupCommand::List(args) => look::list(context, &args).await,
        BackupCommand::Show(args) => look::show(context, args).await,
        BackupCommand::Verify(args) => act::verify(context, args).await,
        BackupCommand::Restore(args) => act::restore(context, args).await,
        BackupCommand::Delete(args) => act::delete(context, args).await,
        BackupCommand::Prune(args) => act::prune(context, args).await,
    }
}

/// A set's name may say whose it is, as reports have it: `shop/production/2026-11-21_10-15-30`. What the flags say comes first.
fn place(set: &str, target: &mut TargetArgs) -> String {
    let [app, environment, name] = set.split('/').collect::<Vec<_>>()[..] else { return set.to_owned() };
    let same = |given: &Option<String>, named: &str| given.as_deref().is_none_or(|given| given == named);
    if !same(&target.app, app) || !same(&target.env, environment) {
        return set.to_owned();
    }
    (target.app, target.env) = (Some(app.to_owned()), Some(environment.to_owned()));
    name.to_owned()
}

/// The sets of one environment.
async fn entries(context: &Context, config: &std::sync::Arc<Config>, key: &EnvironmentKey) -> Result<Vec<BackupEntry>> {
    let registry = Registry::open_existing(&config.server.registry()).await?;
    let observer = Observer::new(config.clone(), registry, &context.options()?)?;
    Ok(observer.backups(key).await?)
}

/// The one that is meant.
fn find(entries: Vec<BackupEntry>, key: &EnvironmentKey, set: &str) -> Result<BackupEntry> {
    let known: Vec<String> = entries.iter().map(|entry| entry.set.name.clone()).collect();
    let found = entries.into_iter().find(|entry| match set {
        LATEST => entry.set.state == SetState::Complete,
        name => entry.set.name == name,
    });
    found.ok_or_else(|| {
        let name: String = set.chars().take(80).flat_map(char::escape_default).collect();
        let there = if known.is_empty() { "there is none".to_owned() } else { format!("the newest is {}", known[0]) };
        CliError::usage(format!("{key} has no backup `{name}`; {there}"), "`refit backup list` shows them")
    })
}
