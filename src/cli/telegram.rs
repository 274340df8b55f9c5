//! `refit telegram test` and `refit telegram chats`: setting the chat up.

use std::env;

use super::{
    args::{Format, TelegramCommand, TelegramTarget},
    client::Daemon,
    context::Context,
    error::{CliError, Result, exit},
    style::{Tone, cell, table_text},
};
use crate::{
    config::{Config, MissingSecrets, Telegram},
    redact::Redactor,
    secret::Secret,
    telegram::{self, Known, Step},
};

pub async fn run(context: &Context, command: TelegramCommand) -> Result<u8> {
    match command {
        TelegramCommand::Test(args) => test(context, args.format).await,
        TelegramCommand::Chats { target, format } => chats(context, &target, format.format).await,
    }
}

async fn test(context: &Context, format: Format) -> Result<u8> {
    let config = context.config(MissingSecrets::Error)?;
    let Some(telegram) = &config.telegram else { return Err(no_telegram(&config)) };
    let steps = Box::pin(telegram::test(telegram, &config.redactor)).await;
    match format {
        Format::Json => context.print_json(&steps)?,
        Format::Table => context.print(&page(&steps, context))?,
    }
    let good = steps.iter().all(|step| step.ok);
    Ok(if good { exit::OK } else { exit::UNAVAILABLE })
}

fn page(steps: &[Step], context: &Context) -> String {
    let mut out = String::new();
    for step in steps {
        let mark = if step.ok { context.paint.good("ok") } else { context.paint.bad("fail") };
        out.push_str(&format!("{mark:<4}  {:<7}  {}\n", step.step, step.detail));
    }
    out
}

fn no_telegram(config: &Config) -> CliError {
    let why = match config.telegram_without_token {
        true => "the token of [telegram] is not set or empty, so reports go to the terminal only",
        false => "there is no [telegram] in the configuration, so reports go to the terminal only",
    };
    CliError::Failed {
        message: why.to_owned(),
        hint: Some("docs/telegram.md leads from @BotFather to the first button in five minutes".to_owned()),
        code: exit::UNAVAILABLE,
    }
}

async fn chats(context: &Context, target: &TelegramTarget, format: Format) -> Result<u8> {
    // Before the chat is known the configuration is not whole yet: that is what this is for.
    let config = context.config(MissingSecrets::Ignore).ok();
    let configured = config.as_ref().and_then(|config| config.telegram.clone());
    if let (Some(config), Some(telegram)) = (&config, &configured)
        && !telegram.operators.is_empty()
        && Daemon::connect(&config.server.socket()).await.is_some()
    {
        return Err(CliError::Failed {
            message: "a daemon of this configuration listens with this bot: asking for its updates would take them from it".to_owned(),
            hint: Some(
                "say something in the chat and look into the daemon's log, which names each chat that it does not know; or stop the \
                 daemon for a moment"
                    .to_owned(),
            ),
            code: exit::BUSY,
        });
    }
    let telegram = configured.map_or_else(|| from_environment(target), Ok)?;
    let redactor = config.map_or_else(|| Redactor::new([&telegram.token]), |config| config.redactor.clone());
    let found = Box::pin(telegram::chats(&telegram, &redactor)).await;
    let (me, known) = found.map_err(|why| CliError::unavailable(why, "refit telegram test"))?;
    match format {
        Format::Json => context.print_json(&known)?,
        Format::Table if known.is_empty() => context.print(&nothing(&me))?,
        Format::Table => context.print(&table(&known, context))?,
    }
    Ok(exit::OK)
}

/// A bot that is in no configuration yet.
fn from_environment(target: &TelegramTarget) -> Result<Telegram> {
    let name = &target.token_env;
    let token = env::var(name).ok().map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| {
        CliError::unavailable(
            format!("there is no bot's token: [telegram] has none, and {name} is not set"),
            format!("make a bot with @BotFather, then `{name}=… refit telegram chats`"),
        )
    })?;
    Ok(Telegram {
        token: Secret::new(token),
        chat: 0,
        thread: None,
        operators: Vec::new(),
        chats: Vec::new(),
        webhook: None,
        quiet: false,
        api_url: target.api_url.trim_end_matches('/').to_owned(),
    })
}

fn nothing(me: &str) -> String {
    format!(
        "nobody has said anything to @{me} in the last day\n\n\
         For a chat of your own: open https://t.me/{me} and press Start.\n\
         For a group: add @{me} to it, and say /start@{me} there (a bot in privacy mode hears only commands).\n\
         Then run this again.\n"
    )
}

fn table(known: &[Known], context: &Context) -> String {
    let mut table = context.paint.table(&["CHAT", "KIND", "TITLE", "TOPICS", "WHO SPOKE"], context.width);
    for chat in known {
        let threads: Vec<String> = chat.threads.iter().map(ToString::to_string).collect();
        let people: Vec<String> = chat.people.iter().map(|(id, name)| format!("{id} ({name})")).collect();
        table.add_row([
            cell(Tone::Plain, chat.chat.to_string()),
            cell(Tone::Plain, chat.kind),
            cell(Tone::Plain, &chat.title),
            cell(Tone::Plain, threads.join(", ")),
            cell(Tone::Plain, people.join(", ")),
        ]);
    }
    let first = known.first().map_or(0, |chat| chat.chat);
    let who = known.iter().flat_map(|chat| &chat.people).next().map_or(0, |(id, _)| *id);
    format!(
        "{}\nin pipeline.toml, for example:\n\n[telegram]\ntoken = {{ env = \"TELEGRAM_API_TOKEN\" }}\nchat = {first}\noperators = [{who}]\n",
        table_text(&table)
    )
}
