//! What is on disk of an instance: `spec.json`, what is to run, written once before it first starts; and `state.json`, what
//! is running, written by its supervisor. Both carry a version and are replaced as a whole.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    place::{read_json, write_json},
    procfs::{Group, Identity, boot_id},
};
use crate::model::{DeploymentId, EnvironmentKey};

const VERSION: u32 = 1;

/// Everything a supervisor needs. The environment holds secrets in the clear, which is why the file is 0600 and nothing is
/// passed as an argument.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spec {
    pub version: u32,
    pub key: EnvironmentKey,
    pub deployment: DeploymentId,
    /// The artefact's id.
    pub artefact: String,
    /// The release directory: where it runs.
    pub dir: PathBuf,
    /// One element: a command line for `sh -c`. Several: a program and its arguments.
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub bind: IpAddr,
    pub port: Option<u16>,
    pub stop_timeout_ms: u64,
    /// Bytes; zero is no limit.
    pub log_max_size: u64,
    pub log_max_file: u32,
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec").field("key", &self.key).field("deployment", &self.deployment).finish_non_exhaustive()
    }
}

impl Spec {
    pub const VERSION: u32 = VERSION;

    /// `None` where there is none.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        let spec: Option<Self> = read_json(&dir.join("spec.json"))?;
        match spec {
            Some(spec) if spec.version != VERSION => {
                Err(io::Error::other(format!("spec.json has version {}, known is {VERSION}", spec.version)))
            }
            spec => Ok(spec),
        }
    }

    pub fn write(&self, dir: &Path) -> io::Result<()> {
        write_json(&dir.join("spec.json"), self)
    }

    /// Where the app can be reached from this host.
    pub fn address(&self) -> Option<SocketAddr> {
        let ip = match self.bind {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        self.port.map(|port| SocketAddr::new(ip, port))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    Running,
    /// It ended; the supervisor lets some time pass before it starts it again.
    Waiting,
    /// It was asked to stop.
    Stopping,
    Ended,
}

/// What a supervisor did last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub version: u32,
    pub boot: String,
    pub supervisor: Identity,
    pub phase: Phase,
    /// The app's process group, unless it is known to have ended.
    pub app: Option<Group>,
    /// Starts after the first one.
    pub restarts: u64,
    /// How the app last ended: an exit code, or 128 + the signal's number.
    pub last_exit: Option<i64>,
}

impl State {
    pub fn new(supervisor: Identity) -> Self {
        Self {
            version: VERSION,
            boot: boot_id(),
            supervisor,
            phase: Phase::Running,
            app: None,
            restarts: 0,
            last_exit: None,
        }
    }

    /// `None` where it never ran.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        read_json(&dir.join("state.json"))
    }

    pub fn write(&self, dir: &Path) -> io::Result<()> {
        write_json(&dir.join("state.json"), self)
    }

    pub fn is_supervised(&self) -> bool {
        self.boot == boot_id() && self.supervisor.is_alive()
    }

    /// The app's group, if any of it is alive.
    pub fn living_app(&self) -> Option<Group> {
        self.app.filter(|app| self.boot == boot_id() && app.is_alive())
    }
}
