//! In containers that hold nothing but busybox: with a shell, and without one.

use std::{
    io,
    pin::Pin,
    process::Command as Program,
    sync::atomic::{AtomicU32, Ordering},
    task::{Context, Poll},
    time::Instant,
};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::{log::DeploymentLog, model::Stage, redact::Redactor};

/// Prints for ever, from a child, with another child that ignores SIGTERM. `yes` and `sleep` are found through `/proc`.
const ENDLESS: &str = "(trap '' TERM; while :; do /busybox sleep 1; done) & /busybox yes & wait";

struct Container {
    name: String,
}

impl Container {
    /// One whose only files are `/busybox` and, if asked for, `/bin/sh`.
    fn run(with_shell: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("refit-exec-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let root = tempfile::tempdir().unwrap();
        std::fs::copy("/bin/busybox", root.path().join("busybox")).unwrap();
        if with_shell {
            std::fs::create_dir(root.path().join("bin")).unwrap();
            std::os::unix::fs::symlink("/busybox", root.path().join("bin/sh")).unwrap();
        }
        let import = format!("tar -C '{}' -c . | docker import - {name} >/dev/null", root.path().display());
        assert!(Program::new("sh").arg("-c").arg(import).status().unwrap().success());
        let run = ["run", "--detach", "--init", "--name", &name, &name, "/busybox", "sleep", "600"];
        let run = Program::new("docker").args(run).output().unwrap();
        assert!(run.status.success(), "{run:?}");
        Self { name }
    }

    /// How many processes of that command there are, as the engine sees them.
    fn count(&self, command: &str) -> usize {
        let top = Program::new("docker").args(["top", &self.name, "-eo", "pid,args"]).output().unwrap();
        assert!(top.status.success(), "{top:?}");
        String::from_utf8_lossy(&top.stdout).lines().filter(|line| line.contains(command)).count()
    }

    async fn until_gone(&self, command: &str) {
        let begun = Instant::now();
        while self.count(command) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "`{command}` goes on");
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Program::new("docker").args(["rm", "--force", &self.name]).output();
        let _ = Program::new("docker").args(["rmi", "--force", &self.name]).output();
    }
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

fn job() -> Job {
    let redactor = Redactor::new([&Secret::new("hunter22")]);
    Job { log: DeploymentLog::discard(redactor).stage(Stage::Backup), cancel: CancellationToken::new() }
}

fn engine() -> Engine {
    Engine::connect(None).unwrap()
}

/// Takes some bytes, then fails, or tells that it has them and takes no more.
struct Sink {
    room: usize,
    full: Option<CancellationToken>,
}

impl AsyncWrite for Sink {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.room >= buf.len() {
            self.room -= buf.len();
            return Poll::Ready(Ok(buf.len()));
        }
        match &self.full {
            Some(full) => {
                full.cancel();
                Poll::Pending
            }
            None => Poll::Ready(Err(io::ErrorKind::StorageFull.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_kept_apart_and_secrets_stay_in_the_environment() {
    let container = Container::run(true);
    let script = "echo \"out $WORD\"; echo one >&2; printf 'pw hunter22 \\033[31mtwo' >&2; \
                  /busybox head -c 3000000 /dev/zero; exit 7";
    let (mut sink, job) = (Vec::new(), job());
    let word = Secret::new("line one\nline 'two'");
    let outcome = engine()
        .exec_into(&container.name, &words(&["/bin/sh", "-c", script]), &[("WORD", &word)], &mut sink, &job)
        .await
        .unwrap();
    assert_eq!(outcome.code, 7);
    assert_eq!(outcome.output, ["one", "pw [masked] two"]);
    assert_eq!(job.log.tail(), outcome.output);
    assert!(sink.starts_with(b"out line one\nline 'two'\n\0\0"));
    assert_eq!(sink.len(), "out line one\nline 'two'\n".len() + 3_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_its_job_its_sink_or_its_caller() {
    for with_shell in [true, false] {
        let container = Container::run(with_shell);
        let command = if with_shell { words(&["/bin/sh", "-c", ENDLESS]) } else { words(&["/busybox", "yes"]) };
        let engine = engine();

        let full = Sink { room: 1 << 20, full: None };
        let error = engine.exec_into(&container.name, &command, &[], &mut { full }, &job()).await.unwrap_err();
        assert!(error.to_string().contains("its output was not written"), "{error}");
        assert_eq!(container.count("busybox yes"), 0, "the sink failed");
        container.until_gone("busybox sleep 1").await;

        let job = job();
        let mut stalled = Sink { room: 1 << 20, full: Some(job.cancel.clone()) };
        let error = engine.exec_into(&container.name, &command, &[], &mut stalled, &job).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Cancelled), "{error}");
        assert_eq!(container.count("busybox yes"), 0, "the job was cancelled");

        let job = self::job();
        let seen = CancellationToken::new();
        let mut stalled = Sink { room: 1 << 20, full: Some(seen.clone()) };
        let mut call = Box::pin(engine.exec_into(&container.name, &command, &[], &mut stalled, &job));
        tokio::select! {
            ended = &mut call => panic!("{ended:?}"),
            () = seen.cancelled() => {}
        }
        assert!(container.count("busybox yes") > 0);
        drop(call);
        container.until_gone("busybox yes").await;
        container.until_gone("busybox sleep 1").await;
        assert_eq!(container.count("busybox sleep 600"), 2, "what else runs there goes on, under its init");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_already_starts_nothing() {
    let container = Container::run(true);
    let job = job();
    job.cancel.cancel();
    let error = engine()
        .exec_into(&container.name, &words(&["/busybox", "sleep", "77"]), &[], &mut Vec::new(), &job)
        .await
        .unwrap_err();
    assert!(matches!(error, RuntimeError::Cancelled), "{error}");
    assert_eq!(container.count("sleep 77"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_reads_what_it_is_given_to_the_end() {
    let container = Container::run(true);
    let job = job();
    // Far more than fits in any buffer on the way, in both directions at once.
    let given: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut sink = Vec::new();
    let cat = words(&["/busybox", "cat"]);
    let outcome = engine().exec_through(&container.name, &cat, &[], &mut given.as_slice(), &mut sink, &job).await;
    assert_eq!(outcome.unwrap().code, 0);
    assert!(sink == given, "{} bytes came back", sink.len());

    let mut sink = Vec::new();
    let count = words(&["/bin/sh", "-c", "/busybox wc -c; echo done >&2; exit 3"]);
    let outcome = engine().exec_through(&container.name, &count, &[], &mut tokio::io::empty(), &mut sink, &job).await;
    let outcome = outcome.unwrap();
    assert_eq!((outcome.code, outcome.output, sink.as_slice()), (3, vec!["done".to_owned()], b"0\n".as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_stops_reading_ends_with_its_own_exit_code() {
    let container = Container::run(true);
    let job = job();
    let mut sink = Vec::new();
    let head = words(&["/bin/sh", "-c", "/busybox head -c 3; exit 9"]);
    let mut endless = tokio::io::repeat(b'y');
    let outcome = engine().exec_through(&container.name, &head, &[], &mut endless, &mut sink, &job).await.unwrap();
    assert_eq!((outcome.code, sink.as_slice()), (9, b"yyy".as_slice()));
}

/// Gives some bytes and then fails, or is silent for ever.
struct Source {
    bytes: usize,
    fails: bool,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n = self.bytes.min(buf.remaining());
        if n == 0 {
            return if self.fails { Poll::Ready(Err(io::Error::other("rotten"))) } else { Poll::Pending };
        }
        buf.put_slice(&vec![b'x'; n]);
        self.bytes -= n;
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_its_source_or_its_job_and_never_sees_the_end_of_its_input() {
    let container = Container::run(true);
    // Says on the container's own disk that it saw the end.
    let script = "/busybox cat >/dev/null && echo end >/ended; while :; do /busybox sleep 1; done";
    let command = words(&["/bin/sh", "-c", script]);
    let seen_end = || {
        let test = ["exec", &container.name, "/busybox", "test", "-e", "/ended"];
        Program::new("docker").args(test).status().unwrap().success()
    };
    let engine = engine();

    let mut source = Source { bytes: 100_000, fails: true };
    let error =
        engine.exec_through(&container.name, &command, &[], &mut source, &mut Vec::new(), &job()).await.unwrap_err();
    assert!(error.to_string().ends_with("what it was to read could not be read: rotten"), "{error}");
    assert_eq!(container.count("busybox cat"), 0, "the source failed");

    let job = job();
    let mut source = Source { bytes: 100_000, fails: false };
    let mut sink = Vec::new();
    let call = engine.exec_through(&container.name, &command, &[], &mut source, &mut sink, &job);
    let (ended, ()) = tokio::join!(call, async {
        let begun = Instant::now();
        while container.count("busybox cat") == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "`cat` never ran");
            tokio::time::sleep(POLL).await;
        }
        job.cancel.cancel();
    });
    assert!(matches!(ended, Err(RuntimeError::Cancelled)), "{ended:?}");
    assert_eq!(container.count("busybox cat"), 0, "the job was cancelled");
    assert!(!seen_end());
}
