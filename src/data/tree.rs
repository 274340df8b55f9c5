//! What `files` and `volume` share: an archive as a part of a set, written, looked at, tried out, and unpacked beside what it is to replace.
//!
//! Archives are made and unpacked on threads that may block, and streamed to and from the part's file through a pipe of a few
//! chunks. A job that is cancelled closes the pipe, which ends the thread.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Check, DataError, Part, PartFormat, PartKind, PartSource,
    archive::{
        Exclude, Limits, Listing, Packed, Unpacked, check_stream,
        exchange::{Replaced, Stage},
        pack,
        pipe::{Drain, Feed, pipe},
        unpack,
    },
    kind::Stored,
    part::{self, PartWriter, Place, Written},
    progress::SetDir,
    restore::Loaded,
    unpack::PartReader,
};
use crate::{
    config::{Backup, Compression, PathRules},
    files,
    runtime::Job,
};

const CHUNK: usize = 64 * 1024;

/// What a part that is a tree holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tree {
    pub listing: Listing,
    /// What a person should know: sockets that were left out, files that changed while they were read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

pub(super) fn exclude(rules: &PathRules) -> Exclude {
    Exclude::new(rules.set.clone())
}

/// Writes the part's file from what `make` packs.
pub(super) async fn store(
    backup: &Backup,
    place: &Place<'_>,
    job: &Job,
    make: impl FnOnce(Feed) -> io::Result<Packed<Feed>> + Send + 'static,
) -> Result<(Written, Tree), DataError> {
    let name = backup.name.as_str();
    let file = format!("{name}.tar{}", part::suffix(backup.compression));
    let mut writer = PartWriter::create(place, file, backup.compression).await?;
    let (feed, mut chunks) = pipe();
    let making = tokio::task::spawn_blocking(move || {
        let Packed { sink, listing, notes } = make(Feed::new(feed))?;
        // Its end is what is waited for below.
        drop(sink);
        io::Result::Ok((listing, notes.lines()))
    });
    loop {
        let chunk = tokio::select! {
            () = job.cancel.cancelled() => return Err(DataError::Cancelled),
            chunk = chunks.recv() => chunk,
        };
        let Some(chunk) = chunk else { break };
        if let Err(error) = writer.write_all(&chunk).await {
            return Err(writer.failure(name).unwrap_or_else(|| part::write_error(error, name, place.dir)));
        }
    }
    let made = making.await.map_err(interrupted)?;
    let (listing, notes) = made.map_err(|error| DataError::dump(error.to_string()))?;
    notes.iter().for_each(|note| job.log.line(note));
    let written = writer.finish(name).await?;
    Ok((written, Tree { listing, notes }))
}

/// The part that was written.
pub(super) fn part(backup: &Backup, kind: PartKind, source: PartSource, made: (Written, Tree), hint: &str) -> Part {
    let (written, tree) = made;
    written.doomed.keep();
    let read = read_command(backup.compression);
    Part {
        name: backup.name.to_string(),
        kind,
        format: PartFormat::Tar,
        source,
        restore: format!("{read} {} | {hint}", written.file),
        file: written.file,
        sha256: written.sha256,
        bytes: written.bytes,
        raw_bytes: written.raw_bytes,
        compression: Some(backup.compression),
        tables: Vec::new(),
        tree: Some(tree),
        roles: None,
        tool: "tar (pax)".to_owned(),
        server: None,
        duration_ms: 0,
    }
}

/// What writes a part's raw bytes, for people.
pub(super) fn read_command(compression: Compression) -> &'static str {
    match compression {
        Compression::Gzip => "gunzip -c",
        Compression::Zstd => "zstd -dc",
        Compression::None => "cat",
    }
}

/// Hands the part's raw bytes to `work`, which reads an archive to its end, and checks that they were what the manifest recorded.
pub(super) async fn load<T: Send + 'static>(
    set: SetDir<'_>,
    part: &Part,
    job: &Job,
    work: impl FnOnce(Drain) -> io::Result<T> + Send + 'static,
) -> Result<T, DataError> {
    let mut reader = PartReader::open(set, part)?;
    let (feed, chunks) = pipe();
    let working = tokio::task::spawn_blocking(move || work(Drain::new(chunks)));
    let fed = tokio::select! {
        () = job.cancel.cancelled() => Err(DataError::Cancelled),
        fed = async {
            loop {
                let mut chunk = vec![0; CHUNK];
                let n = reader.read(&mut chunk).await.map_err(|error| DataError::dump(error.to_string()))?;
                chunk.truncate(n);
                // Who reads no more says why, or has all it needs.
                if n == 0 || feed.send(chunk).await.is_err() {
                    return Ok(());
                }
            }
        } => fed,
    };
    drop(feed);
    let worked = working.await.map_err(interrupted)?;
    let good = match fed {
        Ok(()) => match worked {
            Ok(value) => match reader.finish().await {
                Ok(()) => Ok(value),
                Err(error) => Err((error, Some(value))),
            },
            Err(error) => Err((unpack_error(&error, part), None)),
        },
        Err(error) => Err((error, worked.ok())),
    };
    good.map_err(|(error, made)| {
        // What it made may be large, and goes with it.
        drop(tokio::task::spawn_blocking(move || drop(made)));
        error
    })
}

fn interrupted(error: tokio::task::JoinError) -> DataError {
    DataError::dump(format!("it was interrupted: {error}"))
}

fn unpack_error(error: &io::Error, part: &Part) -> DataError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            DataError::dump(format!("no space left for the unpacked {}: free some", part::size(part.raw_bytes)))
        }
        _ => DataError::dump(error.to_string()),
    }
}

fn recorded(part: &Part) -> Result<Listing, DataError> {
    let tree = part.tree.as_ref().filter(|_| part.format == PartFormat::Tar);
    Ok(tree.ok_or_else(|| DataError::dump("the manifest does not say what it holds"))?.listing.clone())
}

fn limits(listing: &Listing) -> Limits {
    Limits { entries: listing.entries, bytes: listing.bytes }
}

pub(super) fn same(found: &Listing, recorded: &Listing) -> io::Result<()> {
    if found == recorded {
        return Ok(());
    }
    let why = format!("it holds {}, and should hold {}, or not the same ones", told(found), told(recorded));
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

fn told(listing: &Listing) -> String {
    format!("{} entries with {}", listing.entries, part::size(listing.bytes))
}

/// Reads the whole archive as unpacking would: what it holds, if that is what was recorded.
pub(super) async fn check(set: SetDir<'_>, part: &Part, job: &Job) -> Result<Listing, DataError> {
    let listing = recorded(part)?;
    load(set, part, job, move |drain| {
        same(&check_stream(drain, limits(&listing))?, &listing)?;
        Ok(listing)
    })
    .await
}

pub(super) async fn catalogue(stored: Stored<'_>, job: &Job) -> Result<Vec<Check>, DataError> {
    const WHAT: &str = "list of entries";
    match check(stored.set, stored.part, job).await {
        Ok(listing) => Ok(vec![Check::good(WHAT, format!("{}, as recorded", told(&listing)))]),
        Err(DataError::Dump { why }) => Ok(vec![Check::bad(WHAT, why)]),
        Err(other) => Err(other),
    }
}

/// A directory that goes when this does.
#[derive(Debug)]
struct DoomedDir(PathBuf);

impl DoomedDir {
    /// One name a part: what an earlier attempt that was killed left gives way.
    fn make(path: PathBuf) -> io::Result<Self> {
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for DoomedDir {
    fn drop(&mut self) {
        // What may be left is removed with the set, or by the next attempt.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Unpacks it beside its file and reads what is there then.
pub(super) async fn rehearse(stored: Stored<'_>, job: &Job) -> Result<(), DataError> {
    let recorded = recorded(stored.part)?;
    let dir = stored.set.join(format!(".{}{}", stored.part.name, part::LOOK));
    load(stored.set, stored.part, job, move |drain| {
        let dir = DoomedDir::make(dir)?;
        refuse_too_much(&dir.0, &recorded)?;
        same(&unpack(drain, &dir.0, limits(&recorded))?.listing, &recorded)?;
        same(&pack(&dir.0, &Exclude::default(), io::sink())?.listing, &recorded)
    })
    .await
}

/// Says so before the disk is full.
fn refuse_too_much(dir: &Path, listing: &Listing) -> io::Result<()> {
    let free = files::free_space(dir)?;
    if listing.bytes > free {
        let (needed, free) = (part::size(listing.bytes), part::size(free));
        let why = format!("it unpacks to {needed} and there are {free} left for it in {}: free some", dir.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let stat = rustix::fs::statvfs(dir)?;
    // Some file systems have no such limit, and say 0 of 0.
    if stat.f_files > 0 && stat.f_favail < listing.entries {
        let why = format!("{} has no room for {} more files", dir.display(), listing.entries);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(())
}

/// A tree that is ready to take its place.
#[derive(Debug)]
pub(super) struct Ready {
    stage: Stage,
    unpacked: Unpacked,
}

/// Unpacks the part beside `root`, or `within` it, on the disk for good.
pub(super) async fn prepare(
    set: SetDir<'_>,
    part: &Part,
    job: &Job,
    target: (PathBuf, Exclude, bool),
) -> Result<Ready, DataError> {
    let recorded = recorded(part)?;
    let (root, exclude, within) = target;
    load(set, part, job, move |drain| {
        let stage = Stage::prepare(&root, within)?;
        refuse_too_much(&stage.tree(), &recorded)?;
        let unpacked = unpack(drain, &stage.tree(), limits(&recorded))?;
        same(&unpacked.listing, &recorded)?;
        stage.carry_over(&exclude)?;
        stage.sync()?;
        Ok(Ready { stage, unpacked })
    })
    .await
}

/// The last step, and the end of the old tree.
pub(super) async fn exchange(ready: Ready) -> Result<Loaded, DataError> {
    let Ready { stage, unpacked } = ready;
    let exchanged = tokio::task::spawn_blocking(move || stage.exchange()).await.map_err(interrupted)?;
    let replaced = exchanged.map_err(|error| DataError::dump(error.to_string()))?;
    let mut notes = unpacked.notes.lines();
    notes.extend(remove(replaced).await);
    Ok(Loaded { tables: unpacked.listing.entries, rows: None, note: (!notes.is_empty()).then(|| notes.join("; ")) })
}

/// What a person should know of it.
async fn remove(replaced: Replaced) -> Option<String> {
    let removed = tokio::task::spawn_blocking(move || replaced.remove()).await.ok()?;
    let (path, error) = removed.err()?;
    Some(format!("what it replaced is still in {} and goes with the next restore: {error}", path.display()))
}
