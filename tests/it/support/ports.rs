//! Ports that are a test's own, although each test is a process and starts others that only bind them later.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// Below those that the kernel hands out by itself, to whoever connects somewhere, and above those that `refit demo` takes.
const FIRST: u32 = 30_000;
const COUNT: u32 = 2_700;

/// The locks on the ports of this process. The kernel lets them go with it, however it ends.
static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A port on the loopback that nobody listens on, and that no other test gets until this one's process ends.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let dir = std::env::temp_dir().join("refit-test-ports");
    fs::create_dir_all(&dir).expect("a directory for the locks");
    loop {
        // Processes begin at different places, so that they seldom meet at all.
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + process::id().wrapping_mul(37).wrapping_add(n) % COUNT;
        let port = u16::try_from(port).expect("a port");
        let lock = File::create(dir.join(port.to_string())).expect("a lock file");
        if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            TAKEN.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
            return port;
        }
    }
}
