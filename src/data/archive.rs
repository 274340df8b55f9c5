//! Trees of files as one stream: tar in the pax format, which any `tar` reads, written and read a chunk at a time.
//!
//! **Packing** (`pack.rs`) keeps what makes a tree what it is: names as bytes, permissions, numeric owners, symbolic and hard links, times to the
//! nanosecond, empty directories. Sockets, pipes and devices are skipped with a note. A file that changes meanwhile gets the size it
//! had when it was opened, cut or padded with zeros, and a note. Extended attributes and access lists are not kept.
//!
//! **One order.** Entries stand in the order of a walk: a directory before what is in it, siblings by the bytes of their names. Whoever reads insists
//! on that ([`Guard`]), which leaves no room for a second entry of the same name, for one below a link, or for one without
//! its directory, and needs no memory to find them.
//!
//! **Unpacking** (`unpack.rs`) trusts nothing. Names are checked when they are read (`tape.rs`): none is absolute, has `..` or a NUL in it. Every
//! file is made anew (`O_EXCL`) through the open directory it belongs into, so that no link is ever followed; devices,
//! pipes, sparse files and whatever else is not in the list above are refused. What it may unpack to is bounded by the caller.
//!
//! **Exchange** (`exchange.rs`): a tree is unpacked beside the one that it replaces, and takes its place in one step at the end.
//!
//! The [`Listing`] is what a tree is compared by: the number of entries, the bytes of all files, and a hash over every entry and its
//! content, made while packing and again from what was unpacked. Owners and times are not in it: a rehearsal may run as another user, on another file system.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    io,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(super) mod exchange;
mod pack;
pub(super) mod pipe;
mod tape;
#[cfg(test)]
pub(super) mod tests;
mod unpack;

pub(super) use pack::{Exclude, Packed, below, pack, transcode};
pub(super) use tape::check_stream;
pub(super) use unpack::{Unpacked, unpack};

/// Directories inside each other. Walking and removing a tree hold one descriptor a level.
const MOST_DEPTH: usize = 256;

/// Bytes of one name, as Linux has it.
const MOST_NAME: usize = 255;

/// Bytes of a symbolic link's target, as Linux has it.
const MOST_TARGET: usize = 4095;

const BUFFER: usize = 64 * 1024;

/// What is noted in full; of more only the number is.
const MOST_NOTES: usize = 20;

/// What a tree holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    /// Files, directories (the root too) and links.
    pub entries: u64,
    /// Of all files.
    pub bytes: u64,
    /// Over kind, path, permissions, size, target and content of every entry, lower-case hexadecimal.
    pub sha256: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Symlink,
    /// Its `link` is the path of an entry before it.
    HardLink,
    /// The letter that tar has for it: nothing that a backup holds.
    Other(u8),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Time {
    seconds: i64,
    nanoseconds: u32,
}

/// One entry of an archive. What it says of names holds: see [`checked_name`].
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Relative to the root, parts joined by single slashes; empty for the root itself.
    path: Vec<u8>,
    kind: Kind,
    /// The permission bits, 0o7777.
    mode: u32,
    uid: u32,
    gid: u32,
    /// Of a file's content; 0 for others.
    size: u64,
    mtime: Time,
    link: Vec<u8>,
}

impl Entry {
    /// For messages.
    fn shown(&self) -> String {
        shown(&self.path)
    }
}

/// A path for messages: of any length and any bytes.
fn shown(path: &[u8]) -> String {
    const SHOWN: usize = 200;
    let text: String = String::from_utf8_lossy(path).escape_debug().take(SHOWN).collect();
    if text.is_empty() { "the top directory".to_owned() } else { format!("`{text}`") }
}

fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
}

/// The directory and the last part.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// What tar's letter stands for.
fn name_of(kind: u8) -> String {
    match kind {
        b'3' | b'4' => "a device".to_owned(),
        b'6' => "a pipe".to_owned(),
        b'S' => "a sparse file".to_owned(),
        other => format!("of kind `{}`", char::from(other).escape_default()),
    }
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// A path from an archive without `./` and doubled slashes, if it stays inside.
fn checked_name(raw: &[u8]) -> io::Result<Vec<u8>> {
    let refuse = |why: &str| Err(bad(format!("the archive names {}, which {why}", shown(raw))));
    if raw.first() == Some(&b'/') {
        return refuse("is absolute");
    }
    if raw.contains(&0) {
        return refuse("has a NUL in it");
    }
    let mut path = Vec::with_capacity(raw.len());
    let mut depth = 0;
    for part in parts(raw).filter(|part| *part != b".") {
        if part == b".." {
            return refuse("leads out of it");
        }
        if part.len() > MOST_NAME {
            return refuse("is longer than a name can be");
        }
        depth += 1;
        if depth > MOST_DEPTH {
            return refuse("lies too deep");
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    Ok(path)
}

/// What an archive may unpack to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub entries: u64,
    /// Of all files.
    pub bytes: u64,
}

/// Holds an archive to the one order and to its limits.
#[derive(Debug)]
struct Guard {
    limits: Limits,
    entries: u64,
    bytes: u64,
    previous: Option<Vec<u8>>,
    /// The directories that are open: the last entry's ancestors, and itself if it is one.
    open: Vec<Vec<u8>>,
    /// Hashes of the symbolic links' paths: no hard link may point through one. Two that collide only refuse too much.
    symlinks: HashSet<u64>,
    hasher: RandomState,
}

impl Guard {
    fn new(limits: Limits) -> Self {
        let (previous, open, symlinks) = (None, Vec::new(), HashSet::new());
        Self { limits, entries: 0, bytes: 0, previous, open, symlinks, hasher: RandomState::new() }
    }

    /// How many directories stay open, which is where the entry goes.
    fn admit(&mut self, entry: &Entry) -> io::Result<usize> {
        if let Kind::Other(kind) = entry.kind {
            return Err(bad(format!("{} is {}, which no backup holds", entry.shown(), name_of(kind))));
        }
        self.count(entry)?;
        let Some(previous) = &self.previous else {
            if !entry.path.is_empty() || entry.kind != Kind::Directory {
                return Err(bad(format!("the archive begins with {}, not with its top directory", entry.shown())));
            }
            self.open.push(Vec::new());
            self.previous = Some(Vec::new());
            return Ok(0);
        };
        if !parts(previous).lt(parts(&entry.path)) {
            return Err(bad(format!("{} stands in the archive twice or in the wrong place", entry.shown())));
        }
        let (parent, _) = split(&entry.path);
        while self.open.last().is_some_and(|open| open != parent) {
            self.open.pop();
        }
        if self.open.is_empty() {
            return Err(bad(format!("{} is in no directory of the archive", entry.shown())));
        }
        let depth = self.open.len();
        match entry.kind {
            Kind::Directory => self.open.push(entry.path.clone()),
            Kind::Symlink => {
                self.symlinks.insert(self.hasher.hash_one(&entry.path));
            }
            Kind::HardLink => self.check_hard_link(entry)?,
            Kind::File | Kind::Other(_) => {}
        }
        self.previous = Some(entry.path.clone());
        Ok(depth)
    }

    fn count(&mut self, entry: &Entry) -> io::Result<()> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.entries > self.limits.entries {
            return Err(bad(format!("the archive has more than the {} entries recorded", self.limits.entries)));
        }
        if self.bytes > self.limits.bytes {
            return Err(bad(format!("the archive unpacks to more than the {} bytes recorded", self.limits.bytes)));
        }
        Ok(())
    }

    fn check_hard_link(&self, entry: &Entry) -> io::Result<()> {
        let target = &entry.link;
        let ends = target.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let through = |end: usize| self.symlinks.contains(&self.hasher.hash_one(target[..end].to_vec()));
        if target.is_empty() || !parts(target).lt(parts(&entry.path)) || ends.chain([target.len()]).any(through) {
            let (name, target) = (entry.shown(), shown(target));
            return Err(bad(format!("the hard link {name} points to {target}, which is no file before it")));
        }
        Ok(())
    }
}

/// Makes a [`Listing`].
#[derive(Debug, Default)]
struct Lister {
    hash: Sha256,
    entries: u64,
    bytes: u64,
}

impl Lister {
    /// With the SHA-256 of a file's content.
    fn add(&mut self, entry: &Entry, content: Option<Sha256>) {
        let kind = match entry.kind {
            Kind::Directory => b'd',
            Kind::File => b'f',
            Kind::Symlink => b'l',
            Kind::HardLink => b'h',
            Kind::Other(kind) => kind,
        };
        self.entries += 1;
        self.bytes += entry.size;
        self.hash.update([kind]);
        for field in [&entry.path, &entry.link] {
            self.hash.update((field.len() as u64).to_le_bytes());
            self.hash.update(field);
        }
        // Bits that only some users may set are not compared.
        self.hash.update((entry.mode & 0o1777).to_le_bytes());
        self.hash.update(entry.size.to_le_bytes());
        if let Some(content) = content {
            self.hash.update(content.finalize());
        }
    }

    fn finish(self) -> Listing {
        Listing { entries: self.entries, bytes: self.bytes, sha256: hex::encode(self.hash.finalize()) }
    }
}

/// What a person should know of a tree that was packed or unpacked.
#[derive(Debug, Default)]
pub(super) struct Notes {
    said: Vec<String>,
    total: usize,
}

impl Notes {
    fn add(&mut self, note: String) {
        self.total += 1;
        if self.said.len() < MOST_NOTES {
            self.said.push(note);
        }
    }

    /// A line each; the last tells how many more there are.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.said.clone();
        if self.total > lines.len() {
            lines.push(format!("and {} more like these", self.total - lines.len()));
        }
        lines
    }
}
