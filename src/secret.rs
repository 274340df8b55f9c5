//! Secret values that cannot be printed by accident.
//!
//! A [`Secret`] prints as `[secret]` in every format, is wiped from memory when dropped (by `secrecy`) and has to be
//! opened with [`Secret::expose`], so that each place that handles the plain text can be found by searching for it.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// A value from `{ env = "NAME" }` or `{ file = "path" }`. Never serialised, never shown.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretString::from(value.into()))
    }

    /// The plain text. Give it only to what needs it: a container's environment, an HMAC, a request.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    pub fn is_empty(&self) -> bool {
        self.expose().is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_format_shows_the_value() {
        let secret = Secret::new("hunter22");
        assert_eq!(format!("{secret} {secret:?} {:#?}", Some(&secret)).matches("hunter22").count(), 0);
        assert_eq!(secret.expose(), "hunter22");
    }
}
