//! A tree into an archive, in the one order.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use globset::GlobSet;
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, open, openat, readlinkat, statat},
    io::Errno,
};
use sha2::{Digest, Sha256};

use super::{
    BUFFER, Entry, Guard, Kind, Limits, Lister, Listing, MOST_DEPTH, Notes, Time, bad,
    exchange::{STAGING, is_mark},
    parts, shown, split,
    tape::{TapeReader, TapeWriter},
};

/// What is left out, below which nothing is looked at either.
#[derive(Debug, Clone, Default)]
pub(in crate::data) struct Exclude(Option<GlobSet>);

impl Exclude {
    pub fn new(patterns: Option<GlobSet>) -> Self {
        Self(patterns)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// For a path relative to the root.
    pub fn covers(&self, path: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|patterns| patterns.is_match(Path::new(OsStr::from_bytes(path))))
    }

    /// As [`Exclude::covers`], or for a directory above it.
    fn covers_any(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]);
        ends.into_iter().any(|end| self.covers(&path[..end]))
    }
}

/// What was packed.
#[derive(Debug)]
pub(in crate::data) struct Packed<W> {
    pub sink: W,
    pub listing: Listing,
    pub notes: Notes,
}

/// Writes the tree at `root`, a directory. Blocks.
pub(in crate::data) fn pack<W: Write>(root: &Path, exclude: &Exclude, sink: W) -> io::Result<Packed<W>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = open(root, flags, Mode::empty())?;
    let mut packer = Packer {
        exclude,
        writer: TapeWriter::new(sink),
        lister: Lister::default(),
        notes: Notes::default(),
        linked: HashMap::new(),
        path: Vec::new(),
        buffer: vec![0; BUFFER],
    };
    let entry = packer.described(&fstat(&top)?, Kind::Directory);
    packer.put(&entry)?;
    packer.walk(&top, 0)?;
    Ok(Packed { sink: packer.writer.finish()?, listing: packer.lister.finish(), notes: packer.notes })
}

struct Packer<'a, W> {
    exclude: &'a Exclude,
    writer: TapeWriter<W>,
    lister: Lister,
    notes: Notes,
    /// Files with several names, by device and inode: the first name.
    linked: HashMap<(u64, u64), Vec<u8>>,
    /// Of the entry at hand.
    path: Vec<u8>,
    buffer: Vec<u8>,
}

impl<W: Write> Packer<'_, W> {
    fn walk(&mut self, dir: &OwnedFd, depth: usize) -> io::Result<()> {
        let above = self.path.len();
        for name in names(dir.as_fd()).map_err(|error| self.at(error))? {
            if depth == 0 && name == STAGING.as_bytes() {
                continue;
            }
            if above > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name);
            if !self.exclude.covers(&self.path) {
                self.one(dir, &name, depth)?;
            }
            self.path.truncate(above);
        }
        Ok(())
    }

    fn one(&mut self, dir: &OwnedFd, name: &[u8], depth: usize) -> io::Result<()> {
        let found = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return self.gone(),
            found => found.map_err(|error| self.at(error.into()))?,
        };
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => self.directory(dir, name, depth + 1),
            FileType::RegularFile => self.file(dir, name),
            FileType::Symlink => match readlinkat(dir, name, Vec::new()) {
                Err(Errno::NOENT | Errno::INVAL) => self.gone(),
                target => {
                    let target = target.map_err(|error| self.at(error.into()))?;
                    let entry = Entry { link: target.into_bytes(), ..self.described(&found, Kind::Symlink) };
                    self.put(&entry)
                }
            },
            other => {
                self.notes.add(format!("{} is left out: it is no file, but a {other:?}", shown(&self.path)));
                Ok(())
            }
        }
    }

    fn directory(&mut self, dir: &OwnedFd, name: &[u8], depth: usize) -> io::Result<()> {
        if depth >= MOST_DEPTH {
            return Err(bad(format!("{} lies deeper than {MOST_DEPTH} directories", shown(&self.path))));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inner = match openat(dir, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return self.gone(),
            inner => inner.map_err(|error| self.at(error.into()))?,
        };
        let found = fstat(&inner).map_err(|error| self.at(error.into()))?;
        let entry = self.described(&found, Kind::Directory);
        self.put(&entry)?;
        self.walk(&inner, depth)
    }

    fn file(&mut self, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        // What became a pipe meanwhile must not be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(dir, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return self.gone(),
            file => file.map_err(|error| self.at(error.into()))?,
        };
        let found = fstat(&file).map_err(|error| self.at(error.into()))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return self.gone();
        }
        if found.st_nlink > 1 {
            let key = (found.st_dev, found.st_ino);
            if let Some(first) = self.linked.get(&key) {
                let entry = Entry { link: first.clone(), ..self.described(&found, Kind::HardLink) };
                return self.put(&entry);
            }
            self.linked.insert(key, self.path.clone());
        }
        let size = u64::try_from(found.st_size).unwrap_or_default();
        let entry = Entry { size, ..self.described(&found, Kind::File) };
        self.writer.entry(&entry)?;
        let mut file = std::fs::File::from(file);
        let content = self.content(&mut file, size)?;
        self.lister.add(&entry, Some(content));
        let after = fstat(&file).map_err(|error| self.at(error.into()))?;
        if same_moment(&found, &after) {
            return Ok(());
        }
        self.notes.add(format!("{} changed while it was read", shown(&self.path)));
        Ok(())
    }

    /// Exactly `size` bytes: what is missing is made up by zeros, what was added since is left.
    fn content(&mut self, file: &mut std::fs::File, size: u64) -> io::Result<Sha256> {
        let mut hash = Sha256::new();
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let n = match file.read(&mut self.buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(|error| self.at(error))?,
            };
            let n = if n == 0 {
                self.buffer[..most].fill(0);
                most
            } else {
                n
            };
            hash.update(&self.buffer[..n]);
            self.writer.body(&self.buffer[..n])?;
            left -= n as u64;
        }
        Ok(hash)
    }

    fn put(&mut self, entry: &Entry) -> io::Result<()> {
        self.writer.entry(entry)?;
        self.lister.add(entry, None);
        Ok(())
    }

    fn described(&self, found: &Stat, kind: Kind) -> Entry {
        Entry {
            path: self.path.clone(),
            kind,
            mode: found.st_mode & 0o7777,
            uid: found.st_uid,
            gid: found.st_gid,
            size: 0,
            mtime: Time {
                seconds: found.st_mtime,
                nanoseconds: u32::try_from(found.st_mtime_nsec).unwrap_or_default(),
            },
            link: Vec::new(),
        }
    }

    fn gone(&mut self) -> io::Result<()> {
        self.notes.add(format!("{} is left out: it went away while the tree was read", shown(&self.path)));
        Ok(())
    }

    /// Says which entry an error is about.
    fn at(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", shown(&self.path)))
    }
}

fn same_moment(before: &Stat, after: &Stat) -> bool {
    (before.st_size, before.st_mtime, before.st_mtime_nsec) == (after.st_size, after.st_mtime, after.st_mtime_nsec)
}

fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// An archive that another tool made of a tree (`top/…`), written anew as ours: without `top`, without what is excluded, and without what no backup
/// holds. Blocks.
pub(in crate::data) fn transcode<W: Write>(source: impl Read, exclude: &Exclude, sink: W) -> io::Result<Packed<W>> {
    let mut reader = TapeReader::new(source);
    let mut writer = TapeWriter::new(sink);
    let (mut lister, mut notes) = (Lister::default(), Notes::default());
    let mut guard = Guard::new(Limits { entries: u64::MAX, bytes: u64::MAX });
    let mut buffer = vec![0; BUFFER];
    while let Some(mut entry) = reader.next()? {
        entry.path = below_top(&entry.path);
        if is_mark(&entry.path) {
            return Err(bad("it holds a restore that was interrupted: restore again first"));
        }
        if exclude.covers_any(&entry.path) || parts(&entry.path).next() == Some(STAGING.as_bytes()) {
            continue;
        }
        if let Kind::Other(kind @ (b'3' | b'4' | b'6')) = entry.kind {
            notes.add(format!("{} is left out: it is {}", entry.shown(), super::name_of(kind)));
            continue;
        }
        if entry.kind == Kind::HardLink {
            entry.link = below_top(&entry.link);
            if exclude.covers_any(&entry.link) {
                let (name, target) = (entry.shown(), shown(&entry.link));
                return Err(bad(format!("{name} is the same file as {target}, which `exclude` names: exclude both")));
            }
        }
        guard.admit(&entry)?;
        writer.entry(&entry)?;
        let mut content = Sha256::new();
        loop {
            let n = reader.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            content.update(&buffer[..n]);
            writer.body(&buffer[..n])?;
        }
        lister.add(&entry, (entry.kind == Kind::File).then_some(content));
    }
    Ok(Packed { sink: writer.finish()?, listing: lister.finish(), notes })
}

/// One of our archives with all its names below `top`. Blocks.
pub(in crate::data) fn below(source: impl Read, top: &str, sink: impl Write) -> io::Result<()> {
    let mut reader = TapeReader::new(source);
    let mut writer = TapeWriter::new(sink);
    let mut buffer = vec![0; BUFFER];
    let inside = |path: &[u8]| match path {
        b"" => top.as_bytes().to_vec(),
        path => [top.as_bytes(), path].join(&b'/'),
    };
    while let Some(mut entry) = reader.next()? {
        entry.path = inside(&entry.path);
        if entry.kind == Kind::HardLink {
            entry.link = inside(&entry.link);
        }
        writer.entry(&entry)?;
        loop {
            let n = reader.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            writer.body(&buffer[..n])?;
        }
    }
    writer.finish().map(drop)
}

fn below_top(path: &[u8]) -> Vec<u8> {
    let (first, rest) = match path.iter().position(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (path, &b""[..]),
    };
    debug_assert!(!first.is_empty() || split(path).1.is_empty());
    rest.to_vec()
}
