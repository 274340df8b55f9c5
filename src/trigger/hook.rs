//! What Git tells a `post-receive` hook on standard input: a line `old new ref` for each ref that a push changed
//! (githooks(5)), where an id of zeros stands for a ref that was not there, or is gone.

use crate::model::{Branch, CommitId};

/// Lines read of one push; a push of more refs than this is not a deployment.
const MOST_LINES: usize = 1000;

/// Characters of a line that a reason repeats.
const SHOWN: usize = 120;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    Push(HookPush),
    /// Nothing to deploy: the ref as it stood there (shortened, escaped), and why.
    Ignored {
        reference: String,
        reason: String,
    },
}

/// A branch that was made or moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookPush {
    pub branch: Branch,
    /// `None` for a new branch.
    pub before: Option<CommitId>,
    pub after: CommitId,
}

/// Reads all lines of a push, in order. Never fails: what is not understood is ignored with a reason.
pub fn parse(input: &[u8]) -> Vec<Update> {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.lines().filter(|line| !line.is_empty());
    let mut updates: Vec<Update> = lines.by_ref().take(MOST_LINES).map(parse_line).collect();
    let more = lines.count();
    if more > 0 {
        updates.push(Update::Ignored { reference: "…".to_owned(), reason: format!("{more} more refs in one push") });
    }
    updates
}

fn parse_line(line: &str) -> Update {
    let mut parts = line.splitn(3, ' ');
    let (Some(old), Some(new), Some(reference)) = (parts.next(), parts.next(), parts.next()) else {
        return Update::Ignored { reference: shown(line), reason: "not a line of `old new ref`".to_owned() };
    };
    match judge(old, new, reference) {
        Ok(push) => Update::Push(push),
        Err(reason) => Update::Ignored { reference: shown(reference), reason },
    }
}

fn judge(old: &str, new: &str, reference: &str) -> Result<HookPush, String> {
    let branch = branch_of(reference)?;
    let after = id(new)?.ok_or("the branch was deleted")?;
    Ok(HookPush { branch, before: id(old)?, after })
}

/// The branch of a pushed ref, or why the ref is never deployed.
pub(super) fn branch_of(reference: &str) -> Result<Branch, String> {
    match Branch::of_reference(reference) {
        Some(branch) => branch.map_err(|e| e.to_string()),
        None if reference.starts_with("refs/tags/") => Err("a tag, not a branch".to_owned()),
        None => Err("not a branch".to_owned()),
    }
}

/// An id, or `None` for zeros.
pub(super) fn id(text: &str) -> Result<Option<CommitId>, String> {
    if text.len() == 40 && text.bytes().all(|b| b == b'0') {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|e: crate::model::InvalidValue| e.to_string())
}

pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "1111111111111111111111111111111111111111";
    const NEW: &str = "2222222222222222222222222222222222222222";
    const ZERO: &str = "0000000000000000000000000000000000000000";

    fn reason(line: &str) -> String {
        match parse(line.as_bytes()).as_slice() {
            [Update::Ignored { reason, .. }] => reason.clone(),
            other => panic!("{line:?}: {other:?}"),
        }
    }

    #[test]
    fn pushes_are_read_in_order() {
        let input = format!("{OLD} {NEW} refs/heads/main\n{ZERO} {NEW} refs/heads/feature/x\n");
        let push = |branch: &str, before: Option<&str>| {
            Update::Push(HookPush {
                branch: branch.parse().unwrap(),
                before: before.map(|id| id.parse().unwrap()),
                after: NEW.parse().unwrap(),
            })
        };
        assert_eq!(parse(input.as_bytes()), [push("main", Some(OLD)), push("feature/x", None)]);
    }

    #[test]
    fn what_never_deploys_is_named() {
        for (line, why) in [
            (format!("{OLD} {ZERO} refs/heads/main"), "deleted"),
            (format!("{OLD} {NEW} refs/tags/v1"), "tag"),
            (format!("{OLD} {NEW} refs/notes/commits"), "not a branch"),
            (format!("{OLD} {NEW} refs/heads/main;touch${{IFS}}owned"), "may not have"),
            (format!("{OLD} {NEW} refs/heads/--upload-pack=x"), "starts with `-`"),
            (format!("{OLD} abc1234 refs/heads/main"), "40"),
            (format!("-{} {NEW} refs/heads/main", &OLD[1..]), "40"),
            ("nonsense".to_owned(), "old new ref"),
            (format!("{OLD} {NEW}"), "old new ref"),
        ] {
            assert!(reason(&line).contains(why), "{line}: {}", reason(&line));
        }
        assert!(parse(b"\n\n").is_empty());
    }

    #[test]
    fn a_flood_of_refs_is_cut() {
        let updates = parse(format!("{OLD} {NEW} refs/tags/x\n").repeat(5000).as_bytes());
        assert_eq!(updates.len(), MOST_LINES + 1);
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics_or_is_repeated_raw(input in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            for update in parse(&input) {
                if let Update::Ignored { reference, reason } = update {
                    proptest::prop_assert!(!reference.chars().chain(reason.chars()).any(char::is_control));
                }
            }
        }
    }
}
