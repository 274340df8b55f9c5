//! Refit turns a `git push` into a safe deployment on a server its owner controls.
//!
//! A request enters through a door (`server`, `cli`, `telegram`), becomes a durable row (`queue`),
//! and is carried out step by step by `pipeline`, which writes each intent to the journal (`registry`) before
//! it touches the world through `git`, `runtime` and `data`. What happened leaves through `notify`.
//!
//! The library never reads the process environment or the terminal by itself: the binary hands both in.
//! `ARCHITECTURE.md` describes the rooms and who may use whom.

pub mod cli;
pub mod config;
pub mod control;
pub mod data;
pub mod exec;
pub mod fault;
pub mod files;
pub mod gate;
pub mod git;
pub mod log;
pub mod migrate;
pub mod model;
pub mod notify;
pub mod pipeline;
pub mod queue;
pub mod redact;
pub mod registry;
pub mod rollback;
pub mod runtime;
pub mod secret;
pub mod server;
pub mod telegram;
mod throttle;
pub mod trigger;

#[cfg(test)]
#[path = "../tests/it/support/ports.rs"]
mod test_ports;

#[cfg(test)]
#[path = "../tests/it/support/servers.rs"]
mod test_servers;
