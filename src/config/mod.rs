//! `pipeline.toml` → checked types.
//!
//! [`load`] reads the file and its includes, reports every problem with file, line, key and a way out, and
//! returns a [`Config`] in which nothing is optional that has a default: environments have their stage tables merged key
//! by key, paths are absolute, secrets are resolved. The rest of the program never sees raw TOML.
//!
//! Defaults stand in one place, `defaults.rs`, and are documented in `docs/configuration.md` (a test compares the two).

mod types;

pub use types::*;
