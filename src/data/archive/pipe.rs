//! Between packing and unpacking, which block on a thread of their own, and the part's file, which is written and read on the event loop:
//! a few chunks at a time, either side waiting for the other.

use std::{
    io::{self, Read, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_util::sync::PollSender;

use super::BUFFER;

/// Chunks that may wait.
const AHEAD: usize = 4;

/// A pipe with its two ends.
pub(in crate::data) fn pipe() -> (mpsc::Sender<Vec<u8>>, mpsc::Receiver<Vec<u8>>) {
    mpsc::channel(AHEAD)
}

/// The writing end for a thread that may block. Dropped before [`Write::flush`] it loses what it holds, which leaves an archive without an end.
#[derive(Debug)]
pub(in crate::data) struct Feed {
    to: mpsc::Sender<Vec<u8>>,
    chunk: Vec<u8>,
}

impl Feed {
    pub fn new(to: mpsc::Sender<Vec<u8>>) -> Self {
        Self { to, chunk: Vec::with_capacity(BUFFER) }
    }
}

impl Feed {
    /// Says to an [`AsyncDrain`] that this is all.
    pub fn end(mut self) -> io::Result<()> {
        self.flush()?;
        self.to.blocking_send(Vec::new()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Feed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(BUFFER - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..n]);
        if self.chunk.len() == BUFFER {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(BUFFER));
        self.to.blocking_send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The reading end for a thread that may block. It ends when the other end is dropped; an archive says itself whether it is whole.
#[derive(Debug)]
pub(in crate::data) struct Drain {
    from: mpsc::Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    read: usize,
}

impl Drain {
    pub fn new(from: mpsc::Receiver<Vec<u8>>) -> Self {
        Self { from, chunk: Vec::new(), read: 0 }
    }
}

impl Read for Drain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.chunk.len() {
            let Some(chunk) = self.from.blocking_recv() else { return Ok(0) };
            (self.chunk, self.read) = (chunk, 0);
        }
        let n = buffer.len().min(self.chunk.len() - self.read);
        buffer[..n].copy_from_slice(&self.chunk[self.read..self.read + n]);
        self.read += n;
        Ok(n)
    }
}

/// The writing end for the event loop.
#[derive(Debug)]
pub(in crate::data) struct AsyncFeed(PollSender<Vec<u8>>);

impl AsyncFeed {
    pub fn new(to: mpsc::Sender<Vec<u8>>) -> Self {
        Self(PollSender::new(to))
    }
}

impl AsyncWrite for AsyncFeed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let broken = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.0.poll_reserve(cx)).map_err(broken)?;
        let n = bytes.len().min(BUFFER);
        self.0.send_item(bytes[..n].to_vec()).map_err(broken)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.close();
        Poll::Ready(Ok(()))
    }
}

/// The reading end for the event loop. It ends well only if an empty chunk said so: a thread that failed leaves none.
#[derive(Debug)]
pub(in crate::data) struct AsyncDrain {
    from: mpsc::Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    read: usize,
    ended: bool,
}

impl AsyncDrain {
    pub fn new(from: mpsc::Receiver<Vec<u8>>) -> Self {
        Self { from, chunk: Vec::new(), read: 0, ended: false }
    }
}

impl AsyncRead for AsyncDrain {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        if self.read == self.chunk.len() {
            match ready!(self.from.poll_recv(cx)) {
                Some(chunk) if chunk.is_empty() => {
                    self.ended = true;
                    return Poll::Ready(Ok(()));
                }
                Some(chunk) => (self.chunk, self.read) = (chunk, 0),
                None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            }
        }
        let n = buf.remaining().min(self.chunk.len() - self.read);
        buf.put_slice(&self.chunk[self.read..self.read + n]);
        self.read += n;
        Poll::Ready(Ok(()))
    }
}
