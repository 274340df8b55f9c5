//! The gate as seen by the daemon and the command line: [`Client`].
//!
//! A connection a request: there are few, and a gate that was replaced in between is simply found again. While one gate hands over to its successor
//! it answers [`ErrorCode::Leaving`]; the client asks again, for a few seconds, and so the caller does not notice.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time,
};

use super::wire::{
    Done, DrainBounds, DrainRequest, Drained, ErrorCode, GateStatus, HoldBounds, MAX_LINE, MaintenanceRequest, Named,
    PauseRequest, Reply, Request, Resumed, RouteSpec, Routed, StatusRequest, SwitchRequest, Switched, VERSION, Verb,
    WireError,
};

/// How long an answer may take that waits for nothing.
const ANSWER: Duration = Duration::from_secs(10);

/// How long a gate that hands over, or whose place nobody has taken yet, is asked again.
const PATIENCE: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(20);

/// Why the gate did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no gate answers on {}: {source}", path.display())]
    Absent { path: PathBuf, source: io::Error },
    /// The connection broke, or there was no answer in time: what was asked for may have happened or not; `status` tells.
    #[error("the gate did not answer `{verb}`: {source}")]
    Unanswered { verb: &'static str, source: io::Error },
    /// The answer is none of this protocol.
    #[error("the gate's answer to `{verb}` is not understood: {source}")]
    Garbled { verb: &'static str, source: serde_json::Error },
    /// The gate said no, and nothing was changed.
    #[error("{0}")]
    Refused(WireError),
}

impl ClientError {
    /// What to do about it.
    pub fn hint(&self) -> &str {
        match self {
            Self::Absent { .. } => "start it with `refit gate`, or name its socket with --socket",
            Self::Unanswered { .. } => "`refit gate status` shows what is so now",
            Self::Garbled { .. } => {
                "the gate is of another release: `refit gate --take-over` replaces it and drops nothing"
            }
            Self::Refused(error) => &error.hint,
        }
    }

    /// The gate's own reason, where it gave one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(error) => Some(error.code),
            _ => None,
        }
    }

    /// Whether asking the next gate does no harm. One that is being replaced says so, or closes the connection: then it has not read what could not
    /// be sent, and a question changes nothing.
    fn leaves_it_undone(&self, verb: &Verb) -> bool {
        match self {
            Self::Refused(error) => error.code == ErrorCode::Leaving,
            Self::Unanswered { source, .. } => match source.kind() {
                io::ErrorKind::BrokenPipe => true,
                io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => matches!(verb, Verb::Status(_)),
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether there is no gate at all.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent { .. })
    }
}

pub type Result<T> = std::result::Result<T, ClientError>;

/// Asks the gate behind a socket. Cheap to make and to clone; holds no connection.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Makes a route or changes it.
    pub async fn route(&self, route: RouteSpec) -> Result<Routed> {
        self.ask(Verb::Route(route), ANSWER).await
    }

    /// Sends new requests to another side. Returns when that is so; what the old side has in flight goes on, see [`Client::drain`]. To the side that is
    /// live already: nothing changes.
    pub async fn switch(&self, request: SwitchRequest) -> Result<Switched> {
        self.ask(Verb::Switch(request), ANSWER).await
    }

    /// Lets new requests wait; paused already: with these bounds from now on.
    pub async fn pause(&self, name: &str, bounds: HoldBounds) -> Result<Done> {
        self.ask(Verb::Pause(PauseRequest { name: name.to_owned(), bounds }), ANSWER).await
    }

    /// Lets them go on; not paused: nothing changes.
    pub async fn resume(&self, name: &str) -> Result<Resumed> {
        self.ask(Verb::Resume(Named { name: name.to_owned() }), ANSWER).await
    }

    /// Waits until a side has nothing in flight, at most for `bounds` (None: those of the switch that replaced it).
    pub async fn drain(&self, name: &str, side: &str, bounds: Option<DrainBounds>) -> Result<Drained> {
        let longest = bounds
            .map_or(Duration::from_secs(24 * 3600), |b| Duration::from_millis(b.requests_ms.max(b.websockets_ms)));
        let request = DrainRequest { name: name.to_owned(), side: side.to_owned(), bounds };
        self.ask(Verb::Drain(request), longest.saturating_add(ANSWER)).await
    }

    pub async fn maintenance(&self, request: MaintenanceRequest) -> Result<Done> {
        self.ask(Verb::Maintenance(request), ANSWER).await
    }

    /// Forgets a route; [`ErrorCode::UnknownRoute`] where there is none.
    pub async fn remove(&self, name: &str) -> Result<Done> {
        self.ask(Verb::Remove(Named { name: name.to_owned() }), ANSWER).await
    }

    /// Every route, or one: an unknown one is not there in the answer.
    pub async fn status(&self, name: Option<&str>) -> Result<GateStatus> {
        self.ask(Verb::Status(StatusRequest { name: name.map(str::to_owned) }), ANSWER).await
    }

    async fn ask<T: DeserializeOwned>(&self, verb: Verb, within: Duration) -> Result<T> {
        let began = Instant::now();
        let request = Request { v: VERSION, verb };
        loop {
            let error = match self.once(&request, within).await {
                Err(error) if error.leaves_it_undone(&request.verb) => error,
                other => return other,
            };
            if began.elapsed() > PATIENCE {
                return Err(error);
            }
            time::sleep(PAUSE).await;
        }
    }

    async fn once<T: DeserializeOwned>(&self, request: &Request, within: Duration) -> Result<T> {
        let verb = request.verb.name();
        let unanswered = |source| ClientError::Unanswered { verb, source };
        let stream =
            connect(&self.socket).await.map_err(|source| ClientError::Absent { path: self.socket.clone(), source })?;
        let line = time::timeout(within, exchange(stream, request))
            .await
            .map_err(|_| unanswered(io::Error::new(io::ErrorKind::TimedOut, format!("nothing within {within:?}"))))?
            .map_err(unanswered)?;
        read_reply(verb, &line)
    }
}

/// Also of a path that is too long for a socket's address.
pub(super) async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let address = crate::server::socket::Address::of(socket)?;
    UnixStream::connect(address.path()).await
}

async fn exchange(stream: UnixStream, request: &Request) -> io::Result<String> {
    let mut stream = BufReader::new(stream);
    let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = String::new();
    stream.take(MAX_LINE as u64).read_line(&mut answer).await?;
    if answer.ends_with('\n') { Ok(answer) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn read_reply<T: DeserializeOwned>(verb: &'static str, line: &str) -> Result<T> {
    let garbled = |source| ClientError::Garbled { verb, source };
    let value: serde_json::Value = serde_json::from_str(line).map_err(garbled)?;
    if value.get("ok") == Some(&serde_json::Value::Bool(true)) {
        return serde_json::from_value(value).map_err(garbled);
    }
    let reply: Reply<Done> = serde_json::from_value(value).map_err(garbled)?;
    match reply.error {
        Some(error) => Err(ClientError::Refused(error)),
        None => Err(garbled(serde::de::Error::custom("neither done nor refused"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_the_protocol_says() {
        let side = super::super::wire::Side { id: "43".into(), upstream: "127.0.0.1:9".parse().unwrap() };
        let bounds = HoldBounds { max_requests: 2, ..HoldBounds::default() };
        for (verb, expected) in [
            (
                Verb::Switch(SwitchRequest {
                    name: "shop/production".into(),
                    side,
                    expect: None,
                    drain: DrainBounds::default(),
                }),
                r#"{"v":1,"do":"switch","name":"shop/production","side":{"id":"43","upstream":"127.0.0.1:9"},"expect":null,"drain":{"requests_ms":30000,"websockets_ms":60000}}"#,
            ),
            (
                Verb::Pause(PauseRequest { name: "a".into(), bounds }),
                r#"{"v":1,"do":"pause","name":"a","max_requests":2,"max_bytes":33554432,"max_wait_ms":30000,"at_most_ms":120000}"#,
            ),
            (Verb::Status(StatusRequest::default()), r#"{"v":1,"do":"status","name":null}"#),
        ] {
            let request = Request { v: VERSION, verb };
            assert_eq!(serde_json::to_string(&request).unwrap(), expected);
            assert_eq!(serde_json::from_str::<Request>(expected).unwrap(), request);
        }
    }

    #[test]
    fn what_is_left_out_or_unknown_has_a_meaning() {
        let line = r#"{"v":1,"do":"route","name":"a","listen":"0.0.0.0:80","of_the_future":7}"#;
        let expected = RouteSpec::new("a", "0.0.0.0:80".parse().unwrap(), None);
        assert_eq!(serde_json::from_str::<Request>(line).unwrap().verb, Verb::Route(expected));
        let line = r#"{"v":1,"do":"pause","name":"a"}"#;
        let expected = PauseRequest { name: "a".into(), bounds: HoldBounds::default() };
        assert_eq!(serde_json::from_str::<Request>(line).unwrap().verb, Verb::Pause(expected));
    }

    /// A gate that is replaced closes connections that it has not read.
    #[tokio::test]
    async fn a_question_is_asked_again_and_an_order_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("gate.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let client = Client::new(&socket);
        let seen = async {
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.unwrap();
                let mut line = String::new();
                BufReader::new(stream).read_line(&mut line).await.unwrap();
            }
            let (mut stream, _) = listener.accept().await.unwrap();
            stream
                .write_all(b"{\"v\":1,\"ok\":false,\"error\":{\"code\":\"x\",\"message\":\"m\",\"hint\":\"h\"}}\n")
                .await
                .unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.unwrap();
            // A second connection would wait for ever, and the test with it.
            line
        };
        let asked = async {
            let answer = client.status(None).await.unwrap_err();
            assert!(matches!(answer, ClientError::Refused(_)), "{answer}");
            let answer = client.remove("shop").await.unwrap_err();
            assert!(matches!(answer, ClientError::Unanswered { verb: "remove", .. }), "{answer}");
        };
        let (last, ()) = tokio::join!(seen, asked);
        assert!(last.contains("remove"), "{last}");
    }

    #[test]
    fn refusals_keep_their_code_and_a_code_of_the_future_is_read() {
        let line = r#"{"v":1,"ok":false,"error":{"code":"brand_new","message":"m","hint":"h"}}"#;
        let error = read_reply::<Done>("status", line).unwrap_err();
        assert_eq!((error.code(), error.to_string().as_str(), error.hint()), (Some(ErrorCode::Other), "m", "h"));
        assert!(read_reply::<Done>("status", r#"{"v":1,"ok":true,"kept":true}"#).unwrap().kept);
        assert!(matches!(read_reply::<Done>("status", "{}"), Err(ClientError::Garbled { .. })));
    }
}
