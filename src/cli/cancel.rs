//! `refit cancel`: asks the daemon to stop a deployment.

use super::{
    args::IdArgs,
    client::Daemon,
    context::{Context, find_deployment, open_registry, user},
    error::{CliError, Result, exit},
};
use crate::model::{DeploymentId, Status};

pub async fn run(context: &Context, args: &IdArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    let registry = open_registry(&config).await?;
    let view = find_deployment(&registry, args.id).await?;
    if view.status.is_end() {
        let message =
            format!("deployment {} has already ended: {}", view.id, super::style::words(view.status.as_str()));
        return Err(CliError::usage(message, "`refit status` shows what runs now"));
    }
    let Some(daemon) = Daemon::connect(&config.server.socket()).await else {
        if view.status == Status::AwaitingApproval {
            return Err(CliError::unavailable(
                "no daemon answers, and only the process that runs a deployment can cancel it",
                format!("`refit reject {} --reason \"…\"`: that is kept until a process hears it", view.id),
            ));
        }
        return Err(CliError::unavailable(
            "no daemon answers, and only the process that runs a deployment can cancel it",
            "Ctrl-C in the terminal where it runs; if that is gone, `refit serve` recovers from the journal and undoes it",
        ));
    };
    daemon.cancel(DeploymentId(args.id), user().as_deref().unwrap_or("cli")).await?;
    context.print(&format!(
        "deployment {} is asked to stop; it undoes what it did (`refit logs -f {0}` watches)\n",
        args.id
    ))?;
    Ok(exit::OK)
}
