//! What the bot sends to its chat: sections "sendMessage", "editMessageText", "sendDocument", "deleteMessage", "ReplyParameters" and
//! "InlineKeyboardButton" of the Bot API.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Answer, Mood, State, TOPIC, form::Input, html, ok, refuse, too_many};

/// The longest text, in UTF-16 units, once its markup was read.
const LONGEST: usize = 4096;
const LONGEST_CAPTION: usize = 1024;

/// "Bots can currently send files of any type of up to 50 MB in size".
const LARGEST: usize = 50 * 1024 * 1024;

/// Bytes of a button's `callback_data`.
const LONGEST_DATA: usize = 64;

/// The chat has a message of a person, with the number 1, which no bot may edit.
pub(super) const OF_A_PERSON: i64 = 1;

/// A message of the bot, as the chat shows it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub id: i64,
    pub chat: i64,
    pub thread: Option<i64>,
    /// What people read.
    pub text: String,
    /// What was sent.
    pub raw: String,
    pub html: bool,
    pub silent: bool,
    pub reply_to: Option<i64>,
    /// Rows of a button's text and its data.
    pub buttons: Vec<Vec<(String, String)>>,
    pub file: Option<File>,
    pub deleted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub name: String,
    pub content: Vec<u8>,
}

/// A change of what the chat shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    Sent(Accepted),
    Edited(Accepted),
    Deleted(i64),
}

pub(super) type Refusal = Box<Answer>;

pub(super) fn bad(why: &str) -> Refusal {
    Box::new(refuse(400, &format!("Bad Request: {why}"), None))
}

impl State {
    pub(super) fn send_message(&mut self, input: &Input) -> Result<Answer, Refusal> {
        let chat = self.chat(input)?;
        let text = visible(input, "text")?;
        if text.is_empty() {
            return Err(bad("message text is empty"));
        }
        if text.encode_utf16().count() > LONGEST {
            return Err(bad("message is too long"));
        }
        let message = self.addressed(chat, input, "text", text)?;
        self.take(message)
    }

    pub(super) fn send_document(&mut self, input: &Input) -> Result<Answer, Refusal> {
        let chat = self.chat(input)?;
        let text = visible(input, "caption")?;
        if text.encode_utf16().count() > LONGEST_CAPTION {
            return Err(bad("message caption is too long"));
        }
        let (name, content) = input.file("document").ok_or_else(|| bad("there is no document in the request"))?;
        if content.is_empty() {
            return Err(bad("file must be non-empty"));
        }
        if content.len() > LARGEST {
            return Err(Box::new(refuse(413, "Request Entity Too Large", None)));
        }
        let file = File { name: name.to_owned(), content: content.to_vec() };
        let message = Accepted { file: Some(file), ..self.addressed(chat, input, "caption", text)? };
        self.take(message)
    }

    pub(super) fn edit_message_text(&mut self, input: &Input) -> Result<Answer, Refusal> {
        let at = self.own_message(input, "edit")?;
        let text = visible(input, "text")?;
        if text.is_empty() {
            return Err(bad("message text is empty"));
        }
        if text.encode_utf16().count() > LONGEST {
            return Err(bad("MESSAGE_TOO_LONG"));
        }
        if self.accepted[at].file.is_some() {
            return Err(bad("there is no text in the message to edit"));
        }
        let (raw, html) = (input.text("text").unwrap_or_default().to_owned(), input.get("parse_mode").is_some());
        let edited = Accepted { text, raw, html, buttons: buttons(input)?, ..self.accepted[at].clone() };
        self.change(at, edited)
    }

    pub(super) fn delete_message(&mut self, input: &Input) -> Result<Answer, Refusal> {
        let at = self.own_message(input, "delete")?;
        self.delete_by_hand(self.accepted[at].id);
        Ok(ok(&Value::Bool(true)))
    }

    pub(super) fn delete_by_hand(&mut self, id: i64) {
        if let Some(message) = self.accepted.iter_mut().find(|message| message.id == id) {
            message.deleted = true;
            self.moments.push(Moment::Deleted(id));
        }
    }

    /// Puts `edited` in the place of a message, unless it is the same.
    pub(super) fn change(&mut self, at: usize, edited: Accepted) -> Result<Answer, Refusal> {
        if edited == self.accepted[at] {
            return Err(bad(
                "message is not modified: specified new message content and reply markup are exactly the same as a \
                 current content and reply markup of the message",
            ));
        }
        self.pass()?;
        let answer = ok(&message_json(&edited));
        self.moments.push(Moment::Edited(edited.clone()));
        self.accepted[at] = edited;
        Ok(answer)
    }

    /// The place of a message of the bot in the chat that is named.
    pub(super) fn own_message(&self, input: &Input, purpose: &str) -> Result<usize, Refusal> {
        let chat = self.chat(input)?;
        let id = input.number("message_id").ok_or_else(|| bad("message identifier is not specified"))?;
        if id == OF_A_PERSON {
            return Err(bad(&format!("message can't be {purpose}{}d", if purpose == "edit" { "e" } else { "" })));
        }
        let is_it = |message: &Accepted| message.id == id && message.chat == chat && !message.deleted;
        let found = self.accepted.iter().position(is_it);
        found.ok_or_else(|| bad(&format!("message to {purpose} not found")))
    }

    /// A new message with everything that all kinds of messages have.
    fn addressed(&self, chat: i64, input: &Input, name: &str, text: String) -> Result<Accepted, Refusal> {
        let thread = input.number("message_thread_id");
        if thread.is_some_and(|thread| thread != TOPIC) {
            return Err(bad("message thread not found"));
        }
        Ok(Accepted {
            id: i64::try_from(self.accepted.len()).expect("a few") + OF_A_PERSON + 1,
            chat,
            thread,
            text,
            raw: input.text(name).unwrap_or_default().to_owned(),
            html: input.get("parse_mode").is_some(),
            silent: input.flag("disable_notification"),
            reply_to: self.reply_to(chat, input)?,
            buttons: buttons(input)?,
            file: None,
            deleted: false,
        })
    }

    fn reply_to(&self, chat: i64, input: &Input) -> Result<Option<i64>, Refusal> {
        let Some(reply) = input.object("reply_parameters") else { return Ok(None) };
        let id = reply["message_id"].as_i64().ok_or_else(|| bad("can't parse reply parameters"))?;
        let there = |message: &Accepted| message.id == id && message.chat == chat && !message.deleted;
        if id == OF_A_PERSON || self.accepted.iter().any(there) {
            return Ok(Some(id));
        }
        match reply["allow_sending_without_reply"] {
            Value::Bool(true) => Ok(None),
            _ => Err(bad("message to be replied not found")),
        }
    }

    fn take(&mut self, message: Accepted) -> Result<Answer, Refusal> {
        self.pass()?;
        let answer = ok(&message_json(&message));
        self.moments.push(Moment::Sent(message.clone()));
        self.accepted.push(message);
        Ok(answer)
    }

    /// Whether the chat takes another message or edit now.
    fn pass(&mut self) -> Result<(), Refusal> {
        let (now, pace) = (Instant::now(), self.pace);
        self.taken.retain(|at| now.duration_since(*at) < pace.window);
        let fresh = self.taken.back().is_some_and(|last| now.duration_since(*last) < pace.gap);
        if self.mood == Mood::Paced && (fresh || self.taken.len() >= pace.most) {
            let wait = if fresh { Duration::from_secs(1) } else { pace.window - now.duration_since(self.taken[0]) };
            return Err(Box::new(too_many(wait.as_secs().max(1))));
        }
        self.taken.push_back(now);
        Ok(())
    }
}

/// The text of a parameter once its markup was read.
fn visible(input: &Input, name: &str) -> Result<String, Refusal> {
    let raw = input.text(name).unwrap_or_default();
    let text = match input.text("parse_mode") {
        None => raw.to_owned(),
        Some(mode) if mode.eq_ignore_ascii_case("html") => {
            html::visible(raw).map_err(|why| bad(&format!("can't parse entities: {why}")))?
        }
        Some(_) => return Err(bad("unsupported parse_mode")),
    };
    Ok(text.trim().to_owned())
}

/// The inline keyboard.
pub(super) fn buttons(input: &Input) -> Result<Vec<Vec<(String, String)>>, Refusal> {
    let Some(markup) = input.object("reply_markup") else { return Ok(Vec::new()) };
    let rows =
        markup["inline_keyboard"].as_array().ok_or_else(|| bad("can't parse reply keyboard markup JSON object"))?;
    let button = |button: &Value| {
        let text = button["text"].as_str().filter(|text| !text.trim().is_empty());
        let text = text.ok_or_else(|| bad("can't parse inline keyboard button: field \"text\" must be non-empty"))?;
        let data = button["callback_data"].as_str().ok_or_else(|| bad("BUTTON_TYPE_INVALID"))?;
        match data.len() {
            1..=LONGEST_DATA => Ok((text.to_owned(), data.to_owned())),
            _ => Err(bad("BUTTON_DATA_INVALID")),
        }
    };
    let row = |row: &Value| row.as_array().into_iter().flatten().map(button).collect::<Result<Vec<_>, Refusal>>();
    rows.iter().map(row).filter(|row| !row.as_ref().is_ok_and(Vec::is_empty)).collect()
}

pub(super) fn message_json(message: &Accepted) -> Value {
    let mut json = json!({
        "message_id": message.id, "date": 1_795_000_000,
        "from": { "id": 123_456_789, "is_bot": true, "first_name": "Refit", "username": "refit_test_bot" },
        "chat": { "id": message.chat, "title": "Deployments", "type": "supergroup" },
    });
    match &message.file {
        Some(file) => {
            json["document"] = json!({
                "file_id": "a-file", "file_unique_id": "a-unique-file", "file_name": file.name, "file_size": file.content.len(),
            });
        }
        None => json["text"] = message.text.clone().into(),
    }
    json
}
