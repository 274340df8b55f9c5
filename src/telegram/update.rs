//! An update of the Bot API as this bot sees it: a command, a pressed button, or nothing of ours. Pure.
//!
//! Edited and forwarded messages are nothing of ours: the first would let a command be changed after it was answered, the second would
//! make somebody say what another has written. So are messages in the name of a chat (channels, anonymous administrators), which
//! no person stands for.

use jiff::Timestamp;
use teloxide::types::{CallbackQuery, MaybeInaccessibleMessage, Message, Update, UpdateKind, User};

use crate::log::printable;

/// A name's greatest length, in characters.
const NAME: usize = 60;

/// A text's greatest length that is looked at, in characters: commands are short, and a reason is one line.
const TEXT: usize = 1000;

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    pub id: u64,
    /// `@ada`, or the name that they gave themselves: for display only.
    pub name: String,
}

/// Where: a chat, and a topic of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub chat: i64,
    pub thread: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A message that begins with `/`.
    Command {
        who: Person,
        place: Place,
        message: i32,
        text: String,
        at: Timestamp,
    },
    /// A button. `data` is what was sent with it, or what somebody made up.
    Press {
        who: Person,
        place: Place,
        message: i32,
        query: String,
        data: String,
    },
    Nothing,
}

/// What an update says.
pub fn read(update: &Update) -> Incoming {
    match &update.kind {
        UpdateKind::Message(message) => command(message).unwrap_or(Incoming::Nothing),
        UpdateKind::CallbackQuery(query) => press(query).unwrap_or(Incoming::Nothing),
        _ => Incoming::Nothing,
    }
}

fn command(message: &Message) -> Option<Incoming> {
    let text = message.text().filter(|text| text.starts_with('/'))?;
    let in_own_name = message.sender_chat.is_none() && message.via_bot.is_none() && message.forward_origin().is_none();
    let who = message.from.as_ref().filter(|user| in_own_name && !user.is_bot)?;
    let at = Timestamp::from_second(message.date.timestamp()).ok()?;
    Some(Incoming::Command {
        who: person(who),
        place: place(message),
        message: message.id.0,
        text: text.chars().take(TEXT).collect(),
        at,
    })
}

fn press(query: &CallbackQuery) -> Option<Incoming> {
    let data = query.data.clone()?;
    let (place, message) = match query.message.as_ref()? {
        MaybeInaccessibleMessage::Regular(message) => (place(message), message.id.0),
        // Too old to be seen by the bot; what it belongs to is known all the same.
        MaybeInaccessibleMessage::Inaccessible(message) => {
            (Place { chat: message.chat.id.0, thread: None }, message.message_id.0)
        }
    };
    Some(Incoming::Press { who: person(&query.from), place, message, query: query.id.0.clone(), data })
}

/// A reply outside of topics has a thread too, to which nothing can be sent.
fn place(message: &Message) -> Place {
    let thread = message.thread_id.filter(|_| message.is_topic_message).map(|thread| thread.0.0);
    Place { chat: message.chat.id.0, thread }
}

fn person(user: &User) -> Person {
    let name = user.username.as_ref().map_or_else(|| user.full_name(), |name| format!("@{name}"));
    let name: String = printable(&name).chars().take(NAME).collect();
    let name = name.trim();
    Person { id: user.id.0, name: if name.is_empty() { user.id.to_string() } else { name.to_owned() } }
}
