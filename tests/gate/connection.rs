//! A client over HTTP/1.1 that never tries anything twice.

use std::{net::SocketAddr, time::Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// An answer, with its whole body.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: Bytes,
    /// When the head was there.
    pub head_at: Instant,
}

impl Reply {
    pub fn side(&self) -> &str {
        self.header("side")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

pub type Body = Full<Bytes>;

pub fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "shop.example").body(Body::default()).unwrap()
}

pub fn post(path: &str, name: &str, body: Bytes) -> Request<Body> {
    Request::post(path).header("host", "shop.example").header("name", name).body(Body::new(body)).unwrap()
}

/// One HTTP/1.1 connection.
#[derive(Debug)]
pub struct Connection {
    sender: http1::SendRequest<Body>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|e| format!("connecting: {e}"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| format!("beginning: {e}"))?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Whether the server will take another request here.
    pub async fn is_open(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    pub async fn begin(&mut self, request: Request<Body>) -> Result<Response<Incoming>, String> {
        self.sender.send_request(request).await.map_err(|e| format!("sending: {e:?}"))
    }

    pub async fn send(&mut self, request: Request<Body>) -> Result<Reply, String> {
        let response = self.begin(request).await?;
        let head_at = Instant::now();
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|e| format!("reading the answer: {e:?}"))?.to_bytes();
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body, head_at })
    }
}
