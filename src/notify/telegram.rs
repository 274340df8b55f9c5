//! Telegram's Bot API: one message sent, and what the answer means for what comes next.
//!
//! The token is part of every URL, so no error of the HTTP client is shown as it is: [`Trouble`] is put into words here and goes
//! through a redactor that knows the token. No proxy of the environment is used and no redirect is followed: both would hand
//! the token to another host.
//!
//! Answers fall into five kinds ([`Verdict`]); the sender above decides how long to wait. Two of them are settled at once: markup that Telegram
//! cannot read is sent again as plain text, and a group that became a supergroup is written to under its new id.

use std::{fmt, time::Duration};

use teloxide::{
    ApiError, Bot, RequestError,
    payloads::SendMessageSetters,
    requests::Requester,
    types::{ChatId, LinkPreviewOptions, MessageId, ParseMode, ThreadId},
};

use super::{render::Message, words::one_line};
use crate::{config::Telegram, redact::Redactor};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// From the connection to the last byte of the answer.
const TOTAL_LIMIT: Duration = Duration::from_secs(20);

/// An explanation's greatest length; some errors quote a whole page.
const LONGEST: usize = 300;

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// Too many messages: nothing may be sent for so long.
    Slow(Duration),
    /// Nobody answered, or the answer was trouble of Telegram's own. It may have taken the message nevertheless.
    Away(String),
    /// The token, the chat or the bot's rights: no message is taken until a person changes something. Says what.
    Closed(String),
    /// This message is refused; another may be taken.
    Refused(String),
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
    /// Does not talk to anybody yet.
    ///
    /// # Errors
    /// An `api_url` that is no URL to put paths behind.
    pub fn new(config: &Telegram) -> Result<Self, String> {
        Self::with_limit(config, TOTAL_LIMIT)
    }

    pub(super) fn with_limit(config: &Telegram, limit: Duration) -> Result<Self, String> {
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

    /// Sends a message once, or once more where the answer says how to put it right.
    pub async fn send(&mut self, message: &Message) -> Verdict {
        let mut html = true;
        let mut moved = false;
        loop {
            let error = match self.attempt(if html { &message.html } else { &message.plain }, html).await {
                Ok(()) => return Verdict::Accepted,
                Err(error) => error,
            };
            match error {
                RequestError::Api(ApiError::CantParseEntities(why)) if html => {
                    let why = one_line(&why, &self.redactor, LONGEST);
                    tracing::warn!(why, "Telegram cannot read a report's markup; it is sent as plain text");
                    html = false;
                }
                RequestError::MigrateToChatId(chat) if !moved => {
                    let (old, new) = (self.chat.0, chat.0);
                    tracing::warn!(old, new, "the chat became a supergroup: put its new id into `telegram.chat`");
                    (self.chat, moved) = (chat, true);
                }
                error => return self.verdict(&error),
            }
        }
    }

    async fn attempt(&self, text: &str, html: bool) -> Result<(), RequestError> {
        let no_preview = LinkPreviewOptions {
            is_disabled: true,
            url: None,
            prefer_small_media: false,
            prefer_large_media: false,
            show_above_text: false,
        };
        let mut request = self.bot.send_message(self.chat, text).link_preview_options(no_preview);
        if html {
            request = request.parse_mode(ParseMode::Html);
        }
        if let Some(thread) = self.thread {
            request = request.message_thread_id(thread);
        }
        tolerant(Box::pin(async move { request.await }).await).map(drop)
    }

    fn verdict(&self, error: &RequestError) -> Verdict {
        let say = |text: &str| one_line(text, &self.redactor, LONGEST);
        match error {
            RequestError::RetryAfter(seconds) => Verdict::Slow(seconds.duration()),
            RequestError::Api(error) => self.api_verdict(error),
            RequestError::MigrateToChatId(chat) => {
                Verdict::Closed(say(&format!("the chat {} became {chat}: put that into `telegram.chat`", self.chat)))
            }
            RequestError::Network(error) => Verdict::Away(say(&format!("{}: {}", self.api, network(error)))),
            RequestError::InvalidJson { raw, .. } => {
                Verdict::Away(say(&format!("{} answered with something that is not the Bot API's: {raw}", self.api)))
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
    let client = Client::new(config)?;
    let explain = |error: RequestError| match client.verdict(&error) {
        Verdict::Away(why) | Verdict::Closed(why) | Verdict::Refused(why) => why,
        Verdict::Slow(wait) => format!("Telegram asks for a pause of {} s", wait.as_secs()),
        Verdict::Accepted => String::new(),
    };
    let me = tolerant(Box::pin(async { client.bot.get_me().await }).await).map_err(explain)?;
    let chat = tolerant(Box::pin(async { client.bot.get_chat(client.chat).await }).await).map_err(explain)?;
    let bot = me.and_then(|me| me.user.username).map_or("the bot".to_owned(), |name| format!("@{name}"));
    let title = chat.and_then(|chat| chat.title().map(str::to_owned));
    let place = title.map_or(format!("the chat {}", client.chat), |title| format!("“{title}”"));
    Ok(one_line(&format!("{bot} can write to {place}"), &client.redactor, LONGEST))
}

/// An answer that says `"ok": true` is a success even if the rest is of a newer Bot API than ours: `None` then. Otherwise a message
/// that was taken would be sent for ever.
fn tolerant<T>(result: Result<T, RequestError>) -> Result<Option<T>, RequestError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(RequestError::InvalidJson { raw, .. }) if says_ok(&raw) => Ok(None),
        Err(error) => Err(error),
    }
}

fn says_ok(raw: &str) -> bool {
    let answer: Option<serde_json::Value> = serde_json::from_str(raw).ok();
    answer.is_some_and(|answer| answer.get("ok") == Some(&serde_json::Value::Bool(true)))
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
