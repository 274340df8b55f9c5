//! An archive into an empty directory: every file made anew through the open directory it belongs into.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown, fstat, futimens,
        linkat, mkdirat, open, openat, statat, symlinkat, utimensat,
    },
    io::Errno,
};
use sha2::{Digest, Sha256};

use super::{
    BUFFER, Entry, Guard, Kind, Limits, Lister, Listing, Notes, Time, bad, parts, shown, split, tape::TapeReader,
};

/// What was unpacked.
#[derive(Debug)]
pub(in crate::data) struct Unpacked {
    pub listing: Listing,
    pub notes: Notes,
}

/// Fills `into`, an empty directory of which nobody else knows. What it made before an error stays for the caller to remove. Blocks.
pub(in crate::data) fn unpack(source: impl Read, into: &Path, limits: Limits) -> io::Result<Unpacked> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = open(into, flags, Mode::empty())?;
    let mut reader = TapeReader::new(source);
    let mut guard = Guard::new(limits);
    let mut unpacker = Unpacker {
        top,
        open: Vec::new(),
        lister: Lister::default(),
        notes: Notes::default(),
        buffer: vec![0; BUFFER],
        other_owners: 0,
        fewer_rights: 0,
    };
    while let Some(entry) = reader.next()? {
        let depth = guard.admit(&entry)?;
        while unpacker.open.len() > depth {
            unpacker.leave()?;
        }
        unpacker.make(entry, &mut reader)?;
    }
    while !unpacker.open.is_empty() {
        unpacker.leave()?;
    }
    unpacker.finish()
}

struct Unpacker {
    top: OwnedFd,
    /// The directories above the entry at hand. They get their permissions and times when they are left.
    open: Vec<(OwnedFd, Entry)>,
    lister: Lister,
    notes: Notes,
    buffer: Vec<u8>,
    other_owners: u64,
    fewer_rights: u64,
}

impl Unpacker {
    fn make(&mut self, entry: Entry, reader: &mut TapeReader<impl Read>) -> io::Result<()> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", entry.shown()));
        let (_, name) = split(&entry.path);
        let Some((dir, _)) = self.open.last() else {
            self.lister.add(&entry, None);
            self.open.push((self.top.try_clone()?, entry));
            return Ok(());
        };
        match entry.kind {
            Kind::Directory => {
                mkdirat(dir, name, Mode::RWXU).map_err(|error| at(error.into()))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = openat(dir, name, flags, Mode::empty()).map_err(|error| at(error.into()))?;
                self.lister.add(&entry, None);
                self.open.push((inner, entry));
                Ok(())
            }
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(|error| at(error.into()))?;
                let mut file = File::from(file);
                let content = self.fill(&mut file, reader).map_err(at)?;
                self.dress(file.as_fd(), &entry)?;
                self.lister.add(&entry, Some(content));
                Ok(())
            }
            Kind::Symlink => {
                symlinkat(entry.link.as_slice(), dir, name).map_err(|error| at(error.into()))?;
                let owned = chownat(dir, name, owner(&entry), group(&entry), AtFlags::SYMLINK_NOFOLLOW);
                match owned {
                    Err(Errno::PERM) => self.other_owners += 1,
                    owned => owned.map_err(|error| at(error.into()))?,
                }
                utimensat(dir, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| at(error.into()))?;
                self.lister.add(&entry, None);
                Ok(())
            }
            Kind::HardLink => {
                self.link(dir, name, &entry).map_err(at)?;
                self.lister.add(&entry, None);
                Ok(())
            }
            Kind::Other(_) => Err(bad(format!("{} is no kind of entry that a backup holds", entry.shown()))),
        }
    }

    fn fill(&mut self, file: &mut File, reader: &mut TapeReader<impl Read>) -> io::Result<Sha256> {
        let mut hash = Sha256::new();
        loop {
            let n = reader.read(&mut self.buffer)?;
            if n == 0 {
                return Ok(hash);
            }
            hash.update(&self.buffer[..n]);
            file.write_all(&self.buffer[..n])?;
        }
    }

    /// The target is found part by part from the top, through directories only.
    fn link(&self, dir: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
        let (above, target) = split(&entry.link);
        let mut from = self.top.try_clone()?;
        for part in parts(above) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            from = openat(&from, part, flags, Mode::empty())?;
        }
        let found = statat(&from, target, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(bad(format!("it is to be the same file as {}, which is no file", shown(&entry.link))));
        }
        Ok(linkat(&from, target, dir, name, AtFlags::empty())?)
    }

    fn leave(&mut self) -> io::Result<()> {
        match self.open.pop() {
            Some((dir, entry)) => self.dress(dir.as_fd(), &entry),
            None => Ok(()),
        }
    }

    /// Owner first: changing it takes some permissions away.
    fn dress(&mut self, fd: impl AsFd, entry: &Entry) -> io::Result<()> {
        let at = |error: Errno| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("{}: {error}", entry.shown()))
        };
        let now = fstat(&fd).map_err(at)?;
        let mut mode = entry.mode;
        if (now.st_uid, now.st_gid) != (entry.uid, entry.gid) {
            match fchown(&fd, owner(entry), group(entry)) {
                Err(Errno::PERM) => {
                    self.other_owners += 1;
                    // What ran as its owner must not run as this user instead.
                    mode &= 0o1777;
                }
                owned => owned.map_err(at)?,
            }
        }
        match fchmod(&fd, Mode::from_raw_mode(mode)) {
            // Where nobody may make a set-user-id file, as in a unit with `RestrictSUIDSGID`.
            Err(Errno::PERM) if mode & 0o6000 != 0 => {
                self.fewer_rights += 1;
                fchmod(&fd, Mode::from_raw_mode(mode & 0o1777)).map_err(at)?;
            }
            changed => changed.map_err(at)?,
        }
        futimens(&fd, &times(entry.mtime)).map_err(at)
    }

    fn finish(mut self) -> io::Result<Unpacked> {
        if self.other_owners > 0 {
            let n = self.other_owners;
            self.notes.add(format!("the owners of {n} entries were not kept: only root can give files away"));
        }
        if self.fewer_rights > 0 {
            let n = self.fewer_rights;
            self.notes.add(format!("the set-user-id and set-group-id bits of {n} entries were not kept"));
        }
        Ok(Unpacked { listing: self.lister.finish(), notes: self.notes })
    }
}

fn owner(entry: &Entry) -> Option<Uid> {
    Some(Uid::from_raw(entry.uid))
}

fn group(entry: &Entry) -> Option<Gid> {
    Some(Gid::from_raw(entry.gid))
}

fn times(mtime: Time) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: i64::from(mtime.nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}
