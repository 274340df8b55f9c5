//! Messages. (skeleton)
