//! The app's output: a pipe that the supervisor reads, and files that it rotates.
//!
//! The supervisor keeps a writing end of the pipe itself, so the pipe lasts as long as the supervisor does, whatever the app's children
//! do with theirs. What was printed is appended to `app.log` as it is; when a piece would make the file too large, it is
//! cut after the last whole line that fits, `app.log` becomes `app.log.1`, that one `app.log.2`, and so on.

use std::{
    convert::Infallible,
    fs::{File, OpenOptions},
    io::{self, PipeWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use tokio::net::unix::pipe::Receiver;

/// The current file's name in the instance's directory.
const NAME: &str = "app.log";

/// Bytes read from the end of a file in search of the last lines.
const TAIL_BYTES: u64 = 256 * 1024;

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// Chunks read when the pipe is to be emptied: twice what a pipe holds by default.
const DRAIN_CHUNKS: usize = 8;

/// A log file with its older ones.
#[derive(Debug)]
pub(super) struct RotatingLog {
    path: PathBuf,
    file: File,
    size: u64,
    /// Bytes a file; zero is no limit.
    max_size: u64,
    /// Files in all.
    max_file: u32,
}

impl RotatingLog {
    pub fn open(dir: &Path, max_size: u64, max_file: u32) -> io::Result<Self> {
        let path = dir.join(NAME);
        let file = open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size, max_size, max_file })
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = usize::try_from(self.max_size.saturating_sub(self.size)).unwrap_or(usize::MAX);
            let fits = self.max_size == 0 || bytes.len() <= room;
            let piece = if fits { bytes.len() } else { whole_lines(&bytes[..room]) };
            if piece == 0 && self.size > 0 {
                self.rotate()?;
                continue;
            }
            // A line longer than a whole file is cut.
            let (now, later) = bytes.split_at(if piece == 0 { room.max(1) } else { piece });
            self.file.write_all(now)?;
            self.size += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for older in (1..self.max_file.saturating_sub(1)).rev() {
            let from = self.numbered(older);
            if from.exists() {
                std::fs::rename(from, self.numbered(older + 1))?;
            }
        }
        if self.max_file > 1 {
            std::fs::rename(&self.path, self.numbered(1))?;
        } else {
            std::fs::remove_file(&self.path)?;
        }
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        self.path.with_extension(format!("log.{number}"))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// How many of the bytes are whole lines.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1)
}

/// The pipe and the log behind it.
#[derive(Debug)]
pub(super) struct Output {
    from: Receiver,
    to: PipeWriter,
    log: RotatingLog,
}

impl Output {
    pub fn new(log: RotatingLog) -> io::Result<Self> {
        let (from, to) = io::pipe()?;
        Ok(Self { from: Receiver::from_owned_fd(from.into())?, to, log })
    }

    /// A writing end for a child.
    pub fn writer(&self) -> io::Result<PipeWriter> {
        self.to.try_clone()
    }

    /// Copies what comes, for ever. May be dropped and called again at any time.
    pub async fn pump(&mut self) -> Infallible {
        loop {
            if self.from.readable().await.is_err() {
                // Cannot happen while we hold a writing end; the app then runs on without a log.
                std::future::pending::<()>().await;
            }
            self.copy_chunk();
            // An app that prints without end must not keep us from hearing signals.
            tokio::task::yield_now().await;
        }
    }

    /// Copies what is in the pipe now, and not much of what may be added meanwhile.
    pub fn drain(&mut self) {
        for _ in 0..DRAIN_CHUNKS {
            if !self.copy_chunk() {
                return;
            }
        }
    }

    fn copy_chunk(&mut self) -> bool {
        let mut chunk = [0; CHUNK];
        let Ok(n @ 1..) = self.from.try_read(&mut chunk) else { return false };
        // On a full disk lines are lost; an app that waits for its log would be worse.
        let _ = self.log.write(&chunk[..n]);
        true
    }

    /// A line of the supervisor's own.
    pub fn note(&mut self, text: &str) {
        self.drain();
        let _ = self.log.write(format!("refit: {text}\n").as_bytes());
    }
}

/// The last lines of an instance's log, oldest first.
pub(super) fn tail(dir: &Path, lines: usize) -> io::Result<Vec<String>> {
    let mut text = Vec::new();
    // The newest file may have been begun just now.
    for name in [format!("{NAME}.1"), NAME.to_owned()] {
        match File::open(dir.join(name)) {
            Ok(mut file) => {
                let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
                file.seek(SeekFrom::Start(start))?;
                file.take(TAIL_BYTES).read_to_end(&mut text)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(dir: &Path) -> io::Result<Vec<(String, String)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            files.push((entry.file_name().to_string_lossy().into_owned(), std::fs::read_to_string(entry.path())?));
        }
        files.sort();
        Ok(files)
    }

    fn pairs<const N: usize>(expected: [(&str, &str); N]) -> Vec<(String, String)> {
        expected.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
    }

    #[test]
    fn files_are_cut_at_lines_and_only_so_many_are_kept() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut log = RotatingLog::open(dir.path(), 10, 3)?;
        log.write(b"one\ntwo\nthree\nfour\n")?;
        let expected = [("app.log", "four\n"), ("app.log.1", "three\n"), ("app.log.2", "one\ntwo\n")];
        assert_eq!(contents(dir.path())?, pairs(expected));
        drop(log);
        let mut log = RotatingLog::open(dir.path(), 10, 3)?;
        log.write(b"five\nsix\n")?;
        let expected = [("app.log", "six\n"), ("app.log.1", "four\nfive\n"), ("app.log.2", "three\n")];
        assert_eq!(contents(dir.path())?, pairs(expected));
        assert_eq!(tail(dir.path(), 2)?, ["five", "six"]);
        assert_eq!(tail(dir.path(), 9)?, ["four", "five", "six"]);
        Ok(())
    }

    #[test]
    fn a_line_longer_than_a_file_is_cut() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut log = RotatingLog::open(dir.path(), 4, 1)?;
        log.write(b"abcdefghij\n")?;
        assert_eq!(contents(dir.path())?, pairs([("app.log", "ij\n")]));
        Ok(())
    }
}
