//! One gate takes the place of another, and nobody outside notices.
//!
//! The new gate connects to the old one's control socket and asks. The old one stops changing anything and sends, in one message, copies of its open files (`SCM_RIGHTS`): the lock
//! on the state directory, the control socket, and every public socket; then its state. The new gate serves all of that and says `ready`. Only now does the old
//! one stop accepting. Since both hold the same sockets, connections that nobody has accepted yet wait in them all the time. If the new gate dies before it
//! is ready, the old one goes on as if nothing had been.
//!
//! Connections stay where they are. The old gate serves them to their end, asking HTTP/1.1 clients to come back on a new connection with the answer to their next request (`Connection: close`)
//! and HTTP/2 clients with GOAWAY; neither can lose a request that way, as closing an idle connection would. Meanwhile it follows its
//! successor's changes and reports its load (`predecessors`). It ends when its last connection has, or when its time is over.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::{TcpListener, UnixListener, UnixStream},
    sync::watch,
    time,
};

use super::{
    client,
    control::{Control, refusal},
    house::Gate,
    predecessors::{Change, Report, Word},
    state::State,
    wire::{HandoverRequest, MAX_LINE, Request, VERSION, Verb},
};

/// How long the new gate may take until it serves.
const READY: Duration = Duration::from_secs(10);

/// How often a leaving gate reports at least.
const REPORT: Duration = Duration::from_millis(50);

/// Files in one message: the kernel allows 253.
const MAX_FILES: usize = 253;

/// What begins the message with the files, so that it cannot be taken for a refusal.
const MAGIC: &[u8; 4] = b"GATE";

/// What goes with the files.
#[derive(Debug, Serialize, Deserialize)]
struct Estate {
    pid: u32,
    state: State,
    /// The public addresses, in the order of their sockets.
    listens: Vec<SocketAddr>,
}

/// What a new gate received.
#[derive(Debug)]
pub(super) struct Taken {
    pid: u32,
    pub(super) state: State,
    lock: File,
    control: UnixListener,
    pub(super) listeners: BTreeMap<SocketAddr, TcpListener>,
    stream: UnixStream,
}

/// The old gate's part. Returns when the successor's connection ends, or the handover failed.
pub(super) async fn give(control: &Control, mut stream: UnixStream, request: &HandoverRequest) -> io::Result<()> {
    let gate = &control.gate;
    let handing = match gate.begin_handover().await {
        Ok(handing) => handing,
        Err(error) => return stream.write_all((refusal(error) + "\n").as_bytes()).await,
    };
    tracing::info!("handing over to process {} (refit {})", request.pid, request.program);
    let listeners = gate.listeners();
    let listens = listeners.iter().map(|(address, _)| *address).collect();
    let estate = Estate { pid: std::process::id(), state: gate.state(), listens };
    let mut files = vec![control.lock.as_fd(), control.listener.as_fd()];
    files.extend(listeners.iter().map(|(_, listener)| listener.as_fd()));
    send(&stream, &serde_json::to_vec(&estate).map_err(io::Error::other)?, &files).await?;
    let mut stream = BufReader::new(stream);
    match time::timeout(READY, read_line(&mut stream)).await {
        Ok(Ok(Some(Word::Ready))) => {}
        _ => {
            tracing::error!("process {} did not take over; this gate goes on", request.pid);
            return Ok(());
        }
    }
    handing.done();
    control.closed.cancel();
    gate.leave();
    control.left.cancel();
    tracing::info!(
        "process {} serves now; this one finishes {} connections",
        request.pid,
        gate.floor.connections.now()
    );
    follow(gate, stream).await
}

/// Follows the successor's changes and reports.
async fn follow(gate: &Gate, stream: BufReader<UnixStream>) -> io::Result<()> {
    let (read, mut write) = tokio::io::split(stream);
    let mut words = read_words(read);
    let mut tick = time::interval(REPORT);
    let mut number = 0;
    loop {
        tokio::select! {
            word = words.recv() => match word {
                Some(Word::Change { number: newer, state }) => {
                    gate.follow(&state).await;
                    number = newer;
                }
                Some(Word::Ready) => {}
                // The successor is gone; what is left here goes on.
                None => return Ok(()),
            },
            _ = tick.tick() => {}
        }
        let report = Report { number, loads: gate.loads(), connections: gate.floor.connections.now() };
        write_line(&mut write, &report).await?;
    }
}

/// Lines, read by a task of its own: reading a line is not something that may be given up half way.
fn read_words(read: tokio::io::ReadHalf<BufReader<UnixStream>>) -> tokio::sync::mpsc::Receiver<Word> {
    let (send, receive) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let mut read = BufReader::new(read);
        while let Ok(Some(word)) = read_line(&mut read).await {
            if send.send(word).await.is_err() {
                break;
            }
        }
    });
    receive
}

/// The new gate's part, up to where it has everything.
pub(super) async fn take(socket: &Path) -> io::Result<Taken> {
    let mut stream = client::connect(socket).await?;
    let request = HandoverRequest { pid: std::process::id(), program: env!("CARGO_PKG_VERSION").to_owned() };
    write_line(&mut stream, &Request { v: VERSION, verb: Verb::Handover(request) }).await?;
    let (text, files) = time::timeout(READY, receive(&mut stream)).await.map_err(io::Error::other)??;
    let estate: Estate = serde_json::from_slice(&text).map_err(io::Error::other)?;
    let mut files = files.into_iter();
    let mut next = || files.next().ok_or_else(|| io::Error::other("the old gate sent too few sockets"));
    let lock = File::from(next()?);
    let control = std::os::unix::net::UnixListener::from(next()?);
    control.set_nonblocking(true)?;
    let mut listeners = BTreeMap::new();
    for address in estate.listens {
        let listener = std::net::TcpListener::from(next()?);
        listener.set_nonblocking(true)?;
        listeners.insert(address, TcpListener::from_std(listener)?);
    }
    let control = UnixListener::from_std(control)?;
    Ok(Taken { pid: estate.pid, state: estate.state, lock, control, listeners, stream })
}

/// The new gate serves: tells the old one, and from now on what changes. Ends with the old one.
pub(super) async fn succeed(
    gate: &Gate,
    pid: u32,
    stream: UnixStream,
    (reports, mut changes): (watch::Sender<Report>, watch::Receiver<Change>),
) -> io::Result<()> {
    let (read, mut write) = tokio::io::split(stream);
    if let Err(error) = write_line(&mut write, &Word::Ready).await {
        gate.predecessors.forget(pid);
        return Err(error);
    }
    let listening = tokio::spawn(async move {
        let mut read = BufReader::new(read);
        while let Ok(Some(report)) = read_line::<Report>(&mut read).await {
            reports.send_replace(report);
        }
    });
    let telling = async {
        while changes.changed().await.is_ok() {
            let change = changes.borrow_and_update().clone();
            if write_line(&mut write, &Word::Change { number: change.number, state: change.state }).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = listening => {}
        () = telling => {}
    }
    gate.predecessors.forget(pid);
    tracing::info!("the gate before this one, process {pid}, has ended");
    Ok(())
}

impl Taken {
    /// Process id, conversation, control socket, lock.
    pub(super) fn into_parts(self) -> (u32, UnixStream, UnixListener, File) {
        (self.pid, self.stream, self.control, self.lock)
    }
}

async fn send(stream: &UnixStream, text: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let length = u32::try_from(text.len()).map_err(io::Error::other)?.to_be_bytes();
    let head = [*MAGIC, length].concat();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    stream
        .async_io(Interest::WRITABLE, || {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(files)) {
                return Err(io::Error::other("too many sockets for one message"));
            }
            let sent = rustix::net::sendmsg(stream, &[IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL)?;
            if sent == head.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
        })
        .await?;
    let mut rest = text;
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(n) => rest = &rest[n..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn receive(stream: &mut UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut head = [0; 8];
    let mut files = Vec::new();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let read = stream
        .async_io(Interest::READABLE, || {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let got = rustix::net::recvmsg(&*stream, &mut [IoSliceMut::new(&mut head)], &mut control, flags)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    files.extend(rights);
                }
            }
            Ok(got.bytes)
        })
        .await?;
    if read != head.len() || !head.starts_with(MAGIC) {
        let mut answer = String::from_utf8_lossy(&head[..read]).into_owned();
        let mut rest = Vec::new();
        // Whatever it says, it says it in one line.
        BufReader::new(stream).take(MAX_LINE as u64).read_until(b'\n', &mut rest).await?;
        answer.push_str(&String::from_utf8_lossy(&rest));
        return Err(io::Error::other(format!("the old gate does not hand over: {}", answer.trim())));
    }
    let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
    if length > MAX_LINE {
        return Err(io::Error::other("the old gate's state is too large"));
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await?;
    Ok((text, files))
}

async fn write_line(write: &mut (impl AsyncWriteExt + Unpin), value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
    line.push(b'\n');
    write.write_all(&line).await?;
    write.flush().await
}

/// None at the end.
async fn read_line<T: for<'de> Deserialize<'de>>(read: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<T>> {
    let mut line = String::new();
    read.take(MAX_LINE as u64).read_line(&mut line).await?;
    if !line.ends_with('\n') {
        return Ok(None);
    }
    serde_json::from_str(&line).map(Some).map_err(io::Error::other)
}
