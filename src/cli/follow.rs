//! Watching a deployment to its end, and what Ctrl-C means meanwhile.

use futures_util::{StreamExt, future::BoxFuture};

use super::{
    context::{Context, user},
    error::{CliError, Result, exit},
    hands::{Hands, Interrupts},
    progress::Progress,
};
use crate::{
    control::Update,
    model::{DeploymentId, DeploymentView},
    pipeline::journal::Event,
};

/// Shows the events of `id` until it ends.
///
/// The first interrupt cancels a deployment that runs here, and waits for its undo; the second one leaves at once, and the next
/// run recovers. With a daemon the first interrupt ends the watching.
pub async fn follow(
    context: &Context,
    hands: &Hands,
    id: DeploymentId,
    interrupts: &mut Interrupts,
) -> Result<DeploymentView> {
    let mut progress = Progress::new(id, context.live, context.paint_errors);
    progress.wait(&format!("deployment {id} is queued"));
    let result = watch(hands, id, interrupts, &mut progress).await;
    progress.finish();
    result
}

async fn watch(
    hands: &Hands,
    id: DeploymentId,
    interrupts: &mut Interrupts,
    progress: &mut Progress,
) -> Result<DeploymentView> {
    let mut updates = hands.follow(id);
    let mut cancelling = false;
    // The question to people leaves while it is one, and nobody waits for that.
    let mut asking: Option<BoxFuture<'static, ()>> = None;
    loop {
        let update = tokio::select! {
            update = updates.next() => update,
            () = async { if let Some(asking) = &mut asking { asking.await } }, if asking.is_some() => {
                asking = None;
                continue;
            }
            () = interrupts.next() => {
                if !hands.is_here() {
                    progress.print(&format!(
                        "no longer watching: deployment {id} goes on in the daemon (`refit logs -f {id}` watches, `refit cancel {id}` stops it)"
                    ));
                    return Err(CliError::Told(exit::CANCELLED));
                }
                if cancelling {
                    progress.print(&format!(
                        "left in the middle: the next `refit deploy` or `refit serve` undoes deployment {id} from its journal"
                    ));
                    return Err(CliError::Told(exit::CANCELLED));
                }
                cancelling = true;
                progress.print("cancelling, and undoing what was done (Ctrl-C again leaves at once)");
                hands.cancel(id, user().as_deref().unwrap_or("cli")).await?;
                continue;
            }
        };
        match update {
            Some(Ok(Update::Event(recorded))) => {
                progress.event(&recorded);
                if matches!(recorded.event, Event::ApprovalRequested { .. }) {
                    progress.wait(&waiting(hands));
                    asking = hands.send_reports();
                }
            }
            Some(Ok(Update::End { deployment })) => return Ok(*deployment),
            Some(Err(error)) => return Err(error.into()),
            None => {
                let hint = format!("`refit show {id}`: at its next start the daemon finishes or undoes it");
                return Err(CliError::unavailable(format!("the daemon went away while deployment {id} ran"), hint));
            }
        }
    }
}

fn waiting(hands: &Hands) -> String {
    match hands {
        Hands::Here(_) => {
            "waiting for a word from another terminal; Ctrl-C cancels it and undoes what was done".to_owned()
        }
        Hands::Daemon(_) => "waiting for a word; Ctrl-C only ends the watching".to_owned(),
    }
}
