//! Masks secret values in text that people or files will see.
//!
//! One [`Redactor`] is built from every secret of the configuration and applied at the last moment before text leaves:
//! log lines, errors in the registry, messages. It also masks the user part of URLs (`https://user:token@host`), which
//! no list of secrets can foresee. A secret that is a URL (`DATABASE_URL`) hides its password also where that stands alone, since
//! apps take such URLs apart. Matching is by whole value: a secret of fewer than four characters is not masked,
//! because it would shred ordinary words (`docs/security.md` says so).

use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::secret::Secret;

/// What stands in the place of a secret.
pub const MASK: &str = "[masked]";

/// Shorter values are left alone; see the module's text.
const SHORTEST_MASKED: usize = 4;

/// Replaces known secret values. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    values: Option<Arc<AhoCorasick>>,
}

impl Redactor {
    /// Masks each secret as it stands, each of its lines where it has several, a URL's password by itself, and the URL-encoded and
    /// JSON-escaped forms of all these.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut patterns: Vec<String> = Vec::new();
        for secret in secrets {
            for part in std::iter::once(secret.expose()).chain(secret.expose().lines()) {
                spell(part.trim(), &mut patterns);
                if let Some(password) = url_password(part) {
                    spell(password, &mut patterns);
                    spell(&percent_decode(password), &mut patterns);
                }
            }
        }
        patterns.sort();
        patterns.dedup();
        if patterns.is_empty() {
            return Self::default();
        }
        let values = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&patterns).ok().map(Arc::new);
        Self { values }
    }

    /// `text` with every known secret and every URL's user part masked.
    pub fn mask(&self, text: &str) -> String {
        let masked = match &self.values {
            Some(values) if values.is_match(text) => {
                let masks = vec![MASK; values.patterns_len()];
                values.replace_all(text, &masks)
            }
            _ => text.to_owned(),
        };
        mask_url_users(&masked)
    }
}

/// Adds a value and the forms in which it may turn up, unless it is too short.
fn spell(value: &str, patterns: &mut Vec<String>) {
    if value.len() < SHORTEST_MASKED {
        return;
    }
    patterns.push(value.to_owned());
    patterns.push(percent_encode(value));
    let quoted = serde_json::Value::from(value).to_string();
    patterns.push(quoted[1..quoted.len() - 1].to_owned());
}

/// The password of `scheme://user:password@host`, as it stands there. `None` if the URL repeats it (`app:app@db/app`): hiding an
/// app's own name would make its logs unreadable and keep no secret.
fn url_password(text: &str) -> Option<&str> {
    let (_, after) = text.split_once("://")?;
    let authority = after.split(['/', '?', '#']).next()?;
    let (user, _host) = authority.rsplit_once('@')?;
    let (_user, password) = user.split_once(':')?;
    (text.matches(password).count() == 1).then_some(password)
}

/// Replaces `user:password@` in `scheme://user:password@host`. A user without a password (`ssh://git@host`) stays, except
/// in HTTP, where a token often stands in the user's place.
fn mask_url_users(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '<' | '>' | '?' | '#'))
            .unwrap_or(after.len());
        let authority = &after[..end];
        match authority.rfind('@') {
            Some(host)
                if authority[..host].contains(':') || before.ends_with("http://") || before.ends_with("https://") =>
            {
                out.push_str(MASK);
                out.push_str(&authority[host..]);
            }
            _ => out.push_str(authority),
        }
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// `%41` → `A`; what is no such escape stays.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|digits| first == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let decoded = digits.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 16).ok());
        bytes.push(decoded.unwrap_or(first));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_values_in_every_spelling() {
        let secrets = [Secret::new("p@ss/wörd\""), Secret::new("abc")];
        let redactor = Redactor::new(&secrets);
        let encoded = percent_encode("p@ss/wörd\"");
        let text = format!("plain p@ss/wörd\" url {encoded} json p@ss/wörd\\\" short abc");
        assert_eq!(redactor.mask(&text), "plain [masked] url [masked] json [masked] short abc");
    }

    #[test]
    fn masks_each_line_of_a_key() {
        let key = Secret::new("-----BEGIN KEY-----\nMIIEabcdef\n-----END KEY-----\n");
        assert_eq!(Redactor::new([&key]).mask("got MIIEabcdef here"), "got [masked] here");
    }

    #[test]
    fn masks_the_password_of_a_secret_url_by_itself() {
        let url = Secret::new("postgresql://app:p%40ss%2Fw%zz@db:5432/app");
        let text = "p@ss/w%zz and p%40ss%2Fw%zz, not app, db or 5432";
        assert_eq!(Redactor::new([&url]).mask(text), "[masked] and [masked], not app, db or 5432");
        for plain in [
            "postgresql://app@db/app",
            "postgresql://db/a:b@c",
            "app:secret@db",
            "x://app:app@db/app",
            "x://:@",
            "100 %",
        ] {
            assert_eq!(url_password(plain), None, "{plain}");
        }
    }

    #[test]
    fn masks_passwords_in_urls_and_keeps_plain_users() {
        let redactor = Redactor::default();
        assert_eq!(
            redactor.mask("https://bob:tok@git.example/x.git and ssh://git@git.example/x, http://token@git.example"),
            "https://[masked]@git.example/x.git and ssh://git@git.example/x, http://[masked]@git.example"
        );
        assert_eq!(redactor.mask("a:b@c no scheme ://"), "a:b@c no scheme ://");
    }
}
