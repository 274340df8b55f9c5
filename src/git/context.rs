//! A commit's tree as a tar stream: the build context, and the whole tree for a container.
//!
//! Nothing is checked out. The tree is walked once without reading a file, which yields the list of what will be sent and
//! its digest; sending then reads one blob after the other on a blocking thread into a bounded channel, so that a slow
//! engine slows the reading and a dropped stream ends it.
//!
//! The same tree always gives the same names, modes, owners (0) and order (Git's own). Times are the commit's: neither builder
//! counts them for its cache, and a web server that makes its `ETag` of time and size still sees that a file is new.
//!
//! What a repository can hold and a context must not, is refused by name: links that lead out of the context (resolved
//! component by component as the kernel would, not by their text), names such as `..` or `.git`, two entries of one name.

use std::{
    collections::{HashSet, VecDeque},
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{BufMut, Bytes, BytesMut};
use git2::{ObjectType, Oid, Repository, Tree};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use self::{
    ignore::{Ignore, Verdict, clean},
    links::{Resolved, resolve},
};
use super::{Chunk, GitError, GitErrorKind, Mirror};
use crate::{log::StageLog, model::CommitId};

mod ignore;
mod links;

/// Bytes a chunk of the stream.
const CHUNK: usize = 128 * 1024;

/// Chunks that wait for a slow reader.
const CHUNKS_AHEAD: usize = 4;

/// A larger Dockerfile, `.dockerignore` or link is refused, in bytes.
const MAX_SMALL_FILE: usize = 1024 * 1024;

/// What will be sent to the builder, settled: the list of entries, not their contents.
#[derive(Debug)]
pub struct BuildContext {
    entries: Arc<Vec<Entry>>,
    source: Source,
    digest: String,
    dockerfile: String,
    dockerfile_text: String,
    dockerignore: Option<String>,
    submodules: Vec<String>,
}

#[derive(Debug, Clone)]
struct Source {
    repository: PathBuf,
    /// Seconds since 1970, of every entry.
    time: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Relative to the archive's root; bytes, as Git has it.
    path: Vec<u8>,
    kind: Kind,
    /// A directory's is zero: its contents speak for it.
    blob: Oid,
    /// Excluded by the rules, and here only because the builder reads it.
    forced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File { executable: bool },
    Link,
}

impl Kind {
    fn mode(self) -> u32 {
        match self {
            Self::Directory | Self::File { executable: true } => 0o755,
            Self::File { executable: false } => 0o644,
            Self::Link => 0o777,
        }
    }
}

impl BuildContext {
    /// Reads the context of a commit: `context` is a directory of the tree (`.` is its root), `dockerfile` is relative to it.
    ///
    /// `.dockerignore` is honoured, or `<dockerfile>.dockerignore` where there is one; the Dockerfile and both of these are sent
    /// even if they are excluded, because the builder reads them.
    pub async fn read(mirror: &Mirror, commit: &CommitId, context: &str, dockerfile: &str) -> Result<Self, GitError> {
        let (dir, commit) = (mirror.dir.clone(), commit.clone());
        let (context, dockerfile) = (context.to_owned(), dockerfile.to_owned());
        blocking(move || Self::read_now(&dir, &commit, &context, &dockerfile)).await
    }

    fn read_now(dir: &Path, commit: &CommitId, context: &str, dockerfile: &str) -> Result<Self, GitError> {
        let repo = open(dir)?;
        let (tree, time) = tree_of(&repo, commit)?;
        let root = subtree(&repo, tree, context)?;
        let (path, blob) = find_dockerfile(&repo, &root, dockerfile)?;
        let text = small_blob(&repo, blob, dockerfile)?;
        let named = format!("{dockerfile}.dockerignore");
        let rules = match read_small(&repo, &root, &named)? {
            Some(text) => Some((named.as_str(), text)),
            None => read_small(&repo, &root, ".dockerignore")?.map(|text| (".dockerignore", text)),
        };
        let ignore = match &rules {
            Some((name, text)) => Ignore::parse(text).map_err(|why| failed(format!("reading `{name}`"), why))?,
            None => Ignore::default(),
        };
        let path = String::from_utf8_lossy(&path).into_owned();
        let forced = [path.as_str(), dockerfile, &named, ".dockerignore"].map(|p| clean(p).into_bytes());
        let mut walk = Walk { forced: &forced, ..Walk::new(&repo, &ignore) };
        walk.directory(&root, &mut Vec::new(), &ignore.root())?;
        let (entries, submodules) = (walk.entries, walk.submodules);
        check_links(&repo, &root, &entries)?;
        Ok(Self {
            digest: digest(&entries),
            entries: Arc::new(entries),
            source: Source { repository: dir.to_owned(), time },
            dockerfile: path,
            dockerfile_text: text,
            dockerignore: read_small(&repo, &root, ".dockerignore")?,
            submodules,
        })
    }

    /// SHA-256, in hexadecimal, over each entry's path, mode and blob: equal for equal trees whatever the commit.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The Dockerfile in the archive, its links followed.
    pub fn dockerfile(&self) -> &str {
        &self.dockerfile
    }

    /// The Dockerfile's text.
    pub fn dockerfile_text(&self) -> &str {
        &self.dockerfile_text
    }

    /// The general `.dockerignore`'s text, whether or not the Dockerfile has its own.
    pub fn dockerignore(&self) -> Option<&str> {
        self.dockerignore.as_deref()
    }

    /// The archive. Submodules that are left out and Git LFS pointers are told to `log`.
    pub fn stream(&self, log: StageLog) -> ReceiverStream<Chunk> {
        self.pipe(log, None)
    }

    /// The archive for a builder that reads other files than the commit's: with `extra` (names at the root and texts, each in the
    /// place of an entry of that name) and without what [`BuildContext::stream`] sends though it is excluded.
    pub fn stream_with(&self, log: StageLog, extra: Vec<(&'static str, String)>) -> ReceiverStream<Chunk> {
        self.pipe(log, Some(extra))
    }

    fn pipe(&self, log: StageLog, extra: Option<Vec<(&'static str, String)>>) -> ReceiverStream<Chunk> {
        for path in &self.submodules {
            log.line(format!("submodule `{path}` is not part of the build context"));
        }
        let (source, entries) = (self.source.clone(), Arc::clone(&self.entries));
        pipe(move |out| {
            let repo = open(&source.repository).map_err(io::Error::other)?;
            let mut archive = Archive::new(&repo, out, source.time, "", Some(log));
            for entry in entries.iter().filter(|entry| extra.is_none() || !entry.forced) {
                archive.add(entry, entry.kind.mode())?;
            }
            // A later entry of a name takes the place of an earlier one.
            for (name, text) in extra.iter().flatten() {
                archive.add_text(name, text)?;
            }
            archive.finish()
        })
    }
}

/// A commit's whole tree as an archive below `prefix` (`src/`), for a container that may run as any user: directories are
/// writable for all. Links are kept as they are, since they mean something only inside that container.
pub fn tree_tar(mirror: &Mirror, commit: &CommitId, prefix: &str) -> ReceiverStream<Chunk> {
    let (dir, commit) = (mirror.dir.clone(), commit.clone());
    let prefix = format!("{}/", prefix.trim_end_matches('/'));
    pipe(move |out| {
        let repo = open(&dir).map_err(io::Error::other)?;
        let (tree, time) = tree_of(&repo, &commit).map_err(io::Error::other)?;
        let ignore = Ignore::default();
        let mut walk = Walk::new(&repo, &ignore);
        walk.directory(&tree, &mut Vec::new(), &ignore.root()).map_err(io::Error::other)?;
        let mut archive = Archive::new(&repo, out, time, &prefix, None);
        archive.add(&Entry { path: Vec::new(), kind: Kind::Directory, blob: Oid::ZERO_SHA1, forced: false }, 0o777)?;
        for entry in &walk.entries {
            let mode = if entry.kind == Kind::Directory { 0o777 } else { entry.kind.mode() };
            archive.add(entry, mode)?;
        }
        archive.finish()
    })
}

fn failed(operation: impl Into<String>, why: impl ToString) -> GitError {
    GitError::new(GitErrorKind::Invalid, operation, why.to_string())
}

fn git(operation: &str) -> impl Fn(git2::Error) -> GitError + '_ {
    move |error| failed(operation, error.message())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GitError> + Send + 'static,
) -> Result<T, GitError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(failed("reading the repository", e)))
}

fn open(dir: &Path) -> Result<Repository, GitError> {
    Repository::open_bare(dir).map_err(|e| failed(format!("opening the mirror {}", dir.display()), e.message()))
}

fn tree_of<'r>(repo: &'r Repository, commit: &CommitId) -> Result<(Tree<'r>, u64), GitError> {
    let operation = format!("reading commit {}", commit.short());
    let id = Oid::from_str(commit.as_str()).map_err(git(&operation))?;
    let commit = repo.find_commit(id).map_err(git(&operation))?;
    let time = u64::try_from(commit.time().seconds()).unwrap_or(0);
    Ok((commit.tree().map_err(git(&operation))?, time))
}

fn subtree<'r>(repo: &'r Repository, tree: Tree<'r>, context: &str) -> Result<Tree<'r>, GitError> {
    if clean(context) == "." {
        return Ok(tree);
    }
    let operation = format!("finding the build context `{context}`");
    match resolve(repo, &tree, &[], context.as_bytes()).map_err(git(&operation))? {
        Resolved::Directory(id) => repo.find_tree(id).map_err(git(&operation)),
        Resolved::Outside => Err(failed(operation, "it leads out of the repository")),
        _ => Err(failed(operation, "the commit has no such directory")),
    }
}

fn find_dockerfile(repo: &Repository, root: &Tree<'_>, dockerfile: &str) -> Result<(Vec<u8>, Oid), GitError> {
    let operation = format!("finding the Dockerfile `{dockerfile}`");
    match resolve(repo, root, &[], dockerfile.as_bytes()).map_err(git(&operation))? {
        Resolved::File { path, blob } => Ok((path, blob)),
        Resolved::Outside => Err(failed(operation, "it leads out of the build context")),
        Resolved::Directory(_) => Err(failed(operation, "it is a directory")),
        Resolved::Nothing => Err(failed(operation, "the commit has no such file in its build context")),
    }
}

fn read_small(repo: &Repository, root: &Tree<'_>, path: &str) -> Result<Option<String>, GitError> {
    match resolve(repo, root, &[], path.as_bytes()).map_err(git(path))? {
        Resolved::File { blob, .. } => small_blob(repo, blob, path).map(Some),
        _ => Ok(None),
    }
}

fn small_blob(repo: &Repository, id: Oid, path: &str) -> Result<String, GitError> {
    let operation = format!("reading `{path}`");
    let blob = repo.find_blob(id).map_err(git(&operation))?;
    if blob.size() > MAX_SMALL_FILE {
        return Err(failed(operation, "it is larger than 1 MiB"));
    }
    Ok(String::from_utf8_lossy(blob.content()).into_owned())
}

fn check_links(repo: &Repository, root: &Tree<'_>, entries: &[Entry]) -> Result<(), GitError> {
    for entry in entries.iter().filter(|e| e.kind == Kind::Link) {
        let name = String::from_utf8_lossy(&entry.path);
        let operation = format!("reading the link `{name}`");
        let target = small_blob(repo, entry.blob, &name)?;
        let parent = entry.path.iter().rposition(|b| *b == b'/').map_or(&[][..], |at| &entry.path[..at]);
        if matches!(resolve(repo, root, parent, target.as_bytes()).map_err(git(&operation))?, Resolved::Outside) {
            let why = format!(
                "it points to `{target}`, which is outside the build context; remove it or exclude it in .dockerignore"
            );
            return Err(failed(operation, why));
        }
    }
    Ok(())
}

fn digest(entries: &[Entry]) -> String {
    let mut hash = Sha256::new();
    for entry in entries {
        let link = if entry.kind == Kind::Link { 'l' } else { '-' };
        hash.update(format!("{link}{:o} {} {} ", entry.kind.mode(), entry.blob, entry.path.len()));
        hash.update(&entry.path);
    }
    hex::encode(hash.finalize())
}

/// Lists a tree, depth first, in Git's order.
struct Walk<'a> {
    repo: &'a Repository,
    ignore: &'a Ignore,
    /// Paths that are listed though they are excluded.
    forced: &'a [Vec<u8>],
    entries: Vec<Entry>,
    submodules: Vec<String>,
}

impl<'a> Walk<'a> {
    fn new(repo: &'a Repository, ignore: &'a Ignore) -> Self {
        Self { repo, ignore, forced: &[], entries: Vec::new(), submodules: Vec::new() }
    }

    /// Lists what is in `tree`, whose own path is `path`. Whether anything was listed.
    fn directory(&mut self, tree: &Tree<'_>, path: &mut Vec<u8>, above: &Verdict) -> Result<bool, GitError> {
        let mut names = HashSet::new();
        let mut listed = false;
        for item in tree {
            let name = item.name_bytes();
            let strange = matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0);
            if strange || name.eq_ignore_ascii_case(b".git") || !names.insert(name.to_owned()) {
                let shown = String::from_utf8_lossy(name).escape_debug().to_string();
                return Err(failed("reading the tree", format!("it has an entry named `{shown}` that cannot be used")));
            }
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            listed |= self.item(&item, path, above)?;
            path.truncate(length);
        }
        Ok(listed)
    }

    fn item(&mut self, item: &git2::TreeEntry<'_>, path: &mut Vec<u8>, above: &Verdict) -> Result<bool, GitError> {
        let shown = String::from_utf8_lossy(path).into_owned();
        let verdict = self.ignore.judge(&shown, above);
        let excluded = self.ignore.excludes(&verdict);
        let kind = match (item.kind(), item.filemode()) {
            (Some(ObjectType::Tree), _) => return self.subdirectory(item.id(), path, &verdict, excluded),
            (Some(ObjectType::Commit), _) => {
                if !excluded {
                    self.submodules.push(shown);
                }
                return Ok(false);
            }
            (_, 0o120_000) => Kind::Link,
            (_, mode) => Kind::File { executable: mode & 0o100 != 0 },
        };
        let wanted = !excluded || self.forced.contains(path);
        if wanted {
            self.entries.push(Entry { path: path.clone(), kind, blob: item.id(), forced: excluded });
        }
        Ok(wanted)
    }

    fn subdirectory(
        &mut self,
        id: Oid,
        path: &mut Vec<u8>,
        verdict: &Verdict,
        excluded: bool,
    ) -> Result<bool, GitError> {
        let holds_forced = || self.forced.iter().any(|f| f.starts_with(path) && f.get(path.len()) == Some(&b'/'));
        if excluded && !self.ignore.has_exceptions() && !holds_forced() {
            return Ok(false);
        }
        let tree = self.repo.find_tree(id).map_err(git("reading the tree"))?;
        let place = self.entries.len();
        self.entries.push(Entry { path: path.clone(), kind: Kind::Directory, blob: Oid::ZERO_SHA1, forced: false });
        let listed = self.directory(&tree, path, verdict)?;
        // An excluded directory is there only for the sake of what was taken back from it.
        if excluded && !listed {
            self.entries.remove(place);
        }
        Ok(listed || !excluded)
    }
}

/// Writes entries into a tar stream.
struct Archive<'r, W: Write> {
    repo: &'r Repository,
    tar: tar::Builder<W>,
    time: u64,
    prefix: &'r str,
    log: Option<StageLog>,
}

impl<'r, W: Write> Archive<'r, W> {
    fn new(repo: &'r Repository, out: W, time: u64, prefix: &'r str, log: Option<StageLog>) -> Self {
        Self { repo, tar: tar::Builder::new(out), time, prefix, log }
    }

    fn header(&self, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_mtime(self.time);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header
    }

    fn add_text(&mut self, name: &str, text: &str) -> io::Result<()> {
        let mut header = self.header(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(text.len() as u64);
        self.tar.append_data(&mut header, name, text.as_bytes())
    }

    fn add(&mut self, entry: &Entry, mode: u32) -> io::Result<()> {
        let mut name = self.prefix.as_bytes().to_vec();
        name.extend_from_slice(&entry.path);
        let name = Path::new(std::ffi::OsStr::from_bytes(&name));
        let mut header = self.header(mode);
        if entry.kind == Kind::Directory {
            header.set_entry_type(tar::EntryType::Directory);
            return self.tar.append_data(&mut header, name, io::empty());
        }
        let blob = self.repo.find_blob(entry.blob).map_err(|e| {
            io::Error::other(format!("reading `{}`: {}", String::from_utf8_lossy(&entry.path), e.message()))
        })?;
        if entry.kind == Kind::Link {
            header.set_entry_type(tar::EntryType::Symlink);
            let target = Path::new(std::ffi::OsStr::from_bytes(blob.content()));
            return self.tar.append_link(&mut header, name, target);
        }
        if let Some(log) = &self.log
            && blob.content().starts_with(b"version https://git-lfs.github.com/spec/")
        {
            let name = name.display();
            log.line(format!("warning: `{name}` is a Git LFS pointer: the image gets the pointer, not the file"));
        }
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(blob.size() as u64);
        self.tar.append_data(&mut header, name, blob.content())
    }

    fn finish(self) -> io::Result<()> {
        self.tar.into_inner()?.flush()
    }
}

/// Runs `work` on a blocking thread and streams what it writes; its error is the stream's last item.
fn pipe(work: impl FnOnce(&mut Pipe) -> io::Result<()> + Send + 'static) -> ReceiverStream<Chunk> {
    let (to, from) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut out = Pipe { to, waiting: BytesMut::with_capacity(CHUNK) };
        if let Err(error) = work(&mut out) {
            // Nobody listens any more if the reader went away, which is then also the error.
            let _ = out.to.blocking_send(Err(error));
        }
    });
    ReceiverStream::new(from)
}

/// The writing end of [`pipe`].
struct Pipe {
    to: mpsc::Sender<Chunk>,
    waiting: BytesMut,
}

impl Pipe {
    fn send(&mut self) -> io::Result<()> {
        let chunk: Bytes = self.waiting.split().freeze();
        self.waiting.reserve(CHUNK);
        self.to.blocking_send(Ok(chunk)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for Pipe {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.len().min(CHUNK - self.waiting.len());
        self.waiting.put_slice(&data[..taken]);
        if self.waiting.len() == CHUNK {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() { Ok(()) } else { self.send() }
    }
}

#[cfg(test)]
mod tests;
