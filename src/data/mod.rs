//! Backups. (skeleton)
