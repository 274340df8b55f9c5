//! Watching work on backups: a moving line where the terminal can, plain lines where it cannot; and what Ctrl-C means meanwhile.

use std::time::Duration;

use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    cli::{
        context::Context,
        error::{CliError, Result, exit},
        hands::{Hands, Interrupts},
        style::clip,
    },
    control::{BackupRequest, BackupUpdate},
};

/// A line that moves has to fit.
const LIVE_WIDTH: usize = 100;

/// Shows what is being done until it is done, and returns what came of it. The first interrupt cancels the work, wherever it goes on, and
/// leaves nothing behind.
pub async fn watch(
    context: &Context,
    hands: &Hands,
    request: BackupRequest,
    interrupts: &mut Interrupts,
) -> Result<BackupUpdate> {
    let bar = context.live.then(|| {
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
        let bar = ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    });
    let mut updates = hands.backup(request);
    let ended = loop {
        let update = tokio::select! {
            update = updates.next() => update,
            () = interrupts.next() => {
                context.say("cancelling; nothing half done is left");
                break Err(CliError::Failed { message: "cancelled".to_owned(), hint: None, code: exit::CANCELLED });
            }
        };
        match update {
            Some(Ok(BackupUpdate::Said { text })) => match &bar {
                Some(bar) => bar.set_message(clip(&text, LIVE_WIDTH)),
                None => context.say(&text),
            },
            Some(Ok(end)) => break Ok(end),
            Some(Err(error)) => break Err(error.into()),
            None => {
                let hint = "`refit backup list` shows what is there";
                break Err(CliError::unavailable("the daemon went away in the middle", hint));
            }
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    ended
}
