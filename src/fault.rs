//! Faults on purpose, for the tests that kill Refit in the middle.
//!
//! The pipeline names the moments at which a crash could matter ([`Faults::reach`]): after an intent is on disk, after its effect, after
//! its record. A debug build can be told, by the binary, what to do at some of them; a release build is told nothing, and reaching
//! a point is then a look at an empty list.
//!
//! The order is text: `point=action,…`, where a point is `begun`, `step:<stage>:<moment>`, `undo:<stage>:<moment>`, `approval:<moment>`,
//! `end:<moment>` or `report:<kind>:<moment>` (see `notify::Post`), a moment is `intent`, `effect` or `record` (of an approval: `record` of the request, `decision` that was found, `heard` once it
//! is in the journal), and an action is one of
//!
//! - `kill`: the process sends itself SIGKILL;
//! - `fail`: the step or undo fails in place of its success (at `effect`);
//! - `twice`: the effect is done a second time (at `effect`);
//! - `pause:<file>`: the file is made, and nothing goes on until somebody has removed it.

use std::{path::PathBuf, sync::Arc, time::Duration};

/// Between two looks at the file of a pause.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Kill,
    Fail,
    Twice,
    Pause(PathBuf),
}

/// What the work is to do after a point was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoOn {
    AsUsual,
    Fail,
    Twice,
}

/// What to do at which point; usually nothing anywhere. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Vec<(String, Action)>>);

impl Faults {
    /// Reads an order; the error is for the one who wrote the test.
    pub fn parse(order: &str) -> Result<Self, String> {
        let one = |part: &str| {
            let (point, action) = part.split_once('=').ok_or_else(|| format!("`{part}` has no `=`"))?;
            let action = match action.split_once(':') {
                None if action == "kill" => Action::Kill,
                None if action == "fail" => Action::Fail,
                None if action == "twice" => Action::Twice,
                Some(("pause", file)) => Action::Pause(PathBuf::from(file)),
                _ => return Err(format!("`{action}` is no action")),
            };
            Ok((point.to_owned(), action))
        };
        let parts = order.split(',').filter(|part| !part.is_empty());
        Ok(Self(Arc::new(parts.map(one).collect::<Result<_, _>>()?)))
    }

    /// The pipeline has come to a point.
    pub async fn reach(&self, point: &str) -> GoOn {
        let mut go_on = GoOn::AsUsual;
        for (_, action) in self.0.iter().filter(|(at, _)| at == point) {
            tracing::warn!(point, ?action, "a fault was ordered here");
            match action {
                Action::Kill => {
                    // SIGKILL to ourselves does not return; where it could not be sent there is no test to go on with.
                    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                }
                Action::Fail => go_on = GoOn::Fail,
                Action::Twice => go_on = GoOn::Twice,
                Action::Pause(file) => {
                    if let Err(error) = std::fs::write(file, point) {
                        tracing::error!(file = %file.display(), %error, "cannot pause");
                        continue;
                    }
                    while file.exists() {
                        tokio::time::sleep(LOOK).await;
                    }
                }
            }
        }
        go_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_is_carried_out_at_its_points_only() -> Result<(), String> {
        let faults = Faults::parse("step:build:effect=fail,undo:tag:effect=twice")?;
        assert_eq!(faults.reach("step:build:effect").await, GoOn::Fail);
        assert_eq!(faults.reach("undo:tag:effect").await, GoOn::Twice);
        assert_eq!(faults.reach("step:build:intent").await, GoOn::AsUsual);
        assert_eq!(Faults::default().reach("begun").await, GoOn::AsUsual);
        for bad in ["begun", "begun=explode", "begun=pause"] {
            assert!(Faults::parse(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}
