//! The gate as the daemon keeps it: started where none answers, found again otherwise.
//!
//! The gate is a process in a session of its own, so it outlives whoever started it: the daemon, or a `refit deploy` without one. Its socket
//! and state are in the state directory; there is one gate for all apps of it.

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

use super::client::{Client, ClientError};
use crate::{exec::kept_env, files};

/// A gate answers within this time, even on a machine under load.
const START_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Why there is no gate.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the gate cannot be started: {0}")]
    Start(String),
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
        self.start().await?;
        Ok(&self.client)
    }

    async fn is_absent(&self) -> Result<bool, ClientError> {
        match self.client.status(Some("-")).await {
            Ok(_) => Ok(false),
            Err(error) if error.is_absent() => Ok(true),
            Err(error) => Err(error),
        }
    }

    async fn start(&self) -> Result<(), KeeperError> {
        let failed = |error: io::Error| KeeperError::Start(error.to_string());
        let program = self.program.as_ref().ok_or_else(|| KeeperError::Start("start `refit gate`".to_owned()))?;
        files::make_private_dir(&self.dir).map_err(failed)?;
        let log = self.log().map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("gate").arg("--state-dir").arg(&self.dir).env_clear().envs(kept_env()).current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        let mut gate = CommandWrap::from(command).wrap(ProcessSession).spawn().map_err(failed)?;
        let began = Instant::now();
        loop {
            if !self.is_absent().await? {
                // So that it does not stay a zombie while this process lives.
                tokio::spawn(async move { gate.wait().await });
                return Ok(());
            }
            if let Some(status) = gate.try_wait().map_err(failed)? {
                let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
                let last = log.lines().last().unwrap_or("it left no message");
                return Err(KeeperError::Start(format!("it ended ({status}): {last}")));
            }
            if began.elapsed() > START_WITHIN {
                return Err(KeeperError::Start(format!("it does not answer; see {}", self.log_path().display())));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("gate.log")
    }

    fn log(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(self.log_path())
    }
}
