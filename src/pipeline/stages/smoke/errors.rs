//! Error rates during the bake: what the gate counts of the new version, beside what it counted of the one before.
//!
//! Visitors find what no check asks for. So that a version is not blamed for errors that were there before it, only what exceeds the old version's
//! share by more than `max_error_rate` counts; and a share of a few requests says nothing, so fewer than [`LEAST`] are no share. A gate that does not
//! answer judges nobody: the checks through it then fail by themselves.

use serde::{Deserialize, Serialize};

use super::{Input, StageFailure, Step};
use crate::{gate::wire::Counters, pipeline::traffic};

/// Requests that make a share.
const LEAST: u64 = 20;

/// Requests that ended, and those of them that ended in an error of the app: status 500 and above, or no whole answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub requests: u64,
    pub errors: u64,
}

impl Share {
    fn of(counters: &Counters) -> Self {
        let (answered, failed) = (counters.latency.count, counters.failed);
        Self { requests: answered + failed, errors: counters.errors + failed }
    }

    /// What came after `before`; all of it where a new gate has begun to count anew.
    fn since(self, before: Self) -> Self {
        if self.requests < before.requests || self.errors < before.errors {
            return self;
        }
        Self { requests: self.requests - before.requests, errors: self.errors - before.errors }
    }

    /// From 0 to 1; 0 where too little is known.
    fn rate(self) -> f64 {
        if self.requests < LEAST { 0.0 } else { self.errors as f64 / self.requests as f64 }
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.requests == 0 {
            return f.write_str("no requests");
        }
        let percent = self.errors as f64 / self.requests as f64 * 100.0;
        write!(f, "{percent:.1} % errors ({} of {} requests)", self.errors, self.requests)
    }
}

/// As the stage records it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    pub new: Share,
    /// The version before, for as long as it was live in this gate.
    pub old: Share,
}

impl Compared {
    fn exceeds(&self, max: f64) -> bool {
        self.new.rate() > self.old.rate() + max
    }
}

/// Compares while the new version has the traffic.
#[derive(Debug)]
pub(super) struct Watch {
    max: f64,
    /// The gate's names of the sides.
    new: String,
    old: Option<String>,
    /// What the new side had already: an instance that is live again goes on with its counters.
    before: Share,
    newest: Option<Compared>,
    told: bool,
}

impl Watch {
    /// None where nothing is to be compared.
    pub(super) async fn begin(step: &Step, input: &Input) -> Option<Self> {
        let environment = &step.environment;
        let max = environment.smoke.max_error_rate.filter(|_| environment.start.gate.is_some())?;
        let new = input.instance.deployment.to_string();
        let old = input.beside.as_ref().map(|previous| previous.deployment.to_string());
        let mut watch = Self { max, new, old, before: Share::default(), newest: None, told: false };
        watch.before = watch.read(step).await.map(|seen| seen.new).unwrap_or_default();
        Some(watch)
    }

    /// Fails when the new version has more errors than it may.
    pub(super) async fn look(&mut self, step: &Step) -> Result<(), StageFailure> {
        let mut seen = match self.read(step).await {
            Ok(seen) => seen,
            Err(why) => {
                if !self.told {
                    step.job.log.line(format!("warning: error rates are not compared: {}", why.message));
                }
                self.told = true;
                return Ok(());
            }
        };
        seen.new = seen.new.since(self.before);
        self.newest = Some(seen);
        if !seen.exceeds(self.max) {
            return Ok(());
        }
        let max = self.max * 100.0;
        let message = format!(
            "the new version has {}, the one before had {}: `max_error_rate` allows {max:.1} % more",
            seen.new, seen.old
        );
        step.job.log.line(&message);
        Err(StageFailure::failed(message))
    }

    /// What was seen in the end, for the log and the record.
    pub(super) fn end(self, step: &Step) -> Option<Compared> {
        let seen = self.newest?;
        step.job.log.line(format!("the new version has {}, the one before had {}", seen.new, seen.old));
        Some(seen)
    }

    async fn read(&self, step: &Step) -> Result<Compared, StageFailure> {
        let Some(route) = traffic::route(&step.world, &step.environment.key).await? else {
            return Err(StageFailure::failed("the gate does not know the environment"));
        };
        let share = |id: &str| route.side(id).map(|side| Share::of(&side.counters)).unwrap_or_default();
        // The newest that was replaced, where the version before was stopped before this one started.
        let replaced = route.retired.iter().map(|side| &side.id).find(|id| **id != self.new);
        let old = self.old.as_ref().or(replaced).map(|id| share(id)).unwrap_or_default();
        Ok(Compared { new: share(&self.new), old })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exceeds(new: (u64, u64), old: (u64, u64), max: f64) -> bool {
        let share = |(errors, requests)| Share { requests, errors };
        Compared { new: share(new), old: share(old) }.exceeds(max)
    }

    #[test]
    fn only_what_exceeds_the_old_share_counts() {
        assert!(exceeds((7, 21), (0, 300), 0.02));
        assert!(!exceeds((7, 21), (100, 300), 0.02));
        assert!(exceeds((110, 300), (100, 300), 0.02));
        assert!(!exceeds((0, 300), (100, 300), 0.0));
        assert!(exceeds((1, 300), (0, 300), 0.0), "none at all is allowed");
        assert!(!exceeds((300, 300), (0, 300), 1.0));
    }

    #[test]
    fn a_few_requests_are_no_share() {
        assert!(!exceeds((19, 19), (0, 300), 0.02));
        assert!(exceeds((20, 20), (0, 300), 0.02));
        assert!(exceeds((20, 20), (19, 19), 0.02), "the old one is not known to err");
    }

    #[test]
    fn counters_of_a_new_gate_begin_anew() {
        let share = |errors, requests| Share { requests, errors };
        assert_eq!(share(5, 50).since(share(2, 30)), share(3, 20));
        assert_eq!(share(1, 10).since(share(2, 30)), share(1, 10));
        assert_eq!(share(1, 4).to_string(), "25.0 % errors (1 of 4 requests)");
    }
}
