//! The daemon's Unix socket, from the client's side: HTTP/1.1 with JSON, the same verbs as [`Control`](crate::control::Control).
//!
//! Each request has its own connection, so that one that breaks harms no other. Errors come back as what the daemon's
//! `Control` said, with their kind and hint. A daemon that goes away in the middle is told as such: whatever it was asked to do was
//! written down first, and goes on, or is recovered when the daemon starts again.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    Stream, StreamExt, TryFutureExt, TryStreamExt,
    stream::{self, BoxStream},
};
use http_body_util::{BodyDataStream, BodyExt, Full};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};
use tokio_util::{
    codec::{FramedRead, LinesCodec},
    io::StreamReader,
};

pub use crate::server::wire::{PushOutcome, PushRequest};
use crate::{
    control::{
        ApprovalRequest, BackupRequest, BackupUpdate, ControlError, DeployRequest, RerunRequest, ResolveRequest,
        Result, RollbackRequest, Update,
    },
    model::DeploymentId,
    server::{
        socket::Address,
        wire::{Asked, BackupLine, CancelRequest, FollowLine, WireError},
    },
};

/// Connecting to a local socket takes no time, unless its queue is full.
const CONNECT: Duration = Duration::from_secs(2);

/// The longest line of a followed deployment; its last one is the whole deployment.
const LONGEST_LINE: usize = 16 * 1024 * 1024;

/// A daemon that answers on its socket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Daemon {
    socket: PathBuf,
}

impl Daemon {
    /// `None` where nobody listens: no socket, one that a dead daemon left, or one that is not ours to use.
    pub async fn connect(socket: &Path) -> Option<Self> {
        let daemon = Self { socket: socket.to_owned() };
        daemon.open().await.ok().map(|_| daemon)
    }

    pub async fn deploy(&self, request: &DeployRequest) -> Result<DeploymentId> {
        self.post::<_, Asked>("/v1/deployments", request).await.map(|asked| asked.id)
    }

    pub async fn rerun(&self, request: &RerunRequest) -> Result<DeploymentId> {
        self.post::<_, Asked>("/v1/rerun", request).await.map(|asked| asked.id)
    }

    pub async fn rollback(&self, request: &RollbackRequest) -> Result<DeploymentId> {
        self.post::<_, Asked>("/v1/rollback", request).await.map(|asked| asked.id)
    }

    pub async fn decide(&self, id: DeploymentId, request: &ApprovalRequest) -> Result<()> {
        self.post::<_, serde_json::Value>(&format!("/v1/deployments/{id}/approval"), request).await.map(drop)
    }

    pub async fn resolve(&self, id: DeploymentId, request: &ResolveRequest) -> Result<()> {
        self.post::<_, serde_json::Value>(&format!("/v1/deployments/{id}/resolve"), request).await.map(drop)
    }

    pub async fn cancel(&self, id: DeploymentId, by: &str) -> Result<()> {
        let request = CancelRequest { by: by.to_owned() };
        self.post::<_, serde_json::Value>(&format!("/v1/deployments/{id}/cancel"), &request).await.map(drop)
    }

    /// What a post-receive hook saw; returns once the queue has said what becomes of each line.
    pub async fn push(&self, request: &PushRequest) -> Result<Vec<PushOutcome>> {
        self.post("/v1/push", request).await
    }

    /// The journal from after `seq` on, live, closing with `End` or with an error.
    pub fn follow(&self, id: DeploymentId, after: i64) -> BoxStream<'static, Result<Update>> {
        let daemon = self.clone();
        let path = format!("/v1/deployments/{id}/follow?after={after}");
        let updates = async move {
            let response = daemon.send(Method::GET, &path, Bytes::new()).await?;
            Ok(updates(checked(response).await?))
        };
        updates.try_flatten_stream().boxed()
    }

    /// Work on backups, as it goes on. Dropping the stream cancels it.
    pub fn backup(&self, request: BackupRequest) -> BoxStream<'static, Result<BackupUpdate>> {
        let daemon = self.clone();
        let updates = async move {
            let body = serde_json::to_vec(&request).map_err(|source| misunderstood(&source))?;
            let response = daemon.send(Method::POST, "/v1/backups", body.into()).await?;
            let lines = lines(checked(response).await?);
            Ok(lines.map(|line| match serde_json::from_str(&line?) {
                Ok(BackupLine::Update(update)) => Ok(update),
                Ok(BackupLine::Error { error }) => Err(error.into()),
                Err(source) => Err(misunderstood(&source)),
            }))
        };
        updates.try_flatten_stream().boxed()
    }

    async fn post<Q: Serialize, A: DeserializeOwned>(&self, path: &str, request: &Q) -> Result<A> {
        let body = serde_json::to_vec(request).map_err(|source| misunderstood(&source))?;
        let response = self.send(Method::POST, path, body.into()).await?;
        let body = checked(response).await?.collect().await.map_err(|_| gone())?.to_bytes();
        serde_json::from_slice(&body).map_err(|source| misunderstood(&source))
    }

    async fn open(&self) -> io::Result<UnixStream> {
        let address = Address::of(&self.socket)?;
        timeout(CONNECT, UnixStream::connect(address.path()))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let stream = self.open().await.map_err(|_| gone())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| gone())?;
        // Ends with the answer's body, or when nobody reads it any more; its errors also reach the reader.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "refit")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|source| misunderstood(&source))?;
        sender.send_request(request).await.map_err(|_| gone())
    }
}

/// The answer, if it is a good one; else the error that the daemon gave.
async fn checked(response: Response<Incoming>) -> Result<Incoming> {
    if response.status().is_success() {
        return Ok(response.into_body());
    }
    let body = response.into_body().collect().await.map_err(|_| gone())?.to_bytes();
    match serde_json::from_slice::<WireError>(&body) {
        Ok(error) => Err(error.into()),
        Err(source) => Err(misunderstood(&source)),
    }
}

/// Line by line, until the end or the first that breaks off.
fn lines(body: Incoming) -> impl Stream<Item = Result<String>> {
    let reader = StreamReader::new(BodyDataStream::new(body).map_err(io::Error::other));
    FramedRead::new(reader, LinesCodec::new_with_max_length(LONGEST_LINE)).map_err(|_| gone())
}

fn updates(body: Incoming) -> impl Stream<Item = Result<Update>> {
    let reader = StreamReader::new(BodyDataStream::new(body).map_err(io::Error::other));
    let lines = FramedRead::new(reader, LinesCodec::new_with_max_length(LONGEST_LINE));
    stream::unfold(Some(lines), async |lines| {
        let mut lines = lines?;
        let update = match lines.next().await {
            Some(Ok(line)) => match serde_json::from_str(&line) {
                Ok(FollowLine::Update(update)) => Ok(update),
                Ok(FollowLine::Error { error }) => Err(error.into()),
                Err(source) => Err(misunderstood(&source)),
            },
            Some(Err(_)) | None => Err(gone()),
        };
        let more = matches!(update, Ok(Update::Event(_))).then_some(lines);
        Some((update, more))
    })
}

fn gone() -> ControlError {
    ControlError::Unavailable {
        message: "the daemon went away; the deployment goes on, or is recovered when the daemon starts again"
            .to_owned(),
        hint: Some("see `refit status`, and the daemon's log".to_owned()),
    }
}

fn misunderstood(source: &dyn std::fmt::Display) -> ControlError {
    ControlError::Unavailable {
        message: format!("the daemon and this program do not understand each other: {source}"),
        hint: Some("restart the daemon, so that both are the same version".to_owned()),
    }
}
