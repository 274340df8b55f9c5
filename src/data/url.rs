//! A database's URL, taken apart: `scheme://user:password@host:port/database?parameter=value`.
//!
//! What a parameter means is its kind's business; one that it does not know is refused rather than dropped. No error says anything of what
//! the URL holds.

use crate::secret::Secret;

#[derive(Debug)]
pub(super) struct DatabaseUrl {
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: Option<u16>,
    pub database: String,
    pub user: String,
    pub password: Option<Secret>,
    parameters: Vec<(String, String)>,
    form: &'static str,
}

impl DatabaseUrl {
    /// `form` is how one looks, for people; `product` whose it has to be.
    pub fn parse(secret: &Secret, schemes: &[&str], product: &str, form: &'static str) -> Result<Self, String> {
        let bad = |why: &str| refused(form, why);
        let url = reqwest::Url::parse(secret.expose()).map_err(|_| bad("is no URL"))?;
        if !schemes.contains(&url.scheme()) {
            return Err(bad(&format!("is not one of {product}")));
        }
        let plain = |text: &str| decode(text).ok_or_else(|| bad("holds something that is not UTF-8"));
        Ok(Self {
            host: plain(url.host_str().unwrap_or_default())?.trim_matches(['[', ']']).to_owned(),
            port: url.port(),
            database: plain(url.path().trim_start_matches('/'))?,
            user: plain(url.username())?,
            password: url.password().map(plain).transpose()?.map(Secret::new),
            parameters: url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect(),
            form,
        })
    }

    /// Hands each parameter to `known`, which says whether it knows it; then whether all is there that a connection needs.
    pub fn finish(mut self, mut known: impl FnMut(&mut Self, &str, String) -> bool) -> Result<Self, String> {
        for (name, value) in std::mem::take(&mut self.parameters) {
            if !known(&mut self, &name, value) {
                let name = name.escape_default();
                return Err(format!("the database's `url` has a parameter `{name}` that is not known here"));
            }
        }
        if self.host.is_empty() || self.database.is_empty() || self.user.is_empty() {
            return Err(refused(self.form, "lacks its host, database or user"));
        }
        Ok(self)
    }

    /// For people: `db.example:5432`.
    pub fn server(&self) -> String {
        self.port.map_or_else(|| self.host.clone(), |port| format!("{}:{port}", self.host))
    }
}

fn refused(form: &str, why: &str) -> String {
    format!("the database's `url` {why}: write `{form}`")
}

/// Percent-encoding undone.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = (byte == b'%').then(|| after.get(..2)).flatten();
        match hex.and_then(|hex| hex::decode(hex).ok()) {
            Some(decoded) => {
                bytes.extend(decoded);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}
