//! A push that a post-receive hook saw, line by line.

use futures_util::future::try_join_all;

use super::{
    verbs::Verbs,
    wire::{PushOutcome, PushRequest},
};
use crate::{
    config::{App, Config},
    control::{ControlError, Result},
    model::TriggerKind,
    registry::Delivery,
    trigger::hook::{self, HookPush, Update},
};

/// Writes every line that some environment deploys to the inbox, all at once, and waits for what becomes of each.
pub(super) async fn receive(verbs: &dyn Verbs, config: &Config, request: PushRequest) -> Result<Vec<PushOutcome>> {
    let app = config.apps.iter().find(|app| app.name == request.app).ok_or_else(|| unknown_app(config, &request))?;
    let by = request.by.as_deref();
    let updates = hook::parse(request.lines.join("\n").as_bytes());
    try_join_all(updates.into_iter().map(|update| async move {
        match update {
            Update::Push(push) => receive_one(verbs, app, &push, by).await,
            Update::Ignored { reference, reason } => Ok(ignored(reference, reason)),
        }
    }))
    .await
}

async fn receive_one(verbs: &dyn Verbs, app: &App, push: &HookPush, by: Option<&str>) -> Result<PushOutcome> {
    let reference = format!("refs/heads/{}", push.branch);
    if !app.environments.iter().any(|environment| environment.branch == push.branch) {
        return Ok(ignored(reference, format!("no environment of {} deploys the branch {}", app.name, push.branch)));
    }
    // Git gives a push no id. This one repeats when the hook is run again for the same push.
    let before = push.before.as_ref().map_or("new", |id| id.as_str());
    let delivery = Delivery {
        source: TriggerKind::Hook,
        delivery: format!("{before}..{}@{reference}", push.after),
        app: app.name.clone(),
        branch: push.branch.clone(),
        commit: push.after.clone(),
        pusher: by.map(str::to_owned),
        // Git does not tell a hook whether history was replaced. But this branch did move, on this host, to just this commit: it may
        // take the app back.
        forced: true,
    };
    let receipt = verbs.receive(delivery).await?;
    let outcomes = verbs.outcome(receipt).await?;
    Ok(PushOutcome { reference, ignored: None, outcomes })
}

fn ignored(reference: String, reason: String) -> PushOutcome {
    PushOutcome { reference, ignored: Some(reason), outcomes: Vec::new() }
}

fn unknown_app(config: &Config, request: &PushRequest) -> ControlError {
    let known: Vec<_> = config.apps.iter().map(|app| app.name.as_str()).collect();
    ControlError::usage(
        format!("the daemon has no app called {}", request.app),
        format!("its apps: {}; install the hook again with `refit hook install`", known.join(", ")),
    )
}
