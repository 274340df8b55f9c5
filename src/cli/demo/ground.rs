//! What the demo runs on: Docker, if an engine of this machine answers and there is a static busybox to make a base image of; else
//! plain processes.
//!
//! The base image holds that busybox and its applets and nothing else, so no registry is asked.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::scene::Scene;
use crate::{
    cli::error::{CliError, Result},
    exec::Program,
    runtime::{
        Runtime,
        docker::{DockerRuntime, Engine},
    },
};

/// Where Debian, Alpine and others put it.
const PLACES: [&str; 4] = ["/bin/busybox", "/usr/bin/busybox", "/sbin/busybox", "/usr/local/bin/busybox"];

/// What the app needs of it.
const NEEDED: [&str; 8] = ["cat", "echo", "grep", "httpd", "kill", "mkdir", "sed", "sh"];

const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub enum Ground {
    Docker {
        engine: Engine,
        /// Of the engine, for people.
        version: String,
        busybox: Busybox,
    },
    Processes {
        /// Why there are no containers.
        why: String,
    },
}

#[derive(Debug)]
pub struct Busybox {
    pub path: PathBuf,
    applets: BTreeSet<String>,
}

impl Ground {
    pub async fn find(docker_host: Option<&str>, cancel: &CancellationToken) -> Self {
        match docker(docker_host, cancel).await {
            Ok(ground) => ground,
            Err(why) => Self::Processes { why },
        }
    }

    pub fn on_docker(&self) -> bool {
        matches!(self, Self::Docker { .. })
    }

    /// Makes what the app's image is built on.
    pub async fn prepare(&self, scene: &Scene) -> Result<()> {
        let Self::Docker { engine, busybox, .. } = self else { return Ok(()) };
        let archive = archive(busybox).map_err(|e| CliError::io("packing the base image", e))?;
        let imported = engine.import_base(&scene.base_image(), &scene.record.app, archive).await;
        imported.map_err(|e| CliError::io("making the base image", e))
    }
}

async fn docker(host: Option<&str>, cancel: &CancellationToken) -> std::result::Result<Ground, String> {
    if let Some(host) = host.filter(|host| !host.starts_with("unix://") && !host.starts_with('/')) {
        return Err(format!("DOCKER_HOST={host} is not an engine of this machine"));
    }
    let engine = Engine::connect(host).map_err(|e| e.to_string())?;
    let info = DockerRuntime::new(engine.clone()).check().await.map_err(|e| e.to_string())?;
    let none = || "there is no static busybox to make an image of (Debian: `apt install busybox-static`)".to_owned();
    let path = PLACES.iter().map(PathBuf::from).find(|path| fs::read(path).is_ok_and(|elf| is_static(&elf)));
    let path = path.ok_or_else(none)?;
    let applets = applets(&path, cancel).await.ok_or_else(none)?;
    match NEEDED.iter().find(|name| !applets.contains(**name)) {
        Some(missing) => Err(format!("{} has no `{missing}`", path.display())),
        None => Ok(Ground::Docker { engine, version: info.version, busybox: Busybox { path, applets } }),
    }
}

async fn applets(busybox: &Path, cancel: &CancellationToken) -> Option<BTreeSet<String>> {
    let listed = Program::new(busybox).clean_env().arg("--list").output(LIMIT, cancel).await.ok()?;
    let names = String::from_utf8_lossy(&listed.stdout);
    Some(names.lines().filter(|name| !name.is_empty() && !name.contains('/')).map(str::to_owned).collect())
}

/// A root with `/bin/busybox`, a link to it for each applet, and `/tmp`.
fn archive(busybox: &Busybox) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(0);
        header
    };
    for (dir, mode) in [("bin/", 0o755), ("tmp/", 0o1777)] {
        tar.append_data(&mut header(tar::EntryType::Directory, mode, 0), dir, std::io::empty())?;
    }
    let program = fs::read(&busybox.path)?;
    let size = u64::try_from(program.len()).unwrap_or(u64::MAX);
    tar.append_data(&mut header(tar::EntryType::Regular, 0o755, size), "bin/busybox", program.as_slice())?;
    for applet in busybox.applets.iter().filter(|name| *name != "busybox") {
        tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), format!("bin/{applet}"), "busybox")?;
    }
    tar.into_inner()
}

/// Whether an ELF program needs no loader: it has no segment of type `PT_INTERP` (elf(5)). Only little-endian ones are looked at.
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, len: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let segments = || {
        let wide = match elf.get(..6)? {
            [0x7f, b'E', b'L', b'F', 1, 1] => false,
            [0x7f, b'E', b'L', b'F', 2, 1] => true,
            _ => return None,
        };
        let (offset, size, count) = if wide { ((32, 8), 54, 56) } else { ((28, 4), 42, 44) };
        let offset = usize::try_from(number(offset.0, offset.1)?).ok()?;
        let (size, count) = (usize::try_from(number(size, 2)?).ok()?, usize::try_from(number(count, 2)?).ok()?);
        (0..count).map(|n| number(offset.checked_add(n.checked_mul(size)?)?, 4)).collect::<Option<Vec<_>>>()
    };
    segments().is_some_and(|kinds| !kinds.is_empty() && !kinds.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_static_program_is_static() {
        let here = std::env::current_exe().and_then(fs::read).unwrap();
        assert!(!is_static(&here), "a test binary is linked dynamically");
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(&here[..40]));
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        (elf[32], elf[54], elf[56], elf[64]) = (64, 56, 1, 1);
        assert!(is_static(&elf));
        elf[64] = 3;
        assert!(!is_static(&elf));
    }
}
