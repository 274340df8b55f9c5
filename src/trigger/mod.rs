//! What asks for a deployment: announcements of pushes, and the rules that say whether one follows.
//!
//! Everything here is a pure function of its arguments: no network, no repository, no clock. The doors hand in bytes and get
//! checked values or a reason; the queue hands in facts and gets a verdict. What arrives is not believed further than
//! its form: a payload says *that* a branch moved, and the commit is deployed only if the configured repository agrees.
//!
//! | file | what |
//! |---|---|
//! | `github` | signature and payload of GitHub's webhook |
//! | `hook` | what Git tells a `post-receive` hook |
//! | `rules` | skip markers, path rules, and the verdict on a push |

pub mod github;
pub mod hook;
pub mod rules;
