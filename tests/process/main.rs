//! The process runtime with real processes, which are really killed.
#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, helpers too")]

mod fixture;
mod instances;
#[path = "../it/support/ports.rs"]
mod ports;
mod releases;
