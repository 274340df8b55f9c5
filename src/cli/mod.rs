//! Commands. (skeleton)
pub mod client;
pub mod serve;
