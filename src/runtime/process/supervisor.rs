//! The process that keeps one instance running: `refit supervise <instance directory>`.
//!
//! It is a session of its own, so that neither a terminal nor the end of the daemon reaches it, and it talks to the daemon only through
//! files: it reads `spec.json`, writes `state.json`, holds `lock`, and ends on SIGTERM. It runs one thread and sleeps
//! until the app ends, prints or a signal comes.
//!
//! The app is the leader of its own process group in the supervisor's session. Its record is on disk before any of its code runs:
//! the child begins as a shell that waits for a line on its standard input, which is sent once `state.json` is
//! written. If the supervisor is killed before that, the shell reads the end of the file and exits; if after, the next start or stop finds the
//! group by its record and ends it. So there is never an app that nobody knows of. (A process that moves itself into
//! another session, a daemon in the old sense, escapes its group: apps are to stay in the foreground.)
//!
//! When the app ends, what is left of its group is ended too, because it may hold the port. Then the app is started again after a delay that
//! doubles from [`FIRST_DELAY`] to [`LONGEST_DELAY`] and begins anew after a run of [`HEALTHY_RUN`].

use std::{
    fs::File,
    io::{self, Write},
    os::unix::{fs::OpenOptionsExt, process::ExitStatusExt},
    path::Path,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

use super::{
    output::{Output, RotatingLog},
    procfs::Group,
    spec::{Phase, Spec, State},
};

/// Before the first restart.
pub const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Between restarts of an app that does not stay up.
pub const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// After a run of this length the delay begins anew.
pub const HEALTHY_RUN: Duration = Duration::from_secs(10);

/// Exit code: another supervisor has the instance.
pub const BUSY: u8 = 75;
/// Exit code: the instance cannot be supervised; `supervisor.log` says why.
pub const FAILED: u8 = 70;

/// Waits for the go-ahead, then becomes the app. `$@` is the app's command.
const LAUNCH: &str = r#"IFS= read -r go && exec "$@" </dev/null"#;

/// Supervises the instance in `dir` until SIGTERM. Returns the process's exit code: 0, [`BUSY`] or [`FAILED`]. What went
/// wrong is in `dir/supervisor.log`.
pub fn run(dir: &Path) -> u8 {
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(supervise(dir)));
    match result {
        Ok(true) => 0,
        Ok(false) => BUSY,
        Err(error) => {
            // There is nobody else to tell.
            let _ = open_log(dir).and_then(|mut log| writeln!(log, "{error}"));
            FAILED
        }
    }
}

/// Where a supervisor says why it could not do its work.
pub(super) fn log_path(dir: &Path) -> std::path::PathBuf {
    dir.join("supervisor.log")
}

pub(super) fn open_log(dir: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(log_path(dir))
}

/// The file whose lock makes a process the only supervisor of an instance.
pub(super) fn lock(dir: &Path) -> io::Result<Option<File>> {
    let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// `false`: another one does.
async fn supervise(dir: &Path) -> io::Result<bool> {
    let mut stop = signal(SignalKind::terminate())?;
    let Some(_lock) = lock(dir)? else { return Ok(false) };
    let spec = Spec::read(dir)?.ok_or_else(|| io::Error::other("there is no spec.json"))?;
    let own = Group::of(std::process::id().cast_signed()).ok_or_else(|| io::Error::other("/proc is not readable"))?;
    let log = RotatingLog::open(dir, spec.log_max_size, spec.log_max_file)?;
    let mut supervisor = Supervisor {
        dir,
        spec: &spec,
        state: State::new(own.leader),
        output: Output::new(log)?,
        backoff: Backoff::default(),
    };
    loop {
        let began = Instant::now();
        let code = match supervisor.launch().await {
            Ok(mut child) => {
                let ended = tokio::select! {
                    biased;
                    _ = stop.recv() => None,
                    status = child.wait() => Some(status?),
                    never = supervisor.output.pump() => match never {},
                };
                let Some(status) = ended else {
                    supervisor.stop(&mut child).await?;
                    return Ok(true);
                };
                code_of(status)
            }
            Err(error) => {
                supervisor.output.note(&format!("the app could not be started: {error}"));
                127
            }
        };
        let delay = supervisor.backoff.next(began.elapsed());
        supervisor.wait_for_restart(code, delay);
        tokio::select! {
            biased;
            _ = stop.recv() => {
                supervisor.finish(code, supervisor.stop_timeout()).await?;
                return Ok(true);
            }
            () = supervisor.clean_up_and_sleep(supervisor.stop_timeout(), delay) => {}
        }
        supervisor.state.restarts += 1;
    }
}

struct Supervisor<'a> {
    dir: &'a Path,
    spec: &'a Spec,
    state: State,
    output: Output,
    backoff: Backoff,
}

impl Supervisor<'_> {
    /// Starts the app: record first, then the go-ahead.
    async fn launch(&mut self) -> io::Result<Child> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(LAUNCH).arg("refit-launch");
        match self.spec.command.as_slice() {
            [line] => command.args(["/bin/sh", "-c", line]),
            words => command.args(words),
        };
        let mut child = command
            .envs(&self.spec.env)
            .current_dir(&self.spec.dir)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(self.output.writer()?)
            .stderr(self.output.writer()?)
            .spawn()?;
        self.state.app = child.id().and_then(|pid| Group::of(pid.cast_signed()));
        self.state.phase = Phase::Running;
        let recorded = match self.state.app {
            Some(_) => self.state.write(self.dir),
            None => Err(io::Error::other("the new process is not in /proc")),
        };
        let go = child.stdin.take();
        if let Err(error) = recorded {
            // Without the go-ahead it ends by itself.
            drop(go);
            child.wait().await?;
            return Err(error);
        }
        if let Some(mut go) = go {
            // A shell that was killed meanwhile does not read; its end is seen by whoever waits for it.
            let _ = go.write_all(b"\n").await;
        }
        Ok(child)
    }

    fn wait_for_restart(&mut self, code: i64, delay: Duration) {
        self.output.note(&format!("the app ended with code {code}; it is started again in {delay:?}"));
        self.state.phase = Phase::Waiting;
        self.state.last_exit = Some(code);
        self.record();
    }

    /// Ends what the app left in its group, with `grace` between the signals, and lets the delay pass.
    async fn clean_up_and_sleep(&mut self, grace: Duration, delay: Duration) {
        let app = self.state.app;
        let work = async {
            if let Some(app) = app {
                // A process that survives SIGKILL holds nothing that could be waited for.
                let _ = app.end(grace).await;
            }
            tokio::time::sleep(delay).await;
        };
        tokio::select! {
            () = work => {}
            never = self.output.pump() => match never {},
        }
    }

    /// SIGTERM to the whole group, SIGKILL after the timeout; the app's end is read while the rest is waited for.
    async fn stop(&mut self, child: &mut Child) -> io::Result<()> {
        self.state.phase = Phase::Stopping;
        self.record();
        if let Some(app) = self.state.app {
            app.signal(Signal::TERM);
        }
        let timeout = self.stop_timeout();
        let began = Instant::now();
        let waited = tokio::select! {
            waited = tokio::time::timeout(timeout, child.wait()) => waited,
            never = self.output.pump() => match never {},
        };
        let status = match waited {
            Ok(status) => status?,
            Err(_) => {
                self.output.note(&format!("the app did not end within {timeout:?} of SIGTERM and is killed"));
                if let Some(app) = self.state.app {
                    app.signal(Signal::KILL);
                }
                child.wait().await?
            }
        };
        self.finish(code_of(status), timeout.saturating_sub(began.elapsed())).await
    }

    /// Ends what is left of the group and records the end.
    async fn finish(&mut self, code: i64, grace: Duration) -> io::Result<()> {
        self.clean_up_and_sleep(grace, Duration::ZERO).await;
        self.output.drain();
        self.state.phase = Phase::Ended;
        self.state.app = self.state.living_app();
        self.state.last_exit = Some(code);
        self.state.write(self.dir)
    }

    /// Notes a change that nothing depends on: on a full disk the app matters more than the record of it.
    fn record(&mut self) {
        if let Err(error) = self.state.write(self.dir) {
            self.output.note(&format!("state.json could not be written: {error}"));
        }
    }

    fn stop_timeout(&self) -> Duration {
        Duration::from_millis(self.spec.stop_timeout_ms)
    }
}

/// An exit code as shells count: 128 + the number of the signal that ended it.
fn code_of(status: ExitStatus) -> i64 {
    i64::from(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// The delay before the next start.
#[derive(Debug)]
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST_DELAY)
    }
}

impl Backoff {
    /// After a run of this length.
    fn next(&mut self, ran: Duration) -> Duration {
        if ran >= HEALTHY_RUN {
            self.0 = FIRST_DELAY;
        }
        let delay = self.0;
        self.0 = (delay * 2).min(LONGEST_DELAY);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_a_limit_and_begin_anew_after_a_healthy_run() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..9).map(|_| backoff.next(Duration::ZERO).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.next(HEALTHY_RUN), FIRST_DELAY);
        assert_eq!(backoff.next(Duration::ZERO), FIRST_DELAY * 2);
    }

    /// What happens when the supervisor is killed before, or after, the record is written.
    #[test]
    fn nothing_of_the_app_runs_before_the_go_ahead() -> io::Result<()> {
        for (go, runs) in [("", false), ("\n", true)] {
            let dir = tempfile::tempdir()?;
            let mut child = std::process::Command::new("/bin/sh")
                .args(["-c", LAUNCH, "refit-launch", "touch", "ran"])
                .current_dir(dir.path())
                .stdin(Stdio::piped())
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(go.as_bytes())?;
            }
            assert_eq!(child.wait()?.success(), runs);
            assert_eq!(dir.path().join("ran").exists(), runs);
        }
        Ok(())
    }
}
