//! What changes something is asked once more, with what it will do.

use std::time::Duration;

use super::{
    bot::{ANSWER_WITHIN, Bot, Handled, Talk},
    command::{Command, Named},
    order::{Deed, Order, Question},
    read, words,
};
use crate::{
    control::{ControlError, Result},
    model::{DeploymentId, DeploymentView, EnvironmentKey, Status},
    notify::{Message, buttons::Action},
    registry::{Filter, NewButton, Terms},
    rollback::{Target, Wanted, blocking},
};

/// A preview asks Docker, the disk and the app: one that takes longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Places to choose from, a row each.
const CHOICES: usize = 20;

/// Of a rollback that was asked for without words.
const BY_BUTTON: &str = "asked for with a button in Telegram";

/// A question, as it is put: what it says, and whether it may be answered with yes.
struct Asked {
    deed: Deed,
    text: Message,
    possible: bool,
}

/// A command that changes something.
pub async fn command(bot: &mut Bot, talk: &Talk, command: Command) -> Handled {
    let asked = match command.clone() {
        Command::Deploy { place, reference } => match environment(bot, &place) {
            Ok(key) => simple(bot, talk, Deed::Deploy { key, reference }).await,
            Err(error) => return choose(bot, talk, command, &error).await,
        },
        Command::Rerun { id: Some(id), .. } => simple(bot, talk, Deed::Rerun { id }).await,
        Command::Rerun { id: None, place } => match environment(bot, &place) {
            Ok(key) => newest(bot, talk, &key).await,
            Err(error) => return choose(bot, talk, command, &error).await,
        },
        Command::Rollback { place, to, reason } => {
            // The number says which environment is meant.
            let place = match (to, &place) {
                (Some(id), Named { app: None, environment: None }) => match bot.control.deployment(id).await {
                    Ok(view) => Named::of(&key_of(&view)),
                    Err(_) => place,
                },
                _ => place,
            };
            match environment(bot, &place) {
                Ok(key) => rollback(bot, talk, key, to, reason).await,
                Err(error) => return choose(bot, talk, command, &error).await,
            }
        }
        Command::Cancel { id } => simple(bot, talk, Deed::Cancel { id }).await,
        Command::Approve { id } => simple(bot, talk, Deed::Approve { id }).await,
        Command::Reject { id, reason } => simple(bot, talk, Deed::Reject { id, reason }).await,
        // Read and answered before.
        Command::Help | Command::Status | Command::History { .. } | Command::Show { .. } | Command::Logs { .. } => {
            return Ok(());
        }
    };
    put(bot, talk, asked).await
}

/// A button under a report.
pub async fn button(bot: &mut Bot, talk: &Talk, query: &str, about: (Action, Option<DeploymentId>)) -> Handled {
    let (action, Some(id)) = about else {
        bot.api.answer_press(query, "this button is about no deployment", true).await;
        return Ok(());
    };
    let asked = match action {
        Action::Logs => {
            bot.api.answer_press(query, "", false).await;
            read::logs(bot, talk, Some(id)).await;
            return Ok(());
        }
        Action::Approve => return under(bot, talk, query, Deed::Approve { id }).await,
        Action::Reject => {
            let reason = "rejected with a button in Telegram".to_owned();
            return under(bot, talk, query, Deed::Reject { id, reason }).await;
        }
        Action::Cancel => simple(bot, talk, Deed::Cancel { id }).await,
        Action::Rerun => simple(bot, talk, Deed::Rerun { id }).await,
        Action::Rollback => {
            // Before looking, which may take a while: the button shall not spin so long.
            bot.api.answer_press(query, "looking at what that would change", false).await;
            let asked = leave(bot, talk, id).await;
            return put(bot, talk, asked).await;
        }
    };
    match &asked {
        Ok(_) => bot.api.answer_press(query, "", false).await,
        Err(error) => bot.api.answer_press(query, &error.to_string(), true).await,
    }
    match asked {
        Ok(asked) => put(bot, talk, Ok(asked)).await,
        Err(_) => Ok(()),
    }
}

/// The question takes the place of the report's own buttons.
async fn under(bot: &mut Bot, talk: &Talk, query: &str, deed: Deed) -> Handled {
    let question = Question { deed, under_report: true };
    if let Err(error) = possible(bot, &question.deed).await {
        bot.api.answer_press(query, &error.to_string(), true).await;
        return bot.restore_buttons(talk, &question).await;
    }
    let answers = bot.answers(talk, &question).await?;
    bot.api.answer_press(query, "press once more to confirm", false).await;
    bot.note_failure(bot.api.set_buttons(talk.place.chat, talk.message, &answers).await);
    Ok(())
}

async fn put(bot: &mut Bot, talk: &Talk, asked: Result<Asked>) -> Handled {
    match asked {
        Ok(Asked { deed, text, possible: true }) => {
            let answers = bot.answers(talk, &Question { deed, under_report: false }).await?;
            bot.say(talk, &text, &answers).await;
        }
        Ok(Asked { text, .. }) => bot.say(talk, &text, &[]).await,
        Err(error) => bot.say(talk, &words::refused("this cannot be done", &error, bot.api.redactor()), &[]).await,
    }
    Ok(())
}

/// What needs no looking at the world.
async fn simple(bot: &Bot, talk: &Talk, deed: Deed) -> Result<Asked> {
    let about = possible(bot, &deed).await?;
    let text = words::question(&deed, about.as_ref(), &talk.who.name, bot.api.redactor());
    Ok(Asked { deed, text, possible: true })
}

/// Whether there is anything to do, as far as the registry knows. Returns the deployment that it is about; for a deployment to come: what is
/// live.
async fn possible(bot: &Bot, deed: &Deed) -> Result<Option<DeploymentView>> {
    let view = match deed {
        Deed::Deploy { key, .. } | Deed::Rollback { key, .. } => {
            return match bot.registry().live(key).await? {
                Some(live) => Ok(Some(bot.control.deployment(live.deployment).await?)),
                None => Ok(None),
            };
        }
        Deed::Rerun { id } | Deed::Cancel { id } | Deed::Approve { id } | Deed::Reject { id, .. } => {
            bot.control.deployment(*id).await?
        }
    };
    let id = view.id;
    let status = view.status.as_str().replace('_', " ");
    let wrong = |message: String| Err(ControlError::usage(message, format!("/show {id}")));
    match deed {
        Deed::Cancel { .. } if view.status.is_end() => wrong(format!("deployment {id} has ended already: {status}")),
        Deed::Approve { .. } | Deed::Reject { .. } if view.status != Status::AwaitingApproval => {
            wrong(format!("deployment {id} does not wait for approval: it is {status}"))
        }
        Deed::Rerun { .. } if view.rollback.is_some() => {
            wrong(format!("deployment {id} is a rollback: /rollback plans a new one"))
        }
        Deed::Rerun { .. } if !view.status.is_end() => wrong(format!("deployment {id} has not ended: it is {status}")),
        _ => Ok(Some(view)),
    }
}

async fn newest(bot: &Bot, talk: &Talk, key: &EnvironmentKey) -> Result<Asked> {
    let filter = Filter {
        app: Some(key.app.to_string()),
        environment: Some(key.environment.to_string()),
        limit: Some(1),
        ..Filter::default()
    };
    let newest = bot.control.deployments(&filter).await?.pop();
    let none = || ControlError::usage(format!("{key} has no deployment to run again"), "/deploy makes the first one");
    simple(bot, talk, Deed::Rerun { id: newest.ok_or_else(none)?.id }).await
}

/// Away from a deployment, which has to be the live one.
async fn leave(bot: &Bot, talk: &Talk, id: DeploymentId) -> Result<Asked> {
    let view = bot.control.deployment(id).await?;
    if !view.live {
        return Err(ControlError::usage(format!("deployment {id} is not live any more"), "/status, /rollback"));
    }
    rollback(bot, talk, key_of(&view), None, BY_BUTTON.to_owned()).await
}

async fn rollback(
    bot: &Bot,
    talk: &Talk,
    key: EnvironmentKey,
    to: Option<DeploymentId>,
    reason: String,
) -> Result<Asked> {
    let wanted = Wanted { target: to.map_or(Target::Previous, Target::Deployment), restore_data: false };
    let looked = tokio::time::timeout(PATIENCE, Box::pin(bot.control.preview(&key, &wanted))).await;
    let preview = looked.unwrap_or_else(|_| {
        let message = format!("looking at what would change took more than {} s", PATIENCE.as_secs());
        Err(ControlError::Unavailable { message, hint: Some("`refit doctor` on the server".to_owned()) })
    })?;
    let errors = blocking(&preview.checks, false);
    let possible = errors.iter().all(|check| check.forcible);
    let force = possible && !errors.is_empty();
    let (from, to) = (preview.from.deployment, preview.to.deployment);
    let deed = Deed::Rollback { key, from, to, reason, force };
    let why: Vec<&str> = errors.iter().map(|check| check.message.as_str()).collect();
    let text = words::preview(&preview, &deed, &why, &talk.who.name, bot.api.redactor());
    Ok(Asked { deed, text, possible })
}

fn key_of(view: &DeploymentView) -> EnvironmentKey {
    EnvironmentKey { app: view.app.clone(), environment: view.environment.clone() }
}

fn environment(bot: &Bot, place: &Named) -> Result<EnvironmentKey> {
    let found = bot.control.find_environment(place.app.as_deref(), place.environment.as_deref())?;
    Ok(found.key.clone())
}

/// Several places may be meant: a button for each.
async fn choose(bot: &Bot, talk: &Talk, command: Command, error: &ControlError) -> Handled {
    let (Command::Deploy { place, .. } | Command::Rerun { place, .. } | Command::Rollback { place, .. }) = &command
    else {
        return Ok(());
    };
    let fits = |key: &EnvironmentKey| {
        place.app.as_deref().is_none_or(|app| app == key.app.as_str())
            && place.environment.as_deref().is_none_or(|environment| environment == key.environment.as_str())
    };
    let keys = bot.control.config().environments().map(|environment| &environment.key).filter(|key| fits(key));
    let buttons: Vec<NewButton> = keys
        .take(CHOICES)
        .map(|key| {
            let order = Order::Choose { command: command.clone(), key: key.clone() };
            let action = serde_json::to_value(order).unwrap_or_default();
            NewButton { verb: "at", text: key.to_string(), action }
        })
        .collect();
    if buttons.is_empty() {
        bot.say(talk, &words::refused("which one?", error, bot.api.redactor()), &[]).await;
        return Ok(());
    }
    let terms = Terms { deployment: None, chat: talk.place.chat, user: Some(talk.who.id), valid: ANSWER_WITHIN };
    bot.registry().withdraw_questions(talk.place.chat, talk.who.id).await?;
    let made = bot.registry().make_buttons(&buttons, true, &terms).await?;
    let rows: Vec<Vec<_>> = made.into_iter().map(|button| vec![button]).collect();
    bot.say(talk, &words::plain("❓ Which one is meant? You can also name it: app/environment"), &rows).await;
    Ok(())
}
