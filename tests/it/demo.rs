//! `refit demo`, as somebody runs it who has just built the program: on Docker, without Docker, interrupted, and when something is
//! wrong. Each run has its own directory for temporary files, which has to be empty in the end.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::support::{Ran, docker, http, poll};

struct Stage {
    tmp: TempDir,
    docker: bool,
}

impl Stage {
    fn on_docker() -> Self {
        Self { tmp: tempfile::tempdir().unwrap(), docker: true }
    }

    fn without_docker() -> Self {
        Self { docker: false, ..Self::on_docker() }
    }

    fn demo(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
        command.arg("demo").args(args).env("TMPDIR", self.tmp.path()).stdin(Stdio::null());
        if !self.docker {
            command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
        }
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.demo(args).output().unwrap().into()
    }

    /// Directory, processes, containers, images: nothing of the demo that printed `out`.
    #[track_caller]
    fn expect_nothing_left(&self, out: &str) {
        let left: Vec<_> = fs::read_dir(self.tmp.path()).unwrap().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}\n{out}");
        assert_eq!(processes_naming(self.tmp.path()), Vec::<String>::new(), "{out}");
        if let Some(app) = app_in(out).filter(|_| self.docker) {
            let filter = format!("label=refit.app={app}");
            assert_eq!(docker(&["ps", "-aq", "--filter", &filter]), "", "containers of {app}");
            assert_eq!(docker(&["images", "-aq", "--filter", &filter]), "", "images of {app}");
            assert_eq!(docker(&["images", "-q", "--filter", &format!("reference={app}*")]), "", "images named {app}");
        }
    }
}

/// `demo-0a1b2c`, where the output names the environment.
fn app_in(out: &str) -> Option<&str> {
    let end = out.find("/production")?;
    out[..end].rsplit(|c: char| c.is_whitespace()).next()
}

fn processes_naming(dir: &Path) -> Vec<String> {
    let wanted = dir.display().to_string();
    let lines = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| fs::read(e.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(&wanted)).collect()
}

/// What each push came to, in order.
const OUTCOMES: [&str; 4] = [
    "✔ deployment 1 succeeded: exit code 0",
    "✔ deployment 2 succeeded: exit code 0",
    "✘ deployment 3 failed in test, before anything changed: exit code 1",
    "✘ deployment 4 failed in start and was rolled back: exit code 3",
];

#[track_caller]
fn expect_the_story(out: &str) {
    let mut rest = out;
    for outcome in OUTCOMES {
        let (_, after) = rest.split_once(outcome).unwrap_or_else(|| panic!("no `{outcome}` in its place:\n{out}"));
        rest = after;
    }
    let versions: Vec<_> = out.lines().filter_map(|line| line.trim().strip_prefix("users see")).collect();
    assert_eq!(versions.len(), 4, "{out}");
    for (seen, version) in versions.iter().zip(["version 1.", "version 2.", "version 2.", "version 2."]) {
        assert!(seen.contains(version), "{seen}: not {version}");
    }
    for door in ["remote: LIVE: deployment 1", "remote: NOT LIVE: deployment 4", "answered 202 Accepted", "(github)"] {
        assert!(out.contains(door), "no `{door}`:\n{out}");
    }
    assert!(out.contains("backup: succeeded"), "{out}");
    nobody_noticed(out);
    assert!(!out.contains('\u{1b}'), "no colours without a terminal");
}

/// The visitors' counter: shown while things happen, after each push, and at the end.
#[track_caller]
fn nobody_noticed(out: &str) {
    let (story, end) = out.split_once("What visitors had of it: ").unwrap_or_else(|| panic!("no count:\n{out}"));
    let requests = end.split_once(" requests, 0 failed.").and_then(|(count, _)| count.parse::<u64>().ok());
    assert!(requests.is_some_and(|count| count > 0), "{end}");
    assert!(story.contains("· ") && story.contains(" requests, 0 failed"), "no counter meanwhile:\n{out}");
    let told: Vec<_> = out.lines().filter_map(|line| line.trim().strip_prefix("meanwhile")).collect();
    assert_eq!(told.len(), 4, "{out}");
    assert!(told.iter().all(|line| line.contains("all answered well") && !line.trim().starts_with("0 ")), "{told:?}");
}

#[test]
fn docker_the_demo_tells_its_story_twice_and_leaves_nothing() {
    let stage = Stage::on_docker();
    for _ in 0..2 {
        let ran = stage.run(&[]).expect(0);
        assert!(ran.stdout.contains("runs on    Docker"), "{}", ran.stdout);
        expect_the_story(&ran.stdout);
        stage.expect_nothing_left(&ran.stdout);
    }
}

#[test]
fn the_demo_needs_no_docker() {
    let stage = Stage::without_docker();
    for _ in 0..2 {
        let ran = stage.run(&[]).expect(0);
        assert!(ran.stdout.contains("no containers and no images in this demo, because"), "{}", ran.stdout);
        expect_the_story(&ran.stdout);
        stage.expect_nothing_left(&ran.stdout);
    }
}

#[test]
fn the_demo_shows_what_a_chat_would_show() {
    let stage = Stage::without_docker();
    let ran = stage.run(&["--chat"]).expect(0);
    expect_the_story(&ran.stdout);
    let chats: Vec<&str> = ran.stdout.split("Meanwhile in the chat:").skip(1).collect();
    assert_eq!(chats.len(), 4, "{}", ran.stdout);
    let ends = [
        ["✅", "deployed in", "took", "[📄 Logs]"],
        ["✅", "deployed in", "took", "[↩️ Roll back]"],
        ["❌", "failed in test, nothing changed for users", "FAILED: the page has no title", "refit rerun 3"],
        ["↩️", "failed in start, rolled back", "deployment 2 again", "refit logs 4"],
    ];
    for (chat, end) in chats.iter().zip(ends) {
        let (chat, _) = chat.split_once("╰─").unwrap_or_else(|| panic!("nothing rang: {chat}"));
        for part in end.iter().chain(&["refit", "and the phone rings"]) {
            assert!(chat.contains(part), "no `{part}` in: {chat}");
        }
        assert!(chat.lines().all(|line| line.chars().count() <= 100), "{chat}");
    }
    assert!(
        ran.stdout.contains("refit, without a sound") && ran.stdout.contains("the message changes"),
        "{}",
        ran.stdout
    );
    stage.expect_nothing_left(&ran.stdout);
}

/// Runs until a line contains `marker`, then sends SIGINT; everything it printed.
#[track_caller]
fn interrupted(stage: &Stage, marker: &str) -> String {
    let mut child = stage.demo(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut out = String::new();
    while !out.lines().last().unwrap_or_default().contains(marker) {
        assert_ne!(stdout.read_line(&mut out).unwrap(), 0, "ended before `{marker}`:\n{out}");
    }
    let sent = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    stdout.read_to_string(&mut out).unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{out}{err}");
    assert!(err.contains("stopping, and clearing up"), "{err}");
    assert!(out.contains("removed: the daemon"), "{out}");
    out
}

#[test]
fn docker_an_interrupted_demo_clears_up() {
    let stage = Stage::on_docker();
    // While images are built, and while one version has taken the place of another.
    for marker in ["remote: begins; nothing is live yet", "tag: succeeded in"] {
        let out = interrupted(&stage, marker);
        stage.expect_nothing_left(&out);
    }
}

#[test]
fn an_interrupted_demo_without_docker_clears_up() {
    let stage = Stage::without_docker();
    for marker in ["refit hook install", "remote: start: succeeded", "$ refit logs -f 2"] {
        let out = interrupted(&stage, marker);
        stage.expect_nothing_left(&out);
    }
}

/// A directory with a `git` that runs `script` first; in it `$git` is the real one.
fn another_git(script: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let real = Command::new("sh").args(["-c", "command -v git"]).output().unwrap();
    let real = String::from_utf8(real.stdout).unwrap();
    let file = dir.path().join("git");
    fs::write(&file, format!("#!/bin/sh\ngit={}\n{script}\nexec $git \"$@\"\n", real.trim())).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[test]
fn a_push_that_ends_in_another_way_is_told_and_is_no_success() {
    let stage = Stage::without_docker();
    // The third version gets its title back, so that its tests pass.
    let git =
        another_git("case \"$*\" in *'Tidy the page up'*) echo '<title>x</title>' >>page.html; $git add -A ;; esac");
    let path = format!("{}:{}", git.path().display(), std::env::var("PATH").unwrap());
    let ran: Ran = stage.demo(&[]).env("PATH", path).output().unwrap().into();
    let ran = ran.expect(1);
    assert!(ran.stdout.contains("the status is succeeded, and should be failed"), "{}", ran.stdout);
    assert!(ran.stdout.contains("$ refit report 3"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("4. A version"), "{}", ran.stdout);
    stage.expect_nothing_left(&ran.stdout);
}

/// The gate is killed while the third version is committed: from then on nobody answers.
#[test]
fn visitors_who_get_no_answer_are_counted_and_are_no_success() {
    let stage = Stage::without_docker();
    let script = format!(
        "case \"$*\" in *'Tidy the page up'*) for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | \
         grep -q '[g]ate --state-dir {}/' && kill -9 ${{p#/proc/}}; done ;; esac",
        stage.tmp.path().display()
    );
    let git = another_git(&script);
    let path = format!("{}:{}", git.path().display(), std::env::var("PATH").unwrap());
    let ran: Ran = stage.demo(&[]).env("PATH", path).output().unwrap().into();
    let ran = ran.expect(1);
    assert!(ran.stdout.contains("requests failed, and none should"), "{}", ran.stdout);
    let end = ran.stdout.split_once("The demo ends here").unwrap().1;
    let (_, failed) = end.split_once(" requests, ").unwrap_or_else(|| panic!("no count: {end}"));
    assert!(!failed.starts_with("0 failed") && failed.contains(" failed."), "{end}");
    stage.expect_nothing_left(&ran.stdout);
}

#[test]
fn docker_a_demo_that_cannot_begin_clears_up() {
    let stage = Stage::on_docker();
    let empty = tempfile::tempdir().unwrap();
    let ran: Ran = stage.demo(&[]).env("PATH", empty.path()).output().unwrap().into();
    let ran = ran.expect(69);
    assert!(ran.stderr.contains("`git` could not be started"), "{}", ran.stderr);
    // The base image was made before.
    assert!(ran.stdout.contains("removed: 0 containers, 1 image"), "{}", ran.stdout);
    stage.expect_nothing_left(&ran.stdout);
}

#[test]
fn what_is_kept_can_be_used_and_removed() {
    let stage = Stage::without_docker();
    let dir = stage.tmp.path().join("kept");
    let dir_name = dir.display().to_string();
    let ran = stage.run(&["--keep", "--dir", &dir_name]).expect(0);
    expect_the_story(&ran.stdout);
    let config = fs::read_to_string(dir.join("pipeline.toml")).unwrap();
    let port = config.lines().find_map(|line| line.strip_prefix("port = ")?.parse::<u16>().ok()).unwrap();
    let page = || http(port, "GET", "/", &[], b"").map(|answer| answer.body).unwrap_or_default();
    assert!(page().contains("version 2"), "{}", page());
    // A push by hand, as the last lines say.
    let work = dir.join("work");
    let text = fs::read_to_string(work.join("page.html")).unwrap().replace("{{visitor}}", "{{name}}");
    fs::write(work.join("page.html"), text).unwrap();
    let pushed = Command::new("sh")
        .args(["-c", "git commit -qam 'My change' && git push -q origin main"])
        .current_dir(&work)
        .status()
        .unwrap();
    assert!(pushed.success());
    poll(|| page().contains("version 4").then_some(())).expect("the push by hand is live");
    // The directory is taken, and only a demo's directory is ever removed.
    assert!(stage.run(&["--dir", &dir_name]).expect(64).stderr.contains("is there already"));
    stage.run(&["--clean", &work.display().to_string()]).expect(64);
    assert!(work.join("page.html").exists());
    let ran = stage.run(&["--clean", &dir_name]).expect(0);
    assert!(ran.stdout.contains("Removed: the daemon"), "{}", ran.stdout);
    assert_eq!(page(), "");
    stage.expect_nothing_left(&ran.stdout);
}
