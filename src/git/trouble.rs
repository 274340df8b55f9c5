//! What `git` said on its standard error → what happened, and what to do.
//!
//! `git` has one exit code for every failure, so its words (in the C locale) are all there is. The table is in order: causes
//! come before the general lines that `git` adds after them. Text of the remote is shortened and made printable before it
//! is quoted.

use std::path::{Path, PathBuf};

use super::GitErrorKind;
use crate::{log::printable, redact::Redactor};

/// Why a call of `git` failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The remote has no such branch.
    NoBranch,
    /// The remote does not hand out a commit by its id, or has no such commit.
    NotAdvertised,
    /// A lock file is in the way.
    Locked(PathBuf),
    /// A branch `a` stands where `a/b` should be, or the other way round.
    RefConflict,
    /// The mirror's own objects or refs cannot be read.
    Damaged(String),
    /// For people to solve.
    Told(GitErrorKind, String),
}

struct Rule {
    /// Any of these in a line, in any case.
    says: &'static [&'static str],
    kind: GitErrorKind,
    /// What happened; `{}` is the remote.
    what: &'static str,
    next: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        says: &["No space left on device", "Disk quota exceeded"],
        kind: GitErrorKind::Host,
        what: "the disk is full",
        next: "free some space and try again",
    },
    Rule {
        says: &["dubious ownership"],
        kind: GitErrorKind::Denied,
        what: "{} belongs to another user, and Git refuses to read it",
        next: "as the user that runs refit, call `git config --global --add safe.directory` with that path, or change its owner",
    },
    Rule {
        says: &["Host key verification failed", "REMOTE HOST IDENTIFICATION HAS CHANGED"],
        kind: GitErrorKind::Denied,
        what: "the SSH host key of {} is unknown or has changed",
        next: "as the user that runs refit, connect once with `ssh` and check the key",
    },
    Rule {
        says: &[
            "terminal prompts disabled",
            "could not read Username",
            "could not read Password",
            "password from user",
            "username from user",
            "Authentication failed",
            "Permission denied (",
            "Invalid username or",
            "returned error: 401",
            "returned error: 403",
            "Access denied",
        ],
        kind: GitErrorKind::Denied,
        what: "{} asks for a login that this host does not have",
        next: "give the user that runs refit an SSH key or a credential helper, and test it with `git ls-remote`",
    },
    Rule {
        says: &["server certificate", "SSL certificate", "certificate verify failed", "certificate problem"],
        kind: GitErrorKind::Denied,
        what: "the certificate of {} is not trusted",
        next: "check the address, or add its authority to this host's certificates",
    },
    Rule {
        says: &[
            "Repository not found",
            "does not appear to be a git repository",
            "returned error: 404",
            "' not found",
            "not found: did you run git update-server-info",
            "project you were looking for could not be found",
        ],
        kind: GitErrorKind::NoRepository,
        what: "there is no repository at {}, or this host may not see it",
        next: "check `repository` in the configuration and the access rights",
    },
    Rule {
        says: &["mismatched algorithms"],
        kind: GitErrorKind::Invalid,
        what: "{} uses SHA-256 object ids",
        next: "only SHA-1 repositories are supported",
    },
    Rule {
        says: &["' not allowed", "hostname '", "pathname '"],
        kind: GitErrorKind::Invalid,
        what: "the address {} is not allowed",
        next: "use https, ssh or a local path",
    },
    Rule {
        says: &[
            "Could not resolve host",
            "Could not resolve hostname",
            "Name or service not known",
            "Temporary failure in name resolution",
            "unable to look up",
        ],
        kind: GitErrorKind::Unreachable,
        what: "the host of {} is not known",
        next: "check the address, and this host's name resolution",
    },
    Rule {
        says: &[
            "Failed to connect",
            "Could not connect",
            "Connection refused",
            "Connection timed out",
            "Connection reset",
            "Connection closed",
            "Network is unreachable",
            "No route to host",
            "Operation timed out",
            "unable to connect",
            "Operation too slow",
            "early EOF",
            "hung up unexpectedly",
            "RPC failed",
            "returned error: 5",
            "returned error: 429",
            "unable to access",
            "Could not read from remote repository",
        ],
        kind: GitErrorKind::Unreachable,
        what: "{} cannot be reached",
        next: "check the network and the remote's state, then try again",
    },
];

/// In the mirror itself. ("not a git repository" is about the mirror; of a remote `git` says "does not appear to be".)
const DAMAGE: &[&str] = &[
    "not a git repository",
    "bad object",
    "is corrupt",
    "is empty",
    "did not send all necessary objects",
    "bad ref",
    "broken ref",
    "reference broken",
    "unable to resolve reference",
    "unable to read tree",
    "unable to read sha1",
    "missing blob",
    "missing tree",
    "missing commit",
    "is far too short",
    "index file",
    "unable to parse commit",
    "inflate: data stream error",
    "bad config line",
];

pub(super) fn judge(said: &[String], mirror: &Path, remote: &str) -> Trouble {
    if let Some(lock) = said.iter().find_map(|line| lock_in(line, mirror)) {
        return Trouble::Locked(lock);
    }
    let has = |words: &[&str]| said.iter().find(|line| words.iter().any(|word| contains(line, word)));
    if has(&["couldn't find remote ref"]).is_some() {
        return Trouble::NoBranch;
    }
    if has(&["not our ref", "unadvertised object", "no such remote ref"]).is_some() {
        return Trouble::NotAdvertised;
    }
    if has(&["; cannot create", "conflicting branches"]).is_some() {
        return Trouble::RefConflict;
    }
    for rule in RULES {
        if let Some(line) = has(rule.says) {
            let what = rule.what.replace("{}", &format!("`{}`", quoted(remote)));
            return Trouble::Told(rule.kind, format!("{what} ({}); {}", quoted(line), rule.next));
        }
    }
    if let Some(line) = has(DAMAGE) {
        return Trouble::Damaged(quoted(line));
    }
    let line = has(&["fatal:", "error:"]).or(said.last()).map_or("it said nothing".to_owned(), |line| quoted(line));
    Trouble::Told(GitErrorKind::Host, format!("git failed: {line}"))
}

/// One line, without passwords or control characters, at most 300 characters.
pub(super) fn quoted(text: &str) -> String {
    let line = text.trim().trim_start_matches("fatal: ").trim_start_matches("error: ");
    printable(&Redactor::default().mask(line)).chars().take(300).collect()
}

/// The lock of a line such as `Unable to create '/x/packed-refs.lock': File exists.`, if it is the mirror's own.
fn lock_in(line: &str, mirror: &Path) -> Option<PathBuf> {
    let (_, rest) = line.split_once("Unable to create '")?;
    let (path, _) = rest.split_once("': File exists")?;
    let path = PathBuf::from(path);
    let clean = path.components().all(|part| part != std::path::Component::ParentDir);
    (clean && path.starts_with(mirror) && path.extension().is_some_and(|e| e == "lock")).then_some(path)
}

fn contains(line: &str, word: &str) -> bool {
    line.as_bytes().windows(word.len()).any(|part| part.eq_ignore_ascii_case(word.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[&str]) -> (GitErrorKind, String) {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        match judge(&lines, Path::new("/m.git"), "https://git.example/x") {
            Trouble::Told(kind, why) => (kind, why),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_cause_wins_over_the_general_lines() {
        let after =
            ["fatal: Could not read from remote repository.", "Please make sure you have the correct access rights"];
        for (line, kind) in [
            ("git@git.example: Permission denied (publickey).", GitErrorKind::Denied),
            ("Host key verification failed.", GitErrorKind::Denied),
            ("ERROR: Repository not found.", GitErrorKind::NoRepository),
            ("ssh: connect to host git.example port 22: Connection refused", GitErrorKind::Unreachable),
            ("ssh: Could not resolve hostname git.example: Name or service not known", GitErrorKind::Unreachable),
            ("fatal: detected dubious ownership in repository at '/srv/x'", GitErrorKind::Denied),
        ] {
            let (found, why) = told(&[line, after[0], after[1]]);
            assert_eq!(found, kind, "{line}: {why}");
            assert!(why.contains("; "), "no next step: {why}");
        }
    }

    #[test]
    fn passwords_and_escapes_are_not_repeated() {
        let (_, why) = told(&["fatal: unable to access 'https://bob:hunter22@git.example/x': \u{1b}[31mweird\u{7}"]);
        assert!(!why.contains("hunter22") && !why.contains('\u{1b}') && !why.contains('\u{7}'), "{why}");
        let (_, why) = told(&[&format!("fatal: {}", "x".repeat(5000))]);
        assert!(why.len() < 400);
    }

    #[test]
    fn only_locks_of_the_mirror_count() {
        let judge =
            |path: &str| judge(&[format!("error: Unable to create '{path}': File exists.")], Path::new("/m.git"), "/r");
        assert_eq!(judge("/m.git/refs/x.lock"), Trouble::Locked("/m.git/refs/x.lock".into()));
        for other in ["/etc/passwd.lock", "/m.git/../etc/x.lock", "/m.git/HEAD"] {
            assert!(matches!(judge(other), Trouble::Told(..)), "{other}");
        }
    }
}
