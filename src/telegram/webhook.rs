//! Updates that Telegram sends by itself, for those who have a public URL: the daemon's route hands them in, the bot takes them one
//! after the other, and the route answers when one was taken care of. What was not is sent again by Telegram.
//!
//! Telegram shows that it is Telegram with a secret in a header. Ours is made from the bot's token (an HMAC), so there is nothing to
//! configure or keep; it is compared in constant time.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use teloxide::types::Update;
use tokio::sync::{mpsc, oneshot};

use super::{api::Api, bot::Bot, poll::Pauses};
use crate::{config::Telegram, secret::Secret};

/// Updates that wait: Telegram is told to send one at a time.
const WAITING: usize = 16;

/// What the secret is made for.
const PURPOSE: &[u8] = b"refit: this is Telegram";

/// The header with the secret (Bot API, `setWebhook`).
pub const HEADER: &str = "x-telegram-bot-api-secret-token";

type Handed = (Box<Update>, oneshot::Sender<()>);

/// Where the daemon's route hands updates in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Door {
    token: Secret,
    updates: mpsc::Sender<Handed>,
}

/// The bot's end of it.
#[derive(Debug)]
pub struct Inlet {
    updates: mpsc::Receiver<Handed>,
}

/// What became of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Taken care of.
    Done,
    /// No update at all.
    Malformed,
    /// The bot is stopping, or could not write it down: it is to be sent again.
    Later,
}

/// Both ends; `None` unless a webhook is configured, and somebody who may speak.
pub fn line(config: Option<&Telegram>) -> Option<(Door, Inlet)> {
    let telegram = config.filter(|telegram| telegram.webhook.is_some() && !telegram.operators.is_empty())?;
    let (sender, updates) = mpsc::channel(WAITING);
    Some((Door { token: telegram.token.clone(), updates: sender }, Inlet { updates }))
}

impl Door {
    /// Whether the header's value is the secret.
    pub fn admits(&self, header: Option<&str>) -> bool {
        let (Some(mac), Some(given)) = (mac(&self.token), header.and_then(|text| hex::decode(text).ok())) else {
            return false;
        };
        mac.verify_slice(&given).is_ok()
    }

    /// Returns when the update was taken care of.
    pub async fn deliver(&self, body: &[u8]) -> Delivery {
        let Ok(update) = serde_json::from_slice::<Update>(body) else { return Delivery::Malformed };
        let (done, wait) = oneshot::channel();
        if self.updates.send((Box::new(update), done)).await.is_err() {
            return Delivery::Later;
        }
        wait.await.map_or(Delivery::Later, |()| Delivery::Done)
    }
}

/// Has updates sent to `url`, and handles them as long as the daemon hands some in.
pub async fn serve(bot: &mut Bot, pauses: &mut Pauses, url: &str, token: &Secret, mut inlet: Inlet) {
    while let Err(trouble) = set(&bot.api, url, token).await {
        pauses.after(&trouble).await;
    }
    pauses.over();
    tracing::info!("Telegram: updates are sent to {url}");
    while let Some((update, done)) = inlet.updates.recv().await {
        match bot.handle(&update).await {
            // Whoever waited for it may have gone: then it is sent again, and known.
            Ok(()) => drop(done.send(())),
            Err(error) => tracing::error!(%error, "Telegram: an update could not be handled; it is to be sent again"),
        }
    }
}

async fn set(api: &Api, url: &str, token: &Secret) -> super::api::Result<()> {
    let secret = mac(token).map(|mac| hex::encode(mac.finalize().into_bytes())).unwrap_or_default();
    api.set_webhook(url, &secret).await
}

fn mac(token: &Secret) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(token.expose().as_bytes()).ok()?;
    mac.update(PURPOSE);
    Some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_opens_the_door() {
        let (updates, _kept) = mpsc::channel(1);
        let token = Secret::new("123456789:AAStandInForTheRealThing-0123456789ab");
        let good = hex::encode(mac(&token).unwrap().finalize().into_bytes());
        let door = Door { token, updates };
        assert!(door.admits(Some(&good)));
        let other = hex::encode(mac(&Secret::new("1:other")).unwrap().finalize().into_bytes());
        for bad in [None, Some(""), Some("0"), Some("not hex"), Some(&good[..62]), Some(other.as_str())] {
            assert!(!door.admits(bad), "{bad:?}");
        }
        assert!(good.len() <= 256 && good.bytes().all(|b| b.is_ascii_alphanumeric()), "what setWebhook takes");
    }
}
