//! Where sets lie and what they are called.

use std::{
    cmp::Ordering,
    fmt,
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use super::DataError;
use crate::model::EnvironmentKey;

const STAMP: &str = "%Y-%m-%d_%H-%M-%S";
const STAMP_LEN: usize = "2026-11-21_10-15-30".len();

/// Sets of one second that are told apart.
const MOST_IN_A_SECOND: u32 = 999;

/// The name of a set's directory: the second it was begun in (UTC), and a number from 2 on if it was not the first then.
/// Ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetName {
    pub at: Timestamp,
    /// 1 for the first of its second.
    pub number: u32,
}

impl FromStr for SetName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let stamp = text.get(..STAMP_LEN).ok_or(())?;
        let number = match &text[STAMP_LEN..] {
            "" => 1,
            rest => rest.strip_prefix('-').and_then(|n| n.parse().ok()).filter(|n| *n > 1).ok_or(())?,
        };
        let at = DateTime::strptime(STAMP, stamp).and_then(|d| d.to_zoned(TimeZone::UTC)).map_err(|_| ())?.timestamp();
        let name = Self { at, number };
        // One spelling only: what would be written differently was not written by us.
        (name.to_string() == text).then_some(name).ok_or(())
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.at.strftime(STAMP))?;
        if self.number > 1 { write!(f, "-{}", self.number) } else { Ok(()) }
    }
}

impl PartialOrd for SetName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SetName {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Where an environment's sets are.
pub(super) fn environment_dir(backups_dir: &Path, key: &EnvironmentKey) -> PathBuf {
    backups_dir.join(key.app.as_str()).join(key.environment.as_str())
}

/// The directory of a set that is being made. Removed when dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct NewSet {
    dir: PathBuf,
    name: SetName,
    kept: bool,
}

impl NewSet {
    pub fn create(backups_dir: &Path, key: &EnvironmentKey, at: Timestamp) -> Result<Self, DataError> {
        let parent = environment_dir(backups_dir, key);
        let private = |recursive| {
            let mut builder = DirBuilder::new();
            builder.recursive(recursive).mode(0o700);
            builder
        };
        private(true).create(&parent).map_err(DataError::io("making", &parent))?;
        // Whole seconds, as the name has them.
        let at = Timestamp::from_second(at.as_second()).unwrap_or(at);
        for number in 1..=MOST_IN_A_SECOND {
            let name = SetName { at, number };
            let dir = parent.join(name.to_string());
            match private(false).create(&dir) {
                Ok(()) => return Ok(Self { dir, name, kept: false }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(DataError::io("making", &dir)(error)),
            }
        }
        Err(DataError::Io { operation: "making", path: parent, source: io::ErrorKind::AlreadyExists.into() })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The set is complete: it stays.
    pub fn keep(mut self) -> SetName {
        self.kept = true;
        self.name
    }
}

impl Drop for NewSet {
    fn drop(&mut self) {
        if !self.kept {
            // Without a manifest what may be left is no backup, and pruning removes it later.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_read() {
        for good in ["2026-11-21_10-15-30", "2026-11-21_10-15-30-2", "2026-11-21_10-15-30-17"] {
            assert_eq!(good.parse::<SetName>().map(|n| n.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "2026-11-21_10-15-3",
            "2026-11-21_10-15-30-1",
            "2026-11-21_10-15-30-02",
            "2026-11-21_10-15-30-+2",
            "2026-11-21_10-15-30.bak",
            "2026-13-21_10-15-30",
            "2026-11-21_10-15-99",
            "../../../etc/passwd",
            "äääääääääääääääääääääää",
        ] {
            assert_eq!(bad.parse::<SetName>(), Err(()), "{bad:?}");
        }
        let order = |a: &str, b: &str| a.parse::<SetName>().ok().cmp(&b.parse().ok());
        assert_eq!(order("2026-11-21_10-15-30-2", "2026-11-21_10-15-30-10"), Ordering::Less);
    }

    #[test]
    fn sets_of_one_second_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let key = EnvironmentKey { app: "guestbook".parse().unwrap(), environment: "production".parse().unwrap() };
        let at: Timestamp = "2026-11-21T10:15:30.9Z".parse().unwrap();
        let first = NewSet::create(dir.path(), &key, at).unwrap();
        let second = NewSet::create(dir.path(), &key, at).unwrap();
        assert!(second.dir().ends_with("guestbook/production/2026-11-21_10-15-30-2"), "{second:?}");
        let (kept, dropped) = (first.dir().to_owned(), second.dir().to_owned());
        assert_eq!(first.keep().to_string(), "2026-11-21_10-15-30");
        drop(second);
        assert!(kept.is_dir() && !dropped.exists());
    }
}
