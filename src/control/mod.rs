//! Verbs. (skeleton)
