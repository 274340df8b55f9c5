//! Commands in running containers that Refit did not make: `pg_dump` beside its database.
//!
//! The engine multiplexes both outputs of an exec onto one connection. Each frame of standard output goes straight into the
//! caller's sink, and the next is read only once the sink has taken it: a slow disk slows the command down through the
//! pipe, and memory holds one frame whatever the size of the dump. Standard error is cut into lines for the log.
//!
//! A command that is to be given something gets it over the same connection, a chunk at a time, while its outputs are read; the end of
//! the source closes that half. A command that ends without having read everything is not an error, its exit code says how it ended. The
//! other way round there is a trap: to a command, a Refit that was killed looks just like the end of its input. So
//! whatever is streamed has to say itself that it is whole; `data::restore` ends what it streams with `COMMIT`.
//!
//! **Ending a command.** The exec API can start a command but not stop it, and a client that hangs up stops nothing: the
//! command would go on, holding its locks. So every command carries a random mark in its environment
//! (`REFIT_EXEC=…`). To end it a second exec runs a few lines of shell, built-ins only, that look through `/proc/*/environ` of
//! that container and signal whatever carries the mark: SIGTERM first (on which `pg_dump` also cancels its
//! query in the server), SIGKILL after a while. Unlike a remembered process id, a mark can never hit a stranger that got the
//! id later; it needs no wrapper around the command; and children, which inherit it, go too. A container
//! without a shell gets the signal from this host instead, through the process id that the engine tells, provided that
//! process carries the mark too (on a remote engine, or without the right to look, it does not).
//!
//! That happens when the job is cancelled, when the sink fails (disk full) or the source does, when the connection breaks, and, in
//! the background, when the caller drops the future. Its input stays open until it has ended.

use std::{
    net::IpAddr,
    collections::VecDeque,
    io,
    pin::{Pin, pin},
    time::Duration,
};

use async_trait::async_trait;
use bollard::{
    Docker,
    container::LogOutput,
    errors::Error as ApiError,
    exec::{CreateExecOptions, StartExecOptions, StartExecResults},
};
use futures_util::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Engine;
use crate::{
    log::{StageLog, TAIL_LINES},
    runtime::{ContainerExec, ExecOutcome, Job, Result, RuntimeError},
    secret::Secret,
};

/// The environment variable by which a command is found again.
const MARK: &str = "REFIT_EXEC";

/// Signals a command gets until it is gone, [`PATIENCE`] apart. Repeated, because a process that is just being made does
/// not carry its mark yet.
const SIGNALS: [&str; 9] = ["TERM", "TERM", "TERM", "TERM", "TERM", "KILL", "KILL", "KILL", "KILL"];
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two looks at whether a command has ended.
const POLL: Duration = Duration::from_millis(20);

/// A line of standard error that grows beyond this is logged in pieces, in bytes.
const LINE_PIECE: usize = 16 * 1024;

/// Standard output kept to tell the engine's own complaint ("executable file not found") from the command's, in bytes.
const HEAD: usize = 1024;

/// Signals every process of the container that carries the mark `$2` with `$1`. Exits 0 if there was one.
const SIGNAL_SCRIPT: &str = r#"
found=1
for p in /proc/[0-9]*; do
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            *"REFIT_EXEC=$2"*) kill -s "$1" "${p#/proc/}" && found=0; break ;;
        esac
    done < "$p/environ"
done 2>/dev/null
exit $found
"#;

#[async_trait]
impl ContainerExec for Engine {
    async fn exec_into(
        &self,
        container: &str,
        command: &[String],
        env: &[(&str, &Secret)],
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        job: &Job,
    ) -> Result<ExecOutcome> {
        self.exec_streams(container, command, env, None, sink, job).await
    }

    async fn exec_through(
        &self,
        container: &str,
        command: &[String],
        env: &[(&str, &Secret)],
        source: &mut (dyn AsyncRead + Send + Unpin),
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        job: &Job,
    ) -> Result<ExecOutcome> {
        self.exec_streams(container, command, env, Some(source), sink, job).await
    }

    async fn address_of(&self, container: &str) -> Result<IpAddr> {
        if !is_container_name(container) {
            return Err(RuntimeError::Missing { what: "container", name: container.to_owned() });
        }
        super::instances::address_of(&self.docker, container).await
    }
}

impl Engine {
    /// Without a source the command has no standard input.
    async fn exec_streams(
        &self,
        container: &str,
        command: &[String],
        env: &[(&str, &Secret)],
        source: Option<&mut (dyn AsyncRead + Send + Unpin)>,
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        job: &Job,
    ) -> Result<ExecOutcome> {
        let program = command.first().map_or("", String::as_str);
        let mut running = Running::create(&self.docker, container, command, env, source.is_some()).await?;
        let mut errors = Lines::new(&job.log);
        let mut head = Vec::new();
        let ended = tokio::select! {
            biased;
            () = job.cancel.cancelled() => Err(RuntimeError::Cancelled),
            ended = running.run(source, sink, &mut errors, &mut head) => ended,
        };
        errors.finish();
        let code = match ended {
            Ok(code) => code,
            Err(error) => {
                if !running.end().await {
                    job.log
                        .line(format!("`{program}` in container `{container}` could not be ended and may still run"));
                }
                return Err(error);
            }
        };
        // The engine reports a command that it could not start as if the command had printed the complaint.
        let head = String::from_utf8_lossy(&head);
        if matches!(code, 126 | 127) && head.starts_with("OCI runtime exec failed") {
            let why = if head.contains("executable file not found") || head.contains("no such file or directory") {
                format!("there is no `{program}` in it")
            } else {
                job.log.redactor().mask(head.trim())
            };
            return Err(RuntimeError::failed(operation(program, container), why));
        }
        Ok(ExecOutcome { code, output: errors.tail.into() })
    }
}

fn operation(program: &str, container: &str) -> String {
    format!("running `{program}` in container `{container}`")
}

/// One exec: made, perhaps started, perhaps over. Dropping one that is not over ends its command in the background.
struct Running {
    command: Command,
    /// Held until the command is over: one that is being ended must not take this for the end of what it was to read.
    input: Option<Input>,
    over: bool,
}

type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// What it takes to find an exec's command again.
#[derive(Clone)]
struct Command {
    docker: Docker,
    container: String,
    program: String,
    exec: String,
    mark: String,
}

impl Running {
    /// Makes the exec; nothing runs yet.
    async fn create(
        docker: &Docker,
        container: &str,
        command: &[String],
        env: &[(&str, &Secret)],
        with_input: bool,
    ) -> Result<Self> {
        let program = command.first().cloned().unwrap_or_default();
        // The name becomes part of a request's path.
        if !is_container_name(container) {
            return Err(RuntimeError::Missing { what: "container", name: container.to_owned() });
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|e| RuntimeError::failed(operation(&program, container), e))?;
        let mark = hex::encode(random);
        let mut variables = vec![format!("{MARK}={mark}")];
        variables.extend(env.iter().map(|(key, value)| format!("{key}={}", value.expose())));
        let options = CreateExecOptions {
            attach_stdin: Some(with_input),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            env: Some(variables),
            cmd: Some(command.to_vec()),
            ..CreateExecOptions::default()
        };
        let made = docker.create_exec(container, options).await.map_err(|e| explain(e, &program, container))?;
        let command = Command { docker: docker.clone(), container: container.to_owned(), program, exec: made.id, mark };
        Ok(Self { command, input: None, over: true })
    }

    /// Starts the command and sees it through to its exit code.
    async fn run(
        &mut self,
        source: Option<&mut (dyn AsyncRead + Send + Unpin)>,
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        errors: &mut Lines,
        head: &mut Vec<u8>,
    ) -> Result<i64> {
        self.over = false;
        let Command { docker, container, program, exec, .. } = &self.command;
        let failed = |why: String| RuntimeError::failed(operation(program, container), why);
        let options = StartExecOptions { output_capacity: Some(64 * 1024), ..StartExecOptions::default() };
        let started = docker.start_exec(exec, Some(options)).await.map_err(|e| explain(e, program, container))?;
        let StartExecResults::Attached { mut output, input } = started else {
            return Err(failed("the engine did not attach its output".to_owned()));
        };
        let mut feeding = pin!(feed(source, self.input.insert(input)));
        let (mut fed, mut torn) = (false, false);
        loop {
            let frame = tokio::select! {
                frame = output.next() => frame,
                result = &mut feeding, if !fed => {
                    result.map_err(|e| failed(format!("what it was to read could not be read: {e}")))?;
                    fed = true;
                    continue;
                }
            };
            let Some(frame) = frame else { break };
            match frame.map_err(|e| explain(e, program, container))? {
                LogOutput::StdOut { message } => {
                    head.extend_from_slice(&message[..message.len().min(HEAD.saturating_sub(head.len()))]);
                    sink.write_all(&message).await.map_err(|e| failed(format!("its output was not written: {e}")))?;
                }
                LogOutput::StdErr { message } => errors.push(&message),
                // What is left of a frame when the connection breaks in the middle of it.
                LogOutput::Console { .. } => torn = true,
                LogOutput::StdIn { .. } => {}
            }
        }
        sink.flush().await.map_err(|e| failed(format!("its output was not written: {e}")))?;
        if torn {
            return Err(failed("the connection to the engine broke off".to_owned()));
        }
        let code = self.command.exit_code().await?;
        self.over = true;
        Ok(code)
    }

    /// Ends the command. False if it is still there after all signals.
    async fn end(&mut self) -> bool {
        let ended = self.over || self.command.clone().end().await;
        self.over = true;
        ended
    }
}

/// Streams the source into a command and closes its input after it. The error is the source's: a command that reads no
/// further says by its exit code what that means.
async fn feed(source: Option<&mut (dyn AsyncRead + Send + Unpin)>, input: &mut Input) -> io::Result<()> {
    let Some(source) = source else { return Ok(()) };
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let n = source.read(&mut chunk).await?;
        if n == 0 {
            let _ = input.shutdown().await;
            return Ok(());
        }
        if input.write_all(&chunk[..n]).await.is_err() {
            return Ok(());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let command = self.command.clone();
            runtime.spawn(async move { command.end().await });
        }
    }
}

impl Command {
    /// Waits for the end of the command, which its closed outputs announce.
    async fn exit_code(&self) -> Result<i64> {
        loop {
            let state =
                self.docker.inspect_exec(&self.exec).await.map_err(|e| explain(e, &self.program, &self.container))?;
            match state.exit_code {
                Some(code) if state.running != Some(true) => return Ok(code),
                None if state.running == Some(false) => {
                    let why = "the engine does not know how it ended";
                    return Err(RuntimeError::failed(operation(&self.program, &self.container), why));
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Signals the command until it is gone; then kills children of it that stayed.
    async fn end(self) -> bool {
        for signal in SIGNALS {
            if !self.signal(signal).await {
                self.signal_from_host(signal).await;
            }
            if self.gone_within(PATIENCE).await {
                self.signal("KILL").await;
                return true;
            }
        }
        false
    }

    /// Signals from inside the container. False if nothing was signalled: no shell there, or nothing carries the mark.
    async fn signal(&self, signal: &str) -> bool {
        let script = ["/bin/sh", "-c", SIGNAL_SCRIPT, "refit-signal", signal, &self.mark];
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(script.to_vec()),
            ..CreateExecOptions::default()
        };
        let Ok(made) = self.docker.create_exec(&self.container, options).await else { return false };
        let Ok(StartExecResults::Attached { mut output, .. }) = self.docker.start_exec(&made.id, None).await else {
            return false;
        };
        let drained = async { while output.next().await.is_some_and(|frame| frame.is_ok()) {} };
        if tokio::time::timeout(PATIENCE * 5, drained).await.is_err() {
            return false;
        }
        let sender = Self { exec: made.id, ..self.clone() };
        matches!(tokio::time::timeout(PATIENCE, sender.exit_code()).await, Ok(Ok(0)))
    }

    async fn signal_from_host(&self, signal: &str) {
        let Ok(state) = self.docker.inspect_exec(&self.exec).await else { return };
        let Some(pid) = state.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) else { return };
        let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        let mark = format!("{MARK}={}", self.mark);
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            // It may be gone between the look and the signal; then there is nothing to end.
            let _ = kill_process(pid, if signal == "TERM" { Signal::TERM } else { Signal::KILL });
        }
    }

    /// Whether the command ends within `limit`. A container or exec that no longer exists counts as ended.
    async fn gone_within(&self, limit: Duration) -> bool {
        let gone = async {
            loop {
                match self.docker.inspect_exec(&self.exec).await {
                    // A start that is still on its way shows neither as running nor with an exit code.
                    Ok(state) if state.running == Some(false) && state.exit_code.is_some() => return,
                    Err(ApiError::DockerResponseServerError { status_code: 404 | 409, .. }) => return,
                    Ok(_) | Err(_) => tokio::time::sleep(POLL).await,
                }
            }
        };
        let gone = pin!(gone);
        tokio::time::timeout(limit, gone).await.is_ok()
    }
}

/// Docker's rule for the names of containers; ids match it too.
fn is_container_name(name: &str) -> bool {
    name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn explain(error: ApiError, program: &str, container: &str) -> RuntimeError {
    let failed = |why: &str| RuntimeError::failed(operation(program, container), why);
    match error {
        ApiError::DockerResponseServerError { status_code: 404, .. } => {
            RuntimeError::Missing { what: "container", name: container.to_owned() }
        }
        ApiError::DockerResponseServerError { status_code: 409, message } => {
            failed(if message.contains("paused") { "the container is paused" } else { "the container is not running" })
        }
        ApiError::DockerResponseServerError { message, .. } => failed(message.trim()),
        other => RuntimeError::Unavailable { what: "Docker".to_owned(), why: other.to_string() },
    }
}

/// Cuts standard error into lines: each is logged, the last are kept.
struct Lines {
    log: StageLog,
    open: Vec<u8>,
    tail: VecDeque<String>,
}

impl Lines {
    fn new(log: &StageLog) -> Self {
        Self { log: log.clone(), open: Vec::new(), tail: VecDeque::new() }
    }

    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.open.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.open.len() >= LINE_PIECE {
                self.finish();
            }
        }
    }

    fn finish(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let line = String::from_utf8_lossy(&self.open);
        let line = self.log.redactor().mask(line.trim_end());
        self.log.line(&line);
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(crate::log::printable(&line));
        self.open.clear();
    }
}

#[cfg(test)]
mod tests;
