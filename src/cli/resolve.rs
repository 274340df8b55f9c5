//! `refit resolve`: a person has looked at a stuck deployment.

use super::{
    args::ReasonArgs,
    client::Daemon,
    context::{Context, find_deployment, open_registry, user},
    error::{Result, exit},
    style::clip,
};
use crate::{
    control::{self, ResolveRequest},
    model::{DeploymentView, EnvironmentKey},
};

pub async fn run(context: &Context, args: ReasonArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    let registry = open_registry(&config).await?;
    let before = find_deployment(&registry, args.id.id).await?;
    let by = user().unwrap_or_else(|| "cli".to_owned());
    let request = ResolveRequest { by, reason: args.reason };
    let daemon = Daemon::connect(&config.server.socket()).await;
    match &daemon {
        Some(daemon) => daemon.resolve(before.id, &request).await?,
        None => drop(control::resolve(&registry, before.id, request).await?),
    }
    context.print(&said(&before, daemon.is_some()))?;
    let key = EnvironmentKey { app: before.app, environment: before.environment };
    if let Some(newer) = registry.unresolved(&key).await? {
        context.print(&format!(
            "deployment {newer} is stuck too and holds back what is deployed by itself: `refit resolve {newer} --reason \"…\"`\n"
        ))?;
    }
    Ok(exit::OK)
}

fn said(before: &DeploymentView, daemon: bool) -> String {
    let (id, place) = (before.id, format!("{}/{}", before.app, before.environment));
    if let Some(first) = &before.resolved {
        return format!(
            "deployment {id} was resolved before, by {}: {}\n",
            clip(&first.by, 40),
            clip(&first.reason, 200)
        );
    }
    let next = match daemon {
        true => "the remote is asked for what was held back (`refit status`)",
        false => "no daemon answers: the next `refit serve` asks the remote",
    };
    format!("deployment {id} is resolved: pushes are deployed to {place} again; {next}\n")
}
