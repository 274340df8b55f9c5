//! Whether a push is deployed: skip markers, path rules, and its place in history.
//!
//! A push may be announced late, twice, again after a year, or not at all; a branch may be moved back, and an operator may have
//! deployed something else by hand. The rules need no memory of announcements: they compare the commit with what the branch
//! points at *now*, with what is live, and with how earlier deployments of the commit ended. So an announcement
//! that is repeated changes nothing, whatever its delivery id.

use crate::{
    config::PathRules,
    model::{CommitId, Status, TriggerKind},
};

/// GitHub's markers, and two of Refit's own; in any case, anywhere in the message.
const SKIP_MARKERS: [&str; 7] =
    ["[skip ci]", "[ci skip]", "[no ci]", "[skip actions]", "[actions skip]", "[skip deploy]", "[deploy skip]"];

/// GitHub's trailer: a line of its own in the message's last paragraph.
const SKIP_TRAILER: &str = "skip-checks:";

/// The marker in a commit message that asks for no deployment, as it was written.
pub fn skip_marker(message: &str) -> Option<&str> {
    // Lower-casing ASCII keeps every position.
    let lower = message.to_ascii_lowercase();
    let marker = SKIP_MARKERS.iter().filter_map(|m| lower.find(m).map(|at| (at, m.len()))).min();
    marker.map(|(at, len)| &message[at..at + len]).or_else(|| skip_trailer(message))
}

fn skip_trailer(message: &str) -> Option<&str> {
    let last = message.trim_end().lines().rev().map(str::trim).take_while(|line| !line.is_empty());
    last.into_iter().find(|line| {
        let name = line.get(..SKIP_TRAILER.len()).unwrap_or_default();
        name.eq_ignore_ascii_case(SKIP_TRAILER) && line[name.len()..].trim().eq_ignore_ascii_case("true")
    })
}

/// Whether one of the changed paths is one that deploys. Without patterns every push does, also one that changes no file.
pub fn paths_match(rules: &PathRules, changed: &[String]) -> bool {
    match &rules.set {
        Some(set) if !rules.patterns.is_empty() => changed.iter().any(|path| set.is_match(path)),
        _ => true,
    }
}

/// What is known when a push is about to be deployed.
#[derive(Debug, Clone, Copy)]
pub struct PushFacts<'a> {
    pub trigger: TriggerKind,
    pub commit: &'a CommitId,
    /// What the remote's branch points at now; `None` if there is no such branch.
    pub tip: Option<&'a CommitId>,
    /// The live release's commit; `None` before the first.
    pub live: Option<&'a CommitId>,
    /// Whether the commit is the tip or one of its ancestors.
    pub on_branch: bool,
    /// Whether the commit is the live one or one of its ancestors; `false` if nothing is live.
    pub in_live: bool,
    /// The announcement says that it replaced history (GitHub's `forced`; for a hook: `before` does not lead to `after`). `false`
    /// where nobody announced anything.
    pub forced: bool,
    /// How earlier deployments of this commit in this environment ended, oldest first. Those that have not ended do not count.
    pub earlier: &'a [Status],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Deploy,
    /// Not deployed, and why.
    Ignore(String),
}

/// The rules of a push, in their order. A person's own request ([`TriggerKind::is_explicit`]) always deploys.
pub fn judge_push(facts: &PushFacts<'_>) -> Verdict {
    if facts.trigger.is_explicit() {
        return Verdict::Deploy;
    }
    let ignore = |why: String| Verdict::Ignore(format!("{} {why}", facts.commit.short()));
    if facts.live == Some(facts.commit) {
        return ignore("is live already".to_owned());
    }
    let Some(tip) = facts.tip else {
        return ignore("was pushed to a branch that is gone".to_owned());
    };
    if tip != facts.commit && !facts.on_branch {
        return ignore("is no longer on the branch".to_owned());
    }
    if tip != facts.commit && facts.in_live {
        return ignore("is older than what is live".to_owned());
    }
    match facts.earlier.iter().rev().find(|status| status.is_end() && **status != Status::Superseded) {
        None => Verdict::Deploy,
        // The branch was taken back, on purpose, to a commit that was good when it was live. (Without `forced` this would
        // also be a branch that never moved while somebody deployed a newer commit by hand.)
        Some(Status::Succeeded) if facts.in_live && facts.forced => Verdict::Deploy,
        Some(status) => {
            ignore(format!("was deployed before ({status}) and is not tried again by itself; use `refit rerun`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skip_markers_in_any_place_and_case() {
        for (message, marker) in [
            ("fix [skip ci]", Some("[skip ci]")),
            ("[CI Skip] fix", Some("[CI Skip]")),
            ("fix\n\nlong\n[no ci]\nmore", Some("[no ci]")),
            ("[skip actions]", Some("[skip actions]")),
            ("[actions skip]", Some("[actions skip]")),
            ("ü [Skip Deploy]", Some("[Skip Deploy]")),
            ("[deploy skip] and [skip ci]", Some("[deploy skip]")),
            ("fix\n\nskip-checks: true", Some("skip-checks: true")),
            ("fix\n\nReviewed-by: Ada\nSkip-Checks:true  \n\n", Some("Skip-Checks:true")),
            ("fix\n\nskip-checks: true\n\nlater paragraph", None),
            ("fix\n\nskip-checks: false", None),
            ("no skip-checks: true", None),
            ("skip ci", None),
            ("[skipci]", None),
            ("", None),
        ] {
            assert_eq!(skip_marker(message), marker, "{message:?}");
        }
    }

    fn rules(patterns: &[&str]) -> PathRules {
        let mut set = globset::GlobSetBuilder::new();
        for pattern in patterns {
            set.add(globset::Glob::new(pattern).unwrap());
        }
        PathRules { patterns: patterns.iter().map(ToString::to_string).collect(), set: Some(set.build().unwrap()) }
    }

    #[test]
    fn path_rules() {
        let changed = |paths: &[&str]| paths.iter().map(ToString::to_string).collect::<Vec<_>>();
        let only_source = rules(&["src/**", "Dockerfile"]);
        assert!(paths_match(&only_source, &changed(&["README.md", "src/a/b.rs"])));
        assert!(paths_match(&only_source, &changed(&["Dockerfile"])));
        assert!(!paths_match(&only_source, &changed(&["README.md", "docs/src/x"])));
        assert!(!paths_match(&only_source, &[]));
        for always in [PathRules::default(), rules(&[])] {
            assert!(paths_match(&always, &[]) && paths_match(&always, &changed(&["x"])));
        }
    }

    /// A history `a → b → c`, and `x`, which left it at `a`.
    struct History {
        a: CommitId,
        b: CommitId,
        c: CommitId,
        x: CommitId,
    }

    impl History {
        fn new() -> Self {
            let id = |digit: &str| digit.repeat(40).parse().unwrap();
            Self { a: id("a"), b: id("b"), c: id("c"), x: id("d") }
        }

        fn contains(&self, ancestor: &CommitId, of: &CommitId) -> bool {
            ancestor == of || *ancestor == self.a || (*ancestor == self.b && *of == self.c)
        }

        fn judge(&self, commit: &CommitId, tip: &CommitId, live: Option<&CommitId>, earlier: &[Status]) -> Verdict {
            judge_push(&self.facts(commit, tip, live, earlier))
        }

        fn facts<'a>(
            &self,
            commit: &'a CommitId,
            tip: &'a CommitId,
            live: Option<&'a CommitId>,
            earlier: &'a [Status],
        ) -> PushFacts<'a> {
            PushFacts {
                trigger: TriggerKind::Github,
                commit,
                tip: Some(tip),
                live,
                on_branch: self.contains(commit, tip),
                in_live: live.is_some_and(|live| self.contains(commit, live)),
                forced: false,
                earlier,
            }
        }
    }

    fn why(verdict: Verdict) -> String {
        match verdict {
            Verdict::Ignore(why) => why,
            Verdict::Deploy => panic!("deployed"),
        }
    }

    #[test]
    fn new_commits_are_deployed() {
        let h = History::new();
        assert_eq!(h.judge(&h.a, &h.a, None, &[]), Verdict::Deploy, "the first ever");
        assert_eq!(h.judge(&h.b, &h.b, Some(&h.a), &[]), Verdict::Deploy);
        assert_eq!(h.judge(&h.b, &h.c, Some(&h.a), &[]), Verdict::Deploy, "the tip moved on, the next push follows");
        assert_eq!(h.judge(&h.x, &h.x, Some(&h.c), &[]), Verdict::Deploy, "forced to another history");
        assert_eq!(h.judge(&h.b, &h.b, Some(&h.a), &[Status::Superseded]), Verdict::Deploy);
        assert_eq!(h.judge(&h.b, &h.b, Some(&h.a), &[Status::Queued, Status::Running]), Verdict::Deploy);
    }

    #[test]
    fn an_old_push_is_never_a_downgrade() {
        let h = History::new();
        assert!(why(h.judge(&h.a, &h.c, Some(&h.c), &[])).contains("older than what is live"));
        assert!(why(h.judge(&h.a, &h.c, Some(&h.b), &[])).contains("older than what is live"));
        assert!(why(h.judge(&h.c, &h.c, Some(&h.c), &[])).contains("live already"));
        assert!(why(h.judge(&h.b, &h.x, Some(&h.x), &[])).contains("no longer on the branch"));
        let gone = PushFacts { tip: None, on_branch: false, ..h.facts(&h.b, &h.b, Some(&h.a), &[]) };
        assert!(why(judge_push(&gone)).contains("gone"));
    }

    #[test]
    fn a_commit_that_ended_is_not_tried_again() {
        let h = History::new();
        for status in Status::ALL.iter().filter(|s| s.is_end() && **s != Status::Superseded) {
            let verdict = h.judge(&h.b, &h.b, Some(&h.a), &[*status, Status::Superseded]);
            assert!(why(verdict).contains(status.as_str()), "{status}");
            let reconcile = PushFacts { trigger: TriggerKind::Reconcile, ..h.facts(&h.b, &h.b, None, &[]) };
            assert_eq!(judge_push(&reconcile), Verdict::Deploy);
            assert_ne!(judge_push(&PushFacts { earlier: &[*status], ..reconcile }), Verdict::Deploy);
        }
    }

    #[test]
    fn a_branch_taken_back_is_followed_once() {
        let h = History::new();
        assert_eq!(h.judge(&h.b, &h.b, Some(&h.c), &[]), Verdict::Deploy, "never deployed");
        let forced = |earlier| PushFacts { forced: true, ..h.facts(&h.b, &h.b, Some(&h.c), earlier) };
        assert_eq!(judge_push(&forced(&[Status::Succeeded])), Verdict::Deploy, "it was good once");
        assert_ne!(judge_push(&forced(&[Status::Succeeded, Status::Failed])), Verdict::Deploy, "no loop");
        // A newer commit was deployed by hand: a repeated or reconciled push of the tip does not undo it.
        assert_ne!(h.judge(&h.b, &h.b, Some(&h.c), &[Status::Succeeded]), Verdict::Deploy);
        // After a rollback from c to b, c is the tip and must not come back by itself.
        assert_ne!(h.judge(&h.c, &h.c, Some(&h.b), &[Status::Succeeded]), Verdict::Deploy);
    }

    #[test]
    fn a_person_may_deploy_anything() {
        let h = History::new();
        for trigger in TriggerKind::ALL {
            let facts = PushFacts { trigger: *trigger, ..h.facts(&h.a, &h.c, Some(&h.c), &[Status::Failed]) };
            assert_eq!(judge_push(&facts) == Verdict::Deploy, trigger.is_explicit(), "{trigger}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_message_is_read(message in "(\\PC|\n|\\[|skip|ci|skip-checks: true){0,60}") {
            if let Some(found) = skip_marker(&message) {
                proptest::prop_assert!(message.contains(found));
            }
        }
    }
}
