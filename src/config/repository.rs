//! Which repositories may be fetched from.
//!
//! Git's own address syntax can run programs (`ext::`, `fd::`, `--upload-pack=…`, `-oProxyCommand=…` as a host). Only forms
//! that cannot are accepted: `https`, `http`, `ssh`, `git` and `file` URLs, `user@host:path`, and local paths. An address
//! with a password or token in it is refused too: it would reach `argv`, process lists and logs.

use std::path::Path;

use super::values::{Complaint, Parsed, printable};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Repository {
    /// What Git is given; local paths are absolute.
    pub url: String,
    /// `owner/name` on its host; `None` for a local repository.
    pub full_name: Option<String>,
}

/// Checks an address; `dir` is what a local path is relative to.
pub(super) fn parse(text: &str, dir: &Path) -> Parsed<Repository> {
    if text.is_empty() {
        return Err(Complaint::new("is empty").help("name what `git clone` would be given"));
    }
    if text.starts_with('-') {
        return Err(Complaint::new("starts with `-`: Git would read it as an option"));
    }
    if text.chars().any(char::is_control) || text.len() > 1000 {
        return Err(Complaint::new("has control characters, or is longer than 1000 characters"));
    }
    if let Some((transport, _)) = text.split_once("::")
        && transport.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'.' | b'-' | b'_'))
    {
        return Err(
            Complaint::new(format!("`{}::` runs a program of its own to fetch", printable(transport))).help(ALLOWED)
        );
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return match scheme.to_ascii_lowercase().as_str() {
            "https" | "http" | "git" | "ssh" => remote(text, rest),
            "file" => Ok(Repository { url: text.to_owned(), full_name: None }),
            _ => Err(Complaint::new(format!("`{}` addresses are not supported", printable(scheme))).help(ALLOWED)),
        };
    }
    match text.find(':') {
        // Git takes what has a colon before the first slash for `host:path`.
        Some(colon) if !text[..colon].contains('/') => scp_like(text, colon),
        _ => Ok(Repository {
            url: dir.join(text.strip_prefix("./").unwrap_or(text)).display().to_string(),
            full_name: None,
        }),
    }
}

const ALLOWED: &str = "use an https, http, ssh, git or file URL, `user@host:path`, or a local path";

fn remote(url: &str, rest: &str) -> Parsed<Repository> {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if user.contains(':') || looks_like_token(user) {
        return Err(Complaint::new("has a password or token in it, which would show up in process lists and logs").help(
            "take it out, and use an ssh address with a deploy key, or a Git credential helper (`git help credentials`)",
        ));
    }
    host_part(user, host)?;
    path_part(path)?;
    Ok(Repository { url: url.to_owned(), full_name: full_name(path) })
}

fn scp_like(text: &str, colon: usize) -> Parsed<Repository> {
    let (authority, path) = (&text[..colon], &text[colon + 1..]);
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    host_part(user, host)?;
    path_part(path)?;
    Ok(Repository { url: text.to_owned(), full_name: full_name(path) })
}

fn host_part(user: &str, host: &str) -> Parsed<()> {
    // `%` because Git decodes a host before it hands it to ssh.
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    if user.starts_with('-') || host.starts_with('-') {
        Err(Complaint::new("has a user or host that starts with `-`: ssh would read it as an option"))
    } else if host.is_empty() || !host.bytes().all(good) || user.contains('%') {
        Err(Complaint::new(format!("`{}` is not a host", printable(host))).help(ALLOWED))
    } else {
        Ok(())
    }
}

fn path_part(path: &str) -> Parsed<()> {
    if path.trim_matches('/').is_empty() {
        Err(Complaint::new("names a host and no repository"))
    } else if path.starts_with('-') {
        Err(Complaint::new("has a path that starts with `-`"))
    } else {
        Ok(())
    }
}

/// `owner/name` of `/owner/name.git`.
fn full_name(path: &str) -> Option<String> {
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    check_full_name(path).ok()
}

/// At least two parts, of what Git hosts allow in names.
pub(super) fn check_full_name(text: &str) -> Parsed<String> {
    let part = |part: &str| {
        !part.is_empty()
            && part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~'))
    };
    if text.contains('/') && text.split('/').all(part) {
        Ok(text.to_owned())
    } else {
        Err(Complaint::new(format!("expected `owner/name`, found `{}`", printable(text))))
    }
}

/// A user part that is an access token: those of GitHub and GitLab, or anything as long as one.
fn looks_like_token(user: &str) -> bool {
    let prefixes = ["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-"];
    user.len() >= 32 || prefixes.iter().any(|prefix| user.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Parsed<Repository> {
        parse(text, Path::new("/srv/app"))
    }

    #[test]
    fn addresses_that_run_programs_are_refused() {
        for bad in [
            "",
            "-oProxyCommand=touch owned",
            "--upload-pack=touch owned",
            "ext::sh -c touch% owned",
            "fd::17",
            "foo::https://git.example/a/b",
            "ssh://-oProxyCommand=touch%20owned/a/b",
            "ssh://git@-oProxyCommand=x/a/b",
            "ssh://%2DoProxyCommand=x/a/b",
            "-x@host:a/b",
            "git@-oProxyCommand=x:a/b",
            "host:-path/x",
            "ftp://git.example/a/b",
            "https:///a/b",
            "https://git.example",
            "https://git.example/a\nb",
            "https://exa mple/a",
        ] {
            assert!(run(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn passwords_and_tokens_are_refused_without_being_shown() {
        for bad in ["https://bob:hunter22@git.example/a/b", "https://ghp_0123456789@git.example/a/b"] {
            let complaint = run(bad).unwrap_err();
            assert!(complaint.message.contains("password or token"), "{complaint:?}");
            assert!(!format!("{complaint:?}").contains("hunter22"));
        }
    }

    #[test]
    fn usual_addresses_are_taken_and_named() {
        for (text, url, name) in [
            ("https://git.example/acme/guestbook.git", None, Some("acme/guestbook")),
            ("ssh://git@git.example:2222/acme/guestbook/", None, Some("acme/guestbook")),
            ("git@git.example:acme/guestbook.git", None, Some("acme/guestbook")),
            ("git://git.example/group/sub/guestbook", None, Some("group/sub/guestbook")),
            ("https://bob@git.example/guestbook.git", None, None),
            ("file:///srv/git/guestbook.git", None, None),
            ("../guestbook.git", Some("/srv/app/../guestbook.git"), None),
            ("./here:now", Some("/srv/app/here:now"), None),
            ("/srv/git/x", Some("/srv/git/x"), None),
        ] {
            let found = run(text).unwrap();
            assert_eq!((found.url.as_str(), found.full_name.as_deref()), (url.unwrap_or(text), name));
        }
    }
}
