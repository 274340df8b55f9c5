//! Pipeline. (skeleton)
pub mod journal;
