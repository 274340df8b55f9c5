//! Commands. (skeleton)
