//! `POST /hooks/telegram`: updates that Telegram sends, where a webhook is configured.
//!
//! The secret is looked at before the body is read. 200 says that the update was taken care of; on anything else Telegram sends it
//! again.

use std::net::SocketAddr;

use serde::Serialize;
use warp::http::StatusCode;

use super::{
    body::{BodyError, Reader},
    reply::{self, Response},
};
use crate::{
    telegram::{Delivery, Door},
    throttle::Throttle,
};

/// An update is a message with what it replies to: some kilobytes.
pub(super) const LARGEST: u64 = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Chat {
    door: Door,
    reader: Reader,
    refused: Throttle,
}

#[derive(Serialize)]
struct Taken {
    ok: bool,
}

impl Chat {
    pub(super) fn new(door: Door, reader: Reader) -> Self {
        Self { door, reader, refused: Throttle::default() }
    }

    pub(super) async fn answer<B: bytes::Buf, E>(
        &self,
        peer: Option<SocketAddr>,
        secret: Option<String>,
        declared: Option<u64>,
        body: impl futures_util::Stream<Item = Result<B, E>>,
    ) -> Response {
        if !self.door.admits(secret.as_deref()) {
            self.refused.warn(|| match peer {
                Some(peer) => format!("an update from {peer} that does not have Telegram's secret was refused"),
                None => "an update that does not have Telegram's secret was refused".to_owned(),
            });
            return reply::error(StatusCode::UNAUTHORIZED, "this is not the secret that Telegram was given", None);
        }
        let body = match self.reader.read(declared, body).await {
            Ok(body) => body,
            Err(BodyError::TooLarge) => {
                return reply::error(StatusCode::PAYLOAD_TOO_LARGE, "an update is not that large", None);
            }
            Err(BodyError::TooSlow) => {
                return reply::error(StatusCode::REQUEST_TIMEOUT, "the body came too slowly", None);
            }
            Err(BodyError::Crowded) => {
                return reply::error(StatusCode::SERVICE_UNAVAILABLE, "too much at once", None);
            }
            Err(BodyError::Broken) => return reply::error(StatusCode::BAD_REQUEST, "the body is not whole", None),
        };
        match self.door.deliver(&body.bytes).await {
            Delivery::Done => reply::json(StatusCode::OK, &Taken { ok: true }),
            Delivery::Malformed => reply::error(StatusCode::BAD_REQUEST, "this is no update of the Bot API", None),
            Delivery::Later => reply::error(StatusCode::SERVICE_UNAVAILABLE, "the bot is not there", None),
        }
    }
}
