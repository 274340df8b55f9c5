//! The gate: a reverse proxy that owns the public ports and says which instance of an app gets the requests.

pub mod client;
pub mod keeper;
pub mod wire;

pub use client::{Client, ClientError};
