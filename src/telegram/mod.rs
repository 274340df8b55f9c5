//! The bot: what people say to it in a chat, and what it does then.
//!
//! [`run`], a task of the daemon, gets updates from Telegram (by asking for them, or through the daemon's webhook route) and handles
//! them one after the other. Commands that read are answered; those that change something are asked once more, with a button that is good
//! for one press, by one person, in one chat, for five minutes. Everything goes through [`Control`](crate::control::Control), like from
//! every other door; the bot's own rows are `registry::bot`.
//!
//! | file | what |
//! |---|---|
//! | `update` | an update → who, where, and what was said: pure |
//! | `command` | the words of a command → what is meant: pure |
//! | `order` | what a button means |
//! | `words` | what the bot says |
//! | `bot` | one update: who may, once, and what to do |
//! | `read`, `ask`, `carry` | answering, asking, doing |
//! | `api` | talking to Telegram |
//! | `poll`, `webhook` | where updates come from |
//! | `probe` | `refit telegram test` and `chats` |

mod api;
mod ask;
mod bot;
mod carry;
mod command;
mod order;
mod poll;
mod probe;
mod read;
#[cfg(test)]
mod tests;
mod update;
mod webhook;
mod words;

pub use poll::run;
pub use probe::{Known, Step, chats, test};
pub use webhook::{Delivery, Door, HEADER, Inlet, line};
