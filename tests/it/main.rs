//! The program as a whole: the real binary, a real Docker Engine, real Git, real processes that are really killed.
//!
//! One test binary, so that it is linked once. `support` builds a *site*: an app in a Git repository, a `pipeline.toml`, and what
//! a person would do with them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed; the lints' own exception does not see the helpers"
)]

mod support;

mod backups;
mod bot;
mod candidates;
mod demo;
mod deploy;
mod engine_away;
mod exits;
mod full_disk;
mod gate;
mod guestbook;
mod hostile;
mod images;
mod kills;
mod matrix;
mod migrations;
mod old_stores;
mod orphans;
mod people;
mod processes;
mod pushes;
mod retention;
mod rollback;
mod secrets;
mod sql_files;
mod telegram;
mod threats;
mod under_load;
mod warm;

// A client and visitors who try nothing twice, which the gate's own tests have as well.
#[path = "../gate/connection.rs"]
mod connection;
#[path = "../gate/visitors.rs"]
mod visitors;
