//! Git, disks, files, ports, the daemon: what needs no container engine.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::Finding;
use crate::{
    cli::{
        client::Daemon,
        hook::{Installed, hook_of, installed, local_repository},
    },
    config::{App, BackupSource, Config},
    exec::Program,
    files,
    git::Mirror,
    notify,
};

/// For a remote's answer.
const REMOTE: Duration = Duration::from_secs(20);

/// For Telegram's.
const TELEGRAM: Duration = Duration::from_secs(15);

pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = vec![git_program().await];
    findings.extend(remotes(config).await);
    findings.extend(disks(config));
    findings.push(state_dir(config));
    let daemon = Daemon::connect(&config.server.socket()).await.is_some();
    findings.push(if daemon {
        Finding::ok("daemon", format!("answers on {}", config.server.socket().display()))
    } else {
        Finding::warn("daemon", "none answers: pushes are not deployed", "`refit serve`, or `refit setup --systemd`")
    });
    findings.extend(socket(&config.server.socket()));
    if !daemon {
        findings.push(listen(&config.server.listen).await);
    }
    findings.extend(config.apps.iter().map(|app| announcements(app)));
    findings.extend(sqlite_files(config));
    findings.push(telegram(config).await);
    findings
}

pub async fn git_program() -> Finding {
    let program = Program::new("git").arg("--version").clean_env();
    match program.output(REMOTE, &CancellationToken::new()).await {
        Ok(done) if done.success() => Finding::ok("git", String::from_utf8_lossy(&done.stdout).trim().to_owned()),
        Ok(done) => Finding::fail("git", done.stderr.join(" "), "see that `git --version` works"),
        Err(error) => Finding::fail("git", error.to_string(), "install it: `apt-get install git`"),
    }
}

/// Each branch of each repository, asked as a deployment would.
async fn remotes(config: &Config) -> Vec<Finding> {
    let ask = |environment: &std::sync::Arc<crate::config::Environment>| {
        let environment = environment.clone();
        let mirror = Mirror::new(config.server.state_dir.join("git").join("doctor"), environment.repository.clone());
        async move {
            let check = format!("remote {}", environment.key);
            let branch = &environment.branch;
            match mirror.remote_tip(branch, REMOTE).await {
                Ok(Some(commit)) => Finding::ok(check, format!("{branch} is at {}", commit.short())),
                Ok(None) => Finding::fail(
                    check,
                    format!("{} has no branch {branch}", environment.repository),
                    format!("push the branch, or set another `branch` for {}", environment.key),
                ),
                Err(error) => Finding::fail(
                    check,
                    error.to_string(),
                    format!(
                        "see that `git ls-remote {}` works as this user (`refit setup` helps with SSH)",
                        environment.repository
                    ),
                ),
            }
        }
    };
    futures_util::future::join_all(config.environments().map(ask)).await
}

fn disks(config: &Config) -> Vec<Finding> {
    let server = &config.server;
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    for dir in [&server.state_dir, &server.backups_dir, &server.logs_dir] {
        let existing = dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let device = fs::metadata(existing).map(|m| m.dev()).ok();
        if !seen.insert(device) {
            continue;
        }
        let check = "disk";
        match files::free_space(dir) {
            Err(error) => {
                findings.push(Finding::warn(check, format!("{}: {error}", dir.display()), "look at the path"))
            }
            Ok(free) => {
                let detail = format!("{} free at {}", files::human_bytes(free), existing.display());
                let least = server.min_free_space;
                findings.push(if free < least {
                    let needed = files::human_bytes(least);
                    Finding::fail(
                        check,
                        format!("{detail}; deployments need {needed}"),
                        "free some space, or set a lower `min_free_space` in [server]",
                    )
                } else if free < least.saturating_mul(4) {
                    Finding::warn(check, detail, "free some space before dumps and images fill the rest")
                } else {
                    Finding::ok(check, detail)
                });
            }
        }
    }
    findings
}

fn state_dir(config: &Config) -> Finding {
    let dir = &config.server.state_dir;
    let check = "state directory";
    let shown = dir.display();
    match fs::metadata(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
            if writable(parent) {
                Finding::ok(check, format!("{shown} will be made by the first deployment"))
            } else {
                Finding::fail(
                    check,
                    format!("{shown} cannot be made"),
                    format!("`mkdir {shown}` as root, and give it to this user"),
                )
            }
        }
        Err(error) => {
            Finding::fail(check, format!("{shown}: {error}"), "run doctor as the user that the daemon runs as")
        }
        Ok(_) if !writable(dir) => Finding::fail(
            check,
            format!("{shown} cannot be written to"),
            "run doctor as the user that the daemon runs as",
        ),
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => Finding::warn(
            check,
            format!("{shown} can be entered by other users (mode {:o})", meta.permissions().mode() & 0o777),
            format!("`chmod 700 {shown}`"),
        ),
        Ok(_) => Finding::ok(check, shown.to_string()),
    }
}

fn writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

fn socket(path: &Path) -> Option<Finding> {
    let mode = fs::metadata(path).ok()?.permissions().mode();
    (mode & 0o007 != 0).then(|| {
        let detail = format!("{} can be used by every user (mode {:o})", path.display(), mode & 0o777);
        Finding::fail("socket", detail, format!("`chmod 600 {}`", path.display()))
    })
}

/// Whether the daemon could listen; asked only while none runs.
async fn listen(address: &str) -> Finding {
    match tokio::net::TcpListener::bind(address).await {
        Ok(_) => Finding::ok("listen", format!("{address} is free")),
        Err(error) => Finding::fail(
            "listen",
            format!("{address}: {error}"),
            "stop what uses the port, or set another `listen` in [server]",
        ),
    }
}

/// How the daemon learns of pushes to an app.
fn announcements(app: &App) -> Finding {
    let check = format!("pushes {}", app.name);
    let hook = local_repository(&app.repository).and_then(|dir| hook_of(&dir).ok());
    match hook.as_deref().map(|file| (file, installed(file))) {
        Some((file, Installed::Ours)) => Finding::ok(check, format!("announced by {}", file.display())),
        _ if !app.github_secrets.is_empty() => Finding::ok(check, "announced by the GitHub webhook"),
        Some((file, Installed::Another)) => Finding::warn(
            check,
            format!("{} is not ours: pushes are found only when the remote is asked", file.display()),
            "`refit hook install --chain`",
        ),
        Some((_, Installed::No)) => {
            Finding::warn(check, "no hook: pushes are found only when the remote is asked", "`refit hook install`")
        }
        None => Finding::warn(
            check,
            "no webhook secret: pushes are found only when the remote is asked",
            "set `secret` in [webhooks.github]; `refit init` shows how",
        ),
    }
}

fn sqlite_files(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for environment in config.environments() {
        for backup in &environment.backups {
            if let BackupSource::Sqlite { path } = &backup.source
                && !path.is_file()
            {
                let detail = format!("{} is not there", path.display());
                let fix =
                    "see that `path` in [[backup]] is the app's database (it may appear with the first deployment)";
                findings.push(Finding::warn(format!("backup {}", environment.key), detail, fix));
            }
        }
    }
    findings
}

async fn telegram(config: &Config) -> Finding {
    let check = "telegram";
    let Some(telegram) = &config.telegram else {
        return match config.telegram_without_token {
            true => Finding::warn(
                check,
                "the token is not set or empty here: reports go to the terminal and the log",
                "set it where the daemon runs, then `refit telegram test`",
            ),
            false => Finding::ok(check, "not configured: reports go to the terminal and the log"),
        };
    };
    match tokio::time::timeout(TELEGRAM, Box::pin(notify::telegram::check(telegram))).await {
        Ok(Ok(who)) => Finding::ok(check, who),
        Ok(Err(why)) => Finding::warn(
            check,
            why,
            "`refit telegram test` tries each step; `refit telegram chats` finds the chat; reports wait until it works",
        ),
        Err(_) => Finding::warn(
            check,
            format!("{} does not answer", telegram.api_url),
            "check the network; reports are sent when it is back",
        ),
    }
}
