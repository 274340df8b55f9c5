//! `refit telegram test` and `refit telegram chats`: whether the bot can do what it must, and which chats it knows of.

use std::collections::BTreeMap;

use serde::Serialize;
use teloxide::types::{AllowedUpdate, Chat, Update, UpdateKind};

use super::{
    api::{Api, Trouble},
    poll::explain,
    update::Place,
    words,
};
use crate::{config::Telegram, log::printable, notify::Pacer, redact::Redactor};

/// One step of the test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    pub step: &'static str,
    pub ok: bool,
    /// What was found, or what is wrong and what to do.
    pub detail: String,
}

/// A chat that something was said in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Known {
    pub chat: i64,
    /// `private`, `group`, `supergroup` or `channel`.
    pub kind: &'static str,
    pub title: String,
    /// Topics that were spoken in.
    pub threads: Vec<i32>,
    /// Ids and names of those who spoke.
    pub people: Vec<(u64, String)>,
}

/// Sends, edits and deletes a message; the first step that fails is the last. Asks for no updates.
pub async fn test(config: &Telegram, redactor: &Redactor) -> Vec<Step> {
    let mut steps = Vec::new();
    // Nothing is left to do after a step that failed.
    let _ = walk(config, redactor, &mut steps).await;
    steps
}

async fn walk(config: &Telegram, redactor: &Redactor, steps: &mut Vec<Step>) -> Result<(), ()> {
    let note = |steps: &mut Vec<Step>, step, result: Result<String, String>| {
        let ok = result.is_ok();
        let detail = result.unwrap_or_else(|why| why);
        steps.push(Step { step, ok, detail });
        if ok { Ok(()) } else { Err(()) }
    };
    let api = match Api::new(config, redactor.clone(), Pacer::default()) {
        Ok(api) => api,
        Err(why) => return note(steps, "address", Err(why)),
    };
    let said = |trouble: Trouble| advice(&trouble, config);
    note(steps, "token", api.me().await.map(|me| format!("this is @{me}")).map_err(said))?;
    let place = Place { chat: config.chat, thread: config.thread };
    let hello = words::plain("🔧 refit can write here. This message is edited, and then deleted.");
    let sent = api.say(place, &hello, &[], None).await;
    note(steps, "send", sent.as_ref().map(|_| format!("chat {}", config.chat)).map_err(|t| said(t.clone())))?;
    let message = sent.unwrap_or_default();
    let edited = api.rewrite(config.chat, message, &words::plain("🔧 refit has edited this message."), &[]).await;
    note(steps, "edit", edited.map(|()| "as a report is while it goes on".to_owned()).map_err(said))?;
    let deleted = api.delete(config.chat, message).await;
    note(steps, "delete", deleted.map(|()| "nothing is left of the test".to_owned()).map_err(said))?;
    note(steps, "listen", listening(&api, config).await)
}

async fn listening(api: &Api, config: &Telegram) -> Result<String, String> {
    if config.operators.is_empty() {
        return Ok("off: `telegram.operators` names nobody, so there are no buttons and commands".to_owned());
    }
    let (url, waiting) = api.webhook().await.map_err(|trouble| advice(&trouble, config))?;
    match (url, &config.webhook) {
        (None, None) => Ok(format!("{} operators; {waiting} updates wait", config.operators.len())),
        (Some(url), Some(wanted)) if url.trim_end_matches('/') == wanted.as_str() => {
            Ok(format!("{} operators, by webhook; {waiting} updates wait", config.operators.len()))
        }
        (_, Some(_)) => Ok("by webhook: the daemon sets it when it starts".to_owned()),
        (Some(_), None) => Err(explain(&Trouble::WebhookSet)),
    }
}

/// What is wrong, and what to do.
fn advice(trouble: &Trouble, config: &Telegram) -> String {
    let Trouble::Refused(why) = trouble else { return explain(trouble) };
    let chat = config.chat;
    let says = |words: &[&str]| words.iter().any(|word| why.contains(word));
    let what = if says(&["chat not found", "PEER_ID_INVALID"]) {
        format!(
            "the bot is not in the chat {chat}, or there is no such chat: add it to the group, or press Start in a chat with it; \
             `refit telegram chats` shows the chats' ids"
        )
    } else if says(&["thread not found", "TOPIC_CLOSED", "TOPIC_DELETED"]) {
        format!("the chat {chat} has no such topic, or it is closed: check `telegram.thread`")
    } else if says(&["kicked", "blocked", "not a member", "deactivated"]) {
        format!("the bot was put out of the chat {chat}: let it in again")
    } else if says(&["not enough rights", "need administrator rights", "have no rights", "CHAT_WRITE_FORBIDDEN"]) {
        format!("the bot is in the chat {chat} and may not write there: let members write, or make it an administrator")
    } else {
        "Telegram refused it".to_owned()
    };
    format!("{what} ({why})")
}

/// The bot's name, and the chats that updates tell of which nobody has taken yet. Takes none away: who asks for updates next gets them
/// again.
///
/// # Errors
/// What is wrong and what to do.
pub async fn chats(config: &Telegram, redactor: &Redactor) -> Result<(String, Vec<Known>), String> {
    let api = Api::new(config, redactor.clone(), Pacer::default())?;
    let me = api.me().await.map_err(|trouble| explain(&trouble))?;
    let kinds = [AllowedUpdate::Message, AllowedUpdate::CallbackQuery, AllowedUpdate::MyChatMember];
    let updates = api.peek(&kinds).await.map_err(|trouble| explain(&trouble))?;
    Ok((me, known(&updates)))
}

fn known(updates: &[Update]) -> Vec<Known> {
    let mut all: BTreeMap<i64, Known> = BTreeMap::new();
    for update in updates {
        let Some(chat) = update.chat() else { continue };
        let (kind, title) = described(chat);
        let id = chat.id.0;
        let entry =
            all.entry(id).or_insert_with(|| Known { chat: id, kind, title, threads: Vec::new(), people: Vec::new() });
        if let UpdateKind::Message(message) = &update.kind
            && let Some(thread) = message.thread_id.filter(|_| message.is_topic_message)
            && !entry.threads.contains(&thread.0.0)
        {
            entry.threads.push(thread.0.0);
        }
        if let Some(user) = update.from()
            && !entry.people.iter().any(|(known, _)| *known == user.id.0)
        {
            entry.people.push((user.id.0, clean(&user.full_name())));
        }
    }
    all.into_values().collect()
}

fn described(chat: &Chat) -> (&'static str, String) {
    let kind = match () {
        () if chat.is_private() => "private",
        () if chat.is_supergroup() => "supergroup",
        () if chat.is_channel() => "channel",
        () => "group",
    };
    let name = || [chat.first_name(), chat.last_name()].into_iter().flatten().collect::<Vec<_>>().join(" ");
    (kind, clean(&chat.title().map_or_else(name, str::to_owned)))
}

fn clean(text: &str) -> String {
    printable(text).chars().take(60).collect()
}
