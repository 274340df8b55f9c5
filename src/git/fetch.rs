//! Fetching into the mirror, asking the remote, and repair.
//!
//! One fetch of a mirror runs at a time: it holds a lock on `<dir>.lock`, which the kernel lets go of when the holder dies. Under
//! that lock:
//!
//! 1. A mirror that is missing, marked as damaged, or of another remote is *made*: a new repository `<dir>.new` is filled, then
//!    exchanged with the old one in one step, so that readers find a whole repository at any moment. A directory
//!    that does not carry Refit's mark is never replaced.
//! 2. Otherwise `git fetch` runs on it: one process where nothing changed.
//! 3. What a killed fetch left behind is cleaned. Partial packs go when they are old, or after a failure of our own.
//!    Lock files go when a fetch has run into them and they have not changed for [`STALE_LOCK`]: `git` holds the locks that a fetch
//!    takes for milliseconds.
//! 4. Damage that `git` reports, or that shows when the fetched commit is read, leads back to step 1, once.
//!
//! Each fetch that brings something leaves one pack. When there are more than [`MANY_PACKS`] the small ones are joined
//! (`git repack --geometric`), in the foreground, keeping every object.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    GitError, GitErrorKind, Mirror, command, remote,
    trouble::{Trouble, judge, quoted},
};
use crate::{
    exec::{ExecError, Finished, Program},
    log::StageLog,
    model::{Branch, CommitId},
    runtime::Job,
};

/// A lock file that has not changed for so long belongs to a process that is gone.
const STALE_LOCK: Duration = Duration::from_secs(3);

/// Partial packs older than this are of a fetch that is gone.
const STALE_PACK: Duration = Duration::from_secs(3600);

const POLL: Duration = Duration::from_millis(25);

const MANY_PACKS: usize = 50;

/// Repairs of one fetch before it gives up.
const REPAIRS: usize = 4;

/// Every branch and tag.
const EVERYTHING: [&str; 2] = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];

/// Names the remote that the mirror was made for, and says that Refit may replace the directory.
const MARK: &str = "refit-remote";

/// Present in a mirror that could not be read.
const DAMAGE_MARK: &str = "refit-damaged";

/// How a fetch ended that reached the remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fetched {
    Done,
    NoBranch,
    NotAdvertised,
}

impl Mirror {
    /// Fetches one branch (forced pushes accepted); makes the mirror where it is missing. Returns the branch's tip, `None`
    /// where the remote has no such branch.
    pub async fn fetch_branch(
        &self,
        branch: &Branch,
        limit: Duration,
        job: &Job,
    ) -> Result<Option<CommitId>, GitError> {
        let task = Task::begin(self, format!("fetch branch `{branch}`"), limit, &job.cancel, Some(&job.log))?;
        let refspec = [format!("+refs/heads/{branch}:refs/remotes/origin/{branch}")];
        let _lock = task.lock().await?;
        let mut fetched = task.fetch(&refspec, false).await?;
        let mut tip = task.tip(branch, fetched);
        if tip.is_err() {
            fetched = task.make(&refspec).await?;
            tip = task.tip(branch, fetched);
        }
        tip
    }

    /// Fetches all branches and tags, for a deployment of anything by hand. Those that the remote no longer has go.
    pub async fn fetch_all(&self, limit: Duration, job: &Job) -> Result<(), GitError> {
        let task = Task::begin(self, "fetch all branches".to_owned(), limit, &job.cancel, Some(&job.log))?;
        let _lock = task.lock().await?;
        task.fetch(&EVERYTHING.map(str::to_owned), true).await.map(drop)
    }

    /// Makes sure that the mirror has a commit, though no branch may lead to it any more. Asks the network only if it is not there.
    pub async fn fetch_commit(&self, commit: &CommitId, limit: Duration, job: &Job) -> Result<(), GitError> {
        if self.has_commit(commit) {
            return Ok(());
        }
        let task = Task::begin(self, format!("fetch commit {}", commit.short()), limit, &job.cancel, Some(&job.log))?;
        let _lock = task.lock().await?;
        // The ref keeps the commit findable by those who look into the mirror.
        let refspec = [format!("+{commit}:refs/refit/commits/{commit}")];
        if task.fetch(&refspec, false).await? != Fetched::Done {
            // Servers without protocol version 2 hand out only what a branch or tag leads to.
            task.fetch(&EVERYTHING.map(str::to_owned), true).await?;
        }
        if self.has_commit(commit) {
            return Ok(());
        }
        let why =
            format!("the remote `{}` has no such commit; push a branch or tag that contains it", quoted(&self.remote));
        Err(task.error(GitErrorKind::Missing, why))
    }

    /// What the remote's branch points at, without fetching.
    pub async fn remote_tip(&self, branch: &Branch, limit: Duration) -> Result<Option<CommitId>, GitError> {
        Ok(self.remote_tips(std::slice::from_ref(branch), limit).await?.remove(branch))
    }

    /// What several of the remote's branches point at, in one call; branches that it does not have are missing.
    pub async fn remote_tips(
        &self,
        branches: &[Branch],
        limit: Duration,
    ) -> Result<BTreeMap<Branch, CommitId>, GitError> {
        let cancel = CancellationToken::new();
        let task = Task::begin(self, "ask the remote for its branches".to_owned(), limit, &cancel, None)?;
        if branches.is_empty() {
            // Without a pattern `git` would list every ref.
            return Ok(BTreeMap::new());
        }
        let wanted: BTreeMap<String, &Branch> = branches.iter().map(|b| (format!("refs/heads/{b}"), b)).collect();
        let program = command::git(None).args(["ls-remote", "--"]).arg(&self.remote).args(wanted.keys());
        let done = task.run(&program).await?;
        if !done.success() {
            return Err(task.refused(judge(&done.stderr, &self.dir, &self.remote)));
        }
        let mut tips = BTreeMap::new();
        for line in String::from_utf8_lossy(&done.stdout).lines() {
            // Patterns match the ends of names, so `refs/heads/x/refs/heads/main` comes too.
            let Some((id, branch)) = line.split_once('\t').and_then(|(id, name)| Some((id, wanted.get(name)?))) else {
                continue;
            };
            let id = id.parse().map_err(|e| task.error(GitErrorKind::Invalid, format!("the remote's answer: {e}")))?;
            tips.insert((*branch).clone(), id);
        }
        Ok(tips)
    }

    /// The remote's own branch (its `HEAD`), without fetching; `None` for an empty repository and for remotes that do not say.
    pub async fn default_branch(&self, limit: Duration) -> Result<Option<Branch>, GitError> {
        let cancel = CancellationToken::new();
        let task = Task::begin(self, "ask the remote for its branch".to_owned(), limit, &cancel, None)?;
        let program = command::git(None).args(["ls-remote", "--symref", "--"]).arg(&self.remote).arg("HEAD");
        let done = task.run(&program).await?;
        if !done.success() {
            return Err(task.refused(judge(&done.stderr, &self.dir, &self.remote)));
        }
        let answer = String::from_utf8_lossy(&done.stdout);
        let named = answer.lines().find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"));
        Ok(named.and_then(Branch::of_reference).and_then(Result::ok))
    }

    /// Has the next fetch make the mirror anew. For readers that find it broken.
    pub(super) fn mark_damaged(&self) {
        // If even this fails, the damage will be found again.
        let _ = File::create(self.dir.join(DAMAGE_MARK));
    }
}

/// One call: what it is about, and until when it may take.
struct Task<'a> {
    mirror: &'a Mirror,
    operation: String,
    limit: Duration,
    deadline: Instant,
    cancel: &'a CancellationToken,
    log: Option<&'a StageLog>,
}

impl<'a> Task<'a> {
    fn begin(
        mirror: &'a Mirror,
        operation: String,
        limit: Duration,
        cancel: &'a CancellationToken,
        log: Option<&'a StageLog>,
    ) -> Result<Self, GitError> {
        let task = Self { mirror, operation, limit, deadline: Instant::now() + limit, cancel, log };
        remote::check(&mirror.remote)
            .map_err(|rule| task.error(GitErrorKind::Invalid, format!("the repository's address {rule}")))?;
        Ok(task)
    }

    fn error(&self, kind: GitErrorKind, why: impl Into<String>) -> GitError {
        GitError::new(kind, &self.operation, why)
    }

    fn host_error(&self, what: &str, path: &Path, source: &io::Error) -> GitError {
        self.error(GitErrorKind::Host, format!("{what} {}: {source}", path.display()))
    }

    fn timed_out(&self, what: &str) -> GitError {
        let why = format!("{what} within {:?}; check that the remote is up, or raise `pull.timeout`", self.limit);
        self.error(GitErrorKind::TimedOut, why)
    }

    fn note(&self, text: &str) {
        if let Some(log) = self.log {
            log.line(text);
        }
    }

    /// A trouble that nothing here repairs.
    fn refused(&self, trouble: Trouble) -> GitError {
        let remote = quoted(&self.mirror.remote);
        match trouble {
            Trouble::Told(kind, why) => self.error(kind, why),
            Trouble::NoBranch | Trouble::NotAdvertised => {
                self.error(GitErrorKind::Missing, format!("the remote `{remote}` does not have it"))
            }
            Trouble::Locked(path) => self.error(
                GitErrorKind::Host,
                format!("{} is held by another process; end it, or remove the file", path.display()),
            ),
            Trouble::RefConflict => {
                self.error(GitErrorKind::Host, "branch names conflict; remove the mirror, it will be made anew")
            }
            Trouble::Damaged(line) => self.error(
                GitErrorKind::NoRepository,
                format!("what `{remote}` sent cannot be read ({line}); check it with `git fsck` there"),
            ),
        }
    }

    async fn run(&self, program: &Program) -> Result<Finished, GitError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let result = match self.log {
            Some(log) => program.stream(left, self.cancel, |line| log.line(line)).await,
            None => program.output(left, self.cancel).await,
        };
        result.map_err(|error| match error {
            ExecError::Cancelled { .. } => self.error(GitErrorKind::Cancelled, "cancelled"),
            ExecError::TimedOut { .. } => self.timed_out(&format!("`{}` did not answer", quoted(&self.mirror.remote))),
            ExecError::Start { .. } => {
                self.error(GitErrorKind::Host, format!("{error}; install `git` and see that it is on the PATH"))
            }
            ExecError::Wait { .. } | ExecError::Input { .. } | ExecError::Output { .. } => {
                self.error(GitErrorKind::Host, error.to_string())
            }
        })
    }

    /// Waits for the right to change the mirror.
    async fn lock(&self) -> Result<File, GitError> {
        let path = beside(&self.mirror.dir, "lock");
        let opened = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| File::options().create(true).truncate(false).write(true).open(&path));
        let file = opened.map_err(|e| self.host_error("opening", &path, &e))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => self.pause("another fetch of this repository did not end").await?,
                Err(TryLockError::Error(e)) => return Err(self.host_error("locking", &path, &e)),
            }
        }
    }

    /// A moment between two looks at something that others change.
    async fn pause(&self, waiting_for: &str) -> Result<(), GitError> {
        tokio::select! {
            () = self.cancel.cancelled() => Err(self.error(GitErrorKind::Cancelled, "cancelled")),
            () = tokio::time::sleep_until(self.deadline) => Err(self.timed_out(waiting_for)),
            () = tokio::time::sleep(POLL) => Ok(()),
        }
    }

    /// Steps 1 to 4 of the module's text.
    async fn fetch(&self, refspecs: &[String], prune: bool) -> Result<Fetched, GitError> {
        let dir = &self.mirror.dir;
        if !self.is_sound() {
            return self.make(refspecs).await;
        }
        sweep_packs(dir, STALE_PACK);
        let (mut refspecs, mut prune) = (refspecs.to_vec(), prune);
        let mut trouble = None;
        for _ in 0..REPAIRS {
            match self.fetch_into(dir, &refspecs, prune).await? {
                Ok(fetched) => {
                    self.join_packs().await;
                    return Ok(fetched);
                }
                Err(Trouble::Locked(path)) => {
                    self.clear_stale_locks().await?;
                    trouble = Some(Trouble::Locked(path));
                }
                Err(Trouble::RefConflict) => {
                    // The branch in the way is gone from the remote, or was not fetched for long: bring all up to date.
                    refspecs.extend(EVERYTHING.map(str::to_owned));
                    prune = true;
                    trouble = Some(Trouble::RefConflict);
                }
                Err(Trouble::Damaged(line)) => {
                    self.note(&format!("the mirror is damaged ({line}) and is made anew"));
                    return self.make(&refspecs).await;
                }
                Err(other) => return Err(self.refused(other)),
            }
        }
        Err(trouble.map_or_else(|| self.error(GitErrorKind::Host, "gave up"), |t| self.refused(t)))
    }

    async fn fetch_into(
        &self,
        dir: &Path,
        refspecs: &[String],
        prune: bool,
    ) -> Result<Result<Fetched, Trouble>, GitError> {
        let done = match self.run(&command::fetch(dir, &self.mirror.remote, refspecs, prune)).await {
            Ok(done) => done,
            Err(error) => {
                sweep_packs(dir, Duration::ZERO);
                return Err(error);
            }
        };
        if done.success() {
            return Ok(Ok(Fetched::Done));
        }
        sweep_packs(dir, Duration::ZERO);
        Ok(match judge(&done.stderr, dir, &self.mirror.remote) {
            Trouble::NoBranch => Ok(Fetched::NoBranch),
            Trouble::NotAdvertised => Ok(Fetched::NotAdvertised),
            other => Err(other),
        })
    }

    fn is_sound(&self) -> bool {
        let dir = &self.mirror.dir;
        let mine = std::fs::read(dir.join(MARK)).is_ok_and(|made_for| made_for == self.mirror.remote.as_bytes());
        mine && !dir.join(DAMAGE_MARK).exists() && git2::Repository::open_bare(dir).is_ok()
    }

    /// Makes the mirror anew beside what is there, and puts it in its place.
    async fn make(&self, refspecs: &[String]) -> Result<Fetched, GitError> {
        let dir = &self.mirror.dir;
        let is_ours =
            dir.join(MARK).exists() || std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
        if !is_ours {
            let why = format!("{} is not a mirror that Refit made; move it away", dir.display());
            return Err(self.error(GitErrorKind::Host, why));
        }
        let new = beside(dir, "new");
        remove_tree(&new).map_err(|e| self.host_error("removing", &new, &e))?;
        let filled = match init(&new, &self.mirror.remote) {
            Ok(()) => self.fetch_into(&new, refspecs, false).await,
            Err(why) => Err(self.error(GitErrorKind::Host, format!("making {}: {why}", new.display()))),
        };
        let fetched = filled.and_then(|fetched| fetched.map_err(|trouble| self.refused(trouble)));
        let placed = fetched.and_then(|fetched| {
            exchange(&new, dir).map_err(|e| self.host_error("replacing", dir, &e))?;
            Ok(fetched)
        });
        // Whichever repository is there now is of no use; a leftover is removed by the next one.
        let _ = remove_tree(&new);
        placed
    }

    /// The fetched branch's tip, read to be sure that it can be.
    fn tip(&self, branch: &Branch, fetched: Fetched) -> Result<Option<CommitId>, GitError> {
        let broken =
            |e: git2::Error| self.error(GitErrorKind::Damaged, format!("the mirror is damaged: {}", e.message()));
        let repository = git2::Repository::open_bare(&self.mirror.dir).map_err(broken)?;
        let name = format!("refs/remotes/origin/{branch}");
        if fetched != Fetched::Done {
            if let Ok(mut old) = repository.find_reference(&name) {
                // The branch was deleted: its old tip must not be found by its name.
                old.delete().map_err(broken)?;
            }
            return Ok(None);
        }
        let id = repository.refname_to_id(&name).map_err(broken)?;
        repository.find_commit(id).and_then(|commit| commit.tree().map(drop)).map_err(broken)?;
        let id = id.to_string().parse().map_err(|e| self.error(GitErrorKind::Invalid, format!("{e}")))?;
        Ok(Some(id))
    }

    /// Removes the locks of processes that are gone; waits for those that are not, for they will be.
    async fn clear_stale_locks(&self) -> Result<(), GitError> {
        let dir = &self.mirror.dir;
        for (path, seen) in find_locks(dir) {
            let age = seen.modified.elapsed().unwrap_or_default();
            let stale_at = Instant::now() + STALE_LOCK.saturating_sub(age);
            while Instant::now() < stale_at && LockSeen::at(&path).as_ref() == Some(&seen) {
                self.pause("a lock file in the mirror was not let go of").await?;
            }
            if LockSeen::at(&path).as_ref() == Some(&seen) && std::fs::remove_file(&path).is_ok() {
                self.note(&format!("removed {}, left behind by a fetch that was killed", path.display()));
            }
        }
        Ok(())
    }

    /// Joins small packs when there are many. Its failure costs nothing but time later.
    async fn join_packs(&self) {
        let packs = pack_files(&self.mirror.dir).filter(|p| p.extension().is_some_and(|e| e == "pack")).count();
        if packs <= MANY_PACKS {
            return;
        }
        let program = command::git(Some(&self.mirror.dir)).args([
            "-c",
            "repack.writeBitmaps=false",
            "repack",
            "--geometric=2",
            "-d",
            "-q",
        ]);
        if !self.run(&program).await.is_ok_and(|done| done.success()) {
            self.note("joining the mirror's packs did not work; it is tried again at the next fetch");
        }
    }
}

/// A lock file as it was seen: another one of the same name is another lock.
#[derive(Debug, PartialEq, Eq)]
struct LockSeen {
    inode: u64,
    modified: SystemTime,
}

impl LockSeen {
    fn at(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::symlink_metadata(path).ok()?;
        Some(Self { inode: meta.ino(), modified: meta.modified().ok()? })
    }
}

/// The lock files that a fetch takes: of refs, and of the files at the top.
fn find_locks(dir: &Path) -> Vec<(PathBuf, LockSeen)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in std::fs::read_dir(&at).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type());
            if kind.as_ref().is_ok_and(std::fs::FileType::is_dir) {
                // Objects have no locks, and are many.
                if at != dir || entry.file_name() == "refs" {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "lock")
                && let Some(seen) = LockSeen::at(&path)
            {
                found.push((path, seen));
            }
        }
    }
    found
}

fn pack_files(dir: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir.join("objects/pack")).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Removes packs that were never finished, and marks that keep finished ones from being joined.
fn sweep_packs(dir: &Path, older_than: Duration) {
    for path in pack_files(dir) {
        let partial = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"tmp_"));
        let kept = path.extension().is_some_and(|e| e == "keep");
        let age = std::fs::symlink_metadata(&path).and_then(|m| m.modified()).map(|m| m.elapsed().unwrap_or_default());
        if (partial || kept) && age.is_ok_and(|age| age >= older_than) {
            // One that stays is found again by the next fetch.
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// An empty bare repository: no template, so no sample or planted hooks; always SHA-1 ids and loose files for refs, which is what
/// libgit2 reads, whatever the owner's defaults are.
fn init(dir: &Path, remote: &str) -> Result<(), String> {
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).map_err(|e| e.to_string())?;
    }
    let mut options = git2::RepositoryInitOptions::new();
    options.bare(true).mkdir(true).no_reinit(true).external_template(false).initial_head("refit-none");
    git2::Repository::init_opts(dir, &options).map_err(|e| e.message().to_owned())?;
    std::fs::write(dir.join(MARK), remote).map_err(|e| e.to_string())
}

/// Puts `new` where `old` is, or was never.
fn exchange(new: &Path, old: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    if !old.exists() {
        return std::fs::rename(new, old);
    }
    if renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).is_ok() {
        return Ok(());
    }
    // Some file systems cannot exchange: then there is a moment without a mirror.
    remove_tree(old)?;
    std::fs::rename(new, old)
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `/x/app.git` → `/x/app.git.lock`.
fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}
