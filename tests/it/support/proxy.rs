//! Docker away, on a machine whose engine is shared: what is away is the way to it.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// A Unix socket before the engine's, which can be cut, and can hang.
#[derive(Debug)]
pub struct Proxy {
    path: PathBuf,
    open: Arc<AtomicBool>,
    hangs: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

impl Proxy {
    pub fn start(path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).expect("a socket");
        let open = Arc::new(AtomicBool::new(true));
        let hangs = Arc::new(AtomicBool::new(false));
        let streams: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
        let refused = Arc::new(AtomicUsize::new(0));
        let (is_open, still) = (Arc::clone(&open), Arc::clone(&hangs));
        let (count, kept) = (Arc::clone(&refused), Arc::clone(&streams));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if !is_open.load(Ordering::SeqCst) {
                    count.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                let Ok(engine) = UnixStream::connect("/var/run/docker.sock") else { continue };
                let mut kept = kept.lock().expect("a lock");
                for stream in [&client, &engine] {
                    kept.push(stream.try_clone().expect("a handle"));
                }
                pump(&client, &engine, &still);
                pump(&engine, &client, &still);
            }
        });
        Self { path, open, hangs, refused, streams }
    }

    /// Ends every connection and takes no more.
    pub fn cut(&self) {
        self.refused.store(0, Ordering::SeqCst);
        self.open.store(false, Ordering::SeqCst);
        for stream in self.streams.lock().expect("a lock").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Connections that were not taken since it was cut.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    /// Takes everything, and passes nothing on.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::SeqCst);
    }

    pub fn mend(&self) {
        self.open.store(true, Ordering::SeqCst);
        self.hangs.store(false, Ordering::SeqCst);
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.path.display())
    }
}

fn pump(from: &UnixStream, to: &UnixStream, hangs: &Arc<AtomicBool>) {
    let (mut from, mut to) = (from.try_clone().expect("a handle"), to.try_clone().expect("a handle"));
    let hangs = Arc::clone(hangs);
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            while hangs.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(10));
            }
            if to.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}
