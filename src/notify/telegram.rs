//! Telegram's Bot API: a message sent, edited or deleted, a file sent, and what the answer means for what comes next.
//!
//! The token is part of every URL, so no error of the HTTP client is shown as it is: [`Trouble`] is put into words here and goes
//! through a redactor that knows the token. No proxy of the environment is used and no redirect is followed: both would hand
//! the token to another host.
//!
//! Answers fall into a few kinds ([`Verdict`]); the sender above decides how long to wait. Two of them are settled at once: markup that Telegram
//! cannot read is sent again as plain text, and a group that became a supergroup is written to under its new id.

use std::{fmt, time::Duration};

use teloxide::{
    ApiError, Bot, RequestError,
    payloads::{EditMessageTextSetters, SendDocumentSetters, SendMessageSetters},
    requests::Requester,
    types::{
        ChatId, InlineKeyboardButton, InlineKeyboardMarkup, InputFile, LinkPreviewOptions, MessageId, ParseMode,
        ReplyParameters, ThreadId,
    },
};

use super::{buttons::Offered, render::Message, words::one_line};
use crate::{config::Telegram, redact::Redactor};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long an answer usually takes at most.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An explanation's greatest length; some errors quote a whole page.
const LONGEST: usize = 300;

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// With the new message's number, where there is one.
    Accepted(Option<i32>),
    /// Too many messages: nothing may be sent for so long.
    Slow(Duration),
    /// Nobody was there, or the answer was trouble of Telegram's own.
    Away(String),
    /// The request went out, and no answer came: it may have been taken nevertheless.
    Unheard(String),
    /// The message to edit or delete is not there any more, or no longer to be edited.
    Gone,
    /// The token, the chat or the bot's rights: no message is taken until a person changes something. Says what.
    Closed(String),
    /// This message is refused; another may be taken.
    Refused(String),
}

/// How a message is sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner<'a> {
    /// Nobody's phone rings.
    pub silent: bool,
    /// The message that it answers; sent without if that one is gone.
    pub reply_to: Option<i32>,
    pub buttons: &'a [Vec<Offered>],
}

/// A bot that writes to one chat.
pub struct Client {
    bot: Bot,
    chat: ChatId,
    thread: Option<ThreadId>,
    api: String,
    redactor: Redactor,
}

/// Without the bot, whose own `Debug` shows the token.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("api", &self.api).field("chat", &self.chat).finish_non_exhaustive()
    }
}

impl Client {
    /// Does not talk to anybody yet. `limit` is from the connection to the last byte of an answer.
    ///
    /// # Errors
    /// An `api_url` that is no URL to put paths behind.
    pub fn new(config: &Telegram, limit: Duration) -> Result<Self, String> {
        let redactor = Redactor::new([&config.token]);
        let bad = |why: &str| redactor.mask(&format!("`telegram.api_url` cannot be used: {why}"));
        let url = reqwest::Url::parse(config.api_url.trim_end_matches('/')).map_err(|e| bad(&e.to_string()))?;
        if url.cannot_be_a_base() {
            return Err(bad("it has no host"));
        }
        // Messages are rare: a connection kept from the last one would only be a stale one.
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .timeout(limit)
            .pool_max_idle_per_host(0)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| redactor.mask(&format!("no HTTP client could be made: {e}")))?;
        Ok(Self {
            api: redactor.mask(&url.origin().ascii_serialization()),
            bot: Bot::with_client(config.token.expose(), http).set_api_url(url),
            chat: ChatId(config.chat),
            thread: config.thread.map(|id| ThreadId(MessageId(id))),
            redactor,
        })
    }

    /// Where it writes now.
    pub fn place(&self) -> (i64, Option<i32>) {
        (self.chat.0, self.thread.map(|thread| thread.0.0))
    }

    /// Sends a message once, or once more where the answer says how to put it right.
    pub async fn send(&mut self, message: &Message, manner: Manner<'_>) -> Verdict {
        let mut html = true;
        let mut moved = false;
        loop {
            let error = match self.attempt(if html { &message.html } else { &message.plain }, html, manner).await {
                Ok(id) => return Verdict::Accepted(id),
                Err(error) => error,
            };
            match error {
                RequestError::Api(ApiError::CantParseEntities(why)) if html => html = self.without_markup(&why),
                RequestError::MigrateToChatId(chat) if !moved => moved = self.move_to(chat),
                error => return self.verdict(&error),
            }
        }
    }

    /// Changes a message that it sent to `chat` before. That it says so already is a success.
    pub async fn edit(&self, chat: i64, id: i32, message: &Message, buttons: &[Vec<Offered>]) -> Verdict {
        let mut html = true;
        loop {
            let text = if html { &message.html } else { &message.plain };
            let mut request = self.bot.edit_message_text(ChatId(chat), MessageId(id), text);
            request = request.link_preview_options(no_preview());
            if html {
                request = request.parse_mode(ParseMode::Html);
            }
            if !buttons.is_empty() {
                request = request.reply_markup(markup(buttons));
            }
            match tolerant(Box::pin(async move { request.await }).await) {
                Ok(_) | Err(RequestError::Api(ApiError::MessageNotModified)) => return Verdict::Accepted(None),
                Err(RequestError::Api(ApiError::CantParseEntities(why))) if html => html = self.without_markup(&why),
                Err(error) => return self.verdict_on_old(chat, &error),
            }
        }
    }

    /// Takes back a message that it sent to `chat` before.
    pub async fn delete(&self, chat: i64, id: i32) -> Verdict {
        let request = self.bot.delete_message(ChatId(chat), MessageId(id));
        match tolerant(Box::pin(async move { request.await }).await) {
            Ok(_) => Verdict::Accepted(None),
            Err(error) => self.verdict_on_old(chat, &error),
        }
    }

    /// Sends a file, silently.
    pub async fn send_file(&mut self, name: &str, content: Vec<u8>, reply_to: Option<i32>) -> Verdict {
        let mut moved = false;
        loop {
            let file = InputFile::memory(content.clone()).file_name(name.to_owned());
            let mut request = self.bot.send_document(self.chat, file).disable_notification(true);
            if let Some(thread) = self.thread {
                request = request.message_thread_id(thread);
            }
            if let Some(id) = reply_to {
                request = request.reply_parameters(reply(id));
            }
            match tolerant(Box::pin(async move { request.await }).await) {
                Ok(answer) => return Verdict::Accepted(answer.number()),
                Err(RequestError::MigrateToChatId(chat)) if !moved => moved = self.move_to(chat),
                Err(error) => return self.verdict(&error),
            }
        }
    }

    async fn attempt(&self, text: &str, html: bool, manner: Manner<'_>) -> Result<Option<i32>, RequestError> {
        let mut request = self.bot.send_message(self.chat, text).link_preview_options(no_preview());
        if html {
            request = request.parse_mode(ParseMode::Html);
        }
        if let Some(thread) = self.thread {
            request = request.message_thread_id(thread);
        }
        if manner.silent {
            request = request.disable_notification(true);
        }
        if let Some(id) = manner.reply_to {
            request = request.reply_parameters(reply(id));
        }
        if !manner.buttons.is_empty() {
            request = request.reply_markup(markup(manner.buttons));
        }
        Ok(tolerant(Box::pin(async move { request.await }).await)?.number())
    }

    /// Telegram cannot read a message's markup: returns that it is sent without.
    fn without_markup(&self, why: &str) -> bool {
        let why = one_line(why, &self.redactor, LONGEST);
        tracing::warn!(why, "Telegram cannot read a report's markup; it is sent as plain text");
        false
    }

    /// Follows a group that became a supergroup.
    fn move_to(&mut self, chat: ChatId) -> bool {
        let (old, new) = (self.chat.0, chat.0);
        tracing::warn!(old, new, "the chat became a supergroup: put its new id into `telegram.chat`");
        self.chat = chat;
        true
    }

    /// What an answer about a message means that was sent before. Where the chat is no longer the one that is written to, or is another one now, nothing can be
    /// done about the message.
    fn verdict_on_old(&self, chat: i64, error: &RequestError) -> Verdict {
        let old =
            ["message can't be", "MESSAGE_ID_INVALID", "message to edit not found", "message to delete not found"];
        match error {
            RequestError::MigrateToChatId(_) => Verdict::Gone,
            RequestError::Api(error) if old.iter().any(|words| error.to_string().contains(words)) => Verdict::Gone,
            error => match self.verdict(error) {
                Verdict::Closed(_) if chat != self.chat.0 => Verdict::Gone,
                verdict => verdict,
            },
        }
    }

    fn verdict(&self, error: &RequestError) -> Verdict {
        let say = |text: &str| one_line(text, &self.redactor, LONGEST);
        match error {
            RequestError::RetryAfter(seconds) => Verdict::Slow(seconds.duration()),
            RequestError::Api(error) => self.api_verdict(error),
            RequestError::MigrateToChatId(chat) => {
                Verdict::Closed(say(&format!("the chat {} became {chat}: put that into `telegram.chat`", self.chat)))
            }
            RequestError::Network(error) => {
                let why = say(&format!("{}: {}", self.api, network(error)));
                if error.is_connect() { Verdict::Away(why) } else { Verdict::Unheard(why) }
            }
            RequestError::InvalidJson { raw, .. } => {
                Verdict::Unheard(say(&format!("{} answered with something that is not the Bot API's: {raw}", self.api)))
            }
            RequestError::Io(error) => Verdict::Away(say(&error.to_string())),
        }
    }

    /// The Bot API's errors are told apart by their texts, which begin with the HTTP status in words.
    fn api_verdict(&self, error: &ApiError) -> Verdict {
        let said = match error {
            ApiError::Unknown(text) => text.clone(),
            known => known.to_string(),
        };
        let say = |text: String| one_line(&text, &self.redactor, LONGEST);
        let chat = self.chat;
        let closed = match error {
            ApiError::InvalidToken => {
                Some("the bot's token is not known to Telegram: check `telegram.token`".to_owned())
            }
            ApiError::ChatNotFound => Some(format!(
                "the bot is not in the chat {chat}, or there is no such chat: add it to the group, or press Start in a chat with \
                 it, and check `telegram.chat`"
            )),
            _ if said.contains("message thread not found") => {
                Some(format!("the chat {chat} has no such topic: check `telegram.thread`"))
            }
            _ if ["Forbidden", "Unauthorized"].iter().any(|s| said.starts_with(s))
                || ["not enough rights", "need administrator rights", "group is deactivated"]
                    .iter()
                    .any(|s| said.contains(s)) =>
            {
                Some(format!(
                    "the bot may not write to the chat {chat} ({said}): let it in again, or change `telegram.chat`"
                ))
            }
            _ => None,
        };
        match closed {
            Some(why) => Verdict::Closed(say(why)),
            None if said.starts_with("Bad Request") || said.starts_with("Request Entity Too Large") => {
                Verdict::Refused(say(said))
            }
            None => Verdict::Away(say(format!("{} answered: {said}", self.api))),
        }
    }
}

/// Asks who the bot is and whether it sees the chat; sends nothing. For `refit doctor`.
///
/// # Errors
/// What is wrong and what to do, without the token.
pub async fn check(config: &Telegram) -> Result<String, String> {
    let client = Client::new(config, PATIENCE)?;
    let explain = |error: RequestError| match client.verdict(&error) {
        Verdict::Away(why) | Verdict::Unheard(why) | Verdict::Closed(why) | Verdict::Refused(why) => why,
        Verdict::Slow(wait) => format!("Telegram asks for a pause of {} s", wait.as_secs()),
        Verdict::Accepted(_) | Verdict::Gone => String::new(),
    };
    let me = tolerant(Box::pin(async { client.bot.get_me().await }).await).map_err(explain)?.known();
    let chat = tolerant(Box::pin(async { client.bot.get_chat(client.chat).await }).await).map_err(explain)?.known();
    let bot = me.and_then(|me| me.user.username).map_or("the bot".to_owned(), |name| format!("@{name}"));
    let title = chat.and_then(|chat| chat.title().map(str::to_owned));
    let place = title.map_or(format!("the chat {}", client.chat), |title| format!("“{title}”"));
    Ok(one_line(&format!("{bot} can write to {place}"), &client.redactor, LONGEST))
}

/// What a success said.
enum Answer<T> {
    Known(T),
    /// Of a newer Bot API than ours.
    Other(serde_json::Value),
}

impl<T> Answer<T> {
    fn known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Other(_) => None,
        }
    }
}

impl Answer<teloxide::types::Message> {
    /// The new message's number.
    fn number(&self) -> Option<i32> {
        match self {
            Self::Known(message) => Some(message.id.0),
            Self::Other(answer) => answer["result"]["message_id"].as_i64().and_then(|id| i32::try_from(id).ok()),
        }
    }
}

/// An answer that says `"ok": true` is a success even if the rest is of a newer Bot API than ours. Otherwise a message that was taken
/// would be sent for ever.
fn tolerant<T>(result: Result<T, RequestError>) -> Result<Answer<T>, RequestError> {
    match result {
        Ok(value) => Ok(Answer::Known(value)),
        Err(RequestError::InvalidJson { raw, source }) => match serde_json::from_str::<serde_json::Value>(&raw) {
            Ok(answer) if answer["ok"] == true => Ok(Answer::Other(answer)),
            _ => Err(RequestError::InvalidJson { raw, source }),
        },
        Err(error) => Err(error),
    }
}

pub(crate) fn no_preview() -> LinkPreviewOptions {
    LinkPreviewOptions {
        is_disabled: true,
        url: None,
        prefer_small_media: false,
        prefer_large_media: false,
        show_above_text: false,
    }
}

pub(crate) fn reply(id: i32) -> ReplyParameters {
    ReplyParameters::new(MessageId(id)).allow_sending_without_reply()
}

pub(crate) fn markup(buttons: &[Vec<Offered>]) -> InlineKeyboardMarkup {
    let button = |b: &Offered| InlineKeyboardButton::callback(b.text.clone(), b.data.clone());
    InlineKeyboardMarkup::new(buttons.iter().map(|row| row.iter().map(button).collect::<Vec<_>>()))
}

/// The innermost cause: the outer ones name the URL.
pub(crate) fn network(error: &reqwest::Error) -> String {
    if error.is_timeout() && !error.is_connect() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match error.is_connect() {
        true => format!("no connection: {cause}"),
        false => format!("the connection broke: {cause}"),
    }
}
