//! A commit's tree → a directory, without a checkout.
//!
//! Blobs are written as they are stored: no filters, line ending rules or attributes, hence nothing that could run. The tree is
//! taken for hostile:
//!
//! * names that Git itself would not write (`..`, `.git` in any case, names with `/`) end the export;
//! * files are created, never opened: an entry that comes twice fails instead of being written through;
//! * links are made last, and only those that stay within the tree when followed *with the tree's other links*
//!   (`a -> sub/link/..` can leave the tree though it does not look like it);
//! * depth, number and size are bounded.
//!
//! Everything is written beside the target and renamed, so there is the whole tree or nothing. Submodules are left out.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use git2::{ObjectType, Odb, Oid, Repository};

use super::{GitError, GitErrorKind, Mirror, trouble::quoted};
use crate::model::CommitId;

/// Entries of one tree, directories included.
const MOST_ENTRIES: usize = 1_000_000;

/// All files together, in bytes.
const MOST_BYTES: u64 = 16 << 30;

/// One file, in bytes: it is held in memory once.
const LARGEST_BLOB: usize = 1 << 30;

/// A path within the tree, in bytes; the kernel's own limit is 4096 with the directory.
const LONGEST_PATH: usize = 2048;

/// Links followed to find where one link leads, as the kernel counts.
const MOST_HOPS: usize = 40;

impl Mirror {
    /// Writes a commit's tree below `to`, which must be empty or absent. No hooks, filters, or links out of the tree;
    /// submodules are left out. Files are 0644 or 0755. After an error nothing is there.
    pub fn export(&self, commit: &CommitId, to: &Path) -> Result<(), GitError> {
        let operation = format!("write the files of commit {}", commit.short());
        let repository = self.open(&operation)?;
        let tree = self.find(&repository, &operation, commit)?.tree_id();
        let host = |path: &Path, e: &io::Error| {
            GitError::new(GitErrorKind::Host, &operation, format!("{}: {e}", path.display()))
        };
        if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(GitError::new(GitErrorKind::Invalid, &operation, format!("{} is not empty", to.display())));
        }
        let mut partial = to.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        match fs::remove_dir_all(&partial) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(host(&partial, &e)),
            _ => {}
        }
        let written = Writer::new(&repository, &partial).and_then(|writer| writer.write(tree));
        let placed = written.and_then(|()| fs::rename(&partial, to).map_err(|e| Stop::io(to, e)));
        placed.map_err(|stop| {
            // A leftover is removed by the next export to the same place.
            let _ = fs::remove_dir_all(&partial);
            match stop {
                Stop::Io(path, e) => host(&path, &e),
                Stop::Unsafe(why) => GitError::new(GitErrorKind::Invalid, &operation, why),
                Stop::Git(e) => self.damaged(&operation, &e),
            }
        })
    }
}

/// Why an export stopped.
enum Stop {
    Io(PathBuf, io::Error),
    Unsafe(String),
    Git(git2::Error),
}

impl Stop {
    fn io(path: &Path, error: io::Error) -> Self {
        Self::Io(path.to_owned(), error)
    }
}

impl From<git2::Error> for Stop {
    fn from(error: git2::Error) -> Self {
        Self::Git(error)
    }
}

struct Writer<'r> {
    repository: &'r Repository,
    odb: Odb<'r>,
    root: &'r Path,
    /// Path in the tree → where it points, as stored.
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    entries: usize,
    bytes: u64,
}

impl<'r> Writer<'r> {
    fn new(repository: &'r Repository, root: &'r Path) -> Result<Self, Stop> {
        let odb = repository.odb()?;
        Ok(Self { repository, odb, root, links: BTreeMap::new(), entries: 0, bytes: 0 })
    }

    fn write(mut self, tree: Oid) -> Result<(), Stop> {
        if let Some(parent) = self.root.parent() {
            fs::create_dir_all(parent).map_err(|e| Stop::io(parent, e))?;
        }
        // A stack of ours, not the thread's: the depth is the repository's choice.
        let mut waiting = vec![(tree, Vec::new())];
        while let Some((tree, path)) = waiting.pop() {
            make_dir(&self.place(&path))?;
            for entry in self.repository.find_tree(tree)?.iter() {
                let path = join(&path, entry.name_bytes())?;
                self.entries += 1;
                if self.entries > MOST_ENTRIES {
                    return Err(Stop::Unsafe(format!("the tree has more than {MOST_ENTRIES} entries")));
                }
                match (entry.kind(), entry.filemode()) {
                    (Some(ObjectType::Tree), _) => waiting.push((entry.id(), path)),
                    (Some(ObjectType::Blob), 0o120_000) => self.keep_link(path, entry.id())?,
                    (Some(ObjectType::Blob), mode) => self.write_file(&path, entry.id(), mode & 0o100 != 0)?,
                    (Some(ObjectType::Commit), _) => {}
                    _ => return Err(Stop::Unsafe(format!("`{}` is of an unknown kind", shown(&path)))),
                }
            }
        }
        self.write_links()
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.root.to_owned() } else { self.root.join(OsStr::from_bytes(path)) }
    }

    fn write_file(&mut self, path: &[u8], id: Oid, executable: bool) -> Result<(), Stop> {
        let (size, _) = self.odb.read_header(id)?;
        self.bytes += size as u64;
        if size > LARGEST_BLOB || self.bytes > MOST_BYTES {
            return Err(Stop::Unsafe(format!("`{}` is too large: 1 GiB a file, 16 GiB in all", shown(path))));
        }
        let blob = self.odb.read(id)?;
        let place = self.place(path);
        let written = File::create_new(&place).and_then(|mut file| {
            file.write_all(blob.data())?;
            // Not left to the daemon's umask: the app may run as another user.
            file.set_permissions(Permissions::from_mode(if executable { 0o755 } else { 0o644 }))
        });
        written.map_err(|e| twice_or(path, place, e))
    }

    fn keep_link(&mut self, path: Vec<u8>, id: Oid) -> Result<(), Stop> {
        if self.odb.read_header(id)?.0 > LONGEST_PATH {
            return Err(Stop::Unsafe(format!("the symbolic link `{}` is too long", shown(&path))));
        }
        let target = self.odb.read(id)?.data().to_vec();
        self.links.insert(path, target);
        Ok(())
    }

    fn write_links(self) -> Result<(), Stop> {
        for (path, target) in &self.links {
            if !stays_inside(&self.links, path) {
                let why =
                    format!("the symbolic link `{}` points to `{}`, out of the repository", shown(path), shown(target));
                return Err(Stop::Unsafe(why));
            }
        }
        for (path, target) in &self.links {
            let place = self.place(path);
            std::os::unix::fs::symlink(OsStr::from_bytes(target), &place).map_err(|e| twice_or(path, place, e))?;
        }
        Ok(())
    }
}

fn make_dir(place: &Path) -> Result<(), Stop> {
    let made = fs::create_dir(place).and_then(|()| fs::set_permissions(place, Permissions::from_mode(0o755)));
    made.map_err(|e| twice_or(place.as_os_str().as_bytes(), place.to_owned(), e))
}

fn twice_or(path: &[u8], place: PathBuf, error: io::Error) -> Stop {
    match error.kind() {
        io::ErrorKind::AlreadyExists => Stop::Unsafe(format!("`{}` is in the tree twice", shown(path))),
        _ => Stop::Io(place, error),
    }
}

/// The entry's path, if its name is one that Git would write.
fn join(dir: &[u8], name: &[u8]) -> Result<Vec<u8>, Stop> {
    let mut path = dir.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    if is_safe_name(name) && path.len() <= LONGEST_PATH {
        return Ok(path);
    }
    Err(Stop::Unsafe(format!("the tree has an entry `{}`, which is not allowed", shown(&path))))
}

/// One name of a tree: not empty, `.`, `..` or `.git` (in any case, also as its short name on other systems), no `/` or zero byte.
pub(super) fn is_safe_name(name: &[u8]) -> bool {
    let reserved: [&[u8]; 5] = [b"", b".", b"..", b".git", b"git~1"];
    !reserved.iter().any(|r| name.eq_ignore_ascii_case(r)) && !name.iter().any(|b| matches!(b, b'/' | 0))
}

/// Whether following the link at `path` stays in the tree, whatever other links it passes.
/// What it names need not exist. A loop stays inside: it leads nowhere.
pub(super) fn stays_inside(links: &BTreeMap<Vec<u8>, Vec<u8>>, path: &[u8]) -> bool {
    let mut at: Vec<Vec<u8>> = Vec::new();
    let mut ahead: Vec<Vec<u8>> = path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect();
    let mut hops = 0;
    while let Some(part) = ahead.pop() {
        match part.as_slice() {
            b"" | b"." => {}
            b".." => {
                if at.pop().is_none() {
                    return false;
                }
            }
            _ => {
                at.push(part);
                let Some(target) = links.get(&at.join(&b'/')) else { continue };
                hops += 1;
                if target.starts_with(b"/") || target.is_empty() || target.contains(&0) {
                    return false;
                }
                if hops > MOST_HOPS {
                    return true;
                }
                at.pop();
                ahead.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
            }
        }
    }
    true
}

fn shown(path: &[u8]) -> String {
    quoted(&String::from_utf8_lossy(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_git_would_not_write_are_refused() {
        for bad in [&b""[..], b".", b"..", b".git", b".GIT", b".Git", b"git~1", b"a/b", b"a\0"] {
            assert!(!is_safe_name(bad), "{bad:?}");
        }
        for good in [&b".gitignore"[..], b".github", b"...", b"-x", b"a b", b"\xff"] {
            assert!(is_safe_name(good), "{good:?}");
        }
    }

    fn inside(links: &[(&str, &str)], path: &str) -> bool {
        let links = links.iter().map(|(p, t)| (p.as_bytes().to_vec(), t.as_bytes().to_vec())).collect();
        stays_inside(&links, path.as_bytes())
    }

    #[test]
    fn links_are_followed_through_other_links() {
        assert!(inside(&[("a", "b/c")], "a"));
        assert!(inside(&[("d/a", "../b")], "d/a"));
        assert!(inside(&[("d/up", "..")], "d/up"));
        assert!(inside(&[("a", "b"), ("b", "a")], "a"), "a loop leads nowhere");
        assert!(!inside(&[("a", "/etc/passwd")], "a"));
        assert!(!inside(&[("d/a", "../../b")], "d/a"));
        assert!(!inside(&[("a", "")], "a"));
        // `d/up` is the root, so `d/up/..` is outside, though it looks like `d`.
        assert!(!inside(&[("d/up", ".."), ("x", "d/up/../out")], "x"));
    }

    proptest::proptest! {
        /// The kernel agrees: a link that is said to stay inside never resolves to something outside.
        #[test]
        fn the_kernel_agrees(targets in proptest::collection::vec("(\\.\\./|[ab]/|\\./){0,4}(\\.\\.|a|b|c)", 3)) {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("one/two/root");
            fs::create_dir_all(root.join("a/b")).unwrap();
            let names = ["a/c", "a/b/c", "b"];
            let links: BTreeMap<Vec<u8>, Vec<u8>> =
                names.iter().zip(&targets).map(|(n, t)| (n.as_bytes().to_vec(), t.as_bytes().to_vec())).collect();
            for (name, target) in names.iter().zip(&targets) {
                std::os::unix::fs::symlink(target, root.join(name)).unwrap();
            }
            let real = root.canonicalize().unwrap();
            for name in names {
                if stays_inside(&links, name.as_bytes()) && let Ok(led) = root.join(name).canonicalize() {
                    proptest::prop_assert!(led.starts_with(&real), "{name} of {targets:?} leads to {led:?}");
                }
            }
        }
    }
}
