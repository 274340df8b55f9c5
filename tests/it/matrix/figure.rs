//! The figures that a pass prints: how many runs, how many violations, how long recovery took.

use std::{fmt, time::Duration};

/// One class of faults at many points.
#[derive(Debug)]
pub struct Figure {
    name: String,
    points: usize,
    runs: usize,
    violations: Vec<String>,
    recoveries: Vec<Duration>,
}

impl Figure {
    pub fn new(name: &str, points: usize) -> Self {
        Self { name: name.to_owned(), points, runs: 0, violations: Vec::new(), recoveries: Vec::new() }
    }

    /// One run and what was wrong after it.
    pub fn ran(&mut self, what: &str, violations: Vec<String>) {
        self.runs += 1;
        for violation in &violations {
            println!("{what}: {violation}");
        }
        self.violations.extend(violations.into_iter().map(|violation| format!("{what}: {violation}")));
    }

    /// From a daemon's start until the deployment that it found interrupted had its end.
    pub fn recovered(&mut self, after: Option<Duration>) {
        self.recoveries.extend(after);
    }

    /// Prints it; fails if anything was wrong.
    #[track_caller]
    pub fn close(self) {
        println!("{self}");
        assert!(self.violations.is_empty(), "violations:\n{}", self.violations.join("\n"));
        assert!(self.runs >= self.points, "{} of {} points were tried", self.runs, self.points);
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, points, runs, .. } = self;
        write!(f, "matrix: {name}: {points} points: {runs} runs, {} violations", self.violations.len())?;
        let mut times = self.recoveries.clone();
        times.sort();
        match (times.get(times.len() / 2), times.last()) {
            (Some(median), Some(worst)) => {
                write!(f, "; recovery of {}: median {median:.2?}, worst {worst:.2?}", times.len())
            }
            _ => Ok(()),
        }
    }
}
