//! One instance as the daemon sees it: a directory.
//!
//! The daemon holds nothing in memory. Whether an instance runs is read from `state.json` and compared with `/proc`; who may supervise
//! it is decided by the lock. A daemon that wants to change something takes that lock itself, so that no supervisor can
//! begin meanwhile, and hands it over by releasing it just before it starts one.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use process_wrap::tokio::{ChildWrapper, CommandWrap, ProcessSession};
use rustix::process::Signal;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::{
    output,
    place::{io_failed, make_dir, remove_all},
    procfs::LOOK_EVERY,
    spec::{Phase, Spec, State},
    supervisor,
};
use crate::{
    exec::{KILL_AFTER, Program, kept_env},
    log::TAIL_LINES,
    runtime::{ExecOutcome, InstanceState, Result, RuntimeError},
};

/// A new supervisor records itself within this time, even on a machine under load.
const START_WITHIN: Duration = Duration::from_secs(20);

/// How long an inspection waits for a supervisor that has not yet noted what happened just now.
const SETTLE: Duration = Duration::from_secs(2);

/// The exit code of an app whose end nobody saw: it went with its supervisor or with the machine.
pub const UNSEEN: i64 = -1;

/// An instance's directory, which need not exist.
#[derive(Debug, Clone)]
pub(super) struct InstanceDir {
    pub name: String,
    pub path: PathBuf,
}

impl InstanceDir {
    pub fn spec(&self) -> Result<Option<Spec>> {
        Spec::read(&self.path).map_err(io_failed("reading the spec in", &self.path))
    }

    fn known_spec(&self) -> Result<Spec> {
        self.spec()?.ok_or_else(|| RuntimeError::Missing { what: "instance", name: self.name.clone() })
    }

    fn state(&self) -> Result<Option<State>> {
        State::read(&self.path).map_err(io_failed("reading the state in", &self.path))
    }

    /// Writes the spec, unless the instance ran already: then what ran stays what it was.
    pub fn prepare(&self, spec: &Spec) -> Result<()> {
        let existing = self.spec()?;
        if let Some(other) = existing.as_ref().filter(|other| other.key != spec.key) {
            // `a-b` + `c` and `a` + `b-c` make the same name.
            return Err(self.failed("preparing", format!("the name belongs to {}; rename one of the two", other.key)));
        }
        if existing.as_ref() == Some(spec) || (existing.is_some() && self.state()?.is_some()) {
            return Ok(());
        }
        make_dir(&self.path)?;
        spec.write(&self.path).map_err(io_failed("writing the spec in", &self.path))
    }

    /// Starts a supervisor, and returns once it has started the app for the first time.
    pub async fn start(&self, program: &Path) -> Result<()> {
        let spec = self.known_spec()?;
        let stop_timeout = Duration::from_millis(spec.stop_timeout_ms);
        let deadline = Instant::now() + stop_timeout + START_WITHIN;
        let lock = loop {
            if self
                .state()?
                .is_some_and(|state| state.is_supervised() && matches!(state.phase, Phase::Running | Phase::Waiting))
            {
                return Ok(());
            }
            if let Some(lock) = self.lock()? {
                break lock;
            }
            self.pause(deadline, "starting").await?;
        };
        self.end_leftover(stop_timeout).await?;
        if let Some(address) = spec.address() {
            check_port(SocketAddr::new(spec.bind, address.port())).await?;
        }
        drop(lock);
        self.launch(program).await
    }

    async fn launch(&self, program: &Path) -> Result<()> {
        let mut supervisor = self.spawn_supervisor(program)?;
        let deadline = Instant::now() + START_WITHIN;
        loop {
            if self.state()?.is_some_and(|state| state.is_supervised()) {
                // So that it does not stay a zombie while this process lives.
                tokio::spawn(async move { supervisor.wait().await });
                return Ok(());
            }
            let ended = supervisor.try_wait().map_err(io_failed("waiting for the supervisor of", &self.path))?;
            // Another one was quicker if it is busy: its record is about to appear.
            if let Some(status) = ended.filter(|status| status.code() != Some(supervisor::BUSY.into())) {
                let log = std::fs::read_to_string(supervisor::log_path(&self.path)).unwrap_or_default();
                let last = log.lines().last().unwrap_or("it left no message");
                return Err(self.failed("starting", format!("its supervisor ended ({status}): {last}")));
            }
            self.pause(deadline, "starting").await?;
        }
    }

    fn spawn_supervisor(&self, program: &Path) -> Result<Box<dyn ChildWrapper>> {
        let opened = supervisor::open_log(&self.path).and_then(|log| Ok((log.try_clone()?, log)));
        let (out, err) = opened.map_err(io_failed("opening the supervisor's log in", &self.path))?;
        let mut command = Command::new(program);
        command.arg("supervise").arg(&self.path).env_clear().envs(kept_env()).current_dir("/");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        CommandWrap::from(command)
            .wrap(ProcessSession)
            .spawn()
            .map_err(|error| self.failed("starting", format!("{} could not be run: {error}", program.display())))
    }

    /// SIGTERM by way of the supervisor; after `timeout` SIGKILL to the app, and a little later to a supervisor that does not
    /// end with it. Without a supervisor the app's group is ended from here.
    pub async fn stop(&self, timeout: Duration) -> Result<()> {
        if self.spec()?.is_none() {
            return Ok(());
        }
        let kill_at = Instant::now() + timeout;
        let mut asked = None;
        loop {
            if let Some(_lock) = self.lock()? {
                return self.end_leftover(kill_at.saturating_duration_since(Instant::now())).await;
            }
            let state = self.state()?;
            if let Some(state) = state.filter(State::is_supervised) {
                if asked != Some(state.supervisor) && state.supervisor.signal(Signal::TERM) {
                    asked = Some(state.supervisor);
                }
                if Instant::now() >= kill_at
                    && let Some(app) = state.app
                {
                    app.signal(Signal::KILL);
                }
                if Instant::now() >= kill_at + KILL_AFTER {
                    state.supervisor.signal(Signal::KILL);
                }
            }
            self.pause(kill_at + KILL_AFTER * 2, "stopping").await?;
        }
    }

    /// Ends an app whose supervisor is gone, and records that it ended. Called with the lock held.
    async fn end_leftover(&self, timeout: Duration) -> Result<()> {
        let Some(mut state) = self.state()?.filter(|state| state.phase != Phase::Ended || state.app.is_some()) else {
            return Ok(());
        };
        let ended_by = match state.living_app() {
            Some(app) => app.end(timeout).await.map_err(|error| self.failed("stopping", error))?,
            None => None,
        };
        state.last_exit = match ended_by {
            Some(signal) => Some(i64::from(128 + signal.as_raw())),
            // Its supervisor died with it or before it; what it ended with before that is not its end.
            None if state.phase == Phase::Running => Some(UNSEEN),
            None => state.last_exit,
        };
        (state.phase, state.app) = (Phase::Ended, None);
        state.write(&self.path).map_err(io_failed("writing the state in", &self.path))
    }

    pub async fn inspect(&self) -> Result<InstanceState> {
        let Some(spec) = self.spec()? else { return Ok(InstanceState::Missing) };
        let deadline = Instant::now() + SETTLE;
        loop {
            let Some(state) = self.state()? else { return Ok(InstanceState::Created) };
            let exited =
                |code: Option<i64>| InstanceState::Exited { code: code.unwrap_or(UNSEEN), out_of_memory: false };
            let restarting =
                InstanceState::Restarting { restarts: state.restarts, code: state.last_exit.unwrap_or(UNSEEN) };
            let (supervised, alive) = (state.is_supervised(), state.living_app().is_some());
            return Ok(match state.phase {
                Phase::Ended => exited(state.last_exit),
                Phase::Waiting if supervised => restarting,
                Phase::Running | Phase::Stopping if alive => {
                    InstanceState::Running { address: spec.address(), restarts: state.restarts, health: None }
                }
                Phase::Running if !supervised => exited(None),
                Phase::Waiting | Phase::Stopping if !supervised => exited(state.last_exit),
                // The app ended a moment ago and the supervisor is about to say so.
                _ if Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                _ => restarting,
            });
        }
    }

    pub fn tail(&self, lines: usize) -> Result<Vec<String>> {
        output::tail(&self.path, lines).map_err(io_failed("reading the log in", &self.path))
    }

    /// Runs a command beside the running app, in its directory and with its environment.
    pub async fn exec(&self, command: &[String], timeout: Duration) -> Result<ExecOutcome> {
        let operation = || format!("running a command in `{}`", self.name);
        let spec = self.known_spec()?;
        let (Some((program, args)), true) = (command.split_first(), self.is_running().await?) else {
            let why = if command.is_empty() { "the command is empty" } else { "it is not running" };
            return Err(RuntimeError::failed(operation(), why));
        };
        let mut output = std::collections::VecDeque::new();
        let finished = Program::new(program)
            .args(args)
            .clean_env()
            .envs(&spec.env)
            .dir(&spec.dir)
            .stream(timeout, &CancellationToken::new(), |line| {
                if output.len() == TAIL_LINES {
                    output.pop_front();
                }
                output.push_back(line.to_owned());
            })
            .await
            .map_err(|error| RuntimeError::failed(operation(), error))?;
        Ok(ExecOutcome { code: finished.code.into(), output: output.into() })
    }

    pub async fn is_running(&self) -> Result<bool> {
        Ok(matches!(self.inspect().await?, InstanceState::Running { .. }))
    }

    pub async fn remove(&self) -> Result<()> {
        self.stop(Duration::ZERO).await?;
        remove_all(&self.path).await
    }

    fn lock(&self) -> Result<Option<File>> {
        supervisor::lock(&self.path).map_err(io_failed("locking", &self.path))
    }

    async fn pause(&self, deadline: Instant, doing: &str) -> Result<()> {
        if Instant::now() >= deadline {
            let why = format!("it took too long; `{}` says what its supervisor does", self.path.display());
            return Err(self.failed(doing, why));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        Ok(())
    }

    fn failed(&self, doing: &str, why: impl ToString) -> RuntimeError {
        RuntimeError::failed(format!("{doing} `{}`", self.name), why)
    }
}

/// Whether an app could listen here. Said before it tries, because an app's own words about it are seldom clear.
async fn check_port(address: SocketAddr) -> Result<()> {
    let why = match tokio::net::TcpListener::bind(address).await {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            format!("another program listens on it; `ss -ltnp sport = :{}` shows which", address.port())
        }
        Err(error) => error.to_string(),
    };
    Err(RuntimeError::failed(format!("port {} on {} cannot be used", address.port(), address.ip()), why))
}
