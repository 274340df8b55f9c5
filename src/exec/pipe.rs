//! Programs at the end of a stream: what they print goes into a sink, what they read comes from a source, a chunk at a time.

use std::{collections::VecDeque, io, pin::pin, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::{DRAIN, ExecError, Finished, Program, Stream, end_group, exit_code, forward_lines};

const CHUNK: usize = 64 * 1024;

/// For what is in the pipe when the program has ended: the sink may be slow.
const LAST_OUTPUT: Duration = Duration::from_secs(30);

impl Program {
    /// Runs it with `source` on its standard input (nothing where there is none) and `sink` on its standard output, handing each line of
    /// standard error to `on_line`. It may end without reading everything. If the source or the sink fails it is ended: to a program, a source that
    /// failed would look like one that came to its end.
    pub async fn pipe(
        &self,
        mut source: Option<&mut (dyn AsyncRead + Send + Unpin)>,
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        limit: Duration,
        cancel: &CancellationToken,
        mut on_line: impl FnMut(&str) + Send,
    ) -> Result<Finished, ExecError> {
        let mut child = self.spawn(if source.is_some() { Stdio::piped() } else { Stdio::null() })?;
        let (stdin, stdout, stderr) = (child.stdin().take(), child.stdout().take(), child.stderr().take());
        let (lines_in, mut lines) = mpsc::channel::<(Stream, String)>(64);
        if let Some(stderr) = stderr {
            tokio::spawn(forward_lines(stderr, Stream::Err, lines_in));
        }
        let program = self.name();
        let mut feeding = pin!(async {
            match (source.as_mut(), stdin) {
                (Some(source), Some(stdin)) => feed(source, stdin).await,
                _ => Ok(()),
            }
        });
        let mut draining = pin!(async {
            match stdout {
                Some(stdout) => drain(stdout, sink).await,
                None => Ok(()),
            }
        });
        let mut errors = VecDeque::new();
        let mut take = |line: String| {
            on_line(&line);
            if errors.len() == crate::log::TAIL_LINES {
                errors.pop_front();
            }
            errors.push_back(line);
        };
        let mut deadline = pin!(tokio::time::sleep(limit));
        let (mut fed, mut drained) = (false, false);
        let ended = loop {
            tokio::select! {
                Some((_, line)) = lines.recv() => take(line),
                done = &mut feeding, if !fed => match done {
                    Ok(()) => fed = true,
                    Err(source) => break Err(ExecError::Input { program, source }),
                },
                done = &mut draining, if !drained => match done {
                    Ok(()) => drained = true,
                    Err(source) => break Err(ExecError::Output { program, source }),
                },
                status = child.wait() => break status.map_err(|source| ExecError::Wait { program, source }),
                () = cancel.cancelled() => break Err(ExecError::Cancelled { program }),
                () = &mut deadline => break Err(ExecError::TimedOut { program, limit }),
            }
        };
        let status = match ended {
            Ok(status) => status,
            Err(error) => {
                end_group(child.as_mut()).await;
                return Err(error);
            }
        };
        // What the leader left in its group ends with it; mostly there is nothing, which is an error here.
        let _ = child.start_kill();
        let program = self.name();
        if !drained {
            match tokio::time::timeout(LAST_OUTPUT, &mut draining).await {
                Ok(Ok(())) => {}
                Ok(Err(source)) => return Err(ExecError::Output { program, source }),
                Err(_) => {
                    let source = io::Error::other("a process that it left behind holds its output open");
                    return Err(ExecError::Wait { program, source });
                }
            }
        }
        // Only a process that left the group can hold its errors open for longer.
        let _ = tokio::time::timeout(DRAIN, async {
            while let Some((_, line)) = lines.recv().await {
                take(line);
            }
        })
        .await;
        Ok(Finished { code: exit_code(status), stdout: Vec::new(), stderr: errors.into() })
    }
}

/// A program that does not want more is no failure.
async fn feed(source: &mut (dyn AsyncRead + Send + Unpin), mut stdin: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = source.read(&mut chunk).await?;
        if n == 0 || stdin.write_all(&chunk[..n]).await.is_err() {
            return Ok(());
        }
    }
}

async fn drain(mut stdout: impl AsyncRead + Unpin, sink: &mut (dyn AsyncWrite + Send + Unpin)) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = stdout.read(&mut chunk).await?;
        if n == 0 {
            return sink.flush().await;
        }
        sink.write_all(&chunk[..n]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    async fn run(script: &str, source: Option<&[u8]>) -> (Result<Finished, ExecError>, Vec<u8>) {
        let mut out = Vec::new();
        let mut source = source;
        let source = source.as_mut().map(|source| source as &mut (dyn AsyncRead + Send + Unpin));
        let done = Program::shell(script).pipe(source, &mut out, LONG, &CancellationToken::new(), |_| ()).await;
        (done, out)
    }

    #[tokio::test]
    async fn streams_go_through_whole() {
        let much = vec![b'x'; 3_000_000];
        let (done, out) = run("cat; echo told >&2; exit 3", Some(&much)).await;
        let done = done.unwrap();
        assert_eq!((done.code, done.stderr, out.len()), (3, vec!["told".to_owned()], much.len()));
        let (done, out) = run("head -c 10", Some(&much)).await;
        assert_eq!((done.unwrap().code, out.len()), (0, 10), "not everything need be read");
        let (done, out) = run("cat", None).await;
        assert_eq!((done.unwrap().code, out.len()), (0, 0));
    }

    struct Broken;

    impl AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(io::Error::other("damaged")))
        }
    }

    #[tokio::test]
    async fn a_source_that_fails_ends_the_program_before_it_takes_that_for_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("cat > /dev/null && touch {}/committed; sleep 60", dir.path().display());
        let (program, cancel) = (Program::shell(&script), CancellationToken::new());
        let error = program.pipe(Some(&mut Broken), &mut Vec::new(), LONG, &cancel, |_| ()).await.unwrap_err();
        assert!(matches!(error, ExecError::Input { .. }), "{error}");
        assert!(!dir.path().join("committed").exists());
    }
}
