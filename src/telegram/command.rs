//! What people may say to the bot: `/word@bot arguments`. Pure.
//!
//! Every command with its arguments and its line in the bot's menu stands once, in [`MENU`]. Places are named as everywhere: an
//! environment, an app, or `app/environment`; a first word that names none of them is what comes next.

use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    model::{DeploymentId, EnvironmentKey},
};

/// Name, arguments, and what it does.
pub const MENU: &[(&str, &str, &str)] = &[
    ("status", "", "what is live, and what happens now"),
    ("history", "[env]", "the last deployments"),
    ("show", "N", "one deployment, stage by stage"),
    ("logs", "[N]", "the log of a deployment"),
    ("deploy", "[env] [ref]", "deploy the branch's tip, or a branch, tag or commit"),
    ("rerun", "[N]", "deploy the same commit again"),
    ("rollback", "[env] [N] reason", "go back to an earlier release"),
    ("cancel", "N", "stop a deployment and undo what it did"),
    ("approve", "N", "let a deployment that waits go on"),
    ("reject", "N reason", "say no to a deployment that waits"),
    ("help", "", "what you can say here"),
];

/// A command that was understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    Help,
    Status,
    History { place: Named },
    Show { id: DeploymentId },
    Logs { id: Option<DeploymentId> },
    Deploy { place: Named, reference: Option<String> },
    Rerun { id: Option<DeploymentId>, place: Named },
    Rollback { place: Named, to: Option<DeploymentId>, reason: String },
    Cancel { id: DeploymentId },
    Approve { id: DeploymentId },
    Reject { id: DeploymentId, reason: String },
}

/// A place as far as it was named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub app: Option<String>,
    pub environment: Option<String>,
}

impl Named {
    pub fn of(key: &EnvironmentKey) -> Self {
        Self { app: Some(key.app.to_string()), environment: Some(key.environment.to_string()) }
    }
}

impl Command {
    /// The same for a place that was chosen.
    pub fn at(self, key: &EnvironmentKey) -> Self {
        let place = Named::of(key);
        match self {
            Self::History { .. } => Self::History { place },
            Self::Deploy { reference, .. } => Self::Deploy { place, reference },
            Self::Rerun { id, .. } => Self::Rerun { id, place },
            Self::Rollback { to, reason, .. } => Self::Rollback { place, to, reason },
            other => other,
        }
    }
}

/// Why a command is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misread {
    /// For another bot of the group, or no command at all: not ours to answer.
    NotForUs,
    /// What is wrong with it, and how it is written.
    Wrong { why: String, usage: String },
}

/// Reads a message that begins with `/`; `me` is the bot's own name.
pub fn parse(text: &str, me: &str, config: &Config) -> Result<Command, Misread> {
    let (head, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let (word, named) = match head[1..].split_once('@') {
        Some((word, bot)) => (word, Some(bot)),
        None => (&head[1..], None),
    };
    if named.is_some_and(|bot| !bot.eq_ignore_ascii_case(me)) {
        return Err(Misread::NotForUs);
    }
    let word = word.to_ascii_lowercase();
    let mut words = Words { rest: rest.trim(), config };
    let wrong = |why: &str| Misread::Wrong { why: why.to_owned(), usage: usage(&word) };
    let no_more = |words: &Words<'_>, command: Command| match words.rest.is_empty() {
        true => Ok(command),
        false => Err(wrong("there is a word too many")),
    };
    let number = "the number of a deployment is needed; /history lists them";
    match word.as_str() {
        "help" | "start" => Ok(Command::Help),
        "status" => Ok(Command::Status),
        "history" => {
            let place = words.place();
            no_more(&words, Command::History { place })
        }
        "show" => {
            let id = words.number().ok_or_else(|| wrong(number))?;
            no_more(&words, Command::Show { id })
        }
        "logs" => {
            let id = words.number();
            no_more(&words, Command::Logs { id })
        }
        "deploy" => {
            let place = words.place();
            let reference = words.word();
            no_more(&words, Command::Deploy { place, reference })
        }
        "rerun" => {
            let (id, place) = (words.number(), words.place());
            no_more(&words, Command::Rerun { id, place })
        }
        "rollback" => {
            let (place, to) = (words.place(), words.number());
            match words.all() {
                Some(reason) => Ok(Command::Rollback { place, to, reason }),
                None => Err(wrong("a reason is needed: it is kept with the rollback")),
            }
        }
        "cancel" => {
            let id = words.number().ok_or_else(|| wrong(number))?;
            no_more(&words, Command::Cancel { id })
        }
        "approve" => {
            let id = words.number().ok_or_else(|| wrong(number))?;
            no_more(&words, Command::Approve { id })
        }
        "reject" => {
            let id = words.number().ok_or_else(|| wrong(number))?;
            let reason = words.all().ok_or_else(|| wrong("a reason is needed: it is kept with the deployment"))?;
            Ok(Command::Reject { id, reason })
        }
        // In a group this may be for another bot, unless ours was named.
        _ if named.is_none() => Err(Misread::NotForUs),
        _ => Err(Misread::Wrong { why: "there is no such command".to_owned(), usage: "/help".to_owned() }),
    }
}

/// How a command is written.
fn usage(word: &str) -> String {
    let known = MENU.iter().find(|(name, ..)| *name == word);
    known.map_or_else(|| "/help".to_owned(), |(name, arguments, _)| format!("/{name} {arguments}").trim().to_owned())
}

/// What is left of a command.
struct Words<'a> {
    rest: &'a str,
    config: &'a Config,
}

impl Words<'_> {
    fn peek(&self) -> Option<&str> {
        self.rest.split_whitespace().next()
    }

    fn skip(&mut self) {
        let (_, rest) = self.rest.split_once(char::is_whitespace).unwrap_or((self.rest, ""));
        self.rest = rest.trim_start();
    }

    fn word(&mut self) -> Option<String> {
        let word = self.peek()?.to_owned();
        self.skip();
        Some(word)
    }

    fn number(&mut self) -> Option<DeploymentId> {
        let word = self.peek()?;
        let id = word.strip_prefix('#').unwrap_or(word).parse::<i64>().ok().filter(|id| *id > 0)?;
        self.skip();
        Some(DeploymentId(id))
    }

    fn all(&mut self) -> Option<String> {
        let text: Vec<&str> = self.rest.split_whitespace().collect();
        (!text.is_empty()).then(|| text.join(" "))
    }

    /// A first word that is a place of the configuration; an app and its environment may also be two words.
    fn place(&mut self) -> Named {
        let Some(word) = self.peek().map(str::to_owned) else { return Named::default() };
        let has = |app: Option<&str>, environment: &str| {
            let ours = |key: &EnvironmentKey| app.is_none_or(|app| key.app.as_str() == app);
            self.config.environments().any(|e| ours(&e.key) && e.key.environment.as_str() == environment)
        };
        if let Some((app, environment)) = word.split_once('/').filter(|(app, env)| has(Some(app), env)) {
            self.skip();
            return Named { app: Some(app.to_owned()), environment: Some(environment.to_owned()) };
        }
        if has(None, &word) {
            self.skip();
            return Named { app: None, environment: Some(word) };
        }
        if self.config.app(&word).is_some() {
            let second =
                self.rest.split_whitespace().nth(1).filter(|second| has(Some(&word), second)).map(str::to_owned);
            self.skip();
            if second.is_some() {
                self.skip();
            }
            return Named { app: Some(word), environment: second };
        }
        Named::default()
    }
}
