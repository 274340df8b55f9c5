//! Accepting and serving connections, for TCP and the Unix socket alike: how many there may be and how long each may take.
//!
//! A slot is taken before a connection's task is made, and there are only so many; a connection that finds none is closed
//! at once. Whoever holds a slot is on a clock: for the header (which is also the time that an idle connection is kept), for
//! the body and the whole request (in the routes), and for taking the answer ([`Timed`]). So the memory that peers can make this process
//! use is bounded by the number of slots, and a slot comes back by itself.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    pin,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use warp::filters::BoxedFilter;

use super::{reply::Response, stream::Timed};
use crate::throttle::Throttle;

/// The clocks and counts of a listener.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once.
    pub max_connections: usize,
    /// From a connection's start, or the last answer on it, to the end of the next request's header.
    pub header: Duration,
    /// For the whole body of a request.
    pub body: Duration,
    /// For a request, body included, up to its answer.
    pub request: Duration,
    /// How long a write may make no progress.
    pub write: Duration,
    /// How long what a peer still sends is read and dropped after the last answer.
    pub linger: Duration,
    /// For what is in progress when the listener stops.
    pub drain: Duration,
}

impl Limits {
    /// GitHub itself gives up after ten seconds, so nothing honest needs more than these.
    pub fn new(max_connections: usize) -> Self {
        Self {
            max_connections,
            header: Duration::from_secs(10),
            body: Duration::from_secs(20),
            request: Duration::from_secs(30),
            write: Duration::from_secs(30),
            linger: Duration::from_secs(1),
            drain: Duration::from_secs(5),
        }
    }
}

/// Who sent a request, in its extensions; for log lines only. `None` on the Unix socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub Option<SocketAddr>);

/// Where connections come from.
pub(super) trait Source: Send {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection; `None` for one that was refused.
    fn accept(&self) -> impl Future<Output = io::Result<Option<(Self::Stream, Peer)>>> + Send;
}

impl Source for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Option<(Self::Stream, Peer)>> {
        let (stream, address) = Self::accept(self).await?;
        // Answers are one small write; an error means that the peer is gone already, which the first read will tell.
        let _ = stream.set_nodelay(true);
        Ok(Some((stream, Peer(Some(address)))))
    }
}

/// Serves until `shutdown`, then lets go of `source` and drains. Every task has ended when this returns.
pub(super) async fn run(
    source: impl Source,
    routes: BoxedFilter<(Response,)>,
    limits: &Limits,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let connections = TaskTracker::new();
    let abort = CancellationToken::new();
    let full = Throttle::default();
    loop {
        let accepted = tokio::select! {
            accepted = source.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(Some(accepted)) => accepted,
            Ok(None) => continue,
            Err(error) => {
                pause_after(&error, &full).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            full.warn(|| format!("all {} connections are in use, one more was closed", limits.max_connections));
            continue;
        };
        let served = serve_connection(stream, peer, routes.clone(), limits.clone(), shutdown.clone());
        let abort = abort.clone();
        connections.spawn(async move {
            tokio::select! {
                () = served => {}
                () = abort.cancelled() => {}
            }
            drop(slot);
        });
    }
    drop(source);
    connections.close();
    if timeout(limits.drain, connections.wait()).await.is_err() {
        abort.cancel();
        connections.wait().await;
    }
}

/// A peer that gave up between its SYN and our accept is no reason to wait; a lack of descriptors or memory is.
async fn pause_after(error: &io::Error, throttle: &Throttle) {
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        return;
    }
    throttle.warn(|| format!("a connection could not be accepted: {error}"));
    sleep(Duration::from_millis(100)).await;
}

async fn serve_connection<S>(
    stream: S,
    peer: Peer,
    routes: BoxedFilter<(Response,)>,
    limits: Limits,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let routes = TowerToHyperService::new(warp::service(routes));
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        routes.call(request)
    });
    let io = TokioIo::new(Timed::new(stream, limits.write, limits.linger));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(64 * 1024)
        .serve_connection(io, service);
    pin!(connection);
    // Errors are the peer's: a broken request, a timeout, a reset. They end this connection and concern nobody else.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
