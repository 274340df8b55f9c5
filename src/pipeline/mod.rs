//! Pipeline. (skeleton)
pub mod journal;
pub mod stages {
    pub mod coverage;
}
