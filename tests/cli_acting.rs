//! Commands that act and commands that watch, on an app of the process runtime: in place, beside each other, and through a daemon.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what a test's own helpers cannot do fails the test")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// How long something may take that a test waits for, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// An app that only runs; its build waits while the file `hold` is beside the configuration.
struct Site {
    dir: TempDir,
    daemon: Option<Child>,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let site = Self { dir, daemon: None };
        site.git(site.path(), &["init", "-q", "--bare", "origin.git"]);
        site.git(site.path(), &["init", "-q", "work"]);
        site.commit("first \u{1b}[31mcommit");
        let hold = site.hold_file();
        let build = format!("echo building; while [ -e {} ]; do sleep 0.05; done; echo built", hold.display());
        fs::write(
            site.path().join("pipeline.toml"),
            format!(
                "[app]\nname = \"demo\"\nrepository = \"origin.git\"\n\
                 [server]\nlisten = \"127.0.0.1:0\"\nreconcile = \"0s\"\nmin_free_space = \"1m\"\n\
                 [environments.production]\nbranch = \"main\"\n[build]\nrun = {build:?}\n\
                 [start]\nruntime = \"process\"\ncommand = \"exec sleep 1000\"\nstop_timeout = \"1s\"\n\
                 health = {{ settle = \"0s\" }}\n"
            ),
        )
        .unwrap();
        site
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn hold_file(&self) -> PathBuf {
        self.path().join("hold")
    }

    fn hold(&self) {
        fs::write(self.hold_file(), "").unwrap();
    }

    fn let_go(&self) {
        fs::remove_file(self.hold_file()).unwrap();
    }

    /// What Git prints on standard error.
    fn git(&self, dir: &Path, args: &[&str]) -> String {
        let output = Command::new("git")
            .env("HOME", self.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .current_dir(dir)
            .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "git {args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    }

    /// Commits and pushes; what the pusher sees.
    fn commit(&self, message: &str) -> String {
        let work = self.path().join("work");
        fs::write(work.join("message"), message).unwrap();
        self.git(&work, &["add", "-A"]);
        self.git(&work, &["commit", "-q", "-m", message]);
        self.git(&work, &["push", "-q", "--force", "../origin.git", "HEAD:main"])
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("refit"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .env("USER", "ada")
            .env("TZ", "UTC")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
            .current_dir(self.path())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str], code: i32) -> (String, String) {
        let output = self.command(args).output().unwrap();
        expect(&output, code)
    }

    fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn history(&self) -> Vec<Value> {
        let (json, _) = self.run(&["history", "--format", "json"], 0);
        serde_json::from_str(&json).unwrap()
    }

    /// Waits until the newest deployment is in its build.
    #[track_caller]
    fn wait_for_build(&self) -> i64 {
        let mut newest = Value::Null;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            newest = self.history().into_iter().next().unwrap_or_default();
            if newest["stages"][3]["status"] == "running" {
                return newest["id"].as_i64().unwrap();
            }
            thread::sleep(PAUSE);
        }
        panic!("no build is running: {newest:#}")
    }

    fn serve(&mut self) {
        let child = self.command(&["serve"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.daemon = Some(child);
        poll("the daemon", || {
            let (json, _) = text_of(&self.command(&["doctor", "--format", "json"]).output().unwrap());
            let findings: Vec<Value> = serde_json::from_str(&json).ok()?;
            findings.iter().any(|f| f["check"] == "daemon" && f["status"] == "ok").then_some(())
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.hold_file());
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // The app and its supervisor outlive every command, as they should: they are found by the directory they work in.
        let Ok(processes) = fs::read_dir("/proc") else { return };
        let pids: Vec<String> = processes.flatten().map(|p| p.file_name().to_string_lossy().into_owned()).collect();
        for pid in pids.iter().filter(|pid| pid.bytes().all(|b| b.is_ascii_digit())) {
            let place = Path::new("/proc").join(pid);
            let inside = fs::read_link(place.join("cwd")).is_ok_and(|cwd| cwd.starts_with(self.path()));
            let names_us = fs::read(place.join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&self.path().display().to_string()));
            if inside || names_us {
                let _ = Command::new("kill").args(["-KILL", pid]).status();
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn text_of(output: &Output) -> (String, String) {
    (text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn expect(output: &Output, code: i32) -> (String, String) {
    let (stdout, stderr) = text_of(output);
    assert_eq!(output.status.code(), Some(code), "stdout: {stdout}\nstderr: {stderr}");
    (stdout, stderr)
}

#[track_caller]
fn poll<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(found) = look() {
            return found;
        }
        thread::sleep(PAUSE);
    }
    panic!("{what} did not happen");
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_deployment_in_place_is_shown_and_can_be_read() {
    let site = Site::new();
    let (stdout, stderr) = site.run(&["deploy"], 0);
    for stage in ["pull: succeeded in", "build: succeeded in", "backup: skipped (", "smoke: "] {
        assert!(stderr.contains(stage), "{stage}: {stderr}");
    }
    assert!(stdout.contains("deployment 1 of demo/production is live and healthy"), "{stdout}");
    assert!(!stdout.contains('\u{1b}') && stdout.contains("first "), "{stdout}");

    let (json, _) = site.run(&["show", "1", "--format", "json"], 0);
    let view: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&view["status"], &view["live"], &view["trigger"]["by"]),
        (&"succeeded".into(), &true.into(), &"ada".into())
    );
    let (status, _) = site.run(&["status"], 0);
    assert!(status.contains("demo/production") && status.contains("running"), "{status}");
    let (log, _) = site.run(&["logs"], 0);
    assert!(log.contains("| building") && log.contains("pull "), "{log}");
    let (build, _) = site.run(&["logs", "1", "--stage", "build"], 0);
    assert!(build.contains("| built") && !build.contains("pull "), "{build}");
    for format in ["text", "markdown", "json"] {
        let (report, _) = site.run(&["report", "1", "--format", format], 0);
        assert!(report.contains("live and healthy"), "{format}: {report}");
    }
    for args in [&["show", "2"] as &[&str], &["report", "2"], &["logs", "2"], &["cancel", "1"], &["cancel", "2"]] {
        site.run(args, 64);
    }
    let (json, stderr) = site.run(&["rerun", "--format", "json"], 0);
    let again: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&again["id"], &again["commit"]), (&2.into(), &view["commit"]));
    assert!(stderr.contains("begins; deployment 1 is live"), "{stderr}");
}

#[test]
fn an_interrupt_in_place_cancels_and_undoes() {
    let site = Site::new();
    site.hold();
    for name in ["INT", "TERM"] {
        let child = site.spawn(&["deploy"]);
        let id = site.wait_for_build();
        signal(&child, name);
        let (stdout, stderr) = expect(&child.wait_with_output().unwrap(), 130);
        assert!(stderr.contains("cancelling"), "{stderr}");
        assert!(stdout.contains(&format!("deployment {id} of demo/production was cancelled")), "{stdout}");
        assert_eq!(site.history()[0]["status"], "cancelled");
    }
}

#[test]
fn a_second_deployment_in_place_waits_or_is_75() {
    let site = Site::new();
    site.hold();
    let first = site.spawn(&["deploy"]);
    site.wait_for_build();
    let (_, stderr) = site.run(&["deploy", "--no-wait"], 75);
    assert!(stderr.starts_with("error: "), "{stderr}");
    let (_, stderr) = site.run(&["cancel", "1"], 69);
    assert!(stderr.contains("Ctrl-C"), "{stderr}");

    let mut second = site.spawn(&["deploy"]);
    let mut said = BufReader::new(second.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.starts_with("waiting: "), "{line}");
    site.let_go();
    expect(&first.wait_with_output().unwrap(), 0);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    expect(&second.wait_with_output().unwrap(), 0);
    assert!(rest.contains("build: succeeded"), "{rest}");
    assert_eq!(site.history().len(), 2);
}

#[test]
fn watching_a_daemon_ends_without_the_deployment() {
    let mut site = Site::new();
    site.serve();
    site.hold();
    let watcher = site.spawn(&["deploy"]);
    let id = site.wait_for_build().to_string();
    signal(&watcher, "INT");
    let (_, stderr) = expect(&watcher.wait_with_output().unwrap(), 130);
    assert!(stderr.contains(&format!("refit cancel {id}")), "{stderr}");
    assert_eq!(site.history()[0]["status"], "running");

    let mut logs = site.spawn(&["logs", "-f"]);
    let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("| building")), "the log is followed while it grows");
    site.let_go();
    assert!(lines.any(|line| line.contains("| built")), "and to its end");
    lines.for_each(drop);
    let (_, stderr) = expect(&logs.wait_with_output().unwrap(), 0);
    assert!(stderr.contains("is live and healthy"), "{stderr}");

    // Another tree: what was built already is not built again.
    site.commit("second");
    site.hold();
    let (stdout, _) = site.run(&["deploy", "--detach"], 0);
    assert!(stdout.contains("deployment 2 is queued"), "{stdout}");
    site.wait_for_build();
    let (_, stderr) = site.run(&["deploy", "--no-wait"], 75);
    assert!(stderr.contains("try: "), "{stderr}");
    site.run(&["cancel", "2"], 0);
    poll("the end", || (site.history()[0]["status"] == "cancelled").then_some(()));
}

#[test]
fn a_closed_pipe_does_not_end_a_deployment() {
    let site = Site::new();
    site.hold();
    let mut child = site.spawn(&["deploy"]);
    site.wait_for_build();
    drop(child.stdout.take());
    drop(child.stderr.take());
    site.let_go();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(site.history()[0]["live"], true);
}

#[test]
fn the_pusher_sees_the_deployment_or_only_its_number() {
    let mut site = Site::new();
    site.run(&["hook", "install"], 0);
    site.serve();
    let seen = site.commit("second");
    let lines: Vec<&str> = seen.lines().filter_map(|line| line.strip_prefix("remote: ")).map(str::trim_end).collect();
    assert!(lines.iter().any(|line| line.starts_with("build: succeeded in")), "{seen}");
    assert_eq!(lines.last(), Some(&"LIVE: deployment 1 of demo/production is live and healthy"), "{seen}");
    assert!(lines.iter().all(|line| line.chars().count() <= 72), "{seen}");

    // The push returns while the build is held: it does not wait for it.
    site.git(&site.path().join("origin.git"), &["config", "refit.hook.follow", "false"]);
    site.hold();
    let seen = site.commit("third");
    assert!(seen.contains("demo/production: deployment 2"), "{seen}");
    assert_ne!(site.history()[0]["status"], "succeeded");
    site.let_go();
    poll("the end", || (site.history()[0]["status"] == "succeeded").then_some(()));
}
