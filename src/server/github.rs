//! `POST /hooks/github`: a signed push becomes a row on disk, and nothing else does.
//!
//! The order is what makes it safe. The body is read whole, within bounds. Then the signature is checked on those bytes; it
//! says which secret, and so which apps, the sender may speak for. Only then is anything parsed. The payload may name
//! a repository, but it chooses only among those apps: a repository of an app with another secret is refused like a wrong
//! signature, and the URL to fetch from is never taken from it. A push for a branch that some environment deploys is handed to
//! [`Verbs::receive`](super::Verbs::receive), and 202 is sent after that returned: it is on disk then. Everything else that is signed but calls for nothing is
//! answered 200 with the reason, because GitHub shows that to the person who set the webhook up.
//!
//! Secrets that several apps share are checked once, and two different secrets cannot both match, so a request
//! costs one HMAC for each different secret.

use std::{borrow::Cow, net::SocketAddr, sync::Arc};

use serde::Serialize;
use warp::http::StatusCode;

use super::{
    body::{Body, BodyError, Reader},
    reply::{self, Response},
    verbs::SharedVerbs,
};
use crate::{
    config::{App, Config},
    control::ControlError,
    model::TriggerKind,
    registry::{Delivery, Receipt},
    secret::Secret,
    throttle::Throttle,
    trigger::github::{self as payload, Parsed, PushEvent},
};

/// Bodies larger than this are checked and parsed off the threads that serve everybody.
const LARGE: usize = 256 * 1024;

/// The headers that matter.
#[derive(Debug)]
pub(super) struct Head {
    pub peer: Option<SocketAddr>,
    pub content_type: Option<String>,
    pub signature: Option<String>,
    pub event: Option<String>,
    pub delivery: Option<String>,
}

/// What the route works with. One for the whole server.
pub(super) struct Webhook {
    verbs: SharedVerbs,
    apps: Vec<Arc<App>>,
    /// Every different secret, and which apps have it.
    secrets: Arc<[Secret]>,
    owners: Vec<Vec<Arc<App>>>,
    reader: Reader,
    refused: Throttle,
}

/// The answer to a signed request that was understood.
#[derive(Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
enum Answer<'a> {
    Accepted { delivery: &'a str, id: i64 },
    Ignored { delivery: &'a str, reason: &'a str },
}

/// A request that gets no 2xx.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    error: Cow<'static, str>,
    hint: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, error: impl Into<Cow<'static, str>>) -> Self {
        Self { status, error: error.into(), hint: None }
    }

    fn hint(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }

    fn unauthorized(error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error)
    }
}

/// Whom a signed push is for.
enum Target {
    Apps(Vec<Arc<App>>),
    /// The repository belongs to an app that has another secret.
    Foreign,
    Unknown,
}

impl Webhook {
    pub(super) fn new(verbs: SharedVerbs, config: &Config, reader: Reader) -> Self {
        let mut secrets: Vec<Secret> = Vec::new();
        let mut owners: Vec<Vec<Arc<App>>> = Vec::new();
        for app in &config.apps {
            for secret in &app.github_secrets {
                match secrets.iter().position(|known| known == secret) {
                    Some(at) => owners[at].push(app.clone()),
                    None => {
                        secrets.push(secret.clone());
                        owners.push(vec![app.clone()]);
                    }
                }
            }
        }
        Self { verbs, apps: config.apps.clone(), secrets: secrets.into(), owners, reader, refused: Throttle::default() }
    }

    /// `declared`: the request's `Content-Length`.
    pub(super) async fn answer<B: bytes::Buf, E>(
        &self,
        head: Head,
        declared: Option<u64>,
        body: impl futures_util::Stream<Item = Result<B, E>>,
    ) -> Response {
        let result = match self.admit(declared, body).await {
            Ok(body) => self.handle(&head, body).await,
            Err(refusal) => Err(refusal),
        };
        result.unwrap_or_else(|refusal| {
            let Refusal { status, error, hint } = refusal;
            self.refused.warn(|| match head.peer {
                Some(peer) => format!("a webhook from {peer} was refused with {}: {error}", status.as_u16()),
                None => format!("a webhook was refused with {}: {error}", status.as_u16()),
            });
            reply::error(status, &error, hint)
        })
    }

    async fn admit<B: bytes::Buf, E>(
        &self,
        declared: Option<u64>,
        body: impl futures_util::Stream<Item = Result<B, E>>,
    ) -> Result<Body, Refusal> {
        if self.secrets.is_empty() {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "the webhook is not configured")
                .hint("set `secret` in `[webhooks.github]` and restart the daemon"));
        }
        self.reader.read(declared, body).await.map_err(|error| match error {
            BodyError::TooLarge => {
                let limit = self.reader.limit();
                Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {limit} bytes"))
            }
            BodyError::TooSlow => Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
            BodyError::Crowded => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many large bodies at once")
                .hint("send it again later"),
            BodyError::Broken => Refusal::new(StatusCode::BAD_REQUEST, "the body broke off"),
        })
    }

    async fn handle(&self, head: &Head, body: Body) -> Result<Response, Refusal> {
        let owners = &self.owners[self.verify(head, &body).await?];
        let (event, delivery) = names(head)?;
        let push = match parse(head, event, delivery, &body).await? {
            Parsed::Push(push) => push,
            Parsed::Ignored { reason } => return Ok(ignored(delivery, &reason)),
        };
        drop(body);
        let apps = match self.target(owners, &push.full_name) {
            Target::Apps(apps) => apps,
            Target::Foreign => {
                return Err(Refusal::unauthorized("the signature is of another app's secret")
                    .hint("use the secret of the app that this repository belongs to"));
            }
            Target::Unknown => return Ok(ignored(delivery, "no app with this secret has this repository")),
        };
        self.receive(&apps, &push, delivery).await
    }

    /// The place of the one secret that signed the body.
    async fn verify(&self, head: &Head, body: &Body) -> Result<usize, Refusal> {
        let refused = |error: payload::SignatureError| Refusal::unauthorized(error.to_string());
        if body.bytes.len() <= LARGE {
            return payload::verify(&self.secrets, &body.bytes, head.signature.as_deref()).map_err(refused);
        }
        let (secrets, bytes, signature) = (self.secrets.clone(), body.bytes.clone(), head.signature.clone());
        off_thread(move || payload::verify(&secrets, &bytes, signature.as_deref())).await?.map_err(refused)
    }

    /// Of the apps whose secret signed: the ones with this repository, else, unless it is another app's, the
    /// ones that take any.
    fn target(&self, owners: &[Arc<App>], full_name: &str) -> Target {
        let has = |app: &App| app.full_name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(full_name));
        let of = |wanted: &dyn Fn(&App) -> bool| owners.iter().filter(|app| wanted(app)).cloned().collect::<Vec<_>>();
        let exact = of(&has);
        if !exact.is_empty() {
            return Target::Apps(exact);
        }
        if self.apps.iter().any(|app| has(app)) {
            return Target::Foreign;
        }
        let any = of(&|app| app.full_name.is_none());
        if any.is_empty() { Target::Unknown } else { Target::Apps(any) }
    }

    async fn receive(&self, apps: &[Arc<App>], push: &PushEvent, id: &str) -> Result<Response, Refusal> {
        let deploys = |app: &App| app.environments.iter().any(|e| e.branch == push.branch);
        let mut accepted: Option<Receipt> = None;
        let mut known = false;
        for app in apps.iter().filter(|app| deploys(app)) {
            let delivery = Delivery {
                source: TriggerKind::Github,
                delivery: id.to_owned(),
                app: app.name.clone(),
                branch: push.branch.clone(),
                commit: push.after.clone(),
                pusher: push.pusher.clone(),
                forced: push.forced,
            };
            let receipt = self.verbs.receive(delivery).await.map_err(not_stored)?;
            known |= receipt.duplicate;
            accepted = accepted.or((!receipt.duplicate).then_some(receipt));
        }
        Ok(match accepted {
            Some(receipt) => reply::json(StatusCode::ACCEPTED, &Answer::Accepted { delivery: id, id: receipt.id }),
            None if known => ignored(id, "already received"),
            None => ignored(id, &format!("no environment deploys the branch {}", push.branch)),
        })
    }
}

/// The event's name and the delivery's id.
fn names(head: &Head) -> Result<(&str, &str), Refusal> {
    let missing = |name| Refusal::new(StatusCode::BAD_REQUEST, format!("the header {name} is missing"));
    let event = head.event.as_deref().ok_or_else(|| missing("X-GitHub-Event"))?;
    let delivery = head.delivery.as_deref().ok_or_else(|| missing("X-GitHub-Delivery"))?;
    Ok((event, delivery))
}

fn ignored(delivery: &str, reason: &str) -> Response {
    reply::json(StatusCode::OK, &Answer::Ignored { delivery, reason })
}

/// The details are for the log, not for the network.
fn not_stored(error: ControlError) -> Refusal {
    tracing::error!("a push could not be stored: {error}");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the push could not be stored").hint("redeliver it later")
}

/// Both of GitHub's content types carry the same payload; [`payload::parse`] reads either.
async fn parse(head: &Head, event: &str, delivery: &str, body: &Body) -> Result<Parsed, Refusal> {
    let kind = head.content_type.as_deref().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !["application/json", "application/x-www-form-urlencoded"].iter().any(|known| kind.eq_ignore_ascii_case(known)) {
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body is neither JSON nor a form")
            .hint("choose the content type application/json for the webhook"));
    }
    let result = if body.bytes.len() <= LARGE {
        payload::parse(event, Some(delivery), &body.bytes)
    } else {
        let (event, delivery, bytes) = (event.to_owned(), delivery.to_owned(), body.bytes.clone());
        off_thread(move || payload::parse(&event, Some(&delivery), &bytes)).await?
    };
    result.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!("a webhook could not be examined: {error}");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
    })
}
