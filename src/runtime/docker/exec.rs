//! Commands in running containers. (skeleton)
