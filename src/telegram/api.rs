//! Talking to the Bot API as a bot that is talked to: asking for updates, answering, editing.
//!
//! As in `notify::telegram`, the token is part of every URL, so no error of the HTTP client is shown as it is. A request that Telegram wants
//! later is repeated when it said; one that was refused is explained. What is said here is an answer in a conversation: one
//! that cannot be delivered is dropped after a few attempts, since the person can ask again. Reports are another matter and go
//! through the outbox.

use std::{fmt, time::Duration};

use bytes::Bytes;
use teloxide::{
    ApiError, Bot, RequestError,
    payloads::{
        AnswerCallbackQuerySetters, EditMessageReplyMarkupSetters, EditMessageTextSetters, GetUpdatesSetters,
        SendDocumentSetters, SendMessageSetters, SetWebhookSetters,
    },
    requests::Requester,
    types::{AllowedUpdate, BotCommand, CallbackQueryId, ChatId, InputFile, MessageId, ParseMode, ThreadId, Update},
};

use super::update::Place;
use crate::{
    config::Telegram,
    notify::{
        Message, Pacer, Turn,
        buttons::Offered,
        telegram::{markup, network, no_preview, reply as reply_to},
        words::{cut, one_line},
    },
    redact::Redactor,
};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const TOTAL_LIMIT: Duration = Duration::from_secs(20);

/// A file takes longer.
const UPLOAD_LIMIT: Duration = Duration::from_secs(120);

/// How long Telegram holds a request for updates open while there are none, in seconds.
const POLL_SECONDS: u32 = 25;

/// What is asked for: nothing else is ours.
const UPDATES: [AllowedUpdate; 2] = [AllowedUpdate::Message, AllowedUpdate::CallbackQuery];

/// An answer to a press is at most so long (Bot API, `answerCallbackQuery`).
const TOAST: usize = 200;

const ATTEMPTS: u32 = 3;

/// A turn in the chat, or a pause that Telegram asks for, is waited for up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(90);

/// An explanation's greatest length.
const LONGEST: usize = 300;

/// Why a request came to nothing. The text holds no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("Telegram asks for a pause of {} s", .0.as_secs())]
    Slow(Duration),
    /// Nobody answered, or it was trouble of Telegram's own.
    #[error("{0}")]
    Away(String),
    #[error("the bot's token is not known to Telegram")]
    Token,
    /// Somebody else asks for this bot's updates.
    #[error("another program asks for this bot's updates")]
    OtherPoller,
    /// The updates go to a URL.
    #[error("this bot's updates are sent to a webhook")]
    WebhookSet,
    #[error("{0}")]
    Refused(String),
}

pub type Result<T> = std::result::Result<T, Trouble>;

/// A bot's line to Telegram. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    bot: Bot,
    /// With more patience: for long polling and files.
    slow: Bot,
    host: String,
    redactor: Redactor,
    pacer: Pacer,
}

/// Without the bots, whose own `Debug` shows the token.
impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Api {
    /// Does not talk to anybody yet. `redactor`: masks the rest of the configuration's secrets too. `pacer`: that of the reports.
    ///
    /// # Errors
    /// An `api_url` that is no URL to put paths behind.
    pub fn new(config: &Telegram, redactor: Redactor, pacer: Pacer) -> std::result::Result<Self, String> {
        let own = Redactor::new([&config.token]);
        let bad = |why: &str| own.mask(&format!("`telegram.api_url` cannot be used: {why}"));
        let url = reqwest::Url::parse(config.api_url.trim_end_matches('/')).map_err(|e| bad(&e.to_string()))?;
        if url.cannot_be_a_base() {
            return Err(bad("it has no host"));
        }
        let client = |limit| {
            reqwest::Client::builder()
                .connect_timeout(CONNECT_LIMIT)
                .timeout(limit)
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .map_err(|e| own.mask(&format!("no HTTP client could be made: {e}")))
        };
        let bot =
            |limit| Ok::<_, String>(Bot::with_client(config.token.expose(), client(limit)?).set_api_url(url.clone()));
        Ok(Self {
            host: own.mask(&url.origin().ascii_serialization()),
            bot: bot(TOTAL_LIMIT)?,
            slow: bot(UPLOAD_LIMIT)?,
            redactor,
            pacer,
        })
    }

    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// The bot's own user name.
    pub async fn me(&self) -> Result<String> {
        let me = Box::pin(async { self.bot.get_me().await }).await.map_err(|e| self.trouble(e))?;
        Ok(me.user.username.unwrap_or_default())
    }

    /// The bot's menu.
    pub async fn set_commands(&self, menu: &[(&str, &str, &str)]) -> Result<()> {
        let commands: Vec<BotCommand> = menu
            .iter()
            .map(|(name, arguments, what)| {
                BotCommand::new(*name, format!("{arguments} — {what}").trim_start_matches(" — "))
            })
            .collect();
        let set = self.again(None, || Box::pin(async { self.bot.set_my_commands(commands.clone()).await })).await;
        set.map(drop)
    }

    /// Updates from `offset` on (all that are not confirmed yet where unset), waiting for some. Asking from an offset on confirms all before it.
    pub async fn updates(&self, offset: Option<i32>) -> Result<Vec<Update>> {
        let mut request = self.slow.get_updates().allowed_updates(UPDATES).timeout(POLL_SECONDS);
        if let Some(offset) = offset {
            request = request.offset(offset);
        }
        Box::pin(async move { request.await }).await.map_err(|e| self.trouble(e))
    }

    /// The updates of these kinds that wait, without confirming or waiting for any.
    pub async fn peek(&self, kinds: &[AllowedUpdate]) -> Result<Vec<Update>> {
        let request = self.bot.get_updates().allowed_updates(kinds.iter().copied());
        Box::pin(async move { request.await }).await.map_err(|e| self.trouble(e))
    }

    /// Where the updates are sent, if they are; and how many wait.
    pub async fn webhook(&self) -> Result<(Option<String>, u32)> {
        let info = Box::pin(async { self.bot.get_webhook_info().await }).await.map_err(|e| self.trouble(e))?;
        Ok((info.url.map(|url| url.to_string()).filter(|url| !url.is_empty()), info.pending_update_count))
    }

    /// From now on updates are sent to `url`, one after the other, with `secret` in the header `X-Telegram-Bot-Api-Secret-Token`.
    pub async fn set_webhook(&self, url: &str, secret: &str) -> Result<()> {
        let url = reqwest::Url::parse(url).map_err(|e| Trouble::Refused(e.to_string()))?;
        let request = self.bot.set_webhook(url).secret_token(secret).max_connections(1).allowed_updates(UPDATES);
        Box::pin(async move { request.await }).await.map(drop).map_err(|e| self.trouble(e))
    }

    /// Updates wait to be asked for again.
    pub async fn delete_webhook(&self) -> Result<()> {
        Box::pin(async { self.bot.delete_webhook().await }).await.map(drop).map_err(|e| self.trouble(e))
    }

    /// Says something; returns the message's number. `reply`: to which message.
    pub async fn say(
        &self,
        place: Place,
        message: &Message,
        buttons: &[Vec<Offered>],
        reply: Option<i32>,
    ) -> Result<i32> {
        match self.say_as(place, &message.html, true, buttons, reply).await {
            Err(Trouble::Refused(why)) if why.contains("can't parse entities") => {
                tracing::warn!(why, "Telegram cannot read an answer's markup; it is sent as plain text");
                self.say_as(place, &message.plain, false, buttons, reply).await
            }
            other => other,
        }
    }

    async fn say_as(
        &self,
        place: Place,
        text: &str,
        html: bool,
        buttons: &[Vec<Offered>],
        reply: Option<i32>,
    ) -> Result<i32> {
        let sent = self
            .again(Some(place.chat), || {
                let mut request = self.bot.send_message(ChatId(place.chat), text).link_preview_options(no_preview());
                if html {
                    request = request.parse_mode(ParseMode::Html);
                }
                if let Some(thread) = place.thread {
                    request = request.message_thread_id(ThreadId(MessageId(thread)));
                }
                if let Some(to) = reply {
                    request = request.reply_parameters(reply_to(to));
                }
                if !buttons.is_empty() {
                    request = request.reply_markup(markup(buttons));
                }
                Box::pin(async move { request.await })
            })
            .await?;
        Ok(sent.map_or(0, |message| message.id.0))
    }

    /// Replaces a message of the bot, buttons and all.
    pub async fn rewrite(&self, chat: i64, message: i32, text: &Message, buttons: &[Vec<Offered>]) -> Result<()> {
        let edited = self
            .again(Some(chat), || {
                let mut request = self
                    .bot
                    .edit_message_text(ChatId(chat), MessageId(message), text.html.clone())
                    .parse_mode(ParseMode::Html)
                    .link_preview_options(no_preview());
                if !buttons.is_empty() {
                    request = request.reply_markup(markup(buttons));
                }
                Box::pin(async move { request.await })
            })
            .await;
        unchanged_is_fine(edited.map(drop))
    }

    /// Replaces the buttons under a message of the bot; none: takes them away.
    pub async fn set_buttons(&self, chat: i64, message: i32, buttons: &[Vec<Offered>]) -> Result<()> {
        let edited = self
            .again(Some(chat), || {
                let mut request = self.bot.edit_message_reply_markup(ChatId(chat), MessageId(message));
                if !buttons.is_empty() {
                    request = request.reply_markup(markup(buttons));
                }
                Box::pin(async move { request.await })
            })
            .await;
        unchanged_is_fine(edited.map(drop))
    }

    pub async fn delete(&self, chat: i64, message: i32) -> Result<()> {
        self.again(Some(chat), || Box::pin(async { self.bot.delete_message(ChatId(chat), MessageId(message)).await }))
            .await
            .map(drop)
    }

    /// Sends a file; `caption` is plain text.
    pub async fn send_file(
        &self,
        place: Place,
        name: &str,
        content: Bytes,
        caption: &str,
        reply: Option<i32>,
    ) -> Result<()> {
        let sent = self
            .again(Some(place.chat), || {
                let file = InputFile::memory(content.clone()).file_name(name.to_owned());
                let mut request = self.slow.send_document(ChatId(place.chat), file).caption(caption);
                if let Some(thread) = place.thread {
                    request = request.message_thread_id(ThreadId(MessageId(thread)));
                }
                if let Some(to) = reply {
                    request = request.reply_parameters(reply_to(to));
                }
                Box::pin(async move { request.await })
            })
            .await;
        sent.map(drop)
    }

    /// Answers a press: without this the button keeps spinning. `alert`: in a window that has to be closed. A press that Telegram has
    /// forgotten is as good as answered.
    pub async fn answer_press(&self, query: &str, text: &str, alert: bool) {
        let request = self
            .bot
            .answer_callback_query(CallbackQueryId(query.to_owned()))
            .text(cut(&self.redactor.mask(text), TOAST))
            .show_alert(alert);
        match Box::pin(async move { request.await }).await {
            Ok(_) | Err(RequestError::Api(ApiError::InvalidQueryId)) => {}
            Err(error) => tracing::debug!(why = %self.trouble(error), "a press could not be answered"),
        }
    }

    /// Sends a request, and again when Telegram wanted it later or did not answer. `None`: it was taken, and the answer is of a newer
    /// Bot API than ours.
    async fn again<T, F>(&self, chat: Option<i64>, mut request: impl FnMut() -> F) -> Result<Option<T>>
    where
        F: Future<Output = std::result::Result<T, RequestError>>,
    {
        let mut attempt = 1;
        loop {
            if let Some(chat) = chat {
                self.turn(chat).await?;
            }
            let trouble = match request().await {
                Ok(answer) => return Ok(Some(answer)),
                Err(RequestError::InvalidJson { raw, .. }) if says_ok(&raw) => return Ok(None),
                Err(error) => self.trouble(error),
            };
            let pause = match &trouble {
                Trouble::Slow(wait) => {
                    self.pacer.hold(*wait);
                    if chat.is_some() { Duration::ZERO } else { (*wait).min(LONGEST_WAIT) }
                }
                Trouble::Away(_) => Duration::from_secs(1),
                _ => return Err(trouble),
            };
            if attempt == ATTEMPTS {
                return Err(trouble);
            }
            attempt += 1;
            tokio::time::sleep(pause).await;
        }
    }

    /// Waits for the chat's turn, unless that is too far away: nobody waits for an answer so long.
    async fn turn(&self, chat: i64) -> Result<()> {
        let turn = tokio::time::timeout(LONGEST_WAIT, self.pacer.turn(chat, Turn::Message));
        turn.await.map_err(|_| Trouble::Slow(self.pacer.held().unwrap_or(LONGEST_WAIT)))
    }

    fn trouble(&self, error: RequestError) -> Trouble {
        let say = |text: &str| one_line(text, &self.redactor, LONGEST);
        let error = match error {
            RequestError::RetryAfter(seconds) => return Trouble::Slow(seconds.duration()),
            RequestError::Network(error) => {
                // The outer errors name the URL.
                let cause = network(&error);
                return Trouble::Away(say(&format!("{}: {cause}", self.host)));
            }
            RequestError::InvalidJson { raw, .. } => {
                let text = format!("{} answered with something that is not the Bot API's: {raw}", self.host);
                return Trouble::Away(say(&text));
            }
            RequestError::MigrateToChatId(chat) => {
                return Trouble::Refused(format!(
                    "the group became the supergroup {chat}: put that into `telegram.chat`"
                ));
            }
            RequestError::Io(error) => return Trouble::Away(say(&error.to_string())),
            RequestError::Api(error) => error,
        };
        let said = match &error {
            ApiError::InvalidToken => return Trouble::Token,
            ApiError::TerminatedByOtherGetUpdates => return Trouble::OtherPoller,
            ApiError::CantGetUpdates => return Trouble::WebhookSet,
            ApiError::Unknown(text) => text.clone(),
            known => known.to_string(),
        };
        if said.starts_with("Conflict") {
            let webhook = said.contains("webhook");
            return if webhook { Trouble::WebhookSet } else { Trouble::OtherPoller };
        }
        if ["Bad Request", "Forbidden", "Unauthorized", "Request Entity Too Large"].iter().any(|s| said.starts_with(s))
        {
            return Trouble::Refused(say(&said));
        }
        Trouble::Away(say(&format!("{} answered: {said}", self.host)))
    }
}

/// Buttons or a text that are there already, or a message that somebody has deleted: there is nothing left to do.
fn unchanged_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(Trouble::Refused(why))
            if ["not modified", "message to edit not found", "MESSAGE_ID_INVALID"].iter().any(|w| why.contains(w)) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn says_ok(raw: &str) -> bool {
    let answer: Option<serde_json::Value> = serde_json::from_str(raw).ok();
    answer.is_some_and(|answer| answer.get("ok") == Some(&serde_json::Value::Bool(true)))
}
