//! Reading the mirror: names to commits, ancestry, changes, single files.

use git2::{ErrorCode, ObjectType, Oid, Repository};
use jiff::Timestamp;

use super::{CommitInfo, GitError, GitErrorKind, Mirror, trouble::quoted};
use crate::{log::printable, model::CommitId};

/// The largest file that [`Mirror::read_file`] returns, in bytes.
const LARGEST_FILE: usize = 4 * 1024 * 1024;

const LONGEST_SUBJECT: usize = 300;
const LONGEST_AUTHOR: usize = 100;
const LONGEST_MESSAGE: usize = 64 * 1024;

/// Fewer digits name too many commits.
const SHORTEST_ABBREVIATION: usize = 4;

/// The files of a directory: their names and what they hold.
pub type DirFiles = Vec<(String, Vec<u8>)>;

impl Mirror {
    /// A branch, tag, or (abbreviated) commit as a person writes it → commit. A full commit id is only ever that; other names are
    /// tried as a branch, then as a tag, then as the beginning of a commit id. `refs/heads/…` and `refs/tags/…` say
    /// which is meant. Expressions (`main~1`, `a..b`) are not names.
    pub fn resolve(&self, reference: &str) -> Result<CommitId, GitError> {
        let operation = format!("find `{}`", quoted(reference));
        let invalid = |why: String| GitError::new(GitErrorKind::Invalid, &operation, why);
        let repository = self.open(&operation)?;
        if let Ok(full) = reference.to_ascii_lowercase().parse::<CommitId>() {
            return self.commit(&full).map(|c| c.id);
        }
        if reference.starts_with('-') || !git2::Reference::is_valid_name(&format!("refs/heads/{reference}")) {
            return Err(invalid("not the name of a branch, tag or commit".to_owned()));
        }
        for name in spellings(reference) {
            match repository.find_reference(&name) {
                Ok(found) => {
                    let commit = found.peel_to_commit().map_err(|_| invalid(format!("`{name}` is not a commit")))?;
                    return commit_id(&operation, commit.id());
                }
                Err(error) if error.code() == ErrorCode::NotFound => {}
                Err(error) => return Err(self.damaged(&operation, &error)),
            }
        }
        let is_hex = reference.bytes().all(|b| b.is_ascii_hexdigit());
        if is_hex && (SHORTEST_ABBREVIATION..40).contains(&reference.len()) {
            return self.resolve_abbreviation(&repository, &operation, &reference.to_ascii_lowercase());
        }
        Err(GitError::new(
            GitErrorKind::Missing,
            operation,
            format!("`{}` has no such branch, tag or commit", quoted(&self.remote)),
        ))
    }

    fn resolve_abbreviation(
        &self,
        repository: &Repository,
        operation: &str,
        digits: &str,
    ) -> Result<CommitId, GitError> {
        let mut commits = Vec::new();
        let odb = repository.odb().map_err(|e| self.damaged(operation, &e))?;
        match repository.find_commit_by_prefix(digits) {
            Ok(commit) => commits.push(commit.id()),
            Err(error) if error.code() == ErrorCode::Ambiguous => {
                // Only now are all objects looked at; those that are not commits do not count.
                odb.foreach(|id| {
                    let fits = id.to_string().starts_with(digits);
                    if fits && odb.read_header(*id).is_ok_and(|(_, kind)| kind == ObjectType::Commit) {
                        commits.push(*id);
                    }
                    true
                })
                .map_err(|e| self.damaged(operation, &e))?;
            }
            // Not there, or a tree or file.
            Err(_) => {}
        }
        commits.sort();
        commits.dedup();
        match commits.as_slice() {
            [] => {
                let why = format!("`{}` has no such branch, tag or commit", quoted(&self.remote));
                Err(GitError::new(GitErrorKind::Missing, operation, why))
            }
            [one] => commit_id(operation, *one),
            many => {
                let listed: Vec<String> = many.iter().take(10).map(|id| id.to_string()[..16].to_owned()).collect();
                let why = format!("{} commits begin like this ({}); write more digits", many.len(), listed.join(", "));
                Err(GitError::new(GitErrorKind::Invalid, operation, why))
            }
        }
    }

    pub fn has_commit(&self, commit: &CommitId) -> bool {
        let found = self.open("").ok().zip(Oid::from_str(commit.as_str()).ok());
        found.is_some_and(|(repository, id)| repository.find_commit(id).is_ok())
    }

    /// The id of a commit's tree: equal trees have equal ids, whatever their history.
    pub fn tree_id(&self, commit: &CommitId) -> Result<String, GitError> {
        let operation = format!("read the tree of {}", commit.short());
        let repository = self.open(&operation)?;
        self.find(&repository, &operation, commit).map(|found| found.tree_id().to_string())
    }

    pub fn commit(&self, commit: &CommitId) -> Result<CommitInfo, GitError> {
        let operation = format!("read commit {}", commit.short());
        let repository = self.open(&operation)?;
        let found = self.find(&repository, &operation, commit)?;
        let line = |bytes: &[u8], longest| -> String {
            printable(&String::from_utf8_lossy(bytes).replace(['\n', '\r'], " ")).chars().take(longest).collect()
        };
        let message = found.message_bytes();
        let message = &message[..message.len().min(LONGEST_MESSAGE)];
        Ok(CommitInfo {
            id: commit.clone(),
            subject: line(found.summary_bytes().unwrap_or_default(), LONGEST_SUBJECT),
            message: String::from_utf8_lossy(message).into_owned(),
            author: line(found.author().name_bytes(), LONGEST_AUTHOR),
            time: Timestamp::from_second(found.time().seconds()).unwrap_or(Timestamp::UNIX_EPOCH),
        })
    }

    /// Whether `ancestor` is `descendant` or one of its ancestors.
    pub fn is_ancestor(&self, ancestor: &CommitId, descendant: &CommitId) -> Result<bool, GitError> {
        let operation = format!("compare commits {} and {}", ancestor.short(), descendant.short());
        let repository = self.open(&operation)?;
        let old = self.find(&repository, &operation, ancestor)?.id();
        let new = self.find(&repository, &operation, descendant)?.id();
        if old == new {
            return Ok(true);
        }
        repository.graph_descendant_of(new, old).map_err(|e| self.damaged(&operation, &e))
    }

    /// The commits that `tip` has and `base` has not: how many, and the newest `most` of them.
    pub fn commits_between(
        &self,
        base: &CommitId,
        tip: &CommitId,
        most: usize,
    ) -> Result<(usize, Vec<CommitInfo>), GitError> {
        let operation = format!("list the commits from {} to {}", base.short(), tip.short());
        let repository = self.open(&operation)?;
        let broken = |e: git2::Error| self.damaged(&operation, &e);
        let mut walk = repository.revwalk().map_err(broken)?;
        walk.set_sorting(git2::Sort::TOPOLOGICAL | git2::Sort::TIME).map_err(broken)?;
        walk.push(self.find(&repository, &operation, tip)?.id()).map_err(broken)?;
        walk.hide(self.find(&repository, &operation, base)?.id()).map_err(broken)?;
        let (mut count, mut newest) = (0, Vec::new());
        for id in walk {
            let id = commit_id(&operation, id.map_err(broken)?)?;
            if newest.len() < most {
                newest.push(self.commit(&id)?);
            }
            count += 1;
        }
        Ok((count, newest))
    }

    /// Paths that differ between two commits' trees, both names of a rename; sorted. Bytes that are not UTF-8 are replaced.
    pub fn changed_paths(&self, from: &CommitId, to: &CommitId) -> Result<Vec<String>, GitError> {
        let operation = format!("compare the trees of {} and {}", from.short(), to.short());
        let repository = self.open(&operation)?;
        let broken = |e: git2::Error| self.damaged(&operation, &e);
        let old = self.find(&repository, &operation, from)?.tree().map_err(broken)?;
        let new = self.find(&repository, &operation, to)?.tree().map_err(broken)?;
        // Renames are not looked for: one is a deletion and an addition, which names both paths.
        let diff = repository.diff_tree_to_tree(Some(&old), Some(&new), None).map_err(broken)?;
        let mut paths: Vec<String> = diff
            .deltas()
            .flat_map(|delta| [delta.old_file().path_bytes(), delta.new_file().path_bytes()])
            .flatten()
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect();
        paths.sort();
        paths.dedup();
        Ok(paths)
    }

    /// The files of one directory of a commit's tree, by name and with what they hold; `None` where there is no such directory. Only those whose
    /// names `wanted` takes; directories are left out. At most 4 MiB a file; links are not followed but refused.
    pub fn read_dir(
        &self,
        commit: &CommitId,
        path: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Option<DirFiles>, GitError> {
        let operation = format!("read the files in `{}` of commit {}", quoted(path), commit.short());
        let invalid = |why: String| GitError::new(GitErrorKind::Invalid, &operation, why);
        let parts = inner(path).ok_or_else(|| invalid("not a path in the repository".to_owned()))?;
        let repository = self.open(&operation)?;
        let broken = |e: git2::Error| self.damaged(&operation, &e);
        let mut tree = self.find(&repository, &operation, commit)?.tree().map_err(broken)?;
        if !parts.is_empty() {
            let entry = match tree.get_path(std::path::Path::new(&parts.join("/"))) {
                Ok(entry) if entry.kind() == Some(ObjectType::Tree) => entry,
                Ok(_) => return Err(invalid("not a directory".to_owned())),
                Err(error) if error.code() == ErrorCode::NotFound => return Ok(None),
                Err(error) => return Err(broken(error)),
            };
            tree = repository.find_tree(entry.id()).map_err(broken)?;
        }
        let odb = repository.odb().map_err(broken)?;
        let mut files = Vec::new();
        for entry in &tree {
            let name = String::from_utf8_lossy(entry.name_bytes()).into_owned();
            if entry.kind() != Some(ObjectType::Blob) || !wanted(&name) {
                continue;
            }
            if entry.filemode() == 0o120_000 {
                return Err(invalid(format!("`{}` is a symbolic link; put the file itself there", quoted(&name))));
            }
            if odb.read_header(entry.id()).map_err(broken)?.0 > LARGEST_FILE {
                return Err(invalid(format!("`{}` is larger than 4 MiB", quoted(&name))));
            }
            files.push((name, odb.read(entry.id()).map_err(broken)?.data().to_vec()));
        }
        Ok(Some(files))
    }

    /// One file of a commit's tree; `None` where there is none. At most 4 MiB; links are not followed but refused.
    pub fn read_file(&self, commit: &CommitId, path: &str) -> Result<Option<Vec<u8>>, GitError> {
        let operation = format!("read `{}` of commit {}", quoted(path), commit.short());
        let invalid = |why: &str| GitError::new(GitErrorKind::Invalid, &operation, why);
        let parts = inner(path).filter(|parts| !parts.is_empty());
        let parts = parts.ok_or_else(|| invalid("not a path in the repository"))?;
        let repository = self.open(&operation)?;
        let broken = |e: git2::Error| self.damaged(&operation, &e);
        let tree = self.find(&repository, &operation, commit)?.tree().map_err(broken)?;
        let entry = match tree.get_path(std::path::Path::new(&parts.join("/"))) {
            Ok(entry) => entry,
            Err(error) if error.code() == ErrorCode::NotFound => return Ok(None),
            Err(error) => return Err(broken(error)),
        };
        match (entry.kind(), entry.filemode()) {
            (Some(ObjectType::Blob), 0o120_000) => return Err(invalid("a symbolic link; name the file itself")),
            (Some(ObjectType::Blob), _) => {}
            _ => return Err(invalid("not a file")),
        }
        let odb = repository.odb().map_err(broken)?;
        if odb.read_header(entry.id()).map_err(broken)?.0 > LARGEST_FILE {
            return Err(invalid("larger than 4 MiB"));
        }
        odb.read(entry.id()).map(|object| Some(object.data().to_vec())).map_err(broken)
    }

    pub(super) fn open(&self, operation: &str) -> Result<Repository, GitError> {
        Repository::open_bare(&self.dir).map_err(|error| match error.code() {
            ErrorCode::NotFound => {
                let why = format!("`{}` has not been fetched yet", quoted(&self.remote));
                GitError::new(GitErrorKind::Missing, operation, why)
            }
            ErrorCode::Owner => {
                let why = format!(
                    "{} belongs to another user; run refit as that user, or change the owner",
                    self.dir.display()
                );
                GitError::new(GitErrorKind::Host, operation, why)
            }
            _ => self.damaged(operation, &error),
        })
    }

    pub(super) fn find<'r>(
        &self,
        repository: &'r Repository,
        operation: &str,
        commit: &CommitId,
    ) -> Result<git2::Commit<'r>, GitError> {
        let id = Oid::from_str(commit.as_str()).map_err(|e| self.damaged(operation, &e))?;
        repository.find_commit(id).map_err(|error| match error.code() {
            ErrorCode::NotFound => {
                let why = format!(
                    "commit {} is not in the mirror of `{}`; fetch it first",
                    commit.short(),
                    quoted(&self.remote)
                );
                GitError::new(GitErrorKind::Missing, operation, why)
            }
            _ => self.damaged(operation, &error),
        })
    }

    /// What a found commit leads to cannot be read. The next fetch makes the mirror anew.
    pub(super) fn damaged(&self, operation: &str, error: &git2::Error) -> GitError {
        self.mark_damaged();
        let why = format!(
            "the mirror {} is damaged ({}); fetch again, which makes it anew",
            self.dir.display(),
            error.message()
        );
        GitError::new(GitErrorKind::Damaged, operation, why)
    }
}

/// The parts of a path within the tree; none for its root.
fn inner(path: &str) -> Option<Vec<&str>> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let outside = path.starts_with('/') || parts.contains(&"..") || path.contains('\0');
    (!outside).then_some(parts)
}

/// The refs that a name may mean, first choice first.
fn spellings(name: &str) -> Vec<String> {
    if let Some(branch) = name.strip_prefix("refs/heads/") {
        vec![format!("refs/remotes/origin/{branch}")]
    } else if name.starts_with("refs/tags/") {
        vec![name.to_owned()]
    } else {
        vec![format!("refs/remotes/origin/{name}"), format!("refs/tags/{name}")]
    }
}

fn commit_id(operation: &str, id: Oid) -> Result<CommitId, GitError> {
    id.to_string().parse().map_err(|e| GitError::new(GitErrorKind::Invalid, operation, format!("{e}")))
}
