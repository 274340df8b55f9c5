//! Connections to the app for requests that ask for another protocol.
//!
//! pingora takes an upgraded connection as ended once the request's body has ended. A request for an upgrade has an empty body, whose end lies ready when the proxy first waits for
//! the app; if the app's `101` lies there as well, which of the two is seen first is left to chance, and the wrong order closes the WebSocket right after it was opened. It takes an
//! app that answers while the proxy's thread is off the processor, so it happens under load, one time in a few hundred. Here the app's first
//! bytes are always seen a moment later than the end of the body.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use pingora_core::{
    Error, ErrorType, OrErr, Result,
    connectors::L4Connect,
    protocols::l4::{
        socket::SocketAddr,
        stream::Stream,
        virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time,
};

/// Connects for one request; its connection is not kept for others.
#[derive(Debug)]
pub(super) struct Connector;

impl Connector {
    pub(super) fn shared() -> Arc<Self> {
        Arc::new(Self)
    }
}

#[async_trait]
impl L4Connect for Connector {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Err(Error::explain(ErrorType::InternalError, "the gate knows apps by address and port"));
        };
        let connected = time::timeout(super::proxy::CONNECT, TcpStream::connect(address)).await;
        let connected = connected.or_err(ErrorType::ConnectTimedout, "connecting for an upgrade")?;
        let stream = connected.or_err(ErrorType::ConnectError, "connecting for an upgrade")?;
        Ok(VirtualSocketStream::new(Box::new(Patient { stream, looked: false })).into())
    }
}

/// A stream whose first read waits for one turn of the task.
#[derive(Debug)]
struct Patient {
    stream: TcpStream,
    looked: bool,
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.looked {
            self.looked = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
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

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl VirtualSocket for Patient {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.stream.set_nodelay(true),
            // None that the gate asks for.
            _ => Ok(()),
        }
    }
}
