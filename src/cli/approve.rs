//! `refit approve` and `refit reject`: a person's word on a deployment that waits for it.
//!
//! The word is a row in the store. The daemon, if one answers, writes it and acts at once; else it is written from here, and whichever
//! process runs the deployment finds it.

use super::{
    args::{ApproveArgs, ReasonArgs},
    client::Daemon,
    context::{Context, find_deployment, open_registry, user},
    error::{Result, exit},
};
use crate::{
    control::{self, ApprovalRequest},
    model::DeploymentId,
};

pub async fn approve(context: &Context, args: ApproveArgs) -> Result<u8> {
    decide(context, args.id.id, true, args.reason).await
}

pub async fn reject(context: &Context, args: ReasonArgs) -> Result<u8> {
    decide(context, args.id.id, false, Some(args.reason)).await
}

async fn decide(context: &Context, id: i64, approved: bool, reason: Option<String>) -> Result<u8> {
    let config = context.config_to_read()?;
    let registry = open_registry(&config).await?;
    let id = find_deployment(&registry, id).await?.id;
    let by = user().unwrap_or_else(|| "cli".to_owned());
    let request = ApprovalRequest { approved, by, reason };
    let daemon = Daemon::connect(&config.server.socket()).await;
    match &daemon {
        Some(daemon) => daemon.decide(id, &request).await?,
        None => control::decide(&registry, id, request).await?,
    }
    context.print(&said(id, approved, daemon.is_some()))?;
    Ok(exit::OK)
}

fn said(id: DeploymentId, approved: bool, daemon: bool) -> String {
    let what = match approved {
        true => format!("deployment {id} is approved and goes on"),
        false => format!("deployment {id} is rejected; what it did is undone"),
    };
    match daemon {
        true => format!("{what} (`refit logs -f {id}` watches)\n"),
        // A terminal may run it: only that process knows.
        false => {
            format!(
                "{what}, in the terminal where it waits, or, if that is gone, with the next `refit serve` or `refit deploy`\n"
            )
        }
    }
}
