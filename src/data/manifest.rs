//! `manifest.json`: what a set holds, so that it can be checked and restored by someone who knows nothing else.
//!
//! It carries a checksum of itself (SHA-256 of the document with that field empty), so that a flipped byte is found wherever it
//! falls. Names of files in it are taken only if they are plain names: a manifest from elsewhere cannot point out of its
//! directory, and links are not followed.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{BackupReport, DataError, PartFailure, SetRequest, Tree, VERIFICATION, progress::ReadMeter};
use crate::{
    config::Compression,
    model::{CommitId, DeploymentId, EnvironmentKey, Name},
};

/// The file that makes a directory a backup.
pub const MANIFEST: &str = "manifest.json";

const VERSION: u32 = 3;

/// What a document is that has nothing of what version 3 brought: an older Refit reads it.
const WITHOUT_ROLES: u32 = 2;

/// The oldest version that is still read. What a version added is left out of a document that does not have it, so that the checksum of an
/// older document is computed over what was written then.
const OLDEST: u32 = 1;

/// A manifest is a few kilobytes; anything beyond this is not one.
const MOST_BYTES: u64 = 4 * 1024 * 1024;

/// Version 3 of the document. A new or changed field is a new version; version 2 added what may be absent, version 3 `roles`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub version: u32,
    pub app: Name,
    pub environment: Name,
    pub deployment: Option<DeploymentId>,
    pub commit: Option<CommitId>,
    pub created_at: Timestamp,
    pub reason: String,
    /// What was live then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<SetRelease>,
    /// The schema's version as the last migration recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    pub parts: Vec<Part>,
    /// Parts that should be here and are not.
    pub failures: Vec<PartFailure>,
    pub warnings: Vec<String>,
    /// The Refit that wrote it.
    pub refit: String,
    /// SHA-256 of this document with this field empty.
    pub checksum: String,
}

/// One file of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub name: String,
    pub kind: PartKind,
    pub format: PartFormat,
    pub source: PartSource,
    /// A plain name in the set's directory.
    pub file: String,
    /// Of the file as it lies there, lower-case hexadecimal.
    pub sha256: String,
    /// Of the file as it lies there.
    pub bytes: u64,
    /// Before compression.
    pub raw_bytes: u64,
    /// How the file is compressed; an archive of PostgreSQL's custom format may be compressed inside as well. `None`: the file's ending says it
    /// (version 1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// The rows of each table, counted in what was dumped, in no order. Empty: not counted, or there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<TableRows>,
    /// Of a directory or a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<Tree>,
    /// PostgreSQL: the roles of the server, in a file of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<RolesFile>,
    /// What made it: `pg_dump (PostgreSQL) 15.14`, `SQLite 3.50.2`.
    pub tool: String,
    /// The database server's version, where it has one of its own.
    pub server: Option<String>,
    /// A command line for a person; what is in capitals is theirs to fill in.
    pub restore: String,
    pub duration_ms: u64,
}

/// What `pg_dumpall --roles-only` wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolesFile {
    /// A plain name in the set's directory.
    pub file: String,
    pub sha256: String,
    pub bytes: u64,
    /// Roles in it.
    pub count: u64,
    /// With the hashes of their passwords, which only a superuser may read.
    pub passwords: bool,
    /// A command line for a person.
    pub restore: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartKind {
    Postgres,
    /// MariaDB too.
    Mysql,
    Sqlite,
    Files,
    Volume,
    Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartFormat {
    /// SQL text for the server's own client.
    Plain,
    /// An archive for `pg_restore`.
    Custom,
    /// A SQLite database file.
    Database,
    /// A tar archive in the pax format.
    Tar,
    /// What a command printed.
    Output,
}

/// Where it came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartSource {
    pub container: Option<String>,
    pub database: Option<String>,
    pub user: Option<String>,
    pub path: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The command that printed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// `db.example:5432`, of a server that is reached over the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Of the database: what an empty one like it is made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ctype: Option<String>,
    /// Roles that something in the database belongs to, or has rights for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableRows {
    /// As people write it: `public.guests`, with quotes where SQL needs them.
    pub name: String,
    pub rows: u64,
}

/// A file as the manifest records it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartFile<'a> {
    pub name: &'a str,
    pub sha256: &'a str,
    pub bytes: u64,
}

impl Part {
    /// Its own first.
    pub(super) fn files(&self) -> impl Iterator<Item = PartFile<'_>> {
        let own = PartFile { name: &self.file, sha256: &self.sha256, bytes: self.bytes };
        let roles = self.roles.as_ref();
        let roles = roles.map(|roles| PartFile { name: &roles.file, sha256: &roles.sha256, bytes: roles.bytes });
        std::iter::once(own).chain(roles)
    }

    /// Of all its files, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.files().map(|file| file.bytes).sum()
    }

    /// What its backup lacks, for people.
    pub fn warning(&self) -> Option<String> {
        let roles = self.roles.as_ref().filter(|roles| !roles.passwords)?;
        let why = "its user may not read them, which takes a superuser";
        Some(format!("the {} roles of `{}` are without their passwords: {why}", roles.count, self.name))
    }
}

/// How the world was when a set was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetContext {
    /// What was live.
    pub release: Option<SetRelease>,
    /// The schema's version as the last migration recorded it.
    pub schema: Option<String>,
    /// Who asked for the set.
    pub by: Option<String>,
}

/// What was live when a set was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRelease {
    pub deployment: DeploymentId,
    pub commit: CommitId,
}

/// What [`verify_checksums`] found in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub parts: usize,
    pub bytes: u64,
}

impl Manifest {
    pub(super) fn new(request: &SetRequest<'_>, created_at: Timestamp, report: &BackupReport) -> Self {
        let EnvironmentKey { app, environment } = request.environment.key.clone();
        let left_out = request.environment.backups.iter().filter(|backup| !request.wants(backup));
        let left_out = left_out.map(|backup| PartFailure {
            name: backup.name.to_string(),
            error: "it was left out when the set was asked for".to_owned(),
            required: false,
        });
        let failures: Vec<PartFailure> = report.failures.iter().cloned().chain(left_out).collect();
        let missing = failures.iter().map(|f| format!("`{}` is not in this backup: {}", f.name, f.error));
        let warnings = missing.chain(report.parts.iter().filter_map(Part::warning));
        let roles = report.parts.iter().any(|part| part.roles.is_some());
        Self {
            version: if roles { VERSION } else { WITHOUT_ROLES },
            app,
            environment,
            deployment: request.deployment,
            commit: request.commit.cloned(),
            created_at,
            reason: request.reason.to_owned(),
            release: request.context.release.clone(),
            schema: request.context.schema.clone(),
            by: request.context.by.clone(),
            parts: report.parts.clone(),
            warnings: warnings.collect(),
            failures,
            refit: env!("CARGO_PKG_VERSION").to_owned(),
            checksum: String::new(),
        }
    }

    /// Writes it so that it is there whole or not at all, also after a power cut.
    pub(super) fn write(mut self, dir: &Path) -> Result<(), DataError> {
        let path = dir.join(MANIFEST);
        let temporary = dir.join(".manifest.json.new");
        let written = self.computed_checksum().and_then(|checksum| {
            self.checksum = checksum;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(&self)?)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(dir)?.sync_all()?;
            // The set's own entry must outlive a power cut as well.
            dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
        });
        written.map_err(DataError::io("writing", &path))
    }

    fn computed_checksum(&self) -> io::Result<String> {
        let bare = Self { checksum: String::new(), ..self.clone() };
        Ok(hex::encode(Sha256::digest(serde_json::to_vec(&bare)?)))
    }
}

/// Reads the manifest of a set, and checks its version, its own checksum and the names in it.
///
/// # Errors
/// [`DataError::Io`] where there is none, [`DataError::Manifest`] where it cannot be used.
pub fn read_manifest(set_dir: &Path) -> Result<Manifest, DataError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let path = set_dir.join(MANIFEST);
    let unusable = |why: String| DataError::Manifest { path: path.clone(), why };
    let mut text = Vec::new();
    open_plain(&path)
        .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut text))
        .map_err(DataError::io("reading", &path))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(unusable(format!("it is larger than {MOST_BYTES} bytes")));
    }
    let Version { version } = serde_json::from_slice(&text).map_err(|e| unusable(e.to_string()))?;
    if !(OLDEST..=VERSION).contains(&version) {
        return Err(unusable(format!("it has version {version}, and this is for versions {OLDEST} to {VERSION}")));
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| unusable(e.to_string()))?;
    if manifest.computed_checksum().map_err(|e| unusable(e.to_string()))? != manifest.checksum {
        return Err(unusable("it was changed after it was written".to_owned()));
    }
    // What changes nothing in the meaning, such as a space for a line end, is damage too.
    if serde_json::to_vec_pretty(&manifest).map_err(|e| unusable(e.to_string()))? != text.trim_ascii_end() {
        return Err(unusable("it is not as it was written".to_owned()));
    }
    if let Some(file) = manifest.parts.iter().flat_map(Part::files).find(|file| !is_plain_name(file.name)) {
        return Err(unusable(format!("`{}` is not a plain file name", file.name.escape_default())));
    }
    Ok(manifest)
}

/// Reads every file of a set and compares size and SHA-256 with the manifest. Blocks.
///
/// # Errors
/// As [`read_manifest`]; [`DataError::Damaged`] with every file that is missing or not what was written.
pub fn verify_checksums(set_dir: &Path) -> Result<Verified, DataError> {
    checksums(set_dir, &read_manifest(set_dir)?, &ReadMeter::default(), &CancellationToken::new())
}

/// The same, told how far it is and when to give up.
pub(super) fn checksums(
    set_dir: &Path,
    manifest: &Manifest,
    meter: &ReadMeter,
    cancel: &CancellationToken,
) -> Result<Verified, DataError> {
    let mut problems = Vec::new();
    for part in &manifest.parts {
        problems.extend(problem(set_dir, part, meter, cancel)?);
    }
    if !problems.is_empty() {
        return Err(DataError::Damaged { set: set_dir.to_owned(), problems });
    }
    Ok(Verified { parts: manifest.parts.len(), bytes: manifest.parts.iter().map(Part::size).sum() })
}

/// What is wrong with a part's files, if anything. Blocks.
///
/// # Errors
/// Only [`DataError::Cancelled`].
pub(super) fn problem(
    set_dir: &Path,
    part: &Part,
    meter: &ReadMeter,
    cancel: &CancellationToken,
) -> Result<Option<String>, DataError> {
    let found = part.files().find_map(|file| problem_of(set_dir, file, meter, cancel));
    if cancel.is_cancelled() { Err(DataError::Cancelled) } else { Ok(found) }
}

fn problem_of(set_dir: &Path, file: PartFile<'_>, meter: &ReadMeter, cancel: &CancellationToken) -> Option<String> {
    let read = || -> io::Result<(u64, String)> {
        let mut file = open_plain(&set_dir.join(file.name))?;
        let mut hash = Sha256::new();
        let mut chunk = vec![0; 128 * 1024];
        let mut bytes = 0;
        loop {
            let n = file.read(&mut chunk)?;
            if n == 0 || cancel.is_cancelled() {
                return Ok((bytes, hex::encode(hash.finalize())));
            }
            bytes += n as u64;
            meter.add(n);
            hash.update(&chunk[..n]);
        }
    };
    let name = file.name;
    match read() {
        Ok((bytes, _)) if bytes != file.bytes => {
            Some(format!("`{name}` has {bytes} bytes and should have {}", file.bytes))
        }
        Ok((_, sha256)) if sha256 != file.sha256 => Some(format!("`{name}` has another SHA-256 than recorded")),
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(format!("`{name}` is missing")),
        Err(error) => Some(format!("`{name}` cannot be read: {error}")),
    }
}

/// Opens a regular file, no link, without waiting on what is a pipe.
pub(super) fn open_plain(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

fn is_plain_name(name: &str) -> bool {
    !matches!(name, "" | "." | ".." | MANIFEST | VERIFICATION) && name.len() <= 255 && !name.contains(['/', '\\', '\0'])
}
