//! A part's file, as it is read: decompressed, hashed and counted on the way.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use sha2::{Digest, Sha256};
use tokio::{
    fs::File,
    io::{AsyncRead, BufReader, ReadBuf},
};

use super::{
    DataError, Part,
    manifest::open_plain,
    progress::{ReadMeter, SetDir},
};
use crate::config::Compression;

/// A set of version 1 records it by the name of the file alone.
fn compression_of(path: &Path) -> Compression {
    match path.extension().and_then(|e| e.to_str()) {
        Some("gz") => Compression::Gzip,
        Some("zst") => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The raw bytes of a part. Gives never more than the manifest recorded: what would unpack to more is an error.
#[derive(Debug)]
pub(super) struct PartReader {
    decoder: Decoder,
    file: String,
    sha256: String,
    /// Raw bytes recorded, and given so far.
    recorded: u64,
    given: u64,
}

impl PartReader {
    pub fn open(set: SetDir<'_>, part: &Part) -> Result<Self, DataError> {
        let path = set.join(&part.file);
        let file = open_plain(&path).map_err(DataError::io("reading", &path))?;
        let hashed = Hashed { file: File::from_std(file), hash: Sha256::new(), meter: Arc::clone(set.meter) };
        let hashed = BufReader::with_capacity(64 * 1024, hashed);
        let decoder = match part.compression.unwrap_or_else(|| compression_of(&path)) {
            Compression::Gzip => Decoder::Gzip(GzipDecoder::new(hashed)),
            Compression::Zstd => Decoder::Zstd(Box::new(ZstdDecoder::new(hashed))),
            Compression::None => Decoder::None(hashed),
        };
        let (file, sha256) = (part.file.clone(), part.sha256.clone());
        Ok(Self { decoder, file, sha256, recorded: part.raw_bytes, given: 0 })
    }

    /// Reads what is left and says whether it all was what the manifest recorded.
    pub async fn finish(mut self) -> Result<(), DataError> {
        let failed = |error: io::Error| DataError::dump(error.to_string());
        tokio::io::copy(&mut self, &mut tokio::io::sink()).await.map_err(failed)?;
        if self.given != self.recorded {
            let (file, given, recorded) = (&self.file, self.given, self.recorded);
            return Err(DataError::dump(format!("`{file}` unpacks to {given} bytes and should to {recorded}")));
        }
        let hashed = self.decoder.hashed();
        tokio::io::copy(hashed, &mut tokio::io::sink()).await.map_err(failed)?;
        let sha256 = hex::encode(std::mem::take(&mut hashed.get_mut().hash).finalize());
        if sha256 != self.sha256 {
            return Err(DataError::dump(format!("`{}` was changed while it was read", self.file)));
        }
        Ok(())
    }
}

impl AsyncRead for PartReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if let Err(error) = ready!(self.decoder.inner().poll_read(cx, buf)) {
            let why = format!("`{}` cannot be unpacked: {error}", self.file);
            return Poll::Ready(Err(io::Error::new(error.kind(), why)));
        }
        self.given += (buf.filled().len() - before) as u64;
        if self.given > self.recorded {
            buf.set_filled(before);
            let why = format!("`{}` unpacks to more than the {} bytes recorded", self.file, self.recorded);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        Poll::Ready(Ok(()))
    }
}

#[derive(Debug)]
enum Decoder {
    Gzip(GzipDecoder<BufReader<Hashed>>),
    Zstd(Box<ZstdDecoder<BufReader<Hashed>>>),
    None(BufReader<Hashed>),
}

impl Decoder {
    fn hashed(&mut self) -> &mut BufReader<Hashed> {
        match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
            Self::None(hashed) => hashed,
        }
    }

    fn inner(&mut self) -> Pin<&mut (dyn AsyncRead + Send + Unpin)> {
        let inner: &mut (dyn AsyncRead + Send + Unpin) = match self {
            Self::Gzip(decoder) => decoder,
            Self::Zstd(decoder) => decoder.as_mut(),
            Self::None(hashed) => hashed,
        };
        Pin::new(inner)
    }
}

/// The file, with the hash of what was read of it.
#[derive(Debug)]
struct Hashed {
    file: File,
    hash: Sha256,
    meter: Arc<ReadMeter>,
}

impl AsyncRead for Hashed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.file).poll_read(cx, buf))?;
        self.hash.update(&buf.filled()[before..]);
        self.meter.add(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}
