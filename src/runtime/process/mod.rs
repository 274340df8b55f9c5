//! The process runtime. (skeleton)
