//! Apps behind the gate: real HTTP servers in this process, each with an id that it puts in its answers.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
    header,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use refit::gate::wire::Side;
use tokio::{net::TcpListener, task::JoinHandle, time};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

/// What the apps of one test have seen, together.
#[derive(Debug, Default)]
pub struct Seen {
    /// How often each POST's own name came.
    pub posts: Mutex<HashMap<String, u32>>,
    pub requests: AtomicU64,
    /// Requests that were given up before their answer was complete.
    pub dropped: AtomicU64,
}

#[derive(Debug)]
pub struct Backend {
    pub id: String,
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Backend {
    pub async fn start(id: &str, seen: &Arc<Seen>) -> Self {
        Self::start_on(id, "127.0.0.1:0".parse().unwrap(), seen).await
    }

    pub async fn start_on(id: &str, address: SocketAddr, seen: &Arc<Seen>) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(serve(listener, id.to_owned(), seen.clone()));
        Self { id: id.to_owned(), address, task }
    }

    pub fn side(&self) -> Side {
        Side { id: self.id.clone(), upstream: self.address }
    }

    /// Closes its socket and its connections.
    pub async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn serve(listener: TcpListener, id: String, seen: Arc<Seen>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (id, seen) = (id.clone(), seen.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, id.clone(), seen.clone()));
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn full(text: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, Infallible> {
    Full::new(text.into()).boxed_unsync()
}

async fn answer(request: Request<Incoming>, id: String, seen: Arc<Seen>) -> Result<Answer, Infallible> {
    seen.requests.fetch_add(1, SeqCst);
    let path = request.uri().path().to_owned();
    let number = |fallback: u64| path.rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or(fallback);
    let (body, status) = match path.split('/').nth(1).unwrap_or("") {
        "headers" => (full(headers(&request)), 200),
        "status" => (full("as you wish"), u16::try_from(number(500)).unwrap()),
        "slow" => (slowly(&id, number(5), seen.clone()), 200),
        "silent" => {
            let _guard = Dropped(seen.clone());
            std::future::pending::<()>().await;
            (full(""), 200)
        }
        "large" => (large(number(1)), 200),
        "post" => (posted(request, &seen).await, 200),
        "ws" => return Ok(websocket(request, &id)),
        _ => (full(format!("{} {path}", request.method())), 200),
    };
    let response = Response::builder().status(status).header("side", id).header("keep-alive", "timeout=5").body(body);
    Ok(response.unwrap())
}

/// Says that a request ended before it was answered.
struct Dropped(Arc<Seen>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, SeqCst);
    }
}

fn headers(request: &Request<Incoming>) -> String {
    let mut lines: Vec<String> = vec![format!("{:?}", request.version())];
    let all = request.headers().iter();
    lines.extend(all.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?"))));
    lines.sort();
    lines.join("\n")
}

/// The id again and again, a piece each 20 ms.
fn slowly(id: &str, pieces: u64, seen: Arc<Seen>) -> UnsyncBoxBody<Bytes, Infallible> {
    let (id, guard) = (id.to_owned(), Arc::new(Mutex::new(Some(Dropped(seen)))));
    let pieces = stream::iter(0..pieces).then(move |i| {
        let (piece, guard) = (Bytes::from(format!("{id}\n")), guard.clone());
        async move {
            time::sleep(Duration::from_millis(20)).await;
            if i + 1 == pieces {
                // Complete: nothing was given up.
                std::mem::forget(guard.lock().unwrap().take());
            }
            Ok(Frame::data(piece))
        }
    });
    StreamBody::new(pieces.boxed()).boxed_unsync()
}

/// So many megabytes.
fn large(megabytes: u64) -> UnsyncBoxBody<Bytes, Infallible> {
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    let pieces = stream::iter((0..megabytes).map(move |_| Ok(Frame::data(piece.clone()))));
    StreamBody::new(pieces).boxed_unsync()
}

async fn posted(request: Request<Incoming>, seen: &Seen) -> UnsyncBoxBody<Bytes, Infallible> {
    let name = request.headers().get("name").map(|n| n.to_str().unwrap().to_owned());
    if let Some(name) = name {
        *seen.posts.lock().unwrap().entry(name).or_default() += 1;
    }
    let expected = request.body().size_hint().exact();
    let mut body = request.into_body();
    let (mut length, mut sum) = (0_u64, 0_u64);
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            length += data.len() as u64;
            sum = data.iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        }
    }
    assert!(expected.is_none_or(|expected| expected == length), "a whole body, or the connection breaks");
    full(format!("{length} {sum}"))
}

fn websocket(mut request: Request<Incoming>, id: &str) -> Answer {
    let Some(key) = request.headers().get("sec-websocket-key").cloned() else {
        return Response::builder().status(StatusCode::BAD_REQUEST).body(full("no key")).unwrap();
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(stream) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                break;
            }
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header("sec-websocket-accept", derive_accept_key(key.as_bytes()))
        .header("side", id)
        .body(full(""))
        .unwrap()
}
