//! One file of a set, as it is written: raw bytes go in; compressed, hashed and counted they reach the disk.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
use sha2::{Digest, Sha256};
use tokio::{
    fs::{File, OpenOptions},
    io::{AsyncWrite, AsyncWriteExt},
};

use super::DataError;
use crate::{config::Compression, model::EnvironmentKey};

/// Raw bytes kept of the beginning and of the end of a dump, to judge whether it is whole.
pub(super) const SAMPLE: usize = 4096;

/// How far a part has come; shared with whoever tells.
#[derive(Debug, Default)]
pub(super) struct Meter {
    raw: AtomicU64,
    written: AtomicU64,
}

impl Meter {
    /// `usual`: how much there was to read the last time.
    pub fn progress(&self, name: &str, elapsed: Duration, usual: Option<u64>) -> String {
        let raw = self.raw.load(Relaxed);
        let rate = u64::try_from(u128::from(raw) * 1000 / elapsed.as_millis().max(1)).unwrap_or(u64::MAX);
        let left = usual.filter(|usual| *usual > raw && rate > 0).map(|usual| {
            let seconds = (usual - raw).div_ceil(rate);
            format!(", about {} left of the {} of last time", time(seconds), size(usual))
        });
        let written = size(self.written.load(Relaxed));
        format!("dumping `{name}`: {} read, {written} written, {}/s{}", size(raw), size(rate), left.unwrap_or_default())
    }
}

/// `40 s`, `3 min`.
pub(super) fn time(seconds: u64) -> String {
    if seconds < 100 { format!("{seconds} s") } else { format!("{} min", seconds.div_ceil(60)) }
}

/// `12.3 MiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal for people")]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Where a part is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub dir: &'a Path,
    pub meter: &'a Arc<Meter>,
    /// Whose the set is.
    pub key: &'a EnvironmentKey,
}

/// How the name of a copy ends that is looked at, in its set, and removed again. It begins with a dot.
pub(super) const LOOK: &str = ".look";

/// The ending that tells a file's compression.
pub(super) fn suffix(compression: Compression) -> &'static str {
    match compression {
        Compression::Gzip => ".gz",
        Compression::Zstd => ".zst",
        Compression::None => "",
    }
}

/// A file that is removed when it is dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct Doomed {
    pub path: PathBuf,
    kept: bool,
}

impl Doomed {
    pub fn new(path: PathBuf) -> Self {
        Self { path, kept: false }
    }

    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        if !self.kept {
            // The whole set's directory goes if nothing in it is good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What became of a part's bytes.
#[derive(Debug)]
pub(super) struct Written {
    pub file: String,
    pub sha256: String,
    pub bytes: u64,
    pub raw_bytes: u64,
    /// The first raw bytes, at most [`SAMPLE`].
    pub head: Vec<u8>,
    /// The last raw bytes, at least [`SAMPLE`] where there are as many.
    pub tail: Vec<u8>,
    /// Keep it once the dump has been found whole.
    pub doomed: Doomed,
}

/// The sink of a dump.
#[derive(Debug)]
pub(super) struct PartWriter {
    encoder: Encoder,
    meter: Arc<Meter>,
    name: String,
    doomed: Doomed,
    raw_bytes: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
    failure: Option<io::Error>,
}

impl PartWriter {
    /// Makes the file, 0600; there must be none of that name.
    pub async fn create(place: &Place<'_>, file: String, compression: Compression) -> Result<Self, DataError> {
        let path = place.dir.join(&file);
        let doomed = Doomed::new(path.clone());
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).await;
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // What is there already is not ours to remove.
                doomed.keep();
                return Err(DataError::io("making", &path)(error));
            }
        };
        let hashed = Hashed { file: opened, hash: Sha256::new(), bytes: 0, meter: Arc::clone(place.meter) };
        let encoder = match compression {
            Compression::Gzip => Encoder::Gzip(GzipEncoder::new(hashed)),
            Compression::Zstd => Encoder::Zstd(Box::new(ZstdEncoder::new(hashed))),
            Compression::None => Encoder::None(hashed),
        };
        let meter = Arc::clone(place.meter);
        Ok(Self { encoder, meter, name: file, doomed, raw_bytes: 0, head: Vec::new(), tail: Vec::new(), failure: None })
    }

    /// The error that ended writing, if that is what happened: the cause of what the source says.
    pub fn failure(&mut self, part: &str) -> Option<DataError> {
        let error = self.failure.take()?;
        Some(write_error(error, part, &self.doomed.path))
    }

    /// Ends the compressed stream and waits until the disk has everything.
    pub async fn finish(mut self, part: &str) -> Result<Written, DataError> {
        let finished = async {
            self.encoder.shutdown().await?;
            self.encoder.hashed().file.sync_all().await
        };
        finished.await.map_err(|error| write_error(error, part, &self.doomed.path))?;
        let hashed = self.encoder.hashed();
        let bytes = hashed.bytes;
        let sha256 = hex::encode(std::mem::take(&mut hashed.hash).finalize());
        let Self { raw_bytes, head, tail, doomed, name: file, .. } = self;
        Ok(Written { file, sha256, bytes, raw_bytes, head, tail, doomed })
    }

    fn note(&mut self, raw: &[u8]) {
        self.raw_bytes += raw.len() as u64;
        self.meter.raw.store(self.raw_bytes, Relaxed);
        sample(&mut self.head, &mut self.tail, raw);
    }
}

/// Takes the next bytes of something into its first and its last [`SAMPLE`].
pub(super) fn sample(head: &mut Vec<u8>, tail: &mut Vec<u8>, raw: &[u8]) {
    head.extend_from_slice(&raw[..raw.len().min(SAMPLE - head.len())]);
    tail.extend_from_slice(&raw[raw.len().saturating_sub(SAMPLE)..]);
    if tail.len() > 8 * SAMPLE {
        tail.drain(..tail.len() - SAMPLE);
    }
}

/// A failure to write the file of `part`.
pub(super) fn write_error(error: io::Error, part: &str, path: &Path) -> DataError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            DataError::NoSpace { place: path.parent().unwrap_or(path).to_owned(), doing: format!("dumping `{part}`") }
        }
        _ => DataError::Io { operation: "writing", path: path.to_owned(), source: error },
    }
}

impl AsyncWrite for PartWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.encoder).poll_write(cx, buf));
        Poll::Ready(match result {
            Ok(n) => {
                self.note(&buf[..n]);
                Ok(n)
            }
            Err(error) => Err(self.fail(error)),
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.encoder).poll_flush(cx));
        Poll::Ready(result.map_err(|error| self.fail(error)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.encoder).poll_shutdown(cx));
        Poll::Ready(result.map_err(|error| self.fail(error)))
    }
}

impl PartWriter {
    /// Remembers the first error; the source gets one of the same kind.
    fn fail(&mut self, error: io::Error) -> io::Error {
        let told = io::Error::new(error.kind(), error.to_string());
        self.failure.get_or_insert(error);
        told
    }
}

#[derive(Debug)]
enum Encoder {
    Gzip(GzipEncoder<Hashed>),
    Zstd(Box<ZstdEncoder<Hashed>>),
    None(Hashed),
}

impl Encoder {
    fn hashed(&mut self) -> &mut Hashed {
        match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::None(hashed) => hashed,
        }
    }

    fn inner(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        let inner: &mut (dyn AsyncWrite + Send + Unpin) = match self {
            Self::Gzip(encoder) => encoder,
            Self::Zstd(encoder) => encoder.as_mut(),
            Self::None(hashed) => hashed,
        };
        Pin::new(inner)
    }
}

impl AsyncWrite for Encoder {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(cx)
    }
}

/// The file, with the hash and the size of what went into it.
#[derive(Debug)]
struct Hashed {
    file: File,
    hash: Sha256,
    bytes: u64,
    meter: Arc<Meter>,
}

impl AsyncWrite for Hashed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.file).poll_write(cx, buf))?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        self.meter.written.store(self.bytes, Relaxed);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_has_a_rate_and_the_time_that_is_left() {
        let meter = Meter::default();
        let ten = Duration::from_secs(10);
        meter.raw.store(40 << 20, Relaxed);
        meter.written.store(10 << 20, Relaxed);
        let said = "dumping `db`: 40.0 MiB read, 10.0 MiB written, 4.0 MiB/s";
        assert_eq!(meter.progress("db", ten, None), said);
        let left = format!("{said}, about 15 s left of the 100.0 MiB of last time");
        assert_eq!(meter.progress("db", ten, Some(100 << 20)), left);
        assert_eq!(meter.progress("db", ten, Some(30 << 20)), said, "it has grown");
        assert!(meter.progress("db", ten, Some(8 << 30)).contains("about 34 min left"));
    }
}
