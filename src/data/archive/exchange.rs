//! A new tree takes the place of an old one.
//!
//! **Whole**: the new tree grows beside the old one (`.NAME.refit-restore`), one `rename` with `RENAME_EXCHANGE` swaps the two names, and what was old is
//! removed under the other. At every moment the old tree or the new one is there, whole.
//!
//! **By content**, where the directory itself must stay, because it is a mount point, a volume that containers have mounted, or on a
//! file system without that rename: the new tree grows inside, in `.refit-restore/new`. Two marks on the disk tell how far the exchange is:
//!
//! | mark | meaning | after a kill |
//! |---|---|---|
//! | none | the new tree is being made | it is removed: the old content stays |
//! | `out` | what is old moves into `.refit-restore/old`; nothing new is outside yet | the exchange goes on |
//! | `in` | what is new moves out | the exchange goes on |
//!
//! So from the mark on the new content wins, as soon as [`discard`] looks, which every restore begins with. Nothing old is removed before all that is
//! new is in place.
//!
//! What `exclude` names is in no backup and must not go with the old tree. It gets a second name (a hard link) in the new one before the exchange: at
//! no moment does it depend on what comes next.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, FileTimes, OpenOptions},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, RenameFlags, linkat, renameat_with, syncfs};

use super::Exclude;

/// In the directory whose content is exchanged; packing leaves it out.
pub(in crate::data) const STAGING: &str = ".refit-restore";

const NEW: &str = "new";
const OLD: &str = "old";
const OUT: &str = "out";
const IN: &str = "in";

/// Where a new tree is made. Dropped before [`Stage::exchange`], it goes, and the old tree stays.
#[derive(Debug)]
pub(in crate::data) struct Stage {
    root: PathBuf,
    /// What is removed with it.
    side: PathBuf,
    whole: bool,
    done: bool,
}

/// The tree that was replaced.
#[derive(Debug)]
pub(in crate::data) struct Replaced(Option<PathBuf>);

impl Stage {
    /// Finishes or removes what an earlier one left. `root` is the real path of a directory or of none; `within` insists on an
    /// exchange by content.
    pub fn prepare(root: &Path, within: bool) -> io::Result<Self> {
        discard(root)?;
        refuse_mounts_below(root)?;
        let exists = match fs::symlink_metadata(root) {
            Ok(found) if !found.is_dir() => {
                return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is no directory"));
            }
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if !exists && let Some(parent) = root.parent() {
            fs::create_dir_all(parent)?;
        }
        let whole = !exists || !within && can_exchange(root);
        let side = if whole { beside(root) } else { root.join(STAGING) };
        let stage = Self { root: root.to_owned(), side, whole, done: false };
        private_dir(&stage.side)?;
        if !whole {
            private_dir(&stage.side.join(NEW))?;
            private_dir(&stage.side.join(OLD))?;
        }
        Ok(stage)
    }

    /// The empty directory for the new tree.
    pub fn tree(&self) -> PathBuf {
        if self.whole { self.side.clone() } else { self.side.join(NEW) }
    }

    /// Gives what is excluded of the old tree a place in the new one.
    pub fn carry_over(&self, exclude: &Exclude) -> io::Result<()> {
        if exclude.is_empty() || !self.root.exists() {
            return Ok(());
        }
        Carrier { root: &self.root, tree: &self.tree(), exclude }.look(Path::new(""))
    }

    /// Waits until the disk has everything.
    pub fn sync(&self) -> io::Result<()> {
        Ok(syncfs(File::open(&self.side)?)?)
    }

    /// The last step. An error leaves the old tree, or an exchange that goes on with the next [`discard`]: then it says so.
    pub fn exchange(mut self) -> io::Result<Replaced> {
        refuse_mounts_below(&self.root)?;
        if !self.whole {
            if let Err(error) = mark(&self.side, OUT) {
                // A mark that may have reached the disk says that the exchange goes on.
                self.done = fs::remove_file(self.side.join(OUT)).is_err() && self.side.join(OUT).exists();
                return Err(error);
            }
            self.done = true;
            go_on(&self.root).map_err(|error| {
                let why = format!("the exchange is half done and goes on with the next restore: {error}");
                io::Error::new(error.kind(), why)
            })?;
            return Ok(Replaced(Some(self.side.clone())));
        }
        let parent = self.root.parent().unwrap_or(Path::new("/"));
        let had_old = self.root.exists();
        let flags = if had_old { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        renameat_with(CWD, &self.side, CWD, &self.root, flags)?;
        self.done = true;
        File::open(parent)?.sync_all()?;
        Ok(Replaced(had_old.then(|| self.side.clone())))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.done {
            // What may be left is found by its name.
            let _ = fs::remove_dir_all(&self.side);
        }
    }
}

impl Replaced {
    /// Removes it. Blocks for as long as that takes.
    ///
    /// # Errors
    /// It is still there, in part, under the name returned; the next restore removes it.
    pub fn remove(self) -> Result<(), (PathBuf, io::Error)> {
        let Some(side) = self.0 else { return Ok(()) };
        let times = side.ends_with(STAGING).then(|| side.parent().map(kept_times)).flatten();
        let removed = refuse_mounts_below(&side).and_then(|()| fs::remove_dir_all(&side));
        if let (Some((root, times)), Ok(())) = (times.flatten(), &removed) {
            // The directory has the new tree's time, not that of this removal.
            let _ = File::open(root).and_then(|dir| dir.set_times(times));
        }
        removed.map_err(|error| (side, error))
    }
}

fn kept_times(root: &Path) -> Option<(PathBuf, FileTimes)> {
    Some((root.to_owned(), FileTimes::new().set_modified(fs::metadata(root).ok()?.modified().ok()?)))
}

/// Whether a path in the directory says that an exchange was interrupted.
pub(super) fn is_mark(path: &[u8]) -> bool {
    [OUT, IN].iter().any(|mark| path == format!("{STAGING}/{mark}").as_bytes())
}

/// Whether the content of `root` is partly old and partly new: between two marks of an exchange that was interrupted.
pub(in crate::data) fn is_half_done(root: &Path) -> bool {
    let side = root.join(STAGING);
    side.join(OUT).exists()
        || side.join(IN).exists() && fs::read_dir(side.join(NEW)).is_ok_and(|mut new| new.next().is_some())
}

/// Ends what an interrupted exchange at `root` left: finishes it or removes it. What was removed.
pub(in crate::data) fn discard(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    let within = root.join(STAGING);
    if is_dir(&within) {
        if within.join(OUT).exists() || within.join(IN).exists() {
            go_on(root)?;
        }
        refuse_mounts_below(&within)?;
        fs::remove_dir_all(&within)?;
        removed.push(within);
    }
    // Empty, if it is there at all.
    let _ = fs::remove_dir(probe(root));
    let beside = beside(root);
    if is_dir(&beside) {
        refuse_mounts_below(&beside)?;
        fs::remove_dir_all(&beside)?;
        removed.push(beside);
    }
    Ok(removed)
}

/// From the mark `out` to the end, wherever an earlier attempt ended.
fn go_on(root: &Path) -> io::Result<()> {
    let side = root.join(STAGING);
    let (new, old) = (side.join(NEW), side.join(OLD));
    if !side.join(IN).exists() {
        move_all(root, &old)?;
        fs::rename(side.join(OUT), side.join(IN))?;
        File::open(&side)?.sync_all()?;
    }
    if is_dir(&new) {
        move_all(&new, root)?;
        let made = fs::metadata(&new)?;
        let now = fs::metadata(root)?;
        if (now.uid(), now.gid()) != (made.uid(), made.gid()) {
            std::os::unix::fs::chown(root, Some(made.uid()), Some(made.gid()))?;
        }
        fs::set_permissions(root, made.permissions())?;
    }
    syncfs(File::open(root)?)?;
    Ok(())
}

/// Everything in `from` but the staging directory into `to`, on the same file system; never over something.
fn move_all(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)?.collect::<io::Result<Vec<_>>>()? {
        let name = entry.file_name();
        if name != STAGING {
            renameat_with(CWD, from.join(&name), CWD, to.join(&name), RenameFlags::NOREPLACE)
                .or_else(|error| match error {
                    // A file system that does not know the flag.
                    rustix::io::Errno::INVAL if fs::symlink_metadata(to.join(&name)).is_err() => {
                        rustix::fs::renameat(CWD, from.join(&name), CWD, to.join(&name))
                    }
                    error => Err(error),
                })
                .map_err(|error| {
                    let error = io::Error::from(error);
                    io::Error::new(error.kind(), format!("{}: {error}", from.join(&name).display()))
                })?;
        }
    }
    Ok(())
}

fn mark(side: &Path, name: &str) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(side.join(name))?.sync_all()?;
    File::open(side)?.sync_all()?;
    side.parent().map_or(Ok(()), |root| File::open(root)?.sync_all())
}

fn is_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// One name, so that what was left is found.
fn beside(root: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(root.file_name().unwrap_or_default());
    name.push(".refit-restore");
    root.with_file_name(name)
}

/// Made and removed again in no time.
fn probe(root: &Path) -> PathBuf {
    beside(root).with_extension("refit-probe")
}

/// Whether the directory can be renamed, tried on two of our own beside it.
fn can_exchange(root: &Path) -> bool {
    if mount_points().is_ok_and(|mounts| mounts.iter().any(|mount| mount == root)) {
        return false;
    }
    let (side, probe) = (beside(root), probe(root));
    let tried = private_dir(&side)
        .and_then(|()| private_dir(&probe))
        .and_then(|()| Ok(renameat_with(CWD, &side, CWD, &probe, RenameFlags::EXCHANGE)?));
    let same_disk = |a: &Path, b: &Path| Some(fs::metadata(a).ok()?.dev() == fs::metadata(b).ok()?.dev());
    let possible = tried.is_ok() && same_disk(root, &side) == Some(true);
    let _ = fs::remove_dir(&probe);
    let _ = fs::remove_dir(&side);
    possible
}

/// A file system mounted below would be emptied with the old tree.
fn refuse_mounts_below(root: &Path) -> io::Result<()> {
    let below = mount_points()?.into_iter().find(|mount| mount != root && mount.starts_with(root));
    below.map_or(Ok(()), |mount| {
        let why = format!("{} is mounted inside it: unmount that, or back up what lies around it", mount.display());
        Err(io::Error::new(io::ErrorKind::ResourceBusy, why))
    })
}

/// Of this process's view, see proc(5).
fn mount_points() -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let points = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(points.map(|point| PathBuf::from(OsString::from_vec(unescape(point)))).collect())
}

/// Spaces, tabs, line ends and backslashes stand as `\` and three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let octal = (*byte == b'\\').then(|| after.get(..3)).flatten();
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

/// Links what is excluded into the new tree. Nobody else is at work in either.
struct Carrier<'a> {
    root: &'a Path,
    tree: &'a Path,
    exclude: &'a Exclude,
}

impl Carrier<'_> {
    fn look(&self, dir: &Path) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join(dir))?.collect::<io::Result<Vec<_>>>()? {
            let name = entry.file_name();
            if dir == Path::new("") && name == STAGING {
                continue;
            }
            let path = dir.join(&name);
            if self.exclude.covers(path.as_os_str().as_bytes()) {
                self.parents(dir)?;
                self.carry(&path)?;
            } else if entry.file_type()?.is_dir() {
                self.look(&path)?;
            }
        }
        Ok(())
    }

    /// The directories above in the new tree, as the old one has them where they are missing.
    fn parents(&self, dir: &Path) -> io::Result<()> {
        let mut path = PathBuf::new();
        for part in dir {
            path.push(part);
            match fs::symlink_metadata(self.tree.join(&path)) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Err(self.in_the_way(&path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.same_dir(&path)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn in_the_way(&self, path: &Path) -> io::Error {
        let why = format!(
            "`{}` is a directory with something that `exclude` names, and no directory in the backup: move it away",
            path.display()
        );
        io::Error::new(io::ErrorKind::NotADirectory, why)
    }

    fn same_dir(&self, path: &Path) -> io::Result<()> {
        let (old, new) = (fs::metadata(self.root.join(path))?, self.tree.join(path));
        private_dir(&new)?;
        std::os::unix::fs::chown(&new, Some(old.uid()), Some(old.gid()))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(old.mode() & 0o7777))
    }

    /// What the backup has by that name stays.
    fn carry(&self, path: &Path) -> io::Result<()> {
        let (from, to) = (self.root.join(path), self.tree.join(path));
        let is_dir = fs::symlink_metadata(&from)?.is_dir();
        match fs::symlink_metadata(&to) {
            Ok(there) if is_dir && there.is_dir() => {}
            Ok(_) => return Ok(()),
            Err(_) if is_dir => self.same_dir(path)?,
            Err(_) => {
                return linkat(CWD, &from, CWD, &to, AtFlags::empty()).map_err(|error| {
                    let error = io::Error::from(error);
                    io::Error::new(error.kind(), format!("carrying `{}` over: {error}", path.display()))
                });
            }
        }
        for entry in fs::read_dir(&from)?.collect::<io::Result<Vec<_>>>()? {
            self.carry(&path.join(entry.file_name()))?;
        }
        Ok(())
    }
}
