//! Text for reports: foreign words made harmless, durations, and where a commit can be looked at.

use crate::{
    files::human_bytes,
    log::printable,
    model::{CommitId, DeploymentView, Stage},
    redact::Redactor,
};

/// What stands where something was cut off.
const CUT: char = '…';

/// Length as Telegram counts it: in UTF-16 code units.
pub fn units(text: &str) -> usize {
    text.encode_utf16().count()
}

/// `text` as one line of at most `max` units: masked first (a cut could leave half a secret), control characters made visible.
pub fn one_line(text: &str, redactor: &Redactor, max: usize) -> String {
    let masked = redactor.mask(text);
    let lines: Vec<String> = masked.lines().map(|line| printable(line).trim().to_owned()).collect();
    let full: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
    cut(&full.join(" "), max)
}

/// A log line: like [`one_line`], but its indentation stays.
pub fn log_line(text: &str, redactor: &Redactor, max: usize) -> String {
    cut(printable(&redactor.mask(text)).trim_end(), max)
}

/// The beginning of `text` that fits in `max` units, with an ellipsis if that is not all of it.
pub fn cut(text: &str, max: usize) -> String {
    if units(text) <= max {
        return text.to_owned();
    }
    let room = max.saturating_sub(CUT.len_utf16());
    let mut used = 0;
    let fits = |c: &char| {
        used += c.len_utf16();
        used <= room
    };
    let mut out: String = text.chars().take_while(fits).collect();
    if max > 0 {
        out.push(CUT);
    }
    out
}

/// `850 ms`, `12.3 s`, `4 min 05 s`, `1 h 02 min`.
pub fn duration(ms: i64) -> String {
    let ms = ms.max(0);
    let s = ms / 1000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s}.{} s", ms % 1000 / 100),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// What a reference is, and its name without the prefix: `("branch", "main")`; `("ref", …)` where it is neither a branch nor a tag.
pub fn reference(reference: &str) -> (&'static str, &str) {
    match (reference.strip_prefix("refs/heads/"), reference.strip_prefix("refs/tags/")) {
        (Some(branch), _) => ("branch", branch),
        (_, Some(tag)) => ("tag", tag),
        _ => ("ref", reference),
    }
}

/// Releases that a sentence names at most.
const NAMED: usize = 5;

/// What retention took away: `12.0 MB: the releases of deployments 3, 4 are removed; the backup 2026-11-21_10-15-30 is removed`.
pub fn freed(view: &DeploymentView) -> Option<String> {
    let releases = old_releases(view).map(|text| format!("{}: {text}", human_bytes(view.freed.unwrap_or(0))));
    let told: Vec<String> = releases.into_iter().chain(old_backups(view)).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

fn old_releases(view: &DeploymentView) -> Option<String> {
    let gone = &view.retired;
    let names: Vec<String> = gone.iter().take(NAMED).map(ToString::to_string).collect();
    Some(match gone.len() {
        0 => return None,
        1 => format!("the release of deployment {} is removed", names[0]),
        n if n <= NAMED => format!("the releases of deployments {} are removed", names.join(", ")),
        n => format!("the releases of deployments {} and {} more are removed", names.join(", "), n - NAMED),
    })
}

/// Sets that went once there was a new one; the names are those of directories that Refit made.
fn old_backups(view: &DeploymentView) -> Option<String> {
    let stage = view.stages.iter().find(|stage| stage.name == Stage::Backup)?;
    let removed = stage.output.as_ref()?.get("removed")?.as_array()?;
    let names: Vec<&str> = removed.iter().filter_map(|name| name.as_str()).take(NAMED).collect();
    Some(match removed.len() {
        0 => return None,
        1 => format!("the backup {} is removed", names.first()?),
        n if n <= NAMED => format!("the backups {} are removed", names.join(", ")),
        n => format!("the backups {} and {} more are removed", names.join(", "), n - NAMED),
    })
}

/// The page of a commit, where the repository is on a host whose addresses are known. `repository` is what the configuration says: a
/// URL, or `user@host:path`.
pub fn commit_url(repository: &str, commit: &CommitId) -> Option<String> {
    let (host, path) = host_and_path(repository)?;
    let middle = match host {
        "github.com" | "codeberg.org" => "commit",
        "gitlab.com" => "-/commit",
        "bitbucket.org" => "commits",
        _ => return None,
    };
    let path = path.trim_matches('/').trim_end_matches(".git");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut parts = path.split('/');
    let good = parts.clone().count() >= 2 && parts.all(|p| p.starts_with(plain) && p.chars().all(plain) && p != "..");
    good.then(|| format!("https://{host}/{path}/{middle}/{commit}"))
}

fn host_and_path(repository: &str) -> Option<(&str, &str)> {
    let (authority, path) = match repository.split_once("://") {
        Some(("https" | "http" | "ssh" | "git", rest)) => rest.split_once('/')?,
        Some(_) => return None,
        None => repository.split_once(':')?,
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    Some((host.split_once(':').map_or(host, |(host, _)| host), path))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::Secret;

    #[test]
    fn commits_have_a_page_on_hosts_that_are_known() {
        let commit: CommitId = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
        let url = |repository: &str| commit_url(repository, &commit).map(|u| u.replace(commit.as_str(), "SHA"));
        for same in [
            "https://github.com/acme/guestbook.git",
            "https://token@github.com/acme/guestbook",
            "ssh://git@github.com:22/acme/guestbook.git",
            "git@github.com:acme/guestbook.git",
            "git@github.com:/acme/guestbook/",
        ] {
            assert_eq!(url(same).as_deref(), Some("https://github.com/acme/guestbook/commit/SHA"), "{same}");
        }
        assert_eq!(url("https://gitlab.com/a/b/c.git").as_deref(), Some("https://gitlab.com/a/b/c/-/commit/SHA"));
        assert_eq!(url("https://bitbucket.org/a/b").as_deref(), Some("https://bitbucket.org/a/b/commits/SHA"));
        assert_eq!(url("https://codeberg.org/a/b").as_deref(), Some("https://codeberg.org/a/b/commit/SHA"));
        for none in [
            "/srv/git/guestbook.git",
            "origin.git",
            "file:///github.com/a/b",
            "https://git.example/a/b",
            "https://github.com.evil.example/a/b",
            "https://github.com/a",
            "https://github.com/a/../b",
            "https://github.com/a/\"onclick=\"b",
        ] {
            assert_eq!(url(none), None, "{none}");
        }
    }

    #[test]
    fn durations_read_like_a_person_says_them() {
        let all = [-5, 850, 1_000, 12_345, 245_000, 3_720_000].map(duration);
        assert_eq!(all, ["0 ms", "850 ms", "1.0 s", "12.3 s", "4 min 05 s", "1 h 02 min"]);
    }

    #[test]
    fn a_secret_is_masked_before_anything_is_cut() {
        let redactor = Redactor::new([&Secret::new("correct horse battery")]);
        assert_eq!(one_line("pw: correct horse battery", &redactor, 9), "pw: [mas…");
        assert_eq!(one_line("a\r\n\n  b\u{8f}\u{202e}\u{1b}[31mc", &redactor, 80), "a b\\u{8f}\\u{202e}c");
    }

    proptest! {
        #[test]
        fn what_is_cut_fits(text in "\\PC{0,40}", max in 0_usize..50) {
            let short = cut(&text, max);
            prop_assert!(units(&short) <= max);
            prop_assert!(short == text || text.starts_with(short.trim_end_matches(CUT)));
        }
    }
}
