//! Following symbolic links inside a tree, as the kernel would with the tree as its root.

use super::{Oid, Tree, VecDeque};
use git2::{ObjectType, Repository};

/// Linux follows at most 40 links in one path (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    File {
        /// Without links, relative to the root.
        path: Vec<u8>,
        blob: Oid,
    },
    Directory(Oid),
    /// Inside the root, and not there.
    Nothing,
    /// Absolute, above the root, or in circles.
    Outside,
}

/// Resolves `path`, which is read in the directory `from` (itself without links), below `root`.
pub(super) fn resolve(repo: &Repository, root: &Tree<'_>, from: &[u8], path: &[u8]) -> Result<Resolved, git2::Error> {
    if path.starts_with(b"/") {
        return Ok(Resolved::Outside);
    }
    let mut todo: VecDeque<Vec<u8>> = parts(from).chain(parts(path)).collect();
    // The directories on the way down with their names; `None`: not in the tree, so nothing can be below it.
    let mut way: Vec<(Vec<u8>, Option<Oid>)> = Vec::new();
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == b".." {
            if way.pop().is_none() {
                return Ok(Resolved::Outside);
            }
            continue;
        }
        let here = way.last().map_or(Some(root.id()), |(_, id)| *id);
        let tree = here.map(|id| repo.find_tree(id)).transpose()?;
        let entry = tree.as_ref().and_then(|tree| tree.get_name_bytes(&part));
        let Some(entry) = entry else {
            way.push((part, None));
            continue;
        };
        match (entry.kind(), entry.filemode()) {
            (Some(ObjectType::Tree), _) => way.push((part, Some(entry.id()))),
            (Some(ObjectType::Blob), 0o120_000) => {
                links += 1;
                let target = repo.find_blob(entry.id())?;
                if links > MAX_LINKS || target.content().starts_with(b"/") {
                    return Ok(Resolved::Outside);
                }
                for part in parts(target.content()).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(part);
                }
            }
            (Some(ObjectType::Blob), _) if todo.is_empty() => {
                let mut path = Vec::new();
                for (name, _) in &way {
                    path.extend_from_slice(name);
                    path.push(b'/');
                }
                path.extend_from_slice(&part);
                return Ok(Resolved::File { path, blob: entry.id() });
            }
            _ => way.push((part, None)),
        }
    }
    Ok(match way.last() {
        None => Resolved::Directory(root.id()),
        Some((_, Some(id))) => Resolved::Directory(*id),
        Some((_, None)) => Resolved::Nothing,
    })
}

fn parts(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec)
}
