//! Asking Telegram for updates, for as long as the daemon lives.
//!
//! Updates are asked for without an offset first: that gives all that were not confirmed, and the registry knows which of them were
//! taken care of. Asking from an offset on confirms what is before it, so an update is confirmed only after it was handled. No offset is
//! kept across restarts or long quiet times: the numbers may begin anywhere after a week without updates (Bot API, `Update`).

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{
    api::{Api, Trouble},
    bot::Bot,
    command::MENU,
    webhook::{self, Inlet},
};
use crate::{config::Telegram, control::Control, notify::Pacer};

/// The first pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// After so long without updates the offset is forgotten.
const QUIET: Duration = Duration::from_secs(60 * 60);

/// How often old rows are swept.
const SWEEP: Duration = Duration::from_secs(6 * 60 * 60);

/// The end of a webhook's URL that can only be ours.
pub const ROUTE: &str = "/hooks/telegram";

/// Runs the bot until `shutdown`. Without `[telegram]` or without operators there is nobody to talk to, and nothing is asked.
/// `inlet`: where updates come from with a webhook; see [`line`](super::line).
pub async fn run(control: Control, pacer: Pacer, inlet: Option<Inlet>, shutdown: CancellationToken) {
    let config = control.config().clone();
    let Some(telegram) = &config.telegram else { return };
    if telegram.operators.is_empty() {
        tracing::info!("Telegram: `telegram.operators` names nobody, so there are reports, and no buttons or commands");
        return;
    }
    let api = match Api::new(telegram, config.redactor.clone(), pacer) {
        Ok(api) => api,
        Err(why) => {
            tracing::error!(why, "Telegram: the bot cannot listen");
            return;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = listen(control, api, telegram, inlet) => {}
    }
}

async fn listen(control: Control, api: Api, telegram: &Telegram, inlet: Option<Inlet>) {
    let mut pauses = Pauses::default();
    let me = introduce(&api, &mut pauses).await;
    tracing::info!("Telegram: @{me} listens to {} operators", telegram.operators.len());
    let mut bot = Bot::new(control, api, me, telegram.clone());
    match (&telegram.webhook, inlet) {
        (Some(url), Some(inlet)) => {
            Box::pin(webhook::serve(&mut bot, &mut pauses, url, &telegram.token, inlet)).await;
        }
        _ => Box::pin(poll(&mut bot, &mut pauses)).await,
    }
}

/// Who the bot is; its menu is set on the way.
async fn introduce(api: &Api, pauses: &mut Pauses) -> String {
    let me = loop {
        match api.me().await {
            Ok(me) => break me,
            Err(trouble) => pauses.after(&trouble).await,
        }
    };
    // Nothing depends on it.
    if let Err(why) = api.set_commands(MENU).await {
        tracing::warn!(%why, "Telegram: the bot's menu could not be set");
    }
    me
}

async fn poll(bot: &mut Bot, pauses: &mut Pauses) {
    let mut offset: Option<i32> = None;
    let mut heard = Instant::now();
    let mut swept: Option<Instant> = None;
    loop {
        if swept.is_none_or(|at| at.elapsed() > SWEEP) {
            swept = Some(Instant::now());
            if let Err(error) = bot.registry().sweep_bot().await {
                tracing::warn!(%error, "Telegram: old buttons could not be forgotten");
            }
        }
        let updates = match bot.api.updates(offset).await {
            Ok(updates) => updates,
            Err(Trouble::WebhookSet) => {
                let trouble = take_over(&bot.api).await;
                pauses.after(&trouble).await;
                continue;
            }
            Err(trouble) => {
                pauses.after(&trouble).await;
                continue;
            }
        };
        pauses.over();
        if updates.is_empty() && heard.elapsed() > QUIET {
            offset = None;
        }
        for update in &updates {
            heard = Instant::now();
            if let Err(error) = bot.handle(update).await {
                tracing::error!(%error, "Telegram: an update could not be handled; it is tried again");
                tokio::time::sleep(FIRST_PAUSE * 5).await;
                break;
            }
            offset = i32::try_from(update.id.0).ok().and_then(|id| id.checked_add(1));
        }
    }
}

/// A webhook of our own that is configured no more is taken away; another's is left alone.
async fn take_over(api: &Api) -> Trouble {
    match api.webhook().await {
        Ok((Some(url), _)) if url.ends_with(ROUTE) => match api.delete_webhook().await {
            Ok(()) => {
                tracing::info!("Telegram: the webhook of an earlier configuration is taken away");
                Trouble::Slow(Duration::ZERO)
            }
            Err(trouble) => trouble,
        },
        Ok((Some(_), _)) => Trouble::WebhookSet,
        Ok((None, _)) => Trouble::Slow(Duration::ZERO),
        Err(trouble) => trouble,
    }
}

/// Pauses that grow, and trouble that is told once.
#[derive(Debug, Default)]
pub struct Pauses {
    failed: u32,
    told: Option<String>,
}

impl Pauses {
    /// Says what is wrong, unless that was the last thing that was said, and waits.
    pub async fn after(&mut self, trouble: &Trouble) {
        let pause = match trouble {
            Trouble::Slow(wait) => (*wait).min(LONGEST_PAUSE),
            Trouble::Token => LONGEST_PAUSE,
            _ => FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.failed)).min(LONGEST_PAUSE),
        };
        self.failed = self.failed.saturating_add(1);
        let text = explain(trouble);
        if !matches!(trouble, Trouble::Slow(_)) && self.told.as_deref() != Some(text.as_str()) {
            tracing::warn!("Telegram: the bot hears nothing: {text}");
            self.told = Some(text);
        }
        tokio::time::sleep(pause).await;
    }

    /// It works.
    pub fn over(&mut self) {
        self.failed = 0;
        if self.told.take().is_some() {
            tracing::info!("Telegram: the bot hears again");
        }
    }
}

/// What is wrong, and what to do.
pub fn explain(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Token => "the bot's token is not known to Telegram: check `telegram.token`".to_owned(),
        Trouble::OtherPoller => {
            "another program asks for this bot's updates, perhaps a second daemon or another tool with the same token: \
                                 stop it, or make a bot of its own for each with @BotFather"
                .to_owned()
        }
        Trouble::WebhookSet => {
            "this bot's updates are sent to a webhook of another program: take it away there, or make a bot of its \
                                own for refit with @BotFather"
                .to_owned()
        }
        other => other.to_string(),
    }
}
