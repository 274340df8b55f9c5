//! The Docker runtime: images and containers through the Engine's API. (skeleton)

use bollard::Docker;

use super::{Result, RuntimeError};

mod exec;

/// A connection to a Docker Engine. Cheap to clone. Connecting does not talk to the engine; each call says if it is away.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) docker: Docker,
}

impl Engine {
    /// `host` is `DOCKER_HOST` as the binary found it (`unix://…`, `tcp://…`); the local socket where unset.
    pub fn connect(host: Option<&str>) -> Result<Self> {
        let timeout_s = 120;
        let docker = match host {
            None => Docker::connect_with_unix_defaults(),
            Some(host) if host.starts_with("unix://") => {
                Docker::connect_with_unix(host, timeout_s, bollard::API_DEFAULT_VERSION)
            }
            Some(host) => Docker::connect_with_http(host, timeout_s, bollard::API_DEFAULT_VERSION),
        };
        let docker = docker.map_err(|e| RuntimeError::Unavailable { what: "Docker".to_owned(), why: e.to_string() })?;
        Ok(Self { docker })
    }
}
