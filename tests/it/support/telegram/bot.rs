//! The stand-in's other side: what people say and press, and the methods with which a bot listens: `getUpdates`, `answerCallbackQuery`,
//! `setMyCommands`, `setWebhook` and their kin, with the rules of the Bot API's documentation.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::{
    Answer, BotApi, CHAT, State, TOPIC,
    chat::{OF_A_PERSON, Refusal, bad, buttons, message_json},
    form::Input,
    ok, refuse,
};

pub const OPERATOR: u64 = 10_001;
pub const SECOND_OPERATOR: u64 = 10_002;
pub const STRANGER: u64 = 66_666;

/// An answer to a press is at most so long.
const LONGEST_ANSWER: usize = 200;

/// An answer to a press.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub query: String,
    pub text: String,
    pub alert: bool,
}

#[derive(Debug)]
pub(super) struct Bot {
    /// Waiting updates by their number.
    updates: BTreeMap<i64, Value>,
    /// All that there ever were.
    made: BTreeMap<i64, Value>,
    next: i64,
    /// Kinds that are asked for; updates of others are not made.
    allowed: Option<BTreeSet<String>>,
    /// Which request for updates is the newest: the ones before it are ended.
    poller: u64,
    /// Queries that can be answered.
    queries: BTreeSet<String>,
    answers: Vec<Answered>,
    menu: Vec<(String, String)>,
    webhook: Option<(String, String)>,
}

impl Default for Bot {
    fn default() -> Self {
        Self {
            updates: BTreeMap::new(),
            made: BTreeMap::new(),
            next: 700_000_001,
            allowed: None,
            poller: 0,
            queries: BTreeSet::new(),
            answers: Vec::new(),
            menu: Vec::new(),
            webhook: None,
        }
    }
}

/// Something that a person says.
#[derive(Debug, Clone)]
pub struct Said<'a> {
    pub user: u64,
    pub chat: i64,
    pub thread: Option<i64>,
    pub text: &'a str,
    /// Seconds ago.
    pub age: u64,
    pub forwarded: bool,
    pub edited: bool,
}

impl<'a> Said<'a> {
    pub fn new(user: u64, text: &'a str) -> Self {
        Self { user, chat: CHAT, thread: None, text, age: 0, forwarded: false, edited: false }
    }
}

impl BotApi {
    /// A person says something in the chat; returns the update's number.
    pub fn says(&self, user: u64, text: &str) -> i64 {
        self.said(&Said::new(user, text))
    }

    pub fn said(&self, said: &Said<'_>) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let mut message = json!({
            "message_id": OF_A_PERSON, "date": now - said.age, "text": said.text,
            "from": user(said.user), "chat": chat(said.chat),
        });
        if let Some(thread) = said.thread {
            message["message_thread_id"] = thread.into();
            message["is_topic_message"] = (thread == TOPIC).into();
        }
        if said.forwarded {
            message["forward_origin"] = json!({ "type": "user", "date": now - 60, "sender_user": user(OPERATOR) });
        }
        if said.edited {
            message["edit_date"] = now.into();
        }
        self.lock().bot.make(if said.edited { "edited_message" } else { "message" }, message)
    }

    /// A person presses the button with these words under a message; returns the update's number.
    #[track_caller]
    pub fn presses(&self, user: u64, message: i64, words: &str) -> i64 {
        let found = self.accepted().into_iter().find(|m| m.id == message).expect("the message is there");
        let data = found.buttons.iter().flatten().find(|(text, _)| text.contains(words)).map(|(_, data)| data.clone());
        let data = data.unwrap_or_else(|| panic!("no button `{words}` in {found:?}"));
        self.presses_data(user, message, &data)
    }

    /// The same with data that may be under no message at all: nobody keeps a client from sending it.
    pub fn presses_data(&self, user: u64, message: i64, data: &str) -> i64 {
        self.presses_in(CHAT, user, message, data)
    }

    pub fn presses_in(&self, in_chat: i64, person: u64, message: i64, data: &str) -> i64 {
        let mut state = self.lock();
        let under = state.accepted.iter().find(|m| m.id == message && m.chat == in_chat).map(message_json);
        let under = under.unwrap_or_else(|| json!({ "message_id": message, "date": 0, "chat": chat(in_chat) }));
        let query = format!("q{}", state.bot.next);
        state.bot.queries.insert(query.clone());
        let press = json!({ "id": query, "from": user(person), "message": under, "chat_instance": "1", "data": data });
        state.bot.make("callback_query", press)
    }

    /// Telegram delivers an update again, as it may as long as it does not know that it arrived.
    pub fn delivers_again(&self, update: i64) {
        let mut state = self.lock();
        let value = state.bot.made[&update].clone();
        state.bot.updates.insert(update, value);
    }

    pub fn update(&self, number: i64) -> Value {
        self.lock().bot.made[&number].clone()
    }

    /// Presses can be answered no more.
    pub fn forget_queries(&self) {
        self.lock().bot.queries.clear();
    }

    pub fn answers(&self) -> Vec<Answered> {
        self.lock().bot.answers.clone()
    }

    /// Waits until a press was answered; returns the answer.
    #[track_caller]
    pub fn wait_for_answer(&self, press: i64) -> Answered {
        let query = self.update(press)["callback_query"]["id"].as_str().expect("a press").to_owned();
        let find = || self.answers().into_iter().find(|answer| answer.query == query);
        self.wait_until("an answer to a press", |_| find().is_some());
        find().expect("it was there")
    }

    /// Waits until no update is left: all were confirmed.
    #[track_caller]
    pub fn wait_until_all_is_heard(&self) {
        self.wait_until("every update's confirmation", |api| api.lock().bot.updates.is_empty());
    }

    /// The bot's commands and their descriptions.
    pub fn menu(&self) -> Vec<(String, String)> {
        self.lock().bot.menu.clone()
    }

    /// The webhook's address and its secret.
    pub fn webhook(&self) -> Option<(String, String)> {
        self.lock().bot.webhook.clone()
    }

    /// Some program has set it.
    pub fn set_webhook_by_hand(&self, url: &str) {
        self.lock().bot.webhook = Some((url.to_owned(), String::new()));
    }

    /// Waits for a message with these words, and returns the newest.
    #[track_caller]
    pub fn wait_for_words(&self, words: &str) -> super::Accepted {
        let find = || self.accepted().into_iter().rev().find(|message| message.text.contains(words));
        self.wait_until(&format!("`{words}`"), |_| find().is_some());
        find().expect("it was there")
    }

    /// Waits until a message has a button with these words.
    #[track_caller]
    pub fn wait_for_button(&self, words: &str) -> super::Accepted {
        let has = |m: &super::Accepted| m.buttons.iter().flatten().any(|(text, _)| text.contains(words));
        let find = || self.accepted().into_iter().rev().find(has);
        self.wait_until(&format!("the button `{words}`"), |_| find().is_some());
        find().expect("it was there")
    }
}

impl Bot {
    fn make(&mut self, kind: &str, content: Value) -> i64 {
        let number = self.next;
        self.next += 1;
        let update = json!({ "update_id": number, kind: content });
        self.made.insert(number, update.clone());
        if self.allowed.as_ref().is_none_or(|allowed| allowed.contains(kind)) {
            self.updates.insert(number, update);
        }
        number
    }

    /// Confirms what is before the offset, and gives what is there from it on.
    fn from(&mut self, offset: i64, limit: usize) -> Vec<Value> {
        if offset >= 0 {
            self.updates.retain(|number, _| *number >= offset);
        } else {
            let keep = usize::try_from(-offset).expect("a small number");
            while self.updates.len() > keep {
                self.updates.pop_first();
            }
        }
        self.updates.values().take(limit).cloned().collect()
    }
}

impl State {
    pub(super) fn listen(&mut self, method: &str, input: &Input) -> Result<Answer, Refusal> {
        match method {
            "answercallbackquery" => self.answer_callback_query(input),
            "editmessagereplymarkup" => {
                let at = self.own_message(input, "edit")?;
                let edited = super::Accepted { buttons: buttons(input)?, ..self.accepted[at].clone() };
                self.change(at, edited)
            }
            "setmycommands" => self.set_my_commands(input),
            "setwebhook" => self.set_webhook(input),
            "deletewebhook" => {
                self.bot.webhook = None;
                Ok(ok(&true.into()))
            }
            "getwebhookinfo" => {
                let url = self.bot.webhook.as_ref().map(|(url, _)| url.clone()).unwrap_or_default();
                let pending = self.bot.updates.len();
                Ok(ok(&json!({ "url": url, "has_custom_certificate": false, "pending_update_count": pending })))
            }
            _ => Err(Box::new(refuse(404, "Not Found: method not found", None))),
        }
    }

    fn answer_callback_query(&mut self, input: &Input) -> Result<Answer, Refusal> {
        let query = input.text("callback_query_id").ok_or_else(|| bad("callback_query_id isn't specified"))?;
        let text = input.text("text").unwrap_or_default();
        if text.encode_utf16().count() > LONGEST_ANSWER {
            return Err(bad("MESSAGE_TOO_LONG"));
        }
        // One answer each, and not after some time.
        if !self.bot.queries.remove(query) {
            return Err(bad("query is too old and response timeout expired or query ID is invalid"));
        }
        let (query, text, alert) = (query.to_owned(), text.to_owned(), input.flag("show_alert"));
        self.bot.answers.push(Answered { query, text, alert });
        Ok(ok(&true.into()))
    }

    fn set_my_commands(&mut self, input: &Input) -> Result<Answer, Refusal> {
        let list = input.get("commands").and_then(Value::as_array).ok_or_else(|| bad("can't parse BotCommand"))?;
        if list.len() > 100 {
            return Err(bad("BOT_COMMANDS_TOO_MUCH"));
        }
        let command = |command: &Value| {
            let text = |key: &str| command[key].as_str().unwrap_or_default().to_owned();
            let (name, description) = (text("command"), text("description"));
            let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if !(1..=32).contains(&name.len()) || !name.chars().all(good) {
                return Err(bad("BOT_COMMAND_INVALID"));
            }
            if !(1..=256).contains(&description.encode_utf16().count()) {
                return Err(bad("BOT_COMMAND_DESCRIPTION_INVALID"));
            }
            Ok((name, description))
        };
        self.bot.menu = list.iter().map(command).collect::<Result<_, _>>()?;
        Ok(ok(&true.into()))
    }

    fn set_webhook(&mut self, input: &Input) -> Result<Answer, Refusal> {
        let url = input.text("url").unwrap_or_default();
        if !url.starts_with("https://") {
            return Err(bad("bad webhook: An HTTPS URL must be provided for webhook"));
        }
        let authority = url["https://".len()..].split('/').next().unwrap_or_default();
        if authority.rsplit_once(':').is_some_and(|(_, port)| !["443", "80", "88", "8443"].contains(&port)) {
            return Err(bad("bad webhook: Webhook can be set up only on ports 80, 88, 443 or 8443"));
        }
        let secret = input.text("secret_token").unwrap_or_default();
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if secret.len() > 256 || !secret.chars().all(good) {
            return Err(bad("secret token contains unallowed characters"));
        }
        if let Some(connections) = input.number("max_connections").filter(|n| !(1..=100).contains(n)) {
            return Err(bad(&format!("max_connections {connections}")));
        }
        self.bot.allowed = kinds(input);
        self.bot.webhook = Some((url.to_owned(), secret.to_owned()));
        Ok(ok(&true.into()))
    }
}

fn kinds(input: &Input) -> Option<BTreeSet<String>> {
    let list = input.get("allowed_updates")?.as_array()?.clone();
    let kinds: BTreeSet<String> = list.iter().filter_map(|kind| kind.as_str().map(str::to_owned)).collect();
    (!kinds.is_empty()).then_some(kinds)
}

/// Long polling: answered when there is something, when the time is over, or when another asks.
pub(super) async fn get_updates(state: &Arc<Mutex<State>>, input: &Input) -> Answer {
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let mine = {
        let mut state = lock();
        if let Some(kinds) = kinds(input) {
            state.bot.allowed = Some(kinds);
        }
        state.bot.poller += 1;
        state.bot.poller
    };
    let limit = usize::try_from(input.number("limit").unwrap_or(100).clamp(1, 100)).expect("a small number");
    let wait = Duration::from_secs(input.number("timeout").unwrap_or(0).clamp(0, 50).unsigned_abs());
    let began = Instant::now();
    loop {
        {
            let mut state = lock();
            if state.bot.webhook.is_some() {
                let why = "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first";
                return refuse(409, why, None);
            }
            if state.bot.poller != mine {
                let why =
                    "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running";
                return refuse(409, why, None);
            }
            let found = state.bot.from(input.number("offset").unwrap_or(0), limit);
            if !found.is_empty() || began.elapsed() >= wait {
                return ok(&Value::Array(found));
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn user(id: u64) -> Value {
    let name = match id {
        OPERATOR => "ada",
        SECOND_OPERATOR => "grace",
        _ => "mallory",
    };
    json!({ "id": id, "is_bot": false, "first_name": name, "username": name })
}

fn chat(id: i64) -> Value {
    match id {
        ..0 => json!({ "id": id, "title": "Deployments", "type": "supergroup" }),
        _ => json!({ "id": id, "first_name": "somebody", "type": "private" }),
    }
}
