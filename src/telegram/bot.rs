//! One update after the other: who said it, whether it was taken care of before, and what is to be done.
//!
//! *Who may:* a user of `operators` in `chat` or one of `chats`; both have to be right. Anybody else gets no answer, not even to
//! a press, and leaves a line in the log.
//!
//! *Once:* an update is noted in the registry. What only reads, and what only asks, is noted first and then answered: a crash in between costs an
//! answer, and the person asks again. The yes to a question is the other way round: its button is marked as used by this very update, then
//! the deed is done, then the update is noted. A crash anywhere in between makes Telegram send the update again, and the
//! deed is done again, which changes nothing the second time: what enters the queue is written together with the button it came from
//! (`registry::bot`), an approval is a row of its deployment, and a deployment is cancelled once.

use std::time::Duration;

use jiff::Timestamp;
use teloxide::types::Update;

use super::{
    api::Api,
    ask, carry,
    command::{self, Command, Misread},
    order::{Order, Question},
    read,
    update::{self, Incoming, Person, Place},
    words,
};
use crate::{
    config::Telegram,
    control::Control,
    notify::{Message, buttons::Offered},
    registry::{NewButton, Press, Pressed, Registry, RegistryError, Terms},
    throttle::Throttle,
};

/// How long a question can be answered.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5 * 60);

/// An older command is not carried out: it was said while nobody listened, and its reason may be gone.
const FRESH: Duration = Duration::from_secs(10 * 60);

pub type Handled = Result<(), RegistryError>;

/// What everything here needs. It handles one update at a time.
#[derive(Debug)]
pub struct Bot {
    pub control: Control,
    pub api: Api,
    /// Its own user name.
    pub me: String,
    telegram: Telegram,
    strangers: Throttle,
    told_late: bool,
}

/// A person in a place, and the message they spoke to or pressed on.
#[derive(Debug, Clone)]
pub struct Talk {
    pub who: Person,
    pub place: Place,
    pub message: i32,
}

impl Bot {
    pub fn new(control: Control, api: Api, me: String, telegram: Telegram) -> Self {
        Self { control, api, me, telegram, strangers: Throttle::default(), told_late: false }
    }

    pub fn registry(&self) -> &Registry {
        self.control.registry()
    }

    /// Takes care of an update, once.
    ///
    /// # Errors
    /// The registry cannot be read or written: the update is to be handled again.
    pub async fn handle(&mut self, update: &Update) -> Handled {
        let id = i64::from(update.id.0);
        if self.registry().update_seen(id).await? {
            return Ok(());
        }
        match update::read(update) {
            Incoming::Command { who, place, message, text, at } if self.may(&who, place, "a command") => {
                if !self.registry().note_update(id).await? {
                    return Ok(());
                }
                let talk = Talk { who, place, message };
                match self.is_late(at) {
                    true => self.say_late(&talk).await,
                    false => Box::pin(self.command(&talk, &text)).await?,
                }
            }
            Incoming::Press { who, place, message, query, data } if self.may(&who, place, "a button") => {
                let talk = Talk { who, place, message };
                Box::pin(self.press(&talk, &query, &data, id)).await?;
            }
            _ => {}
        }
        self.registry().note_update(id).await.map(drop)
    }

    fn may(&self, who: &Person, place: Place, what: &str) -> bool {
        let here = place.chat == self.telegram.chat || self.telegram.chats.contains(&place.chat);
        let known = self.telegram.operators.contains(&who.id);
        if !(here && known) {
            self.strangers.warn(|| {
                let name = self.api.redactor().mask(&who.name);
                let why = match (here, known) {
                    (true, _) => "the user is not one of `telegram.operators`",
                    (_, true) => "the chat is neither `telegram.chat` nor one of `telegram.chats`",
                    _ => "neither the user nor the chat is configured",
                };
                format!("Telegram: {what} from user {} ({name}) in chat {} was ignored: {why}", who.id, place.chat)
            });
        }
        here && known
    }

    fn is_late(&self, at: Timestamp) -> bool {
        Duration::try_from(Timestamp::now().duration_since(at)).is_ok_and(|age| age > FRESH)
    }

    /// Once: a person may have tried often.
    async fn say_late(&mut self, talk: &Talk) {
        if !std::mem::replace(&mut self.told_late, true) {
            let text = "⏰ I was away. Commands older than ten minutes are not carried out: say them again if you still mean them.";
            self.say(talk, &words::plain(text), &[]).await;
        }
    }

    async fn command(&mut self, talk: &Talk, text: &str) -> Handled {
        let command = match command::parse(text, &self.me, self.control.config()) {
            Ok(command) => command,
            // In a private chat nobody else can be meant.
            Err(Misread::NotForUs) if talk.place.chat > 0 && !text.contains('@') => Command::Help,
            Err(Misread::NotForUs) => return Ok(()),
            Err(Misread::Wrong { why, usage }) => {
                self.say(talk, &words::misread(&why, &usage), &[]).await;
                return Ok(());
            }
        };
        self.obey(talk, command).await
    }

    /// Answers a command, or asks whether it is meant.
    pub async fn obey(&mut self, talk: &Talk, command: Command) -> Handled {
        match command {
            Command::Help => self.say(talk, &words::help(), &[]).await,
            Command::Status => read::status(self, talk).await,
            Command::Show { id } => read::show(self, talk, id).await?,
            Command::Logs { id } => read::logs(self, talk, id).await,
            Command::History { place } => read::history(self, talk, &place).await,
            command => ask::command(self, talk, command).await?,
        }
        Ok(())
    }

    async fn press(&mut self, talk: &Talk, query: &str, data: &str, update: i64) -> Handled {
        let token = data.split_once(':').map_or(data, |(_, token)| token);
        let refusal = match self.registry().press(token, talk.place.chat, talk.who.id, update).await? {
            Press::Taken(pressed) => return self.pressed(talk, query, &pressed, update).await,
            Press::Unknown | Press::ElsewhereOnly => "this button is not known here (any more)".to_owned(),
            Press::NotYours => "somebody else was asked: give the command yourself".to_owned(),
            Press::Used(by) if by == talk.who.id => "you have answered this already".to_owned(),
            Press::Used(_) => "somebody has answered this already".to_owned(),
            Press::Expired => "this question is too old: ask again".to_owned(),
        };
        self.registry().note_update(update).await?;
        let (user, chat) = (talk.who.id, talk.place.chat);
        self.strangers.warn(|| format!("Telegram: a press by user {user} in chat {chat} was refused: {refusal}"));
        self.api.answer_press(query, &refusal, true).await;
        Ok(())
    }

    async fn pressed(&mut self, talk: &Talk, query: &str, pressed: &Pressed, update: i64) -> Handled {
        let Ok(order) = serde_json::from_value::<Order>(pressed.action.clone()) else {
            self.registry().note_update(update).await?;
            self.api.answer_press(query, "this button was made by another version of refit", true).await;
            return Ok(());
        };
        match order {
            Order::Do(question) => carry::out(self, talk, query, (pressed, &question), update).await,
            Order::No(question) => {
                self.registry().note_update(update).await?;
                self.api.answer_press(query, "not done", false).await;
                self.not_done(talk, &question).await
            }
            Order::Ask(action) => {
                self.registry().note_update(update).await?;
                ask::button(self, talk, query, (action, pressed.deployment)).await
            }
            Order::Choose { command, key } => {
                self.registry().note_update(update).await?;
                self.api.answer_press(query, "", false).await;
                let text = words::plain(&format!("→ {key}"));
                self.note_failure(self.api.rewrite(talk.place.chat, talk.message, &text, &[]).await);
                self.obey(talk, command.at(&key)).await
            }
        }
    }

    async fn not_done(&mut self, talk: &Talk, question: &Question) -> Handled {
        if question.under_report {
            return self.restore_buttons(talk, question).await;
        }
        let text = words::settled("✋", &question.deed, "not done", &talk.who.name, self.api.redactor());
        self.note_failure(self.api.rewrite(talk.place.chat, talk.message, &text, &[]).await);
        Ok(())
    }

    /// What stands under a report by itself.
    pub async fn restore_buttons(&mut self, talk: &Talk, question: &Question) -> Handled {
        let mut rows = Vec::new();
        if let Some(id) = question.deed.deployment()
            && let Some(view) = self.registry().deployment(id).await?
        {
            let keyboard = crate::notify::buttons::keyboard_for(&view);
            rows = self.registry().offer(&keyboard, id, talk.place.chat).await?;
        }
        self.note_failure(self.api.set_buttons(talk.place.chat, talk.message, &rows).await);
        Ok(())
    }

    /// The yes and the no to a question that is put to this person.
    pub async fn answers(&self, talk: &Talk, question: &Question) -> Result<Vec<Vec<Offered>>, RegistryError> {
        let no = if question.under_report { "Back" } else { "No" };
        let button = |verb, text: &str, order: &Order| NewButton {
            verb,
            text: text.to_owned(),
            action: serde_json::to_value(order).unwrap_or_default(),
        };
        let buttons = [
            button("yes", &question.deed.yes(), &Order::Do(question.clone())),
            button("no", no, &Order::No(question.clone())),
        ];
        self.registry().withdraw_questions(talk.place.chat, talk.who.id).await?;
        let made = self.registry().make_buttons(&buttons, true, &self.terms(talk, question)).await?;
        Ok(vec![made])
    }

    fn terms(&self, talk: &Talk, question: &Question) -> Terms {
        Terms {
            deployment: question.deed.deployment(),
            chat: talk.place.chat,
            user: Some(talk.who.id),
            valid: ANSWER_WITHIN,
        }
    }

    /// Answers the message that the person wrote or pressed on.
    pub async fn say(&self, talk: &Talk, message: &Message, buttons: &[Vec<Offered>]) {
        let said = self.api.say(talk.place, message, buttons, Some(talk.message)).await;
        self.note_failure(said.map(drop));
    }

    /// An answer that did not arrive: the person sees that none came, and asks again.
    pub fn note_failure(&self, result: super::api::Result<()>) {
        if let Err(why) = result {
            self.strangers.warn(|| format!("Telegram: an answer could not be given: {why}"));
        }
    }
}
