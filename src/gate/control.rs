//! The control socket: who may use it, and which verb does what.
//!
//! The socket has mode 0600 from the moment it can be reached, and the kernel tells whose process is at the other end: this user's or root's. A connection may ask any number
//! of things, one after the other.

use std::{sync::Arc, time::Instant};

use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use super::{
    handover,
    house::Gate,
    wire::{ErrorCode, MAX_LINE, Reply, Request, VERSION, Verb, WireError},
};

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;

/// What a control connection needs.
#[derive(Debug, Clone)]
pub(super) struct Control {
    pub(super) gate: Arc<Gate>,
    pub(super) listener: Arc<UnixListener>,
    pub(super) lock: Arc<std::fs::File>,
    /// No more requests are accepted.
    pub(super) closed: CancellationToken,
    /// The gate has a successor.
    pub(super) left: CancellationToken,
}

impl Control {
    /// Accepts until it is closed.
    pub(super) async fn serve(self) {
        let user = rustix::process::geteuid().as_raw();
        let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(seat) = seats.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                biased;
                () = self.closed.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("accepting on the control socket: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == user || peer.uid() == 0 => {}
                _ => {
                    self.gate.floor.throttle.warn(|| "another user tried to use the control socket".into());
                    continue;
                }
            }
            let control = self.clone();
            tokio::spawn(async move {
                // A connection that breaks has nobody left to tell.
                let _ = control.converse(stream).await;
                drop(seat);
            });
        }
    }

    async fn converse(self, stream: UnixStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = String::new();
            (&mut stream).take(MAX_LINE as u64).read_line(&mut line).await?;
            if !line.ends_with('\n') {
                return Ok(());
            }
            let arrived = Instant::now();
            let request = match read(&line) {
                Ok(Request { verb: Verb::Handover(request), .. }) => {
                    return handover::give(&self, stream.into_inner(), &request).await;
                }
                Ok(request) => Ok(request.verb),
                Err(error) => Err(error),
            };
            let mut answer = match request {
                Ok(verb) => Box::pin(self.carry_out(verb, arrived)).await,
                Err(error) => refusal(error),
            };
            answer.push('\n');
            stream.write_all(answer.as_bytes()).await?;
        }
    }

    async fn carry_out(&self, verb: Verb, arrived: Instant) -> String {
        let gate = &self.gate;
        match verb {
            Verb::Route(spec) => line(gate.route(spec).await),
            Verb::Switch(request) => line(gate.switch(request, arrived).await),
            Verb::Pause(request) => line(gate.pause(request).await),
            Verb::Resume(named) => line(gate.resume(&named.name).await),
            Verb::Drain(request) => line(gate.drain(request).await),
            Verb::Maintenance(request) => line(gate.maintenance(request).await),
            Verb::Remove(named) => line(gate.remove(&named.name).await),
            Verb::Status(request) => line(Ok(gate.status(request.name.as_deref()))),
            // Taken care of before.
            Verb::Handover(_) => refusal(not_understood("a handover within a conversation")),
        }
    }
}

fn read(text: &str) -> Result<Request, WireError> {
    #[derive(serde::Deserialize)]
    struct Any {
        v: u32,
    }
    let Any { v } = serde_json::from_str(text).map_err(|error| not_understood(&error.to_string()))?;
    if v != VERSION {
        return Err(WireError {
            code: ErrorCode::UnknownVersion,
            message: format!("this gate speaks version {VERSION} of its protocol, and was asked in version {v}"),
            hint: "`refit gate --take-over` of the newer release replaces it and drops nothing".into(),
        });
    }
    serde_json::from_str(text).map_err(|error| not_understood(&error.to_string()))
}

fn not_understood(why: &str) -> WireError {
    WireError {
        code: ErrorCode::BadRequest,
        message: format!("the gate does not understand the request: {why}"),
        hint: "`refit gate --help` shows what it does".into(),
    }
}

fn line<T: Serialize>(result: Result<T, WireError>) -> String {
    let answer = match result {
        Ok(answer) => answer,
        Err(error) => return refusal(error),
    };
    let reply = Reply { v: VERSION, ok: true, answer: Some(answer), error: None };
    serde_json::to_string(&reply).unwrap_or_else(|error| refusal(not_understood(&error.to_string())))
}

pub(super) fn refusal(error: WireError) -> String {
    let reply = Reply::<()> { v: VERSION, ok: false, answer: None, error: Some(error) };
    serde_json::to_string(&reply).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_request_is_refused_with_a_reason() {
        for (text, code) in [
            ("", ErrorCode::BadRequest),
            ("{}", ErrorCode::BadRequest),
            (r#"{"v":1,"do":"dance"}"#, ErrorCode::BadRequest),
            (r#"{"v":1,"do":"switch"}"#, ErrorCode::BadRequest),
            (r#"{"v":2,"do":"dance"}"#, ErrorCode::UnknownVersion),
        ] {
            assert_eq!(read(text).unwrap_err().code, code, "{text}");
        }
        assert!(read(r#"{"v":1,"do":"status"}"#).is_ok());
        let text = refusal(not_understood("x"));
        assert!(text.starts_with(r#"{"v":1,"ok":false,"error":{"code":"bad_request","message":"#), "{text}");
    }
}
