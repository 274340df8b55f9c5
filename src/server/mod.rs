//! The network's door: webhooks and status over TCP, and the owner's own commands over a Unix socket.
//!
//! Two listeners share one way of accepting and bounding connections ([`listen`]). What a connection may ask for is a set of warp filters:
//!
//! - TCP ([`serve`]): `POST /hooks/github` ([`github`]), `GET /_deploy/health` and `GET /_deploy/status` ([`status`]). The
//!   webhook is authenticated by its signature; the other two change nothing and show no secret. With `[telegram] webhook` also
//!   `POST /hooks/telegram` ([`telegram`]), which has a secret of its own.
//! - the Unix socket ([`socket`]): everything that the owner may do, guarded by file modes and the peer's user id.
//!
//! This room parses and authenticates, then calls [`Verbs`]; it never touches Docker, Git or SQL.

use std::{future::ready, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use warp::{Filter, filters::BoxedFilter, http::StatusCode};

mod body;
mod github;
mod listen;
mod push;
mod reply;
pub mod socket;
mod status;
mod stream;
mod telegram;
mod verbs;
pub mod wire;

pub use listen::Limits;
pub use verbs::{SharedVerbs, Verbs};

use self::{
    body::Reader,
    github::{Head, Webhook},
    listen::Peer,
    reply::Response,
    telegram::Chat,
};
use crate::{
    config::Config,
    telegram::{Door, HEADER},
};

const WEBHOOK_METHODS: &str = "POST";
const READ_METHODS: &str = "GET, HEAD";

/// Serves HTTP on `listener` until `shutdown`, then for a few seconds more what is in progress. `chat`: where Telegram's updates go, with a
/// webhook.
pub async fn serve(
    listener: TcpListener,
    verbs: SharedVerbs,
    config: Arc<Config>,
    chat: Option<Door>,
    shutdown: CancellationToken,
) {
    let limits = Limits::new(config.server.max_connections);
    serve_within(listener, verbs, &config, chat, limits, shutdown).await;
}

/// [`serve`] with other clocks.
pub async fn serve_within(
    listener: TcpListener,
    verbs: SharedVerbs,
    config: &Config,
    chat: Option<Door>,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let routes = routes(verbs, config, chat, &limits);
    listen::run(listener, routes, &limits, shutdown).await;
}

fn routes(verbs: SharedVerbs, config: &Config, chat: Option<Door>, limits: &Limits) -> BoxedFilter<(Response,)> {
    let reads = Arc::new(status::Reads::new(verbs.clone(), config.redactor.clone()));
    let webhook = Webhook::new(verbs, config, Reader::new(config.server.max_body, limits.body));
    let (health, overview, time) = (reads.clone(), reads, limits.request);

    let hook_path = || warp::path!("hooks" / "github");
    let health_path = || warp::path!("_deploy" / "health");
    let status_path = || warp::path!("_deploy" / "status");

    let hook = hook_path().and(webhook_filter(webhook, time));
    let health = health_path().and(read()).then(move || {
        let reads = health.clone();
        async move { within(time, reads.health()).await }
    });
    let overview = status_path().and(read()).then(move || {
        let reads = overview.clone();
        async move { within(time, reads.status()).await }
    });
    let wrong_method = hook_path()
        .map(|| reply::method_not_allowed(WEBHOOK_METHODS))
        .or(health_path().or(status_path()).unify().map(|| reply::method_not_allowed(READ_METHODS)))
        .unify();
    let nothing_here = warp::any().map(|| reply::error(StatusCode::NOT_FOUND, "there is nothing here", None));

    let known = hook.or(health).unify().or(overview).unify().or(wrong_method).unify();
    match chat {
        Some(door) => {
            let chat = Chat::new(door, Reader::new(telegram::LARGEST, limits.body));
            chat_filter(chat, time).or(known).unify().or(nothing_here).unify().boxed()
        }
        None => known.or(nothing_here).unify().boxed(),
    }
}

fn read() -> impl Filter<Extract = (), Error = warp::Rejection> + Copy {
    warp::get().or(warp::head()).unify()
}

fn webhook_filter(
    webhook: Webhook,
    time: Duration,
) -> impl Filter<Extract = (Response,), Error = warp::Rejection> + Clone {
    let webhook = Arc::new(webhook);
    let head = warp::ext::optional::<Peer>()
        .and(text("content-type"))
        .and(text("x-hub-signature-256"))
        .and(text("x-github-event"))
        .and(text("x-github-delivery"))
        .map(|peer: Option<Peer>, content_type, signature, event, delivery| {
            let peer = peer.and_then(|Peer(address)| address);
            Head { peer, content_type, signature, event, delivery }
        });
    warp::post().and(head).and(warp::header::optional::<u64>("content-length")).and(warp::body::stream()).then(
        move |head, declared, body| {
            let webhook = webhook.clone();
            async move { within(time, webhook.answer(head, declared, body)).await }
        },
    )
}

/// Telegram's updates: any other method is none of ours, and finds nothing.
fn chat_filter(chat: Chat, time: Duration) -> impl Filter<Extract = (Response,), Error = warp::Rejection> + Clone {
    let chat = Arc::new(chat);
    let peer = warp::ext::optional::<Peer>().map(|peer: Option<Peer>| peer.and_then(|Peer(address)| address));
    let head = warp::path!("hooks" / "telegram").and(warp::post()).and(peer).and(text(HEADER));
    head.and(warp::header::optional::<u64>("content-length")).and(warp::body::stream()).then(
        move |peer, secret, declared, body| {
            let chat = chat.clone();
            async move { within(time, chat.answer(peer, secret, declared, body)).await }
        },
    )
}

/// A header's text. One that is not text counts as missing, so that it is refused for what it is and not passed by.
fn text(name: &'static str) -> impl Filter<Extract = (Option<String>,), Error = warp::Rejection> + Copy {
    warp::header::optional(name).or_else(|_| ready(Ok((None,))))
}

/// The bound on a whole request.
async fn within(time: Duration, answer: impl Future<Output = Response>) -> Response {
    tokio::time::timeout(time, answer).await.unwrap_or_else(|_| {
        reply::error(StatusCode::SERVICE_UNAVAILABLE, "this takes too long", Some("try again later"))
    })
}

#[cfg(test)]
mod tests;
