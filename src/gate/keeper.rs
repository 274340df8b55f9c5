//! The gate as the daemon keeps it: started where none answers, found again otherwise, and replaced when refit was updated.
//!
//! The gate is a process in a session of its own, so it outlives whoever started it: the daemon, or a `refit deploy` without one. Its socket
//! and state are in the state directory; there is one gate for all apps of it.
//!
//! Because it outlives the daemon, it goes on with the program that it was started from. So a daemon that starts compares: a gate that runs another file than the one
//! a gate would be started from now hands over to one that does ([`Keeper::renew`]). One that a person started, as a unit or a container perhaps, is that
//! person's to replace.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use process_wrap::tokio::{CommandWrap, ProcessSession};
use tokio::{process::Command, sync::Mutex};

use super::{
    build::Build,
    client::{Client, ClientError},
};
use crate::{exec::kept_env, files};

/// A gate answers within this time, even on a machine under load.
const START_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What is told of the log of a gate that failed.
const LAST_LINES: usize = 3;

/// Why there is no gate, or not the one that should be.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the gate cannot be started: {0}")]
    Start(String),
}

/// What became of a gate when the daemon started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// None runs, or it runs the program that it should.
    Needless,
    /// It runs another program, and is not the daemon's to replace.
    NotOurs { pid: u32 },
    /// The new one serves; the old one finishes its connections.
    Replaced { old: u32, new: u32 },
}

/// Starts the gate of a state directory when it is needed.
#[derive(Debug)]
pub struct Keeper {
    dir: PathBuf,
    program: Option<PathBuf>,
    client: Client,
    /// One start at a time.
    starting: Mutex<()>,
}

impl Keeper {
    /// `program` is this binary; without it a gate that does not run is not started.
    pub fn new(state_dir: &Path, program: Option<PathBuf>) -> Self {
        let dir = state_dir.join("gate");
        Self { client: Client::new(dir.join("gate.sock")), dir, program, starting: Mutex::new(()) }
    }

    /// The gate if it runs, without starting it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The gate, started if it does not answer.
    pub async fn up(&self) -> Result<&Client, KeeperError> {
        if !self.is_absent().await? {
            return Ok(&self.client);
        }
        let _one = self.starting.lock().await;
        if !self.is_absent().await? {
            return Ok(&self.client);
        }
        self.start(None).await?;
        Ok(&self.client)
    }

    /// Lets a gate that the daemon started from another program hand over to a new one. Returns when that one serves; after an error the old one goes
    /// on serving.
    pub async fn renew(&self) -> Result<Renewal, KeeperError> {
        let wanted = self.program.as_deref().and_then(Build::of);
        let _one = self.starting.lock().await;
        let running = match self.client.status(Some("-")).await {
            Ok(status) => status,
            Err(error) if error.is_absent() => return Ok(Renewal::Needless),
            Err(error) => return Err(error.into()),
        };
        // A program that is gone cannot be started.
        if wanted.is_none() || running.build == wanted {
            return Ok(Renewal::Needless);
        }
        if !running.by_daemon {
            return Ok(Renewal::NotOurs { pid: running.pid });
        }
        let new = self.start(Some(running.pid)).await?;
        Ok(Renewal::Replaced { old: running.pid, new })
    }

    async fn is_absent(&self) -> Result<bool, ClientError> {
        match self.client.status(Some("-")).await {
            Ok(_) => Ok(false),
            Err(error) if error.is_absent() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Starts one in the place of the process `old`, or where there is none. Its process id.
    async fn start(&self, old: Option<u32>) -> Result<u32, KeeperError> {
        let failed = |error: io::Error| KeeperError::Start(error.to_string());
        let program = self.program.as_ref().ok_or_else(|| KeeperError::Start("start `refit gate`".to_owned()))?;
        files::make_private_dir(&self.dir).map_err(failed)?;
        let log = self.log().map_err(failed)?;
        let before = log.metadata().map_or(0, |log| log.len());
        let mut command = Command::new(program);
        command.args(["gate", "--state-dir"]).arg(&self.dir).arg("--by-daemon").args(old.map(|_| "--take-over"));
        command.env_clear().envs(kept_env()).current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        let mut gate = CommandWrap::from(command).wrap(ProcessSession).spawn().map_err(failed)?;
        let began = Instant::now();
        loop {
            if let Some(pid) = self.answers_in_place_of(old).await? {
                // So that it does not stay a zombie while this process lives.
                tokio::spawn(async move { gate.wait().await });
                return Ok(pid);
            }
            if let Some(status) = gate.try_wait().map_err(failed)? {
                return Err(KeeperError::Start(format!("it ended ({status}): {}", self.said_since(before))));
            }
            if began.elapsed() > START_WITHIN {
                // It is not killed: it may have begun to serve. One that has not gives up by itself.
                tokio::spawn(async move { gate.wait().await });
                return Err(KeeperError::Start(format!("it does not answer; see {}", self.log_path().display())));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn answers_in_place_of(&self, old: Option<u32>) -> Result<Option<u32>, ClientError> {
        match self.client.status(Some("-")).await {
            Ok(status) => Ok(Some(status.pid).filter(|pid| Some(*pid) != old)),
            Err(error) if error.is_absent() => Ok(None),
            // A gate that hands over may leave a question unanswered.
            Err(ClientError::Unanswered { .. }) if old.is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The last words in the log after so many bytes: of a gate that failed, and of one that saw it.
    fn said_since(&self, before: u64) -> String {
        let log = std::fs::read(self.log_path()).unwrap_or_default();
        let new = log.get(usize::try_from(before).unwrap_or(usize::MAX)..).unwrap_or_default();
        let new = String::from_utf8_lossy(new);
        let mut last: Vec<&str> = new.lines().rev().take(LAST_LINES).collect();
        last.reverse();
        if last.is_empty() { "it left no message".to_owned() } else { last.join("; ") }
    }

    /// Where the gates that were started from here write what they have to say.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("gate.log")
    }

    fn log(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(self.log_path())
    }
}
