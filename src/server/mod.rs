//! HTTP. (skeleton)
