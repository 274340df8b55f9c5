//! Queue. (skeleton)
