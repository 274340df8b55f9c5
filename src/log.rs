//! A deployment's log: one file, every line masked, and the last lines of each stage kept for the report.
//!
//! Lines are written as they come, straight to the file (no buffer of ours, so that a crash loses nothing that was
//! printed before it), as `2026-11-21T10:15:30.123Z build  | text`. Control characters are made visible, so that a
//! commit message or a test cannot paint the reader's terminal. A write that fails (disk full) is remembered and ends
//! the deployment at the next stage boundary instead of being lost.

use std::{
    collections::VecDeque,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::mpsc;

use crate::{model::Stage, redact::Redactor};

/// Lines of a stage that a report may quote.
pub const TAIL_LINES: usize = 60;

/// A longer line is cut, with a note of how much is missing.
const MAX_LINE: usize = 16 * 1024;

/// The log of one deployment. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeploymentLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    redactor: Redactor,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `None`: a log that is kept in memory only (tests, one-off commands).
    file: Option<File>,
    /// Who watches: a line that finds no room there is left out.
    listener: Option<mpsc::Sender<String>>,
    failure: Option<String>,
}

impl DeploymentLog {
    /// Opens the file for appending, mode 0600, and makes its directory, which no other user may write to whatever the umask.
    pub fn open(path: &Path, redactor: Redactor) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        Ok(Self::with(Some(file), None, path.to_owned(), redactor))
    }

    /// No file: each line goes to who watches, masked and harmless like all.
    pub fn watched(listener: mpsc::Sender<String>, redactor: Redactor) -> Self {
        Self::with(None, Some(listener), PathBuf::new(), redactor)
    }

    /// Writes nowhere; stage tails still work.
    pub fn discard(redactor: Redactor) -> Self {
        Self::with(None, None, PathBuf::new(), redactor)
    }

    fn with(file: Option<File>, listener: Option<mpsc::Sender<String>>, path: PathBuf, redactor: Redactor) -> Self {
        let inner = Mutex::new(Inner { file, listener, failure: None });
        Self { shared: Arc::new(Shared { path, redactor, inner }) }
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The first write that failed, if any.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// A writer for one stage.
    pub fn stage(&self, stage: Stage) -> StageLog {
        self.section(stage.as_str())
    }

    /// A writer whose lines carry `label`.
    pub fn section(&self, label: &'static str) -> StageLog {
        StageLog { log: self.clone(), label, tail: Arc::default() }
    }

    fn write(&self, label: &str, line: &str) {
        let now = jiff::Timestamp::now();
        let text = format!("{now:.3} {label:<7} | {line}\n");
        let mut inner = self.lock();
        if let Some(listener) = &inner.listener {
            let _ = listener.try_send(line.to_owned());
        }
        let result = inner.file.as_mut().map_or(Ok(()), |file| file.write_all(text.as_bytes()));
        if let Err(error) = result
            && inner.failure.is_none()
        {
            inner.failure = Some(format!("writing {}: {error}", self.shared.path.display()));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the lines of one stage. Cheap to clone; clones share the tail.
#[derive(Debug, Clone)]
pub struct StageLog {
    log: DeploymentLog,
    label: &'static str,
    tail: Arc<Mutex<VecDeque<String>>>,
}

impl StageLog {
    /// Logs text of one line or several. Secrets are masked and control characters made visible.
    pub fn line(&self, text: impl AsRef<str>) {
        let masked = self.log.shared.redactor.mask(text.as_ref());
        for line in masked.trim_end_matches(['\n', '\r']).split('\n') {
            // Progress bars redraw a line with \r: only what would be visible at the end is kept.
            let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
            let line = printable(line);
            self.log.write(self.label, &line);
            let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        }
    }

    /// The last lines, masked, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub fn redactor(&self) -> &Redactor {
        &self.log.shared.redactor
    }
}

/// Strips terminal escape sequences, shows other control characters as `\u{…}`, and cuts a line that is too long.
pub fn printable(line: &str) -> String {
    let stripped = anstream::adapter::strip_str(line).to_string();
    let mut out = String::with_capacity(stripped.len().min(MAX_LINE));
    for c in stripped.chars() {
        if out.len() >= MAX_LINE {
            out.push_str(&format!(" … ({} bytes more)", stripped.len().saturating_sub(MAX_LINE)));
            break;
        }
        // Bidirectional overrides reorder what a terminal shows (CVE-2021-42574).
        let bidi = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (c.is_control() && c != '\t') || bidi {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn lines_are_masked_printable_and_kept() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("logs/one.log");
        let log = DeploymentLog::open(&path, Redactor::new([&Secret::new("hunter22")]))?;
        let stage = log.stage(Stage::Build);
        stage.line("pw hunter22\n\u{1b}[31mred\u{1b}[0m \u{7}\n10%\r50%\r100%");
        let text = std::fs::read_to_string(&path)?;
        let lines: Vec<_> = text.lines().map(|l| l.split_once(" | ").map_or(l, |(_, rest)| rest)).collect();
        assert_eq!(lines, ["pw [masked]", "red ", "100%"]);
        assert_eq!(stage.tail(), ["pw [masked]", "red ", "100%"]);
        Ok(())
    }

    #[test]
    fn a_full_disk_is_remembered() -> io::Result<()> {
        // /dev/full answers every write with ENOSPC.
        let log = DeploymentLog::open(Path::new("/dev/full"), Redactor::default())?;
        assert_eq!(log.failure(), None);
        log.stage(Stage::Test).line("x");
        assert!(log.failure().is_some_and(|f| f.contains("/dev/full")));
        Ok(())
    }
}
