//! The binary as its users meet it: usage, configuration errors, help, `init`, the hook's script, pipes.
//!
//! Nothing here needs Docker; what deploys is tested in `tests/it`.

#![expect(clippy::unwrap_used, reason = "what a test's own helpers cannot do fails the test")]

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

/// The binary in an environment of its own.
fn refit(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("refit"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", dir)
        .env("TZ", "UTC")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        .current_dir(dir)
        .args(args)
        .stdin(Stdio::null());
    command
}

#[track_caller]
fn run(dir: &Path, args: &[&str], code: i32) -> (String, String) {
    let output = refit(dir, args).output().unwrap();
    expect(&output, code)
}

#[track_caller]
fn expect(output: &Output, code: i32) -> (String, String) {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout: {stdout}\nstderr: {stderr}");
    (stdout, stderr)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn git(dir: &Path, args: &[&str]) -> Output {
    let output = Command::new("git")
        .env("HOME", dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .current_dir(dir)
        .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "git {args:?}: {}", text(&output.stderr));
    output
}

/// A directory with a valid configuration of an app whose repository is `origin.git` in it.
fn site() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "-q", "--bare", "origin.git"]);
    fs::write(
        dir.path().join("pipeline.toml"),
        "[app]\nname = \"demo\"\nrepository = \"origin.git\"\n[server]\nlisten = \"127.0.0.1:0\"\n\
         [environments.production]\nbranch = \"main\"\n[start]\nruntime = \"process\"\ncommand = \"sleep 1000\"\n",
    )
    .unwrap();
    dir
}

#[test]
fn the_help_teaches() {
    let dir = tempfile::tempdir().unwrap();
    let (help, _) = run(dir.path(), &["--help"], 0);
    insta::assert_snapshot!(help);
    let (version, _) = run(dir.path(), &["--version"], 0);
    assert_eq!(version.trim(), concat!("refit ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_command_has_a_paragraph_and_an_example() {
    let dir = tempfile::tempdir().unwrap();
    let commands = [
        "demo",
        "init",
        "check",
        "doctor",
        "setup",
        "serve",
        "deploy",
        "rerun",
        "backup",
        "cancel",
        "status",
        "history",
        "show",
        "logs",
        "report",
        "hook",
        "gate",
        "maintenance",
        "completions",
    ];
    for command in commands {
        let (short, _) = run(dir.path(), &[command, "-h"], 0);
        let (long, _) = run(dir.path(), &[command, "--help"], 0);
        assert!(long.contains("Example:\n  "), "{command}: {long}");
        let about = |text: &str| text.split("Usage:").next().unwrap_or_default().trim().len();
        assert!(about(&long) > about(&short), "{command} has no paragraph: {long}");
    }
}

#[test]
fn every_verb_of_backup_has_a_paragraph_and_an_example() {
    let dir = tempfile::tempdir().unwrap();
    for verb in ["create", "list", "show", "verify", "restore", "delete", "prune"] {
        let (long, _) = run(dir.path(), &["backup", verb, "--help"], 0);
        assert!(long.contains("Example:\n  ") && long.contains("--format"), "{verb}: {long}");
    }
}

#[test]
fn wrong_usage_is_64() {
    let dir = site();
    for args in [
        &["--no-such-flag"] as &[&str],
        &["no-such-command"],
        &[],
        &["show"],
        &["show", "one"],
        &["deploy", "--detach", "--follow"],
        &["deploy", "--ref", "a", "--commit", "b"],
        &["deploy", "--env", "staging"],
        &["deploy", "--app", "other"],
        &["history", "--status", "sunny"],
        &["history", "--since", "yesterday-ish"],
        &["history", "--env", "staging"],
        &["status", "--app", "other"],
        &["show", "1"],
        &["logs"],
        &["backup"],
        &["backup", "list", "--env", "staging"],
        &["backup", "list", "--older-than", "long ago"],
        &["backup", "list", "--commit", "not-hex"],
        &["backup", "show"],
        &["backup", "show", "latest"],
        &["backup", "delete"],
        &["backup", "restore", "../../etc", "--yes"],
        &["backup", "verify", "--restore", "--checksums"],
        &["hook"],
        &["hook", "install", "/nonexistent"],
        &["maintenance"],
        &["maintenance", "on", "--environment", "staging"],
        &["maintenance", "on"],
        &["maintenance", "off", "--message", "back soon"],
    ] {
        let (_, stderr) = run(dir.path(), args, 64);
        assert!(!stderr.trim().is_empty(), "{args:?}");
    }
}

#[test]
fn configuration_errors_are_78_and_show_the_line() {
    let dir = site();
    let file = dir.path().join("pipeline.toml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace("branch", "brnach")).unwrap();
    for command in ["check", "deploy", "serve", "status", "history"] {
        let (_, stderr) = run(dir.path(), &[command], 78);
        assert!(stderr.contains("brnach") && stderr.contains("did you mean `branch`?"), "{command}: {stderr}");
    }
    let empty = tempfile::tempdir().unwrap();
    let (_, stderr) = run(empty.path(), &["status"], 78);
    assert!(stderr.contains("refit init"), "{stderr}");
    let (_, stderr) = run(empty.path(), &["status", "-c", "other.toml"], 78);
    assert!(stderr.contains("other.toml"), "{stderr}");
}

#[test]
fn the_configuration_is_looked_for_upwards_and_in_the_environment() {
    let dir = site();
    let below = dir.path().join("src/deep");
    fs::create_dir_all(&below).unwrap();
    run(&below, &["history"], 0);
    let elsewhere = tempfile::tempdir().unwrap();
    let file = dir.path().join("pipeline.toml");
    let output = refit(elsewhere.path(), &["history"]).env("REFIT_CONFIG", &file).output().unwrap();
    expect(&output, 0);
}

#[test]
fn without_a_daemon_what_needs_one_is_69() {
    let dir = site();
    let (_, stderr) = run(dir.path(), &["deploy", "--detach"], 69);
    assert!(stderr.contains("try: `refit serve`"), "{stderr}");
    let (_, stderr) = run(dir.path(), &["hook", "receive", "--app", "demo"], 0);
    assert_eq!(stderr, "", "nothing was pushed, nobody is asked");
    let mut receive = refit(dir.path(), &["hook", "receive", "--app", "demo"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    receive.stdin.take().unwrap().write_all(b"0 1 refs/heads/main\n").unwrap();
    let (_, stderr) = expect(&receive.wait_with_output().unwrap(), 69);
    assert!(stderr.contains("daemon"), "{stderr}");
}

#[test]
fn reading_before_anything_was_deployed() {
    let dir = site();
    let (history, _) = run(dir.path(), &["history", "--format", "json"], 0);
    assert_eq!(history.trim(), "[]");
    let (status, _) = run(dir.path(), &["status", "--format", "json"], 0);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status[0]["app"], &status[0]["live"]), (&"demo".into(), &serde_json::Value::Null));
    assert!(!dir.path().join(".refit").exists(), "reading makes nothing");
}

#[test]
fn migrations_by_hand_say_what_they_need() {
    let dir = site();
    let (_, stderr) = run(dir.path(), &["migrate", "status"], 64);
    assert!(
        stderr.contains("demo/production has no migrations") && stderr.contains("files = \"migrations\""),
        "{stderr}"
    );
    let file = dir.path().join("pipeline.toml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{good}[migrate]\nrun = \"true\"\n")).unwrap();
    let (_, stderr) = run(dir.path(), &["migrate", "up"], 64);
    assert!(stderr.contains("a command of its own"), "{stderr}");
    fs::write(&file, format!("{good}[migrate]\nfiles = \"db\"\nurl = {{ env = \"REFIT_TEST_UNSET\" }}\nhold = true\n"))
        .unwrap();
    let (checked, _) = run(dir.path(), &["check", "--without-secrets"], 0);
    assert!(
        checked.contains("SQL files of db to the database of `url`, locks waited for 5.0s, with the app stopped"),
        "{checked}"
    );
    let (_, stderr) = run(dir.path(), &["migrate", "up"], 78);
    assert!(stderr.contains("REFIT_TEST_UNSET"), "{stderr}");
    // Nothing was ever pushed.
    let (_, stderr) = run(dir.path(), &["migrate", "status"], 64);
    assert!(stderr.contains("--commit SHA"), "{stderr}");
    run(dir.path(), &["migrate", "down", "--to", "-1"], 64);
}

#[test]
fn secrets_that_are_not_set_stop_what_acts_and_not_what_reads() {
    let dir = site();
    let file = dir.path().join("pipeline.toml");
    let text = fs::read_to_string(&file).unwrap() + "secrets = { TOKEN = { env = \"REFIT_TEST_UNSET\" } }\n";
    fs::write(&file, text).unwrap();
    run(dir.path(), &["history"], 0);
    run(dir.path(), &["check", "--without-secrets"], 0);
    for command in ["check", "deploy"] {
        let (_, stderr) = run(dir.path(), &[command], 78);
        assert!(stderr.contains("REFIT_TEST_UNSET"), "{command}: {stderr}");
    }
    let (doctor, _) = run(dir.path(), &["doctor"], 69);
    assert!(doctor.contains("REFIT_TEST_UNSET"), "{doctor}");
}

#[test]
fn doctor_has_a_fix_beside_each_finding() {
    let dir = site();
    let (json, _) = run(dir.path(), &["doctor", "--format", "json"], 69);
    let findings: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    let of = |check: &str| findings.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("{check}: {json}"));
    assert_eq!(of("configuration")["status"], "ok");
    assert_eq!(of("git")["status"], "ok");
    assert_eq!(of("remote demo/production")["status"], "fail", "the repository is empty");
    assert_eq!(of("daemon")["status"], "warn");
    assert_eq!(of("pushes demo")["status"], "warn");
    assert_eq!(of("docker")["status"], "ok", "nothing needs it");
    assert!(findings.iter().all(|f| f["fix"].is_string() == (f["status"] != "ok")), "{json}");
    let empty = tempfile::tempdir().unwrap();
    let (page, _) = run(empty.path(), &["doctor"], 69);
    assert!(page.contains("FAIL configuration") && page.contains("refit init"), "{page}");
}

/// A repository to look at.
fn repository(files: &[(&str, &str)]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().join("Guest Book");
    fs::create_dir(&work).unwrap();
    git(&work, &["init", "-q"]);
    for (name, content) in files {
        fs::write(work.join(name), content).unwrap();
    }
    (dir, work)
}

#[test]
fn init_writes_what_check_accepts() {
    let (_dir, work) = repository(&[
        ("Dockerfile", "FROM x AS test\nFROM x\nEXPOSE 80\nHEALTHCHECK CMD curl -f http://localhost/health\n"),
        ("compose.yaml", "services:\n  db:\n    image: postgres:16\n    environment:\n      POSTGRES_USER: guest\n"),
        (".gitignore", "target\nlogs"),
    ]);
    git(&work, &["remote", "add", "origin", "https://ada:tok3n@git.example/acme/guestbook.git"]);
    let (said, _) = run(&work, &["init"], 0);
    assert!(said.contains("/hooks/github") && said.contains("application/json"), "{said}");
    let secret_file = work.join(".refit/github-webhook-secret");
    let secret = fs::read_to_string(&secret_file).unwrap();
    assert_eq!(secret.trim().len(), 64);
    assert!(!said.contains(secret.trim()), "the secret is not printed");
    assert_eq!(fs::metadata(&secret_file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(work.join(".gitignore")).unwrap(), "target\nlogs\n/.refit/\n/backups/\n");
    let written = fs::read_to_string(work.join("pipeline.toml")).unwrap();
    assert!(!written.contains("tok3n"), "{written}");
    insta::assert_snapshot!(written);

    let (plan, _) = run(&work, &["check", "--format", "json"], 0);
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let production = &plan["environments"][0];
    assert_eq!(
        (&production["app"], &production["branch"], &production["runtime"]),
        (&"guest-book".into(), &"main".into(), &"docker".into())
    );
    run(&work, &["check"], 0);

    let (_, stderr) = run(&work, &["init"], 64);
    assert!(stderr.contains("--force"), "{stderr}");
    run(&work, &["init", "--force"], 0);
    assert_eq!(fs::read_to_string(&secret_file).unwrap(), secret, "GitHub may know it already");
    assert_eq!(fs::read_to_string(work.join(".gitignore")).unwrap().matches("/.refit/").count(), 1);
}

#[test]
fn init_without_a_dockerfile_or_a_remote() {
    let (_dir, work) = repository(&[("Procfile", "web: ./serve \"quoted\"\n"), ("package.json", "{}")]);
    let (said, _) = run(&work, &["init", "--name", "shop"], 0);
    assert!(said.contains("refit hook install"), "{said}");
    let (plan, _) = run(&work, &["check", "--format", "json"], 0);
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(
        (&plan["environments"][0]["runtime"], &plan["environments"][0]["app"]),
        (&"process".into(), &"shop".into())
    );
    assert!(!run(&work, &["init", "--name", "../x", "--force"], 64).1.is_empty());
    let bare = tempfile::tempdir().unwrap();
    run(bare.path(), &["init"], 0);
    run(bare.path(), &["check"], 0);
    assert!(!bare.path().join(".gitignore").exists(), "no Git, nothing to ignore");
}

#[test]
fn init_looks_at_a_repository_elsewhere() {
    let (dir, work) = repository(&[("Dockerfile", "FROM x\nEXPOSE 9000\n")]);
    git(&work, &["checkout", "-q", "-b", "trunk"]);
    git(&work, &["add", "."]);
    git(&work, &["commit", "-q", "-m", "first"]);
    let server = dir.path().join("server");
    fs::create_dir(&server).unwrap();
    run(&server, &["init", "--repository", "../Guest Book"], 0);
    let (plan, _) = run(&server, &["check", "--format", "json"], 0);
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let production = &plan["environments"][0];
    assert_eq!(
        (&production["app"], &production["branch"], &production["port"]),
        (&"guest-book".into(), &"trunk".into(), &9000.into())
    );
    assert_eq!(fs::read_dir(&server).unwrap().count(), 2, "the configuration and its secret, and nothing of the look");

    let (_, stderr) = run(&server, &["init", "--force", "--repository", "../nowhere"], 69);
    assert!(stderr.contains("git ls-remote"), "{stderr}");
    let (_, stderr) = run(&server, &["init", "--force", "--repository", "ext::sh -c touch% owned"], 69);
    assert!(stderr.contains("address"), "{stderr}");
    assert!(!server.join("owned").exists());
}

#[test]
fn a_damaged_registry_is_found_and_named() {
    let dir = site();
    fs::create_dir(dir.path().join(".refit")).unwrap();
    fs::write(dir.path().join(".refit/refit.db"), "no database, but long enough to be looked at".repeat(100)).unwrap();
    for args in [&["status"] as &[&str], &["history"], &["deploy"]] {
        let (_, stderr) = run(dir.path(), args, 69);
        assert!(stderr.contains("refit.db") && stderr.contains("the file is damaged"), "{args:?}: {stderr}");
    }
    let (page, _) = run(dir.path(), &["doctor"], 69);
    assert!(page.contains("FAIL registry"), "{page}");
}

/// Clones `origin.git`, commits and pushes; what the pusher sees.
fn push(dir: &Path) -> String {
    let work = dir.join("work");
    if !work.exists() {
        git(dir, &["init", "-q", "work"]);
        git(&work, &["remote", "add", "origin", "../origin.git"]);
    }
    git(&work, &["commit", "-q", "--allow-empty", "-m", "a change"]);
    text(&git(&work, &["push", "origin", "HEAD:main"]).stderr)
}

#[test]
fn the_hook_never_fails_a_push() {
    let dir = site();
    let origin = dir.path().join("origin.git");
    let hook = origin.join("hooks/post-receive");
    let (said, _) = run(dir.path(), &["hook", "install"], 0);
    assert!(said.contains("installed"), "{said}");
    let (said, _) = run(dir.path(), &["hook", "install"], 0);
    assert!(said.contains("already"), "{said}");

    let seen = push(dir.path());
    assert!(seen.contains("remote: ") && seen.contains("daemon"), "no daemon: {seen}");

    // The configuration is gone, then the program too.
    fs::rename(dir.path().join("pipeline.toml"), dir.path().join("moved.toml")).unwrap();
    assert!(push(dir.path()).contains("will be found"));
    fs::rename(dir.path().join("moved.toml"), dir.path().join("pipeline.toml")).unwrap();
    let script = fs::read_to_string(&hook).unwrap();
    let binary = assert_cmd::cargo::cargo_bin!("refit").display().to_string();
    assert!(script.contains(&binary), "{script}");
    fs::write(&hook, script.replace(&binary, "/nonexistent/refit")).unwrap();
    let seen = push(dir.path());
    assert!(seen.contains("will be found later"), "{seen}");

    run(dir.path(), &["hook", "uninstall"], 0);
    assert!(!hook.exists());
}

#[test]
fn an_earlier_hook_is_kept_only_if_asked() {
    let dir = site();
    let hook = dir.path().join("origin.git/hooks/post-receive");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, "#!/bin/sh\nwhile read -r old new ref; do echo \"earlier saw $ref\"; done\nexit 7\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let (_, stderr) = run(dir.path(), &["hook", "install"], 64);
    assert!(stderr.contains("--chain"), "{stderr}");
    let (_, stderr) = run(dir.path(), &["hook", "uninstall"], 64);
    assert!(stderr.contains("not written by"), "{stderr}");
    run(dir.path(), &["hook", "install", "--chain"], 0);
    let seen = push(dir.path());
    assert!(seen.contains("earlier saw refs/heads/main") && seen.contains("daemon"), "{seen}");
    run(dir.path(), &["hook", "uninstall"], 0);
    assert!(fs::read_to_string(&hook).unwrap().contains("earlier saw"));
}

#[test]
fn setup_does_what_is_missing_and_then_nothing() {
    let dir = site();
    let units = dir.path().join("units");
    fs::create_dir(&units).unwrap();
    let all = ["setup", "--systemd", "--unit-dir", "units", "--yes"];
    let dry = [&all[..], &["--dry-run"]].concat();
    let (said, _) = run(dir.path(), &dry, 0);
    assert!(said.contains("would    install") && said.contains("Type=notify"), "{said}");
    assert!(!dir.path().join(".refit").exists() && fs::read_dir(&units).unwrap().count() == 0);
    run(dir.path(), &all, 0);
    let unit = fs::read_to_string(units.join("refit.service")).unwrap();
    assert!(unit.contains("KillMode=process") && unit.contains("ProtectSystem=strict"), "{unit}");
    assert!(dir.path().join("origin.git/hooks/post-receive").is_file());
    let (said, _) = run(dir.path(), &all, 0);
    assert!(!said.contains("done ") && !said.contains("would "), "{said}");
}

#[test]
fn completions_for_each_shell() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (script, _) = run(dir.path(), &["completions", shell], 0);
        assert!(script.contains("history") && script.contains("format"), "{shell}");
    }
    let mut check = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    let (script, _) = run(dir.path(), &["completions", "bash"], 0);
    check.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(check.wait().unwrap().success(), "bash understands it");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = site();
    for args in [&["--help"] as &[&str], &["completions", "bash"], &["check"], &["history"]] {
        let mut child = refit(dir.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn no_colour_leaves_this_program_for_a_pipe() {
    let dir = site();
    for args in [&["check"] as &[&str], &["--help"], &["deploy", "--env", "x"], &["doctor"]] {
        let output = refit(dir.path(), args).output().unwrap();
        assert!(![output.stdout, output.stderr].concat().contains(&0x1b), "{args:?}");
    }
}
