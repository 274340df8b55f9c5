//! Which sets there are, and which may go.
//!
//! A set goes only if it is beyond the newest `keep` *and* older than `keep_days`. Never: a set that holds the newest good copy of
//! anything the newest set covers or should have covered (a database whose dump has failed for weeks keeps its last good
//! one), a set that the caller protects, a set whose manifest this version cannot read, or anything that does not look
//! like ours. Of a set that goes the manifest goes first, so that half a removal is not taken for a backup.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{
    DataError, LastLook, MANIFEST, Manifest,
    layout::{SetName, environment_dir},
    read_manifest,
};
use crate::{
    config::Retention,
    model::{CommitId, DeploymentId, EnvironmentKey},
};

/// A directory without a manifest may belong to a backup that is running, up to this age.
const INCOMPLETE_FOR: SignedDuration = SignedDuration::from_hours(24);

/// One set as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetSummary {
    /// The directory's name.
    pub name: String,
    pub path: PathBuf,
    pub state: SetState,
    pub created_at: Timestamp,
    pub deployment: Option<DeploymentId>,
    pub commit: Option<CommitId>,
    pub reason: Option<String>,
    /// Of the files in the directory.
    pub bytes: u64,
    /// Names of the parts that are in it, and of those that should be.
    pub parts: Vec<String>,
    pub missing: Vec<String>,
    /// What the last verification found, if there was one.
    pub verified: Option<LastLook>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SetState {
    Complete,
    /// Without a manifest: running now, or interrupted.
    Incomplete,
    /// With a manifest that cannot be used, and why.
    Unreadable(String),
}

/// What [`prune`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Names of the directories that are gone, oldest first.
    pub removed: Vec<String>,
    /// How many are left, complete or not.
    pub kept: usize,
    /// Given back.
    pub bytes: u64,
}

/// The sets of an environment, newest first. Files are not verified. Blocks.
///
/// # Errors
/// [`DataError::Io`] if the directory is there and cannot be read.
pub fn list(backups_dir: &Path, key: &EnvironmentKey) -> Result<Vec<SetSummary>, DataError> {
    Ok(scan(backups_dir, key)?.into_iter().rev().map(|(_, summary)| summary).collect())
}

/// The set of that name (`2026-11-21_10-15-30`, or with app and environment before it, as reports have it), if it can be used. The
/// name is taken only if it is a set's, so that it leads nowhere else. Blocks.
///
/// # Errors
/// [`DataError::NoSet`] where there is none of that name in this environment, [`DataError::Unfit`] where it has no usable manifest,
/// [`DataError::Io`] if the directory cannot be read.
pub fn which_set(backups_dir: &Path, key: &EnvironmentKey, name: &str) -> Result<SetSummary, DataError> {
    let set = find_set(&list(backups_dir, key)?, key, name)?;
    let unfit = |why: String| Err(DataError::Unfit { set: set.path.clone(), why });
    match &set.state {
        SetState::Complete => Ok(set),
        SetState::Incomplete => unfit("it has no manifest: it is being made, or was interrupted".to_owned()),
        SetState::Unreadable(why) => unfit(why.clone()),
    }
}

/// The set of that name among `sets`, whatever its state; the name as for [`which_set`].
///
/// # Errors
/// [`DataError::NoSet`].
pub fn find_set(sets: &[SetSummary], key: &EnvironmentKey, name: &str) -> Result<SetSummary, DataError> {
    let bare = name.strip_prefix(&format!("{}/{}/", key.app, key.environment)).unwrap_or(name);
    let found = bare.parse::<SetName>().ok().and_then(|_| sets.iter().find(|set| set.name == bare));
    found.cloned().ok_or_else(|| {
        let known = sets.iter().filter(|set| set.state == SetState::Complete).map(|set| set.name.clone()).collect();
        DataError::NoSet { name: name.to_owned(), known }
    })
}

/// Those of `going` without which the newest good copy of something would be gone, each with of what, for people.
pub fn last_copies(sets: &[SetSummary], going: &[SetSummary]) -> Vec<(SetSummary, String)> {
    let mut newest_first: Vec<&SetSummary> = sets.iter().collect();
    newest_first.sort_by_key(|set| std::cmp::Reverse(set.name.parse::<SetName>().ok()));
    let copies = newest_copies(&newest_first);
    let copy_of = |set: &SetSummary| {
        let parts = copies.iter().find(|(name, _)| *name == set.name).map(|(_, parts)| parts)?;
        let parts: Vec<String> = parts.iter().map(|part| format!("`{part}`")).collect();
        Some(format!("it holds the newest good copy of {}", parts.join(", ")))
    };
    going.iter().filter_map(|set| Some((set.clone(), copy_of(set)?))).collect()
}

/// Removes a set, whatever its state. Blocks.
///
/// # Errors
/// [`DataError::Io`] if it cannot be removed.
pub fn remove_set(set: &SetSummary) -> Result<(), DataError> {
    remove(&set.path)
}

/// What [`prune`] would remove. Blocks.
///
/// # Errors
/// [`DataError::Io`] if the directory cannot be read.
pub fn expired(
    backups_dir: &Path,
    key: &EnvironmentKey,
    retention: &Retention,
    now: Timestamp,
    protect: &[String],
) -> Result<Vec<SetSummary>, DataError> {
    let sets = scan(backups_dir, key)?;
    Ok(going(sets, key, retention, now, protect).0)
}

/// Which sets go, and how many stay.
fn going(
    sets: Vec<(SetName, SetSummary)>,
    key: &EnvironmentKey,
    retention: &Retention,
    now: Timestamp,
    protect: &[String],
) -> (Vec<SetSummary>, usize) {
    let chosen = choose(&sets, retention, now);
    let count = sets.len();
    let goes = |(name, set): &(SetName, SetSummary)| {
        let whole = format!("{}/{}/{name}", key.app, key.environment);
        chosen.contains(name) && !protect.iter().any(|p| *p == set.name || *p == whole)
    };
    let gone: Vec<SetSummary> = sets.into_iter().filter(goes).map(|(_, set)| set).collect();
    let kept = count - gone.len();
    (gone, kept)
}

/// Removes what the retention rule allows to go. `protect` names sets (`2026-11-21_10-15-30`, or with app and environment
/// before it) that stay whatever the rule says. Blocks.
///
/// # Errors
/// [`DataError::Io`] for the first directory that cannot be read or removed.
pub fn prune(
    backups_dir: &Path,
    key: &EnvironmentKey,
    retention: &Retention,
    now: Timestamp,
    protect: &[String],
) -> Result<Pruned, DataError> {
    let (gone, kept) = going(scan(backups_dir, key)?, key, retention, now, protect);
    let mut pruned = Pruned { kept, ..Pruned::default() };
    for set in gone {
        remove(&set.path)?;
        pruned.bytes += set.bytes;
        pruned.removed.push(set.name);
    }
    Ok(pruned)
}

/// Removes every set without a manifest, whatever its age: for a deployment that is undone, when nothing else can be writing one.
/// The names removed. Blocks.
///
/// # Errors
/// [`DataError::Io`] for the first directory that cannot be read or removed.
pub fn discard_incomplete(backups_dir: &Path, key: &EnvironmentKey) -> Result<Vec<String>, DataError> {
    let mut removed = Vec::new();
    for (_, set) in scan(backups_dir, key)?.into_iter().filter(|(_, s)| s.state == SetState::Incomplete) {
        remove(&set.path)?;
        removed.push(set.name);
    }
    Ok(removed)
}

/// The rule, on what is known about each set, oldest first.
fn choose(sets: &[(SetName, SetSummary)], retention: &Retention, now: Timestamp) -> BTreeSet<SetName> {
    let age = |name: &SetName| now.duration_since(name.at);
    let complete: Vec<_> = sets.iter().filter(|(_, s)| s.state == SetState::Complete).rev().collect();
    let newest_first: Vec<&SetSummary> = complete.iter().map(|(_, set)| set).collect();
    let needed: BTreeSet<SetName> =
        newest_copies(&newest_first).iter().filter_map(|(name, _)| name.parse().ok()).collect();
    let keep_for = SignedDuration::from_hours(24 * i64::from(retention.keep_days));
    let expired = complete.iter().skip(retention.keep).map(|(name, _)| *name).filter(|name| age(name) > keep_for);
    let remains = sets.iter().filter(|(_, s)| s.state == SetState::Incomplete).map(|(name, _)| *name);
    let remains = remains.filter(|name| age(name) > INCOMPLETE_FOR);
    expired.chain(remains).filter(|name| !needed.contains(name)).collect()
}

/// The sets that hold the newest good copy of each part that the newest set has or should have, with these parts. Given the newest first.
fn newest_copies(sets: &[&SetSummary]) -> Vec<(String, Vec<String>)> {
    let good: Vec<&&SetSummary> = sets.iter().filter(|set| set.state == SetState::Complete).collect();
    let Some(newest) = good.first() else { return Vec::new() };
    let mut copies: Vec<(String, Vec<String>)> = Vec::new();
    for part in newest.parts.iter().chain(&newest.missing) {
        // One that was found damaged is better than none.
        let holds = |set: &&&&SetSummary| set.parts.contains(part);
        let is_bad = |set: &SetSummary| set.verified.as_ref().is_some_and(|look| look.bad.contains(part));
        let holder = good.iter().filter(holds).find(|set| !is_bad(set)).or_else(|| good.iter().find(holds));
        let Some(holder) = holder else { continue };
        match copies.iter_mut().find(|(name, _)| *name == holder.name) {
            Some((_, parts)) => parts.push(part.clone()),
            None => copies.push((holder.name.clone(), vec![part.clone()])),
        }
    }
    copies
}

fn remove(dir: &Path) -> Result<(), DataError> {
    match fs::remove_file(dir.join(MANIFEST)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(DataError::io("removing", dir)(error)),
        Ok(()) | Err(_) => {}
    }
    fs::remove_dir_all(dir).map_err(DataError::io("removing", dir))
}

/// Every directory (no link) of the environment whose name is a set's, oldest first.
fn scan(backups_dir: &Path, key: &EnvironmentKey) -> Result<Vec<(SetName, SetSummary)>, DataError> {
    let dir = environment_dir(backups_dir, key);
    let failed = |error| DataError::io("reading", &dir)(error);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut sets = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let text = entry.file_name().to_string_lossy().into_owned();
        let Ok(name) = text.parse::<SetName>() else { continue };
        if entry.file_type().map_err(failed)?.is_dir() {
            sets.push((name, summary(name, entry.path())));
        }
    }
    sets.sort_by_key(|(name, _)| *name);
    Ok(sets)
}

fn summary(name: SetName, path: PathBuf) -> SetSummary {
    let manifest = read_manifest(&path);
    let state = match &manifest {
        Ok(_) => SetState::Complete,
        Err(DataError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => SetState::Incomplete,
        Err(error) => SetState::Unreadable(error.to_string()),
    };
    let bytes = bytes_in(&path);
    let verified = LastLook::of(&path);
    let known: Option<Manifest> = manifest.ok();
    let names = |m: &Manifest| m.parts.iter().map(|p| p.name.clone()).collect();
    let missing = |m: &Manifest| m.failures.iter().map(|f| f.name.clone()).collect();
    SetSummary {
        name: name.to_string(),
        path,
        state,
        created_at: known.as_ref().map_or(name.at, |m| m.created_at),
        deployment: known.as_ref().and_then(|m| m.deployment),
        commit: known.as_ref().and_then(|m| m.commit.clone()),
        reason: known.as_ref().map(|m| m.reason.clone()),
        bytes,
        parts: known.as_ref().map(names).unwrap_or_default(),
        missing: known.as_ref().map(missing).unwrap_or_default(),
        verified,
    }
}

/// A set is flat; what cannot be looked at counts as nothing.
fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.metadata().ok()).filter(fs::Metadata::is_file).map(|m| m.len()).sum()
}
