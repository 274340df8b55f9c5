//! The gate as a process, between real sockets: what goes through it, and what does not break while it switches, holds, drains and is replaced.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, helpers too"
)]

mod backend;
mod clients;
mod commands;
mod connection;
mod handover;
mod load;
mod routes;
mod support;
mod upgrade;
mod visitors;
mod waiting;
