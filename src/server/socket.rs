//! The Unix socket: every verb, for the owner's own processes.
//!
//! Who may use it is decided twice. The socket has mode 0600 from the moment it can be reached: it is made in a private directory and moved to
//! its place, which also replaces what a dead daemon left. And each connection's user id, as the kernel tells it, must be this process's or
//! root's, in case somebody loosens the modes.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `POST /v1/deployments` | [`DeployRequest`] | [`Asked`] |
//! | `POST /v1/rerun` | [`RerunRequest`] | [`Asked`] |
//! | `POST /v1/rollback` | [`RollbackRequest`] | [`Asked`] |
//! | `POST /v1/deployments/{id}/cancel` | [`CancelRequest`] | `{}` |
//! | `POST /v1/deployments/{id}/approval` | [`ApprovalRequest`] | `{}` |
//! | `POST /v1/deployments/{id}/resolve` | [`ResolveRequest`] | `{}` |
//! | `GET /v1/deployments/{id}/follow?after=N` | | one [`FollowLine`] a line, as they happen |
//! | `POST /v1/backups` | [`BackupRequest`] | one [`BackupLine`] a line, as it goes on |
//! | `POST /v1/push` | [`PushRequest`] | a list of [`PushOutcome`](super::wire::PushOutcome) |
//! | `GET /v1/health` | | [`Health`](crate::control::Health) |
//!
//! An error is a [`WireError`] with the status of its kind. Nothing here has a time limit of its own: the peers are trusted, and a
//! push waits for the queue, a follower for a deployment.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    future::ready,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use warp::{Filter, Rejection, Reply, filters::BoxedFilter, http::StatusCode};

use super::{
    body::{BodyError, Reader},
    listen::{self, Limits, Peer, Source},
    push,
    reply::{self, Response},
    status::health_status,
    verbs::SharedVerbs,
    wire::{Asked, BackupLine, CancelRequest, FollowLine, PushRequest, WireError},
};
use crate::{
    config::Config,
    control::{
        ApprovalRequest, BackupRequest, ControlError, DeployRequest, RerunRequest, ResolveRequest, Result,
        RollbackRequest, Update,
    },
    model::DeploymentId,
    throttle::Throttle,
};

/// Far more than any command sends; a push of a thousand branches has 200 kB.
const MAX_BODY: u64 = 4 * 1024 * 1024;
const MAX_CONNECTIONS: usize = 256;

/// How long after the daemon's end a follower may still be told the end of its deployment.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The longest path that a socket's address holds (108 bytes with the closing zero).
const SUN_PATH: usize = 107;

/// A bound socket. Its file is removed when serving ends, unless somebody has put another in its place.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Binds `path`, whose directory is made (0700) where it is missing. [`io::ErrorKind::AddrInUse`] if somebody listens there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        crate::files::make_private_dir(dir)?;
        if is_live(path) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        let private = dir.join(format!(".socket.{}", std::process::id()));
        // Left by a process with our id that died right here.
        let _ = fs::remove_dir_all(&private);
        DirBuilder::new().mode(0o700).create(&private)?;
        let bound = Self::bind_in(&private, path);
        // Empty by now, or of no use: the bind's own error is what matters.
        let _ = fs::remove_dir_all(&private);
        bound
    }

    fn bind_in(private: &Path, path: &Path) -> io::Result<Self> {
        let temporary = private.join("refit.sock");
        let address = Address::of(&temporary)?;
        let listener = UnixListener::bind(address.path())?;
        fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
        let inode = fs::symlink_metadata(&temporary)?.ino();
        fs::rename(&temporary, path)?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// The bare socket, for a protocol of its own. Its file stays; the next one that binds replaces it.
    pub(crate) fn into_listener(self) -> UnixListener {
        self.listener
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, verbs: SharedVerbs, config: Arc<Config>, shutdown: CancellationToken) {
        let Self { listener, path, inode } = self;
        // A follower may pause its terminal for a while.
        let limits = Limits { write: Duration::from_secs(600), ..Limits::new(MAX_CONNECTIONS) };
        let source = Guarded { listener, user: rustix::process::geteuid().as_raw(), refused: Throttle::default() };
        let routes = routes(verbs, config, &limits, shutdown.clone());
        listen::run(source, routes, &limits, shutdown).await;
        if fs::symlink_metadata(&path).is_ok_and(|file| file.ino() == inode) {
            // If it stays, the next daemon replaces it.
            let _ = fs::remove_file(&path);
        }
    }
}

fn is_live(path: &Path) -> bool {
    Address::of(path).is_ok_and(|address| std::os::unix::net::UnixStream::connect(address.path()).is_ok())
}

/// A path that fits a socket's address, however long the real one is: through the directory's descriptor if it must.
#[derive(Debug)]
pub(crate) struct Address {
    path: PathBuf,
    _dir: Option<File>,
}

impl Address {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= SUN_PATH {
            return Ok(Self { path: path.to_owned(), _dir: None });
        }
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket's path"));
        };
        let dir = File::open(dir)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        Ok(Self { path: short, _dir: Some(dir) })
    }

    /// Valid as long as this value lives.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Lets in only this user and root.
struct Guarded {
    listener: UnixListener,
    user: u32,
    refused: Throttle,
}

impl Source for Guarded {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<Option<(UnixStream, Peer)>> {
        let (stream, _) = self.listener.accept().await?;
        let peer = stream.peer_cred()?.uid();
        if peer == self.user || peer == 0 {
            return Ok(Some((stream, Peer(None))));
        }
        self.refused.warn(|| format!("user {peer} tried to use the daemon's socket and was refused"));
        Ok(None)
    }
}

#[derive(Deserialize)]
struct FollowQuery {
    #[serde(default)]
    after: i64,
}

#[derive(Serialize)]
struct Done {}

fn routes(
    verbs: SharedVerbs,
    config: Arc<Config>,
    limits: &Limits,
    shutdown: CancellationToken,
) -> BoxedFilter<(Response,)> {
    let reader = Reader::new(MAX_BODY, limits.body);
    let verbs = move || {
        let verbs = verbs.clone();
        warp::any().map(move || verbs.clone())
    };
    let id = || warp::path!("v1" / "deployments" / i64 / ..).map(DeploymentId);
    let end = warp::path::end;

    let deploy = warp::path!("v1" / "deployments").and(warp::post()).and(verbs()).and(json_body(&reader)).then(
        async |verbs: SharedVerbs, request: Result<DeployRequest>| {
            answer(StatusCode::ACCEPTED, async { Ok(Asked { id: verbs.deploy(request?).await? }) }.await)
        },
    );
    let rerun = warp::path!("v1" / "rerun").and(warp::post()).and(verbs()).and(json_body(&reader)).then(
        async |verbs: SharedVerbs, request: Result<RerunRequest>| {
            answer(StatusCode::ACCEPTED, async { Ok(Asked { id: verbs.rerun(request?).await? }) }.await)
        },
    );
    let rollback = warp::path!("v1" / "rollback").and(warp::post()).and(verbs()).and(json_body(&reader)).then(
        async |verbs: SharedVerbs, request: Result<RollbackRequest>| {
            answer(StatusCode::ACCEPTED, async { Ok(Asked { id: verbs.rollback(request?).await? }) }.await)
        },
    );
    let approval =
        id().and(warp::path("approval")).and(end()).and(warp::post()).and(verbs()).and(json_body(&reader)).then(
            async |id, verbs: SharedVerbs, request: Result<ApprovalRequest>| {
                answer(StatusCode::ACCEPTED, async { verbs.decide(id, request?).await.map(|()| Done {}) }.await)
            },
        );
    let resolve =
        id().and(warp::path("resolve")).and(end()).and(warp::post()).and(verbs()).and(json_body(&reader)).then(
            async |id, verbs: SharedVerbs, request: Result<ResolveRequest>| {
                answer(StatusCode::ACCEPTED, async { verbs.resolve(id, request?).await.map(|()| Done {}) }.await)
            },
        );
    let cancel = id().and(warp::path("cancel")).and(end()).and(warp::post()).and(verbs()).and(json_body(&reader)).then(
        async |id, verbs: SharedVerbs, request: Result<CancelRequest>| {
            answer(StatusCode::ACCEPTED, async { verbs.cancel(id, &request?.by).await.map(|()| Done {}) }.await)
        },
    );
    let follow = id()
        .and(warp::path("follow"))
        .and(end())
        .and(warp::get())
        .and(verbs())
        .and(warp::query::<FollowQuery>())
        .then(move |id, verbs, query: FollowQuery| ready(follow(verbs, id, query.after, shutdown.clone())));
    let pushed = warp::path!("v1" / "push").and(warp::post()).and(verbs()).and(json_body(&reader)).then(
        move |verbs: SharedVerbs, request: Result<PushRequest>| {
            let config = config.clone();
            async move { answer(StatusCode::OK, async { push::receive(&*verbs, &config, request?).await }.await) }
        },
    );
    let health = warp::path!("v1" / "health").and(warp::get()).and(verbs()).then(async |verbs: SharedVerbs| {
        let health = verbs.health().await;
        reply::json(health_status(&health), &health)
    });

    let backups = warp::path!("v1" / "backups").and(warp::post()).and(verbs()).and(json_body(&reader)).then(
        async |verbs: SharedVerbs, request: Result<BackupRequest>| match request {
            Ok(request) => back_up(&verbs, request),
            Err(error) => failed(&error),
        },
    );
    let people = backups.or(rollback).unify().or(approval).unify().or(resolve).unify();
    let known = deploy
        .or(rerun)
        .unify()
        .or(people)
        .unify()
        .or(cancel)
        .unify()
        .or(follow)
        .unify()
        .or(pushed)
        .unify()
        .or(health)
        .unify();
    known.recover(unknown).unify().boxed()
}

/// A body of the expected shape, or the error to answer with.
fn json_body<T: DeserializeOwned + Send + 'static>(
    reader: &Reader,
) -> impl Filter<Extract = (Result<T>,), Error = Rejection> + Clone + use<T> {
    let reader = reader.clone();
    warp::body::stream().then(move |body| {
        let reader = reader.clone();
        async move {
            let body = reader.read(None, body).await.map_err(|error| match error {
                BodyError::TooLarge => ControlError::usage("the request is too large", "send less at once"),
                _ => ControlError::usage("the request broke off", "send it again"),
            })?;
            serde_json::from_slice(&body.bytes).map_err(|error| {
                let hint = "use the same version of refit as the daemon, or restart the daemon";
                ControlError::usage(format!("the daemon does not understand the request: {error}"), hint)
            })
        }
    })
}

fn answer<T: Serialize>(status: StatusCode, result: Result<T>) -> Response {
    match result {
        Ok(value) => reply::json(status, &value),
        Err(error) => failed(&error),
    }
}

fn failed(error: &ControlError) -> Response {
    let error = WireError::from(error);
    reply::json(error.status(), &error)
}

async fn unknown(rejection: Rejection) -> std::result::Result<Response, Rejection> {
    tracing::debug!("no such route on the socket: {rejection:?}");
    Ok(failed(&ControlError::usage(
        "the daemon does not know this request",
        "use the same version of refit as the daemon, or restart the daemon",
    )))
}

/// One line an update. The stream of updates is dropped as soon as the client has gone, and soon after the daemon stops.
fn follow(verbs: SharedVerbs, id: DeploymentId, after: i64, shutdown: CancellationToken) -> Response {
    let (lines, body) = mpsc::channel(16);
    tokio::spawn(async move {
        let stop = async {
            shutdown.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            () = forward(verbs.follow(id, after), &lines) => {}
            () = lines.closed() => {}
            () = stop => {}
        }
    });
    let mut response = warp::reply::stream(ReceiverStream::new(body)).into_response();
    reply::harden(&mut response, "application/x-ndjson");
    response
}

/// One line an update. Who goes away drops the stream, which cancels the work; a daemon that stops ends it in its own order.
fn back_up(verbs: &SharedVerbs, request: BackupRequest) -> Response {
    let mut updates = verbs.backup(request);
    let (lines, body) = mpsc::channel(16);
    tokio::spawn(async move {
        let work = async {
            while let Some(update) = updates.next().await {
                let line = match update {
                    Ok(update) => BackupLine::Update(update),
                    Err(error) => BackupLine::Error { error: WireError::from(&error) },
                };
                if lines.send(to_line(&line)).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = lines.closed() => {}
        }
    });
    let mut response = warp::reply::stream(ReceiverStream::new(body)).into_response();
    reply::harden(&mut response, "application/x-ndjson");
    response
}

async fn forward(mut updates: BoxStream<'static, Result<Update>>, lines: &mpsc::Sender<io::Result<Bytes>>) {
    while let Some(update) = updates.next().await {
        let line = match update {
            Ok(update) => FollowLine::Update(update),
            Err(error) => FollowLine::Error { error: WireError::from(&error) },
        };
        if lines.send(to_line(&line)).await.is_err() {
            return;
        }
    }
}

fn to_line(line: &impl Serialize) -> io::Result<Bytes> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(text.into())
}
