//! Which addresses a mirror may fetch from.
//!
//! Git's own address syntax can run programs (`ext::sh -c …`), and an address that begins with `-` can become an
//! option of `git` or `ssh` (CVE-2017-1000117). What is allowed is a list, not what is forbidden: `https`, `http`, `ssh`,
//! `git` and `file` URLs, the `user@host:path` form, and absolute local paths.

/// The longest address, in bytes.
const LONGEST: usize = 2048;

/// Checks an address from the configuration. The error is the rule that it breaks, worded to follow the address's name
/// (``repository …``), and never contains the address, which may hold a password.
pub fn check(remote: &str) -> Result<(), &'static str> {
    if remote.is_empty() || remote.len() > LONGEST {
        return Err("must be 1 to 2048 bytes long");
    }
    if remote.starts_with('-') {
        return Err("starts with `-`");
    }
    if remote.chars().any(char::is_control) {
        return Err("has control characters in it");
    }
    if let Some((scheme, rest)) = remote.split_once("://") {
        return check_url(scheme, rest);
    }
    if remote.starts_with('/') {
        return Ok(());
    }
    if is_helper(remote) {
        return Err("names a remote helper (`name::…`), which could run any program; use https or ssh");
    }
    match remote.split_once(':') {
        Some((host, path)) if !host.contains('/') => {
            if path.is_empty() {
                return Err("has no path after the host");
            }
            check_host(host)
        }
        _ => Err("is a relative path; write the whole path, from `/`"),
    }
}

fn check_url(scheme: &str, rest: &str) -> Result<(), &'static str> {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match scheme {
        "file" if rest.starts_with('/') => Ok(()),
        "file" => Err("is a `file://` URL without an absolute path"),
        "http" | "https" | "ssh" | "git" => {
            if authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
                return Err("has a password in it; use a credential helper or an SSH key instead");
            }
            check_host(authority)
        }
        _ => Err("has a scheme that is none of `https`, `http`, `ssh`, `git`, `file`"),
    }
}

/// `host` or `user@host`: neither part may look like an option to `ssh`.
fn check_host(authority: &str) -> Result<(), &'static str> {
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        return Err("has no host");
    }
    if host.starts_with('-') || user.starts_with('-') {
        return Err("has a host or user that starts with `-`");
    }
    Ok(())
}

fn is_helper(remote: &str) -> bool {
    let name_end = remote.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-' | '.' | '_'));
    name_end.is_some_and(|end| end > 0 && remote[end..].starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_use_is_allowed() {
        for good in [
            "https://git.example/acme/guestbook.git",
            "https://bob@git.example/acme/guestbook.git",
            "http://127.0.0.1:3000/x",
            "ssh://git@git.example:2222/acme/guestbook.git",
            "git@git.example:acme/guestbook.git",
            "[::1]:srv/x.git",
            "/srv/git/my app.git",
            "/srv/odd::name",
            "file:///srv/git/x.git",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_could_run_a_program_or_leak_is_refused() {
        for (bad, rule) in [
            ("", "1 to 2048"),
            ("ext::sh -c touch% owned", "remote helper"),
            ("fd::17", "remote helper"),
            ("-oProxyCommand=touch owned", "starts with `-`"),
            ("--upload-pack=touch owned", "starts with `-`"),
            ("ssh://-oProxyCommand=touch/x", "starts with `-`"),
            ("ssh://-oProxyCommand=x@host/x", "starts with `-`"),
            ("git@-oProxyCommand=touch:x", "starts with `-`"),
            ("ext://x/y", "scheme"),
            ("https://bob:hunter22@git.example/x", "password"),
            ("https:///x", "no host"),
            ("git.example:", "no path"),
            ("../x.git", "relative"),
            ("x.git", "relative"),
            ("file://host/x", "absolute"),
            ("https://git.example/x\nhost: y", "control"),
        ] {
            let error = check(bad).expect_err(bad);
            assert!(error.contains(rule), "{bad}: {error}");
            assert!(!error.contains("hunter22"));
        }
    }

    proptest::proptest! {
        #[test]
        fn anything_gets_an_answer(text in ".{0,80}") {
            let helper = check(&format!("ext::{text}"));
            proptest::prop_assert!(helper.is_err());
            let _ = check(&text);
        }
    }
}
