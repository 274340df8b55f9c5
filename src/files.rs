//! Small file-system helpers that several rooms need: private modes, atomic replacement, free space, sizes for people.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

/// Makes a directory and its parents; the ones it makes are 0700.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Gives an existing file mode 0600.
pub fn make_private(file: &Path) -> io::Result<()> {
    fs::set_permissions(file, Permissions::from_mode(0o600))
}

/// Writes a file so that readers and crashes see the old content or the new, never a part: temporary file beside it, fsync,
/// rename, fsync of the directory. Mode as given.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let result = (|| {
        let mut file = File::create(&temporary)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    })();
    if result.is_err() {
        // What is left of the attempt is of no use; the first error is what matters.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Free bytes for an unprivileged user on the file system that holds `path` (or its nearest parent that exists).
pub fn free_space(path: &Path) -> io::Result<u64> {
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// `1.5 GB`, `12 kB`: decimal units, for people.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_is_atomic_and_private() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("a.json");
        write_atomically(&file, b"one", 0o600)?;
        write_atomically(&file, b"two", 0o600)?;
        assert_eq!(fs::read(&file)?, b"two");
        assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path())?.count(), 1, "no temporary file is left");
        Ok(())
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!([0, 999, 1000, 1_500_000_000].map(human_bytes), ["0 B", "999 B", "1.0 kB", "1.5 GB"]);
    }
}
