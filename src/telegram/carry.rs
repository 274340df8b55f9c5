//! Doing what a person said yes to, so that it is done once whatever happens in between; see the essay of `bot`.

use futures_util::StreamExt;

use super::{
    bot::{Bot, Handled, Talk},
    order::{Deed, Question},
    words,
};
use crate::{
    control::{
        ApprovalRequest, BackupRequest, BackupUpdate, BackupVerb, ControlError, DeployRequest, RerunRequest, Result,
        RollbackRequest,
    },
    model::{EnvironmentKey, Trigger, TriggerKind},
    registry::Pressed,
    rollback::Target,
};

/// Does it, notes it, and says so.
pub async fn out(
    bot: &mut Bot,
    talk: &Talk,
    query: &str,
    (pressed, question): (&Pressed, &Question),
    update: i64,
) -> Handled {
    bot.control.faults().reach("bot:intent").await;
    let done = match deed(bot, talk, pressed, &question.deed).await {
        Err(ControlError::Registry(error)) => return Err(error),
        done => done,
    };
    bot.control.faults().reach("bot:effect").await;
    bot.registry().note_update(update).await?;
    bot.control.faults().reach("bot:record").await;
    tell(bot, talk, query, question, done).await
}

async fn tell(bot: &mut Bot, talk: &Talk, query: &str, question: &Question, done: Result<String>) -> Handled {
    let (chat, message) = (talk.place.chat, talk.message);
    let (user, line) = (talk.who.id, question.deed.line());
    match done {
        Ok(what) => {
            tracing::info!(user, chat, what, "Telegram: {}", bot.api.redactor().mask(&line));
            bot.api.answer_press(query, &what, false).await;
            bot.note_failure(bot.api.set_buttons(chat, message, &[]).await);
            let text = words::settled("👍", &question.deed, &what, &talk.who.name, bot.api.redactor());
            bot.say(talk, &text, &[]).await;
        }
        Err(error) => {
            tracing::warn!(user, chat, %error, "Telegram: not done: {}", bot.api.redactor().mask(&line));
            bot.api.answer_press(query, "this could not be done", true).await;
            match question.under_report {
                true => bot.restore_buttons(talk, question).await?,
                false => bot.note_failure(bot.api.set_buttons(chat, message, &[]).await),
            }
            bot.say(talk, &words::refused(&format!("not done: {line}"), &error, bot.api.redactor()), &[]).await;
        }
    }
    Ok(())
}

/// Carries it out; in a few words, what happens now.
async fn deed(bot: &Bot, talk: &Talk, pressed: &Pressed, deed: &Deed) -> Result<String> {
    let control = &bot.control;
    let by = talk.who.name.clone();
    let trigger = |kind| Trigger { kind, by: Some(by.clone()), delivery: Some(pressed.order()), forced: false };
    let names = |key: &EnvironmentKey| (Some(key.app.to_string()), Some(key.environment.to_string()));
    let queued = match deed.clone() {
        Deed::Backup { key } => {
            back_up(bot, talk, key, trigger(TriggerKind::Telegram));
            return Ok("it begins".to_owned());
        }
        Deed::Deploy { key, reference } => {
            let (app, environment) = names(&key);
            let trigger = trigger(TriggerKind::Telegram);
            control.deploy(DeployRequest { app, environment, reference, trigger, no_wait: false }).await?
        }
        Deed::Rerun { id } => {
            let trigger = trigger(TriggerKind::Telegram);
            let request = RerunRequest { id: Some(id), app: None, environment: None, trigger, no_wait: false };
            control.rerun(request).await?
        }
        // Looked for first: once it has been done, its preview fits no more.
        Deed::Rollback { key, from, to, reason, force } => {
            match bot.registry().ordered_deployment(&pressed.order()).await? {
                Some(known) => known,
                None => {
                    let live = bot.registry().live(&key).await?.map(|release| release.deployment);
                    if live != Some(from) {
                        let message =
                            format!("deployment {from} is not live any more, and the preview was made for it");
                        return Err(ControlError::usage(message, "/status, then /rollback again"));
                    }
                    let (app, environment) = names(&key);
                    let request = RollbackRequest {
                        app,
                        environment,
                        service: None,
                        target: Target::Deployment(to),
                        reason,
                        force,
                        restore_data: false,
                        trigger: trigger(TriggerKind::Rollback),
                        no_wait: false,
                    };
                    Box::pin(control.rollback(request)).await?
                }
            }
        }
        Deed::Cancel { id } => {
            control.cancel(id, &by).await?;
            return Ok("it is told to stop".to_owned());
        }
        Deed::Approve { id } => {
            control.decide(id, ApprovalRequest { approved: true, by, reason: None }).await?;
            return Ok("it goes on".to_owned());
        }
        Deed::Reject { id, reason } => {
            control.decide(id, ApprovalRequest { approved: false, by, reason: Some(reason) }).await?;
            return Ok("it is undone".to_owned());
        }
    };
    Ok(format!("deployment {queued} is in the queue"))
}

/// A backup may take long: it goes on beside what else is said, and tells its end by itself. One that is cut short by a crash is
/// not taken up again; done twice it would be one set more.
fn back_up(bot: &Bot, talk: &Talk, key: EnvironmentKey, trigger: Trigger) {
    let (control, api, talk) = (bot.control.clone(), bot.api.clone(), talk.clone());
    tokio::spawn(async move {
        let request = BackupRequest {
            app: Some(key.app.to_string()),
            environment: Some(key.environment.to_string()),
            trigger,
            no_wait: false,
            verb: BackupVerb::Create { reason: None, parts: Vec::new() },
        };
        let mut updates = control.backup(request);
        let mut end = None;
        while let Some(update) = updates.next().await {
            match update {
                Ok(BackupUpdate::Said { .. }) => {}
                last => end = Some(last),
            }
        }
        let message = match end {
            Some(Ok(BackupUpdate::Created(created))) => words::backed_up(&key, &created.report, api.redactor()),
            Some(Err(error)) => words::refused(&format!("{key} is not backed up"), &error, api.redactor()),
            _ => words::plain(&format!("⚠️ it is not known what became of the backup of {key}")),
        };
        if let Err(why) = api.say(talk.place, &message, &[], Some(talk.message)).await {
            tracing::warn!(%why, "Telegram: the end of a backup could not be told");
        }
    });
}
