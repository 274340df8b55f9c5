//! `refit maintenance`: a page in place of the app, for everybody who asks, until it is told to go. The gate of the environment answers; this
//! is [`gate maintenance`](super::gate) for those who think of an environment and not of a route.

use serde::Serialize;

use super::{
    args::{Format, MaintenanceArgs},
    context::Context,
    error::{CliError, Result, exit},
    gate::args::OnOff,
    style::clip,
};
use crate::{
    config::Environment,
    gate::{
        Client, ClientError,
        wire::{ErrorCode, MaintenanceRequest, RouteState},
    },
};

/// Seconds after which clients may ask again.
const RETRY_AFTER: u32 = 60;

/// What is so after the command.
#[derive(Debug, Serialize)]
struct Outcome {
    app: String,
    environment: String,
    maintenance: bool,
    message: Option<String>,
    /// As in `refit gate status`.
    state: Option<RouteState>,
    /// Whether a gate that starts again would know it.
    kept: bool,
}

pub async fn run(context: &Context, args: MaintenanceArgs) -> Result<u8> {
    let on = args.state == OnOff::On;
    if !on && args.message.is_some() {
        return Err(CliError::usage("--message is for the page that `on` shows", "`refit maintenance off`"));
    }
    let config = context.config_to_read()?;
    let environment = config.environment(args.target.app.as_deref(), args.target.env.as_deref())?;
    let name = environment.key.to_string();
    let client = Client::new(config.server.state_dir.join("gate").join("gate.sock"));
    let request = MaintenanceRequest { name: name.clone(), on, message: args.message, retry_after: RETRY_AFTER };
    let done = client.maintenance(request).await.map_err(|error| explained(environment, error))?;
    let status = client.status(Some(&name)).await?;
    let route = status.route(&name);
    let outcome = Outcome {
        app: environment.key.app.to_string(),
        environment: environment.key.environment.to_string(),
        maintenance: route.map_or(on, |route| route.state == RouteState::Maintenance),
        message: route.and_then(|route| route.maintenance.clone()),
        state: route.map(|route| route.state),
        kept: done.kept,
    };
    match args.format.format {
        Format::Json => context.print_json(&outcome)?,
        Format::Table => context.print(&told(&name, &outcome))?,
    }
    super::gate::warn_unkept(context, done.kept);
    Ok(exit::OK)
}

fn told(name: &str, outcome: &Outcome) -> String {
    if !outcome.maintenance {
        let state = match outcome.state {
            Some(RouteState::Empty) => "nothing is live, so visitors get 503",
            Some(RouteState::Held) => "requests wait, as a deployment has asked for",
            _ => "visitors get the app again",
        };
        return format!("{name}: out of maintenance; {state}\n");
    }
    let page = outcome.message.as_deref().filter(|message| !message.is_empty());
    let page = page.map(|message| format!(" that says {:?}", clip(message, 100))).unwrap_or_default();
    format!("{name}: in maintenance; every request gets 503 and a page{page}, until `refit maintenance off`\n")
}

/// Why there is no page, for somebody who has not heard of routes.
fn explained(environment: &Environment, error: ClientError) -> CliError {
    let name = &environment.key;
    let unknown = error.code() == Some(ErrorCode::UnknownRoute);
    if !unknown && !error.is_absent() {
        return error.into();
    }
    if environment.start.gate.is_none() {
        return CliError::usage(
            format!("{name} is not behind the gate: its visitors ask the app itself, and nobody else can answer them"),
            "`gate = true` or `strategy = \"blue-green\"` in [start], then `refit deploy`",
        );
    }
    if unknown {
        return CliError::unavailable(
            format!("the gate does not serve {name} yet"),
            "`refit deploy`: with it the gate takes the port over",
        );
    }
    CliError::unavailable(
        format!("the gate of {name} does not run"),
        "`refit deploy` puts the app behind it; an app that was behind it gets it back with `refit serve` or `refit deploy`",
    )
}
