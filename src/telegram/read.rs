//! Commands that only read.

use bytes::Bytes;

use super::{
    bot::{Bot, Handled, Talk},
    command::Named,
    words,
};
use crate::{
    control::{ControlError, LogText},
    model::DeploymentId,
    notify::{buttons::keyboard_for, render::Canvas, words::units},
    registry::Filter,
};

/// Deployments that `/history` lists.
const LISTED: u32 = 10;

/// A longer log goes as a file; in UTF-16 units, as Telegram counts.
const INLINE: usize = 3000;

/// The largest file: a bot may send 50 MB (Bot API, "sending files").
const LARGEST_LOG: u64 = 20 * 1024 * 1024;

pub async fn status(bot: &Bot, talk: &Talk) {
    let message = match Box::pin(bot.control.status()).await {
        Ok(all) => words::status(&all, bot.api.redactor()),
        Err(error) => words::refused("the status cannot be read", &error, bot.api.redactor()),
    };
    bot.say(talk, &message, &[]).await;
}

pub async fn history(bot: &Bot, talk: &Talk, place: &Named) {
    let filter = Filter {
        app: place.app.clone(),
        environment: place.environment.clone(),
        limit: Some(LISTED),
        ..Filter::default()
    };
    let message = match bot.control.deployments(&filter).await {
        Ok(views) => words::history(&views, bot.api.redactor()),
        Err(error) => words::refused("the history cannot be read", &error, bot.api.redactor()),
    };
    bot.say(talk, &message, &[]).await;
}

pub async fn show(bot: &Bot, talk: &Talk, id: DeploymentId) -> Handled {
    match bot.control.report(id).await {
        Ok((view, report)) => {
            let buttons = bot.registry().offer(&keyboard_for(&view), id, talk.place.chat).await?;
            bot.say(talk, &report.message(), &buttons).await;
        }
        Err(error) => bot.say(talk, &words::refused("nothing to show", &error, bot.api.redactor()), &[]).await,
    }
    Ok(())
}

/// The log of a deployment, by default the newest: as a message if it is short, else as a file.
pub async fn logs(bot: &Bot, talk: &Talk, id: Option<DeploymentId>) {
    let found = async {
        let id = match id {
            Some(id) => id,
            None => {
                let newest = bot.control.deployments(&Filter { limit: Some(1), ..Filter::default() }).await?.pop();
                let none = || ControlError::usage("nothing was deployed yet", "/deploy");
                newest.ok_or_else(none)?.id
            }
        };
        Ok::<_, ControlError>((id, bot.control.log_text(id, LARGEST_LOG).await?))
    };
    let (id, log) = match found.await {
        Ok(found) => found,
        Err(error) => {
            bot.say(talk, &words::refused("no log", &error, bot.api.redactor()), &[]).await;
            return;
        }
    };
    send_log(bot, talk, id, log).await;
}

async fn send_log(bot: &Bot, talk: &Talk, id: DeploymentId, log: LogText) {
    // Masked when it was written, with the secrets of then; once more with those of now.
    let text = bot.api.redactor().mask(&String::from_utf8_lossy(&log.text));
    if units(&text) <= INLINE && !log.cut {
        let mut canvas = Canvas::default();
        canvas.words(&format!("the log of deployment {id}\n"));
        match text.trim() {
            "" => canvas.words("it is empty"),
            text => canvas.pre(text),
        }
        bot.say(talk, &canvas.message(), &[]).await;
        return;
    }
    let caption = match log.cut {
        true => format!("the end of the log of deployment {id}; all of it is on the server"),
        false => format!("the log of deployment {id}"),
    };
    let name = format!("deployment_{id}.log");
    let sent = bot.api.send_file(talk.place, &name, Bytes::from(text), &caption, Some(talk.message)).await;
    bot.note_failure(sent);
}
