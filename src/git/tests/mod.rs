//! The git room against the real `git` program and real repositories.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::Mirror;
use crate::{
    log::DeploymentLog,
    model::{Branch, CommitId, Stage},
    redact::Redactor,
    runtime::Job,
};

mod fetching;
mod hostile;
mod reading;
mod remotes;

const LONG: Duration = Duration::from_secs(60);

/// A bare remote, a work tree that pushes to it, and a place for mirrors.
struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        world.git_in(world.dir.path(), &["init", "-q", "--bare", "-b", "main", "remote.git"]);
        world.git_in(world.dir.path(), &["init", "-q", "-b", "main", "work"]);
        world.git(&["remote", "add", "origin", "../remote.git"]);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mirror(&self) -> Mirror {
        Mirror::new(self.path("mirrors/app.git"), self.path("remote.git").display().to_string())
    }

    /// `git` in the work tree.
    fn git(&self, args: &[&str]) -> String {
        self.git_in(&self.path("work"), args)
    }

    fn git_in(&self, dir: &Path, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command.current_dir(dir).args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", self.dir.path()).env("GIT_CONFIG_NOSYSTEM", "1");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Ada").env(format!("GIT_{who}_EMAIL"), "ada@example.org");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        let path = self.path("work").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn commit(&self, message: &str) -> CommitId {
        self.git(&["add", "--all"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"]).parse().unwrap()
    }

    /// Writes a file, commits it and pushes the commit to a branch.
    fn push(&self, branch: &str, file: &str, text: &str) -> CommitId {
        self.write(file, text);
        let commit = self.commit(&format!("change {file}"));
        self.git(&["push", "-q", "--force", "origin", &format!("HEAD:refs/heads/{branch}")]);
        commit
    }
}

fn branch(name: &str) -> Branch {
    name.parse().unwrap()
}

fn job() -> Job {
    let log = DeploymentLog::discard(Redactor::default()).stage(Stage::Pull);
    Job { log, cancel: CancellationToken::new() }
}
