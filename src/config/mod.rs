//! `pipeline.toml` → checked types.
//!
//! [`load`] reads the file and its includes, reports every problem with file, line, key and a way out, and
//! returns a [`Config`] in which nothing is optional that has a default: environments have their stage tables merged key
//! by key, paths are absolute, secrets are resolved. The rest of the program never sees raw TOML.
//!
//! How it works: `tree` turns each file into values that know their place; `environment` lays an environment's tables over
//! the common ones, still as trees; `read` walks a table by the keys of `schema`, filling gaps from `defaults`; `values` and
//! `repository` check one value at a time. A problem never stops the walk, so that one run shows them all, and any problem
//! makes the whole load fail with [`ConfigErrors`].
//!
//! Defaults stand in one place, `defaults.rs`, and are documented in `docs/configuration.md` (a test compares the two).

mod backups;
mod defaults;
mod environment;
mod error;
mod load;
mod migrate;
mod read;
mod repository;
mod schema;
mod select;
mod smoke;
mod stages;
mod start;
mod strategy;
mod tree;
mod types;
mod values;

#[cfg(test)]
mod docs_test;
#[cfg(test)]
mod load_test;

pub use error::{ConfigErrors, Place, Problem};
pub use load::{load, load_with};
pub use select::SelectError;
pub use types::*;

/// What to do about a secret whose variable is not set, or whose file is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingSecrets {
    /// It is a problem: for everything that acts.
    Error,
    /// It is an empty secret, a missing webhook secret is no secret, and a missing chat is no Telegram: for commands that only
    /// read, in a shell that does not have the secrets.
    Ignore,
}

/// How to load.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    /// Where `{ env = "NAME" }` is looked up; the library does not read the process's environment itself.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    pub missing_secrets: MissingSecrets,
}

impl std::fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadOptions").field("missing_secrets", &self.missing_secrets).finish_non_exhaustive()
    }
}
