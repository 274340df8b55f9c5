//! The demo's daemon: this same binary, as a process of its own, known by its id and its configuration's path. And the gate that the daemon
//! starts, which would outlive it; known by its directory.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use process_wrap::tokio::{ChildWrapper, CommandWrap, ProcessSession};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::scene::Scene;
use crate::{
    cli::error::{CliError, Result},
    exec::kept_env,
};

const LOOK_EVERY: Duration = Duration::from_millis(25);
const UP_WITHIN: Duration = Duration::from_secs(30);

/// Between the first SIGTERM and the second, which has running deployments undone at once.
const HURRY_AFTER: Duration = Duration::from_millis(500);
const DOWN_WITHIN: Duration = Duration::from_secs(30);

/// The demo's visitors are gone by then; a browser may still hold a connection.
const GATE_DOWN_WITHIN: Duration = Duration::from_secs(5);

/// Starts it in a session of its own, so that a Ctrl-C or a closed terminal does not reach it, and records its id.
pub fn start(scene: &mut Scene) -> Result<Box<dyn ChildWrapper>> {
    let failed = |e: std::io::Error| CliError::io("starting the daemon", e);
    let log = fs::OpenOptions::new().create(true).append(true).open(scene.daemon_log()).map_err(failed)?;
    let mut command = Command::new(&scene.program);
    command.arg("--config").arg(scene.config_file()).arg("serve").current_dir(&scene.dir);
    command.env_clear().envs(kept_env()).env("HOME", &scene.dir).env("GIT_CONFIG_NOSYSTEM", "1");
    if let Some(host) = &scene.docker_host {
        command.env("DOCKER_HOST", host);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    let child = CommandWrap::from(command).wrap(ProcessSession).spawn().map_err(failed)?;
    scene.record.daemon = child.id().map(u32::cast_signed);
    scene.write_record()?;
    Ok(child)
}

/// Waits until it answers; what it said last, if it ended instead.
pub async fn until_up(
    scene: &Scene,
    child: &mut dyn ChildWrapper,
    http: &reqwest::Client,
    cancel: &CancellationToken,
) -> Result<()> {
    let url = format!("http://127.0.0.1:{}/_deploy/health", scene.listen);
    let deadline = Instant::now() + UP_WITHIN;
    loop {
        let answer = tokio::select! {
            answer = http.get(&url).send() => answer,
            () = cancel.cancelled() => return Err(super::stopped()),
        };
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        let ended = child.try_wait().map_err(|e| CliError::io("waiting for the daemon", e))?;
        if ended.is_some() || Instant::now() > deadline {
            let said = fs::read_to_string(scene.daemon_log()).unwrap_or_default();
            let tail: Vec<&str> = said.lines().rev().take(10).collect();
            let said = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
            return Err(CliError::io("the daemon does not come up; the end of its log", format!("\n{said}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A process that is not the demo's daemon is left alone.
pub async fn stop(scene: &Scene) -> bool {
    let Some(pid) = scene.record.daemon else { return false };
    end(pid, "serve", &scene.config_file(), DOWN_WITHIN).await
}

/// Ends the gate, whoever started it.
pub async fn stop_gate(scene: &Scene) -> bool {
    let dir = scene.state_dir().join("gate");
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut any = false;
    for pid in ids.filter(|pid| find(*pid, "gate", &dir).is_some()) {
        any |= end(pid, "gate", &dir, GATE_DOWN_WITHIN).await;
    }
    any
}

/// SIGTERM, and again, then SIGKILL; returns once it is gone. Whether there was something to end.
async fn end(pid: i32, command: &str, of: &Path, within: Duration) -> bool {
    let began = Instant::now();
    let mut sent = 0;
    while let Some(process) = find(pid, command, of) {
        let (signal, after) = match sent {
            0 => (Signal::TERM, Duration::ZERO),
            1 => (Signal::TERM, HURRY_AFTER),
            _ => (Signal::KILL, within),
        };
        if began.elapsed() >= after && sent < 3 {
            // It may end between the look and the signal, which is what is wanted.
            let _ = pidfd_send_signal(&process, signal);
            sent += 1;
        } else if began.elapsed() > within * 2 {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    sent > 0
}

/// The process with this id, if it is this command of the demo, `of` its configuration or its directory. The handle is opened before the look, so what is signalled is
/// what was looked at.
fn find(pid: i32, command: &str, of: &Path) -> Option<rustix::fd::OwnedFd> {
    let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let has = |wanted: &[u8]| line.split(|byte| *byte == 0).any(|word| word == wanted);
    let ours = has(of.as_os_str().as_bytes()) && has(command.as_bytes());
    ours.then_some(handle)
}
