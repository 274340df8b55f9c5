//! Log lines that a stranger can cause, at most a few a period, so that nobody can fill the disk by knocking.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const PERIOD: Duration = Duration::from_secs(10);
const LINES: u32 = 20;

/// Lets [`LINES`] lines pass each [`PERIOD`]; the first of the next period says how many were left out.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    window: Mutex<Option<Window>>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u32,
}

impl Throttle {
    /// Logs what `line` makes, or only counts it. The text must hold no secret.
    pub(crate) fn warn(&self, line: impl FnOnce() -> String) {
        if let Some(left_out) = self.admit(Instant::now()) {
            let line = line();
            if left_out == 0 {
                tracing::warn!("{line}");
            } else {
                tracing::warn!("{line} ({left_out} more like this were not logged)");
            }
        }
    }

    /// `None`: not now. `Some`: yes, and so many were left out before.
    fn admit(&self, now: Instant) -> Option<u32> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *window {
            Some(open) if now.duration_since(open.began) < PERIOD => {
                open.lines = open.lines.saturating_add(1);
                (open.lines <= LINES).then_some(0)
            }
            closed => {
                let left_out = closed.as_ref().map_or(0, |w| w.lines.saturating_sub(LINES));
                *closed = Some(Window { began: now, lines: 1 });
                Some(left_out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_logged() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        let admitted = (0..1000).filter(|_| throttle.admit(start).is_some()).count();
        assert_eq!(admitted, LINES as usize);
        assert_eq!(throttle.admit(start + PERIOD), Some(1000 - LINES));
        assert_eq!(throttle.admit(start + PERIOD * 2), Some(0));
    }
}
