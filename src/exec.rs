//! Programs on this host: `git`, a process release's build, the user's own commands.
//!
//! Each runs as the leader of its own process group, with no standard input and only the environment it is given. When it is
//! cancelled or out of time the group gets SIGTERM, then SIGKILL after [`KILL_AFTER`], so that children
//! (`ssh`, compilers) go too. Output is read line by line as it comes; nothing of unbounded size is held.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use process_wrap::tokio::{ChildWrapper, CommandWrap, KillOnDrop, ProcessGroup};
use rustix::process::{Pid, test_kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    process::Command,
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

mod pipe;

/// Between SIGTERM and SIGKILL of a program that is cancelled or out of time.
pub const KILL_AFTER: Duration = Duration::from_secs(5);

/// Standard output kept by [`Program::output`], in bytes; what is beyond is dropped.
const KEPT_OUTPUT: usize = 1024 * 1024;

/// How long output that is still in the pipes is awaited once the program has ended. Only a process that left the group can hold
/// them open for longer.
const DRAIN: Duration = Duration::from_secs(2);

/// Longer lines are cut into pieces of this size, in bytes.
const LINE_PIECE: u64 = 64 * 1024;

/// A program about to run.
#[derive(Debug, Clone)]
pub struct Program {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    unset: Vec<OsString>,
    clear_env: bool,
    dir: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("`{program}` could not be started: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("`{program}` was cancelled")]
    Cancelled { program: String },
    #[error("`{program}` did not finish within {limit:?} and was stopped")]
    TimedOut { program: String, limit: Duration },
    #[error("what `{program}` was to get could not be read: {source}")]
    Input { program: String, source: std::io::Error },
    #[error("what `{program}` printed could not be written: {source}")]
    Output { program: String, source: std::io::Error },
    #[error("lost track of `{program}`: {source}")]
    Wait { program: String, source: std::io::Error },
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The exit code, or 128 + the signal's number.
    pub code: i32,
    /// Standard output, where it was asked for.
    pub stdout: Vec<u8>,
    /// The last lines of standard error.
    pub stderr: Vec<String>,
}

/// Which of a program's outputs a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

impl Finished {
    pub fn success(&self) -> bool {
        self.code == 0
    }
}

impl Program {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            unset: Vec::new(),
            clear_env: false,
            dir: None,
        }
    }

    /// `sh -c script`: for commands that a user wrote in the configuration, never for text from outside.
    pub fn shell(script: &str) -> Self {
        Self::new("/bin/sh").arg("-c").arg(script)
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        self.env.extend(pairs.into_iter().map(|(k, v)| (k.as_ref().to_owned(), v.as_ref().to_owned())));
        self
    }

    /// Keeps one variable of the daemon's environment from the program.
    pub fn without(mut self, key: impl AsRef<OsStr>) -> Self {
        self.unset.push(key.as_ref().to_owned());
        self
    }

    /// Starts from an empty environment with only `PATH` and `HOME` kept, so that the daemon's secrets are not inherited.
    pub fn clean_env(mut self) -> Self {
        self.clear_env = true;
        self
    }

    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Runs it, handing each line of both outputs to `on_line` as it comes.
    pub async fn stream(
        &self,
        limit: Duration,
        cancel: &CancellationToken,
        mut on_line: impl FnMut(&str) + Send,
    ) -> Result<Finished, ExecError> {
        self.drive(limit, cancel, false, &mut |_, line| on_line(line)).await
    }

    /// As [`Program::stream`], and says which output each line came from.
    pub async fn stream_both(
        &self,
        limit: Duration,
        cancel: &CancellationToken,
        mut on_line: impl FnMut(Stream, &str) + Send,
    ) -> Result<Finished, ExecError> {
        self.drive(limit, cancel, false, &mut on_line).await
    }

    /// Runs it and keeps standard output (at most 1 MiB).
    pub async fn output(&self, limit: Duration, cancel: &CancellationToken) -> Result<Finished, ExecError> {
        self.drive(limit, cancel, true, &mut |_, _| ()).await
    }

    fn name(&self) -> String {
        self.program.to_string_lossy().into_owned()
    }

    fn spawn(&self, stdin: Stdio) -> Result<Box<dyn ChildWrapper>, ExecError> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        if self.clear_env {
            command.env_clear().envs(kept_env());
        }
        for key in &self.unset {
            command.env_remove(key);
        }
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        CommandWrap::from(command)
            .wrap(ProcessGroup::leader())
            .wrap(KillOnDrop)
            .spawn()
            .map_err(|source| ExecError::Start { program: self.name(), source })
    }

    async fn drive(
        &self,
        limit: Duration,
        cancel: &CancellationToken,
        keep_stdout: bool,
        on_line: &mut (dyn FnMut(Stream, &str) + Send),
    ) -> Result<Finished, ExecError> {
        let mut child = self.spawn(Stdio::null())?;
        let (lines_in, mut lines) = mpsc::channel::<(Stream, String)>(64);
        let stdout = child.stdout().take();
        let stderr = child.stderr().take();
        let mut kept = tokio::spawn({
            let lines_in = lines_in.clone();
            async move {
                match stdout {
                    Some(out) if keep_stdout => read_bounded(out).await,
                    Some(out) => {
                        forward_lines(out, Stream::Out, lines_in).await;
                        Vec::new()
                    }
                    None => Vec::new(),
                }
            }
        });
        if let Some(err) = stderr {
            tokio::spawn(forward_lines(err, Stream::Err, lines_in));
        } else {
            drop(lines_in);
        }

        let mut errors = std::collections::VecDeque::new();
        let mut take = |stream: Stream, line: String| {
            on_line(stream, &line);
            if stream == Stream::Err {
                if errors.len() == crate::log::TAIL_LINES {
                    errors.pop_front();
                }
                errors.push_back(line);
            }
        };
        let deadline = tokio::time::sleep(limit);
        tokio::pin!(deadline);
        let status = loop {
            tokio::select! {
                Some((stream, line)) = lines.recv() => take(stream, line),
                // A grandchild may hold the pipes open for ever, so the leader's end is what counts.
                status = child.wait() => {
                    break status.map_err(|source| ExecError::Wait { program: self.name(), source })?;
                }
                () = cancel.cancelled() => {
                    end_group(child.as_mut()).await;
                    return Err(ExecError::Cancelled { program: self.name() });
                }
                () = &mut deadline => {
                    end_group(child.as_mut()).await;
                    return Err(ExecError::TimedOut { program: self.name(), limit });
                }
            }
        };
        // What the leader left in its group ends with it; mostly there is nothing, which is an error here.
        let _ = child.start_kill();
        let drained = tokio::time::timeout(DRAIN, async {
            while let Some((stream, line)) = lines.recv().await {
                take(stream, line);
            }
            (&mut kept).await.unwrap_or_default()
        });
        let Ok(stdout) = drained.await else {
            kept.abort();
            if !keep_stdout {
                return Ok(Finished { code: exit_code(status), stdout: Vec::new(), stderr: errors.into() });
            }
            let source = std::io::Error::other("a process that it left behind holds its output open");
            return Err(ExecError::Wait { program: self.name(), source });
        };
        Ok(Finished { code: exit_code(status), stdout, stderr: errors.into() })
    }
}

/// What a clean environment keeps: where programs and the user's own settings are.
pub(crate) fn kept_env() -> impl Iterator<Item = (&'static str, OsString)> {
    ["PATH", "HOME"].into_iter().filter_map(|key| Some((key, std::env::var_os(key)?)))
}

/// SIGTERM to the group, SIGKILL if any of it is still there after [`KILL_AFTER`].
async fn end_group(child: &mut dyn ChildWrapper) {
    const SIGTERM: i32 = 15;
    let group = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let asked = child.signal(SIGTERM);
    let ended = tokio::time::timeout(KILL_AFTER, async {
        let _ = child.wait().await;
        // The leader of `sh -c "a; b"` is gone before what it ran has tidied up.
        while group.is_some_and(|group| test_kill_process_group(group).is_ok()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    if asked.is_err() || ended.is_err() {
        // The group may be gone between the two calls; then there is nothing left to end.
        let _ = child.start_kill();
        let _ = child.wait().await;
    }
}

fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

async fn read_bounded(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = vec![0; 8192];
    while let Ok(n) = from.read(&mut chunk).await {
        if n == 0 {
            break;
        }
        let room = KEPT_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..n.min(room)]);
    }
    kept
}

async fn forward_lines(from: impl AsyncRead + Unpin, stream: Stream, to: mpsc::Sender<(Stream, String)>) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(LINE_PIECE).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(n) if n > 0) {
            return;
        }
        while line.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
            line.pop();
        }
        if to.send((stream, String::from_utf8_lossy(&line).into_owned())).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn lines_arrive_and_the_code_is_told() -> Result<(), ExecError> {
        let mut seen = Vec::new();
        let done = Program::shell("echo one; echo two >&2; exit 3")
            .stream(LONG, &CancellationToken::new(), |l| seen.push(l.to_owned()))
            .await?;
        seen.sort();
        assert_eq!((seen, done.code, done.stderr), (vec!["one".into(), "two".into()], 3, vec!["two".into()]));
        Ok(())
    }

    #[tokio::test]
    async fn a_timeout_ends_the_children_too() {
        let marker = tempfile::NamedTempFile::new().map(|f| f.into_temp_path());
        let Ok(marker) = marker else { panic!("no temporary file") };
        let script = format!("(sleep 30 & echo $! > {}; wait)", marker.display());
        let result = Program::shell(&script).output(Duration::from_secs(3), &CancellationToken::new()).await;
        assert!(matches!(result, Err(ExecError::TimedOut { .. })), "{result:?}");
        let pid = std::fs::read_to_string(&marker).unwrap_or_default();
        assert!(!pid.is_empty(), "it had the time to begin");
        let alive = std::path::Path::new("/proc").join(pid.trim()).join("stat");
        // Gone, or a zombie that waits for init.
        let state = std::fs::read_to_string(alive).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z"), "the child is still running: {state}");
    }

    #[tokio::test]
    async fn what_a_program_leaves_in_its_group_does_not_hold_it_up() -> Result<(), ExecError> {
        let mut seen = Vec::new();
        let done = Program::shell("sleep 1000 & echo $!; echo oops >&2")
            .stream_both(LONG, &CancellationToken::new(), |stream, line| seen.push((stream, line.to_owned())))
            .await?;
        assert_eq!(done.code, 0);
        assert!(seen.contains(&(Stream::Err, "oops".to_owned())), "{seen:?}");
        let left = seen.iter().find(|(stream, _)| *stream == Stream::Out).map(|(_, pid)| format!("/proc/{pid}/stat"));
        let left = left.unwrap_or_default();
        // SIGKILL was sent; the kernel may take a moment.
        tokio::time::timeout(LONG, async {
            while std::fs::read_to_string(&left).is_ok_and(|state| !state.contains(") Z")) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{left} is still running"));
        Ok(())
    }

    #[tokio::test]
    async fn cancelling_stops_it() {
        let cancel = CancellationToken::new();
        let trigger = cancel.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            trigger.cancel();
        });
        let result = Program::new("sleep").arg("30").output(LONG, &cancel).await;
        assert!(matches!(result, Err(ExecError::Cancelled { .. })), "{result:?}");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = Program::new("/no/such/program").output(LONG, &CancellationToken::new()).await;
        assert!(error.is_err_and(|e| e.to_string().contains("/no/such/program")));
    }
}
