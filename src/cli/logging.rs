//! What the program says about itself: on standard error, masked, as loud as asked.
//!
//! The subscriber is installed before the configuration is read, so the secrets to mask are handed in later; until then only the user
//! part of URLs is masked.

use std::{
    io::{self, Write},
    sync::OnceLock,
};

use tracing_subscriber::EnvFilter;

use crate::redact::Redactor;

static REDACTOR: OnceLock<Redactor> = OnceLock::new();

/// From now on these secrets are masked in every line and in what a panic says.
pub fn mask_with(redactor: &Redactor) {
    // A command reads its configuration again at most to learn more secrets of the same file; the daemon reads it once.
    let _ = REDACTOR.set(redactor.clone());
}

pub fn mask(text: &str) -> String {
    REDACTOR.get().cloned().unwrap_or_default().mask(text)
}

/// `verbose`: 0 for `usual`, 1 for debug, 2 and more for everything. `REFIT_LOG` (as `RUST_LOG` elsewhere) overrides both.
pub fn install(verbose: u8, usual: &str, color: bool) {
    let level = match verbose {
        0 => format!("{usual},sqlx=warn"),
        1 => "info,refit=debug".to_owned(),
        _ => "debug,refit=trace".to_owned(),
    };
    let asked = std::env::var("REFIT_LOG").ok().and_then(|text| EnvFilter::try_new(text).ok());
    // A second subscriber in one process is a test's affair, and no reason to stop.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(asked.unwrap_or_else(|| EnvFilter::new(level)))
        .with_ansi(color)
        .with_target(verbose > 0)
        .with_writer(|| Masked)
        .try_init();
}

/// Each write is one whole line: `tracing-subscriber` formats an event before it writes it.
struct Masked;

impl Write for Masked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(mask(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A panic is a bug: it says so, where it was, and nothing that is secret.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        let text = format!(
            "refit {} has a bug: {} (at {place})\nPlease report it with what you did. A deployment that was running is \
             recovered from its journal at the next start.\n",
            env!("CARGO_PKG_VERSION"),
            mask(message.unwrap_or("no message")),
        );
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }));
}
