//! A client's connection, with limits on what it may send before a request is whole.
//!
//! The head of a request (HTTP/1.1) may have [`MAX_HEAD`] bytes and must be there [`HEAD_TIME`] after its first byte; a client that sends a byte a second is cut off, however
//! long it goes on. Between requests the connection may rest; the proxy ends that after [`REST`]. HTTP/2 has limits of its own, in its options.
//!
//! Small writes are joined, since an answer's head and body are written one after the other.

use std::{
    any::Any,
    fmt, io,
    net::SocketAddr,
    os::fd::AsRawFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType, raw_connect::ProxyDigest,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

/// The largest head of a request, as in most servers' sum of lines.
const MAX_HEAD: usize = 64 * 1024;

/// How long a head may take.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(15);

/// How long a connection may rest between two requests. More than most clients and proxies rest theirs.
pub(super) const REST: Duration = Duration::from_secs(75);

/// About a packet.
const WRITE_BUFFER: usize = 1460;

pub(super) struct ClientStream {
    io: BufWriter<TcpStream>,
    digest: Arc<SocketDigest>,
    /// Whether what is read belongs to a head.
    in_head: AtomicBool,
    /// Bytes of this head so far.
    head: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl ClientStream {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr) -> Self {
        let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
        // Just made, so it is empty.
        let _ = digest.peer_addr.set(Some(peer.into()));
        Self {
            io: BufWriter::with_capacity(WRITE_BUFFER, stream),
            digest: Arc::new(digest),
            in_head: AtomicBool::new(true),
            head: 0,
            deadline: None,
        }
    }

    /// The head is whole: what follows is limited by other means.
    pub(super) fn head_is_whole(&self) {
        self.in_head.store(false, Relaxed);
    }

    /// A request is over, and another may follow.
    pub(super) fn next_head(&self) {
        self.in_head.store(true, Relaxed);
    }

    /// The client's stream behind pingora's.
    pub(super) fn of(stream: &Stream) -> Option<&Self> {
        // Through the box: it is a stream of its own kind.
        let stream: &dyn Any = (**stream).as_any();
        stream.downcast_ref()
    }

    fn count(&mut self, read: usize) -> io::Result<()> {
        self.head += read;
        if self.head > MAX_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the request's head is too large"));
        }
        Ok(())
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.head == 0 {
            return Ok(());
        }
        let deadline =
            self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + HEAD_TIME)));
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "the request's head took too long")),
            Poll::Pending => Ok(()),
        }
    }
}

impl fmt::Debug for ClientStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {:?}", self.digest.peer_addr())
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.in_head.load(Relaxed) {
            this.head = 0;
            this.deadline = None;
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(result) => Poll::Ready(result.and_then(|()| this.count(buf.filled().len() - before))),
            Poll::Pending => match this.poll_deadline(cx) {
                Ok(()) => Poll::Pending,
                Err(late) => Poll::Ready(Err(late)),
            },
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        // The client may have gone already.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> UniqueIDType {
        self.io.get_ref().as_raw_fd()
    }
}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digest.clone())
    }
}

impl Ssl for ClientStream {}
impl Peek for ClientStream {}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, ClientStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, peer) = listener.accept().await.unwrap();
        (client, ClientStream::new(server, peer))
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_ends_the_connection_and_a_body_does_not() {
        let (mut client, mut stream) = pair().await;
        let sender = tokio::spawn(async move {
            let _ = client.write_all(&vec![b'x'; MAX_HEAD * 4]).await;
            client
        });
        let mut buf = vec![0; 16 * 1024];
        let mut read = 0;
        stream.head_is_whole();
        while read < MAX_HEAD * 2 {
            read += stream.read(&mut buf).await.unwrap();
        }
        stream.next_head();
        let error = loop {
            if let Err(error) = stream.read(&mut buf).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(stream);
        drop(sender.await.unwrap());
    }

    #[tokio::test]
    async fn a_head_that_drips_in_is_cut_off_and_a_connection_at_rest_is_not() {
        let (mut client, mut stream) = pair().await;
        tokio::time::pause();
        let mut buf = [0; 16];
        assert!(tokio::time::timeout(REST, stream.read(&mut buf)).await.is_err(), "at rest");
        let began = Instant::now();
        let error = loop {
            client.write_all(b"x").await.unwrap();
            // Time moves by itself while everybody waits.
            tokio::time::sleep(Duration::from_secs(1)).await;
            match tokio::time::timeout(Duration::from_secs(60), stream.read(&mut buf)).await.unwrap() {
                Ok(_) => assert!(began.elapsed() < HEAD_TIME * 2),
                Err(error) => break error,
            }
            if began.elapsed() >= Duration::from_secs(3) {
                // Nothing more comes: only the deadline can end it.
                break stream.read(&mut buf).await.unwrap_err();
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
