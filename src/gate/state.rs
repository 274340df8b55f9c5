//! What the gate remembers: its routes and what is live in each, in one small file.
//!
//! Each change replaces the file at once and whole, before it takes effect and is answered. A gate that starts again serves what the file says without asking anybody.
//! A file that cannot be read is moved aside: a gate without routes can be told them, one that does not start cannot.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    traffic::Kept,
    wire::{Limits, Protocol, RouteSpec},
};

const FORMAT: u32 = 1;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) format: u32,
    pub(super) routes: Vec<KeptRoute>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct KeptRoute {
    pub(super) name: String,
    pub(super) listen: SocketAddr,
    pub(super) host: Option<String>,
    pub(super) prefix: String,
    #[serde(default)]
    pub(super) protocol: Protocol,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(flatten)]
    pub(super) kept: Kept,
}

impl KeptRoute {
    pub(super) fn new(spec: RouteSpec, kept: Kept) -> Self {
        let RouteSpec { name, listen, host, prefix, protocol, limits, .. } = spec;
        Self { name, listen, host, prefix, protocol, limits, kept }
    }

    pub(super) fn spec(&self) -> RouteSpec {
        RouteSpec {
            name: self.name.clone(),
            listen: self.listen,
            host: self.host.clone(),
            prefix: self.prefix.clone(),
            protocol: self.protocol,
            side: self.kept.live.clone(),
            limits: self.limits.clone(),
        }
    }
}

impl State {
    pub(super) fn new(routes: Vec<KeptRoute>) -> Self {
        Self { format: FORMAT, routes }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the gate's state {} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// Of a newer gate: to go on with less than it knew would be wrong.
    #[error("the gate's state {} has format {format}, and this release knows {FORMAT}", path.display())]
    Newer { path: PathBuf, format: u32 },
}

/// What was remembered; nothing where there is no file. A file that is no state is moved aside, with an error in the log.
pub(super) fn load(path: &Path) -> Result<State, StateError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::new(Vec::new())),
        Err(source) => return Err(StateError::Read { path: path.to_owned(), source }),
    };
    #[derive(Deserialize)]
    struct Any {
        format: u32,
    }
    if let Ok(Any { format }) = serde_json::from_slice(&text)
        && format > FORMAT
    {
        return Err(StateError::Newer { path: path.to_owned(), format });
    }
    match serde_json::from_slice(&text) {
        Ok(state) => Ok(state),
        Err(error) => {
            let aside = path.with_extension("json.damaged");
            let moved = fs::rename(path, &aside);
            tracing::error!(
                "the gate's state {} is damaged ({error}); it goes on without routes{}",
                path.display(),
                moved.map_or_else(|e| format!(": {e}"), |()| format!(", the old file is {}", aside.display())),
            );
            Ok(State::new(Vec::new()))
        }
    }
}

pub(super) fn store(path: &Path, state: &State) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(state).map_err(io::Error::other)?;
    crate::files::write_atomically(path, &text, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::wire::Side;

    #[test]
    fn what_was_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gate.json");
        assert_eq!(load(&file).unwrap(), State::new(Vec::new()));
        let side = Side { id: "3".into(), upstream: "127.0.0.1:9".parse().unwrap() };
        let spec = RouteSpec::new("a/b", "0.0.0.0:80".parse().unwrap(), Some(side.clone()));
        let kept = Kept { live: Some(side), ..Kept::default() };
        let state = State::new(vec![KeptRoute::new(spec.clone(), kept)]);
        store(&file, &state).unwrap();
        let again = load(&file).unwrap();
        assert_eq!(again, state);
        assert_eq!(again.routes[0].spec(), spec);
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_a_newer_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gate.json");
        fs::write(&file, "{\"format\":1,\"rou").unwrap();
        assert_eq!(load(&file).unwrap(), State::new(Vec::new()));
        assert!(!file.exists() && dir.path().join("gate.json.damaged").exists());
        fs::write(&file, "{\"format\":2,\"ways\":[]}").unwrap();
        assert!(matches!(load(&file), Err(StateError::Newer { format: 2, .. })));
        assert!(file.exists());
    }
}
