//! Programs of this host that stream: the same as commands in containers, for a database that is reached from here.
//!
//! A program is the leader of its own process group, with an environment of what it is given and nothing else but `PATH` and `HOME`. When
//! its job is cancelled, or its source or its sink fails, the group is ended: SIGTERM, on which `pg_dump` cancels its query in the
//! server, then SIGKILL. A caller that drops the future kills it. Memory holds a chunk each way, whatever is streamed.

use std::{collections::VecDeque, io, process::Stdio, time::Duration};

use async_trait::async_trait;
use process_wrap::tokio::{ChildWrapper, CommandWrap, KillOnDrop, ProcessGroup};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    process::{ChildStderr, Command},
};

use super::{ContainerExec, ExecOutcome, Job, Result, RuntimeError};
use crate::{exec::kept_env, log::TAIL_LINES, secret::Secret};

/// Between SIGTERM and SIGKILL.
const KILL_AFTER: Duration = Duration::from_secs(5);

const SIGTERM: i32 = 15;

/// Bytes at a time.
const CHUNK: usize = 64 * 1024;

/// Longer lines of standard error are cut, in bytes.
const LINE: u64 = 16 * 1024;

/// This host, in the place of a container: the name that is given is not looked at.
#[derive(Debug, Clone, Copy)]
pub struct HostExec;

#[async_trait]
impl ContainerExec for HostExec {
    async fn exec_into(
        &self,
        _: &str,
        command: &[String],
        env: &[(&str, &Secret)],
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        job: &Job,
    ) -> Result<ExecOutcome> {
        run(command, env, None, sink, job).await
    }

    async fn exec_through(
        &self,
        _: &str,
        command: &[String],
        env: &[(&str, &Secret)],
        source: &mut (dyn AsyncRead + Send + Unpin),
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        job: &Job,
    ) -> Result<ExecOutcome> {
        run(command, env, Some(source), sink, job).await
    }
}

async fn run(
    command: &[String],
    env: &[(&str, &Secret)],
    source: Option<&mut (dyn AsyncRead + Send + Unpin)>,
    sink: &mut (dyn AsyncWrite + Send + Unpin),
    job: &Job,
) -> Result<ExecOutcome> {
    let (program, arguments) = command.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let operation = format!("running `{program}` on this host");
    let failed = |why: String| RuntimeError::failed(operation.clone(), why);
    let mut child = spawn(program, arguments, env, source.is_some()).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            failed(format!("there is no `{program}` on PATH: install it, or name an image that has it"))
        }
        _ => failed(error.to_string()),
    })?;
    let (input, output, errors) = (child.stdin().take(), child.stdout().take(), child.stderr().take());
    let streams = async {
        let feed = async {
            let (Some(source), Some(mut input)) = (source, input) else { return Ok(None) };
            let mut chunk = vec![0; CHUNK];
            loop {
                let n = source.read(&mut chunk).await?;
                if n == 0 {
                    drop(input);
                    return Ok(None);
                }
                // A program that reads no further says by its exit code what that means.
                if input.write_all(&chunk[..n]).await.is_err() {
                    return Ok(Some(input));
                }
            }
        };
        let drain = async {
            let Some(mut output) = output else { return Ok(()) };
            let mut chunk = vec![0; CHUNK];
            loop {
                let n = output.read(&mut chunk).await?;
                if n == 0 {
                    return sink.flush().await;
                }
                sink.write_all(&chunk[..n]).await?;
            }
        };
        // The source may have no end of its own once the program has ended: only its failure counts.
        let feed = async {
            let fed: io::Result<_> = feed.await;
            match fed {
                Ok(input) => {
                    std::future::pending::<()>().await;
                    drop(input);
                    Ok(())
                }
                Err(error) => Err(failed(format!("what it was to read could not be read: {error}"))),
            }
        };
        let drain = async { drain.await.map_err(|e| failed(format!("its output was not written: {e}"))) };
        let heard = async { Ok(hear(errors, job).await) };
        let outputs = async { tokio::try_join!(drain, heard).map(|((), tail)| tail) };
        tokio::select! {
            ended = feed => ended.map(|()| VecDeque::new()),
            tail = outputs => tail,
        }
    };
    let ended = tokio::select! {
        biased;
        () = job.cancel.cancelled() => Err(RuntimeError::Cancelled),
        ended = streams => ended,
    };
    match ended {
        Ok(tail) => {
            let status = child.wait().await.map_err(|e| failed(e.to_string()))?;
            Ok(ExecOutcome { code: code(status), output: tail.into() })
        }
        Err(error) => {
            end(child.as_mut()).await;
            Err(error)
        }
    }
}

fn spawn(
    program: &str,
    arguments: &[String],
    env: &[(&str, &Secret)],
    input: bool,
) -> io::Result<Box<dyn ChildWrapper>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(if input { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_clear().envs(kept_env()).envs(env.iter().map(|(name, value)| (name, value.expose())));
    CommandWrap::from(command).wrap(ProcessGroup::leader()).wrap(KillOnDrop).spawn()
}

/// Logs standard error. Its last lines.
async fn hear(errors: Option<ChildStderr>, job: &Job) -> VecDeque<String> {
    let mut tail = VecDeque::new();
    let Some(errors) = errors else { return tail };
    let mut reader = BufReader::new(errors);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(LINE).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(n) if n > 0) {
            return tail;
        }
        let text = job.log.redactor().mask(String::from_utf8_lossy(&line).trim_end());
        job.log.line(&text);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(crate::log::printable(&text));
    }
}

async fn end(child: &mut dyn ChildWrapper) {
    let asked = child.signal(SIGTERM);
    let ended = tokio::time::timeout(KILL_AFTER, child.wait()).await;
    // What it left in its group goes too; mostly there is nothing, which is an error here.
    let _ = child.start_kill();
    if asked.is_err() || ended.is_err() {
        let _ = child.wait().await;
    }
}

fn code(status: std::process::ExitStatus) -> i64 {
    use std::os::unix::process::ExitStatusExt;
    i64::from(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{log::DeploymentLog, model::Stage, redact::Redactor};

    fn job() -> Job {
        Job { log: DeploymentLog::discard(Redactor::default()).stage(Stage::Backup), cancel: CancellationToken::new() }
    }

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn both_ways_stream_and_the_environment_is_clean() {
        let secret = Secret::new("hunter22");
        let input = vec![b'x'; 1 << 20];
        let mut out = Vec::new();
        let script = "cat; printf %s \"$PASSWORD\"; echo oops >&2; env | grep -c '^CARGO' >&2; exit 3";
        let ended = HostExec
            .exec_through("", &sh(script), &[("PASSWORD", &secret)], &mut &input[..], &mut out, &job())
            .await
            .unwrap();
        assert_eq!((ended.code, ended.output), (3, vec!["oops".to_owned(), "0".to_owned()]));
        assert_eq!(out, [&input[..], b"hunter22"].concat());
        // One that reads nothing of it.
        let ended = HostExec.exec_through("", &sh("exit 0"), &[], &mut &input[..], &mut out, &job()).await;
        assert_eq!(ended.unwrap().code, 0);
        let missing = HostExec.exec_into("", &["refit-no-such".to_owned()], &[], &mut out, &job()).await;
        assert!(missing.unwrap_err().to_string().contains("there is no `refit-no-such` on PATH"));
    }

    #[tokio::test]
    async fn a_cancelled_program_is_gone_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
        let job = job();
        let mut out = Vec::new();
        let script = sh(&script);
        let (ended, pid) = tokio::join!(HostExec.exec_into("", &script, &[], &mut out, &job), async {
            while !file.exists() {
                tokio::task::yield_now().await;
            }
            job.cancel.cancel();
            std::fs::read_to_string(&file).unwrap()
        });
        assert!(matches!(ended, Err(RuntimeError::Cancelled)), "{ended:?}");
        let stat = format!("/proc/{}/stat", pid.trim());
        tokio::time::timeout(Duration::from_secs(20), async {
            while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z")) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
}
