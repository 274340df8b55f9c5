//! Public sockets: accepting connections, and feeding them to the proxy.
//!
//! pingora's own server listens on what it is told before it starts. The gate's sockets come and go while it runs, and are handed to its successor, so it accepts by itself
//! and gives each connection to an [`HttpProxy`], one for each socket. HTTP/2 is told from HTTP/1.1 by its first bytes, here as well: pingora would
//! wait for 24 bytes, and a short request has fewer.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};

use pingora_core::{
    apps::{HttpServerApp, HttpServerOptions, ServerApp},
    protocols::{Stream, http::ServerSession, http::v2::server::default_h2_options},
    server::{ShutdownWatch, configuration::ServerConf},
};
use pingora_proxy::HttpProxy;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{
    forward::Network,
    proxy::Handler,
    stream::{ClientStream, HEAD_TIME, REST},
    table::Table,
};
use crate::throttle::Throttle;

/// Connections that wait to be accepted. The kernel's own limit (`net.core.somaxconn`) may be lower.
const BACKLOG: u32 = 4096;

/// After this much silence the kernel asks whether the other end is still there.
const PROBE_AFTER: Duration = Duration::from_secs(60);

/// How long accepting pauses when the process has no file descriptors left.
const BREATH: Duration = Duration::from_millis(50);

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Tries of one request. What really ends them is the time that a route gives; this only has to be more.
const MAX_TRIES: usize = 10_000;

pub(super) type Proxy = HttpProxy<Handler>;

/// A public socket.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) listen: SocketAddr,
    pub(super) listener: Arc<TcpListener>,
    pub(super) table: Arc<Table>,
    pub(super) closed: CancellationToken,
}

/// A listening socket on a public address.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // What a process that died left behind in the kernel is no obstacle.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What all sockets share.
#[derive(Debug)]
pub(super) struct Floor {
    pub(super) connections: Connections,
    /// Requests that no route was made for.
    pub(super) unmatched: AtomicU64,
    pub(super) trusted: Vec<Network>,
    /// Connections are closed after their request from now on.
    pub(super) leaving: ShutdownWatch,
    /// Connections that rest are closed as well.
    pub(super) hurry: CancellationToken,
    pub(super) throttle: Throttle,
}

impl Floor {
    pub(super) fn is_leaving(&self) -> bool {
        *self.leaving.borrow()
    }
}

pub(super) fn make_proxy(table: Arc<Table>, floor: Arc<Floor>) -> Arc<Proxy> {
    let conf = ServerConf { max_retries: MAX_TRIES, upstream_keepalive_pool_size: 256, ..ServerConf::default() };
    let mut proxy = HttpProxy::new(Handler::new(table, floor), Arc::new(conf));
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options.h2_idle_timeout = Some(REST);
    proxy.server_options = Some(options);
    let mut h2 = default_h2_options();
    // What one connection may keep in memory of bodies that the app does not take yet.
    h2.initial_window_size(256 * 1024);
    h2.initial_connection_window_size(1024 * 1024);
    proxy.h2_options = Some(h2);
    proxy.handle_init_modules();
    Arc::new(proxy)
}

/// Accepts until the door is closed.
pub(super) async fn serve(door: Arc<Door>, floor: Arc<Floor>) {
    let proxy = make_proxy(door.table.clone(), floor.clone());
    loop {
        let accepted = tokio::select! {
            biased;
            () = door.closed.cancelled() => break,
            accepted = door.listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let trusted = floor.trusted.iter().any(|network| network.contains(peer.ip()));
                // Without a seat it is closed at once.
                if let Some(seat) = floor.connections.take(peer.ip(), trusted) {
                    let connection = Box::pin(connection(stream, peer, proxy.clone(), floor.clone(), seat));
                    tokio::spawn(connection);
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!("accepting on {}: {error}", door.listen);
                time::sleep(BREATH).await;
            }
        }
    }
    // The socket is closed with the last hold on it.
    drop(door);
    if floor.is_leaving() {
        floor.hurry.cancelled().await;
        proxy.http_cleanup().await;
    }
}

/// Errors that belong to a connection which broke before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, TimedOut};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | TimedOut)
}

async fn connection(stream: TcpStream, peer: SocketAddr, proxy: Arc<Proxy>, floor: Arc<Floor>, seat: Seat) {
    if prepare(&stream).is_ok() {
        match time::timeout(HEAD_TIME, speaks_http2(&stream)).await {
            Ok(Ok(true)) => {
                let stream = ClientStream::new(stream, peer);
                stream.head_is_whole();
                proxy.process_new(Box::new(stream), &floor.leaving).await;
            }
            Ok(Ok(false)) => http1(ClientStream::new(stream, peer), &proxy, &floor.leaving).await,
            // Gone, or silent.
            Ok(Err(_)) | Err(_) => {}
        }
    }
    drop(seat);
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    Ok(())
}

/// Waits for as many bytes as it takes to tell.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let n = stream.peek(&mut seen).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if seen[..n] != PREFACE[..n] {
            return Ok(false);
        }
        if n == PREFACE.len() {
            return Ok(true);
        }
        // Looking does not take the bytes away, so the socket stays readable: there is nothing to wait for but time.
        time::sleep(Duration::from_millis(5)).await;
    }
}

/// Request after request, as long as the connection is kept.
async fn http1(stream: ClientStream, proxy: &Arc<Proxy>, leaving: &ShutdownWatch) {
    let stream: Stream = Box::new(stream);
    let mut session = ServerSession::new_http1(stream);
    session.set_keepalive(Some(REST.as_secs()));
    while let Some(kept) = proxy.process_new_http(session, leaving).await {
        let (stream, settings) = kept.consume();
        if let Some(client) = ClientStream::of(&stream) {
            client.next_head();
        }
        session = ServerSession::new_http1(stream);
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
    }
}

/// How many connections each address has.
type OfOne = Arc<Mutex<HashMap<IpAddr, u32>>>;

/// Counts connections, and refuses those that are too many: of all, and of one client.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) most: u64,
    most_of_one: u32,
    now: Arc<AtomicU64>,
    refused: AtomicU64,
    of_one: OfOne,
}

impl Connections {
    /// One client may have a quarter of `most`; trusted proxies speak for many.
    pub(super) fn new(most: u64) -> Self {
        let most_of_one = u32::try_from((most / 4).max(1)).unwrap_or(u32::MAX);
        Self { most, most_of_one, now: Arc::default(), refused: AtomicU64::new(0), of_one: Arc::default() }
    }

    pub(super) fn now(&self) -> u64 {
        self.now.load(SeqCst)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    fn take(&self, ip: IpAddr, trusted: bool) -> Option<Seat> {
        let seat = self.try_take(ip, trusted);
        if seat.is_none() {
            self.refused.fetch_add(1, Relaxed);
        }
        seat
    }

    fn try_take(&self, ip: IpAddr, trusted: bool) -> Option<Seat> {
        self.now.fetch_update(SeqCst, SeqCst, |now| (now < self.most).then_some(now + 1)).ok()?;
        let mut seat = Seat { now: self.now.clone(), of_one: None };
        if !trusted {
            let mut of_one = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
            let own = of_one.entry(ip).or_insert(0);
            if *own >= self.most_of_one {
                return None;
            }
            *own += 1;
            seat.of_one = Some((self.of_one.clone(), ip));
        }
        Some(seat)
    }
}

/// One connection's share; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    now: Arc<AtomicU64>,
    of_one: Option<(OfOne, IpAddr)>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.now.fetch_sub(1, SeqCst);
        if let Some((of_one, ip)) = &self.of_one {
            let mut of_one = of_one.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(own) = of_one.get_mut(ip) {
                *own -= 1;
                if *own == 0 {
                    of_one.remove(ip);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_bounded_for_all_and_for_one_stranger() {
        let connections = Connections::new(8);
        let ip = |n: u8| IpAddr::from([192, 0, 2, n]);
        let greedy: Vec<_> = (0..5).filter_map(|_| connections.take(ip(1), false)).collect();
        assert_eq!((greedy.len(), connections.now(), connections.refused()), (2, 2, 3));
        let proxied: Vec<_> = (0..9).filter_map(|_| connections.take(ip(2), true)).collect();
        assert_eq!((proxied.len(), connections.now()), (6, 8));
        assert!(connections.take(ip(3), false).is_none());
        drop((greedy, proxied));
        assert_eq!(connections.now(), 0);
        assert!(connections.of_one.lock().unwrap().is_empty());
    }
}
