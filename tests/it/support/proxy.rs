//! Docker away, on a machine whose engine is shared: what is away is the way to it.

use std::{
    io,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// A Unix socket before the engine's, which can be cut.
#[derive(Debug)]
pub struct Proxy {
    path: PathBuf,
    open: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

impl Proxy {
    pub fn start(path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).expect("a socket");
        let open = Arc::new(AtomicBool::new(true));
        let streams: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
        let refused = Arc::new(AtomicUsize::new(0));
        let (is_open, count, kept) = (Arc::clone(&open), Arc::clone(&refused), Arc::clone(&streams));
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
                pump(&client, &engine);
                pump(&engine, &client);
            }
        });
        Self { path, open, refused, streams }
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

    pub fn mend(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.path.display())
    }
}

fn pump(from: &UnixStream, to: &UnixStream) {
    let (mut from, mut to) = (from.try_clone().expect("a handle"), to.try_clone().expect("a handle"));
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}
