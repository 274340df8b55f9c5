//! Which program file a process runs.
//!
//! A version's number is not enough: between two releases there are builds, and an owner may put an older one back. The file is told by what the file system says of it, which costs
//! nothing to ask. A copy counts as another build; that is a handover too many, and nobody notices it.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use serde::{Deserialize, Serialize};

/// The running program's own file, also after another one took its name.
pub const OWN: &str = "/proc/self/exe";

/// Equal for two processes that run the same file. What it consists of is nobody's business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Build(String);

impl Build {
    /// None where the file is not there.
    pub fn of(program: &Path) -> Option<Self> {
        let file = fs::metadata(program).ok()?;
        let (size, seconds, nanos) = (file.size(), file.mtime(), file.mtime_nsec());
        Some(Self(format!("{size:x}-{seconds:x}.{nanos:x}-{:x}.{:x}", file.dev(), file.ino())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_of_the_same_name_is_another_build() {
        let dir = tempfile::tempdir().unwrap();
        let (program, newer) = (dir.path().join("refit"), dir.path().join("newer"));
        assert_eq!(Build::of(&program), None);
        fs::write(&program, "one").unwrap();
        let first = Build::of(&program);
        assert!(first.is_some() && first == Build::of(&program));
        // Of the same size.
        fs::write(&newer, "two").unwrap();
        fs::rename(&newer, &program).unwrap();
        assert_ne!(Build::of(&program), first);
        assert_eq!(Build::of(Path::new(OWN)), Build::of(&std::env::current_exe().unwrap()));
    }
}
