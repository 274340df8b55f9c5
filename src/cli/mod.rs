//! Commands. (skeleton)
pub mod client;
