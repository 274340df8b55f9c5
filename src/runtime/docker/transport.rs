//! HTTP/1.1 to the engine over its Unix socket or TCP, one connection a request.
//!
//! bollard has transports of its own, and two things they cannot do are needed. Its Unix transport refuses to be made while the socket
//! is not there, where a daemon that starts before its engine must wait for it; this one looks for the socket at each request, so an
//! engine that comes back is simply used again, and the operating system's own error reaches whoever has to explain it. And the
//! session of a BuildKit build stays open in the background for as long as the engine likes; here every connection
//! belongs to a [`CancellationToken`], and a build's connections end with the build.

use std::{
    fmt,
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
};

use bollard::{BollardRequest, Docker, errors::Error};
use hyper::{
    Response, Uri,
    body::Incoming,
    client::conn::http1,
    header::{HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Where an engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
        }
    }
}

/// A client of the engine at `address`, whose connections break when `scope` is cancelled. `head_limit_s` bounds the time to an
/// answer's head, not to its end, so that a long quiet build or log is not cut.
pub(super) fn client(address: &Address, head_limit_s: u64, scope: &CancellationToken) -> Result<Docker, Error> {
    let (address, scope) = (address.clone(), scope.clone());
    let exchange = move |request: BollardRequest| exchange(address.clone(), scope.clone(), request);
    Docker::connect_with_custom_transport(exchange, Some("http://docker"), head_limit_s, bollard::API_DEFAULT_VERSION)
}

async fn exchange(
    address: Address,
    scope: CancellationToken,
    mut request: BollardRequest,
) -> Result<Response<Incoming>, Error> {
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    *request.uri_mut() = path.parse::<Uri>()?;
    let host = match &address {
        Address::Unix(_) => HeaderValue::from_static("docker"),
        Address::Tcp(host) => HeaderValue::from_str(host).unwrap_or(HeaderValue::from_static("docker")),
    };
    request.headers_mut().insert(HOST, host);
    match address {
        Address::Unix(path) => send(Scoped::new(UnixStream::connect(path).await?, scope), request).await,
        Address::Tcp(host) => send(Scoped::new(TcpStream::connect(host).await?, scope), request).await,
    }
}

async fn send<S>(stream: Scoped<S>, request: BollardRequest) -> Result<Response<Incoming>, Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends by itself when the answer was read or dropped; what goes wrong on the way reaches the reader.
    tokio::spawn(connection.with_upgrades());
    Ok(sender.send_request(request).await?)
}

/// A stream that is at its end once its scope is cancelled.
struct Scoped<S> {
    stream: S,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Scoped<S> {
    fn new(stream: S, scope: CancellationToken) -> Self {
        Self { stream, ended: Box::pin(scope.cancelled_owned()) }
    }

    fn has_ended(&mut self, cx: &mut Context<'_>) -> bool {
        self.ended.as_mut().poll(cx).is_ready()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Scoped<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.has_ended(cx) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Scoped<S> {
    // A write never waits for the scope: whatever has a write pending also reads, and sees the end there.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
