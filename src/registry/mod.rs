//! Registry. (skeleton)
