//! Processes by identity, not by number.
//!
//! A pid alone names nothing for long: the kernel hands it out again. A record of a process is therefore its pid *and* its start
//! time (field 22 of `/proc/<pid>/stat`, in clock ticks since boot), together with the boot's own id, and nothing is signalled
//! whose record does not match. A process *group* outlives its leader; while it does, the kernel gives its number to nobody else. So a
//! group is ours if its leader matches or is gone, and its members are of the session that was recorded.

use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// How often a group that was asked to end is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One process of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub pid: i32,
    /// Clock ticks between boot and its start.
    pub start: u64,
}

/// A process group in its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Group {
    pub leader: Identity,
    pub session: i32,
}

/// What `/proc/<pid>/stat` says, as far as it is of use here.
#[derive(Debug, Clone, Copy)]
struct Stat {
    id: Identity,
    group: i32,
    session: i32,
    /// Ended, and perhaps not yet waited for.
    dead: bool,
}

impl Stat {
    /// The program's name (field 2) may hold anything, spaces and parentheses too: what counts begins after the last `)`.
    fn parse(line: &str) -> Option<Self> {
        let pid = line.split_once(' ')?.0.parse().ok()?;
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            id: Identity { pid, start: field(22)?.parse().ok()? },
            group: field(5)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            dead: matches!(field(3)?, "Z" | "X" | "x"),
        })
    }

    fn of(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
}

impl Identity {
    pub fn is_alive(&self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.id == *self && !stat.dead)
    }

    /// Signals this very process; `false` if it is gone. The descriptor is opened before the start time is compared, so that the pid
    /// cannot change hands in between.
    pub fn signal(&self, signal: Signal) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else { return false };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
        self.is_alive() && pidfd_send_signal(handle, signal).is_ok()
    }
}

impl Group {
    /// The group that a process leads or is in, with the process as its leader.
    pub fn of(pid: i32) -> Option<Self> {
        Stat::of(pid).map(|stat| Self { leader: stat.id, session: stat.session })
    }

    /// From a line of `/proc/<pid>/stat` that the leader wrote down itself.
    pub fn parse(line: &str) -> Option<Self> {
        Stat::parse(line).map(|stat| Self { leader: stat.id, session: stat.session })
    }

    pub fn is_alive(&self) -> bool {
        let leader = Stat::of(self.leader.pid);
        if leader.is_some_and(|stat| stat.id != self.leader) {
            return false;
        }
        if leader.is_some_and(|stat| !stat.dead) {
            return true;
        }
        let Ok(entries) = std::fs::read_dir("/proc") else { return false };
        entries
            .filter_map(|entry| Stat::of(entry.ok()?.file_name().to_str()?.parse().ok()?))
            .any(|stat| stat.group == self.leader.pid && stat.session == self.session && !stat.dead)
    }

    /// Signals every member; `false` if there is none.
    pub fn signal(&self, signal: Signal) -> bool {
        self.is_alive() && Pid::from_raw(self.leader.pid).is_some_and(|pid| kill_process_group(pid, signal).is_ok())
    }

    /// Returns when no member is left.
    pub async fn ended(&self) {
        while self.is_alive() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// SIGTERM, then SIGKILL after `timeout`. Returns the signal that ended it, `None` if it was gone already, and
    /// [`Stubborn`] if even SIGKILL does not end it (a process stuck in the kernel).
    pub async fn end(&self, timeout: Duration) -> Result<Option<Signal>, Stubborn> {
        if !timeout.is_zero() {
            if !self.signal(Signal::TERM) {
                return Ok(None);
            }
            if tokio::time::timeout(timeout, self.ended()).await.is_ok() {
                return Ok(Some(Signal::TERM));
            }
        }
        if !self.signal(Signal::KILL) {
            return Ok(None);
        }
        let killed = tokio::time::timeout(crate::exec::KILL_AFTER, self.ended()).await;
        killed.map(|()| Some(Signal::KILL)).map_err(|_| Stubborn { pid: self.leader.pid })
    }
}

/// A group that survived SIGKILL.
#[derive(Debug, thiserror::Error)]
#[error("process group {pid} is still there after SIGKILL; `ps -o stat,wchan -g {pid}` shows what it waits for")]
pub(super) struct Stubborn {
    pid: i32,
}

/// The kernel's id of this boot: pids and start times of another boot mean nothing.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[test]
    fn a_program_name_cannot_confuse_the_reading() {
        let line = "42 (a) R 1 (x)) S 7 42 40 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5555 0 0";
        let group = Group::parse(line);
        assert_eq!(group, Some(Group { leader: Identity { pid: 42, start: 5555 }, session: 40 }));
        assert_eq!(Group::parse("42 (a) S 7"), None);
    }

    #[tokio::test]
    async fn only_the_process_that_was_recorded_is_touched() -> std::io::Result<()> {
        let mut child = std::process::Command::new("sleep").arg("1000").process_group(0).spawn()?;
        let group = Group::of(child.id() as i32).unwrap_or_else(|| panic!("no such process"));
        let mut forged = group;
        forged.leader.start += 1;
        assert!(!forged.is_alive() && !forged.leader.is_alive());
        assert!(!forged.leader.signal(Signal::KILL));
        assert!(forged.end(Duration::ZERO).await.is_ok_and(|by| by.is_none()));
        assert!(group.is_alive() && child.try_wait()?.is_none());
        assert!(group.end(Duration::from_secs(20)).await.is_ok_and(|by| by == Some(Signal::TERM)));
        child.wait()?;
        Ok(())
    }
}
