//! How the `git` program is called.
//!
//! Each call inherits the daemon's environment (the SSH agent, `HOME`, proxies), less what belongs to some other
//! repository (inside a hook, Git sets `GIT_DIR` and its like) and what would change the meaning of a call. Three rules hold:
//!
//! * **Nothing asks.** No terminal prompt, no askpass window, SSH in batch mode. An `ssh` command of the owner's own
//!   (`GIT_SSH_COMMAND`, `core.sshCommand`) is used as it is; even then `ssh` has nothing to ask with. Credentials come from
//!   keys, agents and credential helpers. (`GIT_SSH` alone is not honoured.)
//! * **Nothing of a stranger runs.** Transports are an allow list, which overrides any configuration; hooks, file
//!   system monitors and submodules are off. Received objects are not checked for style (`fetch.fsckObjects` stays the owner's
//!   choice): honest old repositories fail that check, and the readers here trust no tree anyway.
//! * **Nothing runs afterwards.** No background maintenance outlives a call: `fetch` packs by itself when it is time.

use std::path::Path;

use crate::exec::Program;

/// Variables that would point `git` at another repository or change its settings. The first part is what
/// `git rev-parse --local-env-vars` lists.
const REMOVED: &[&str] = &[
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_PARAMETERS",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_LITERAL_PATHSPECS",
    "GIT_NAMESPACE",
    "GIT_PROTOCOL_FROM_USER",
    "GIT_QUARANTINE_PATH",
    "GIT_TRACE_REDACT",
    "LANGUAGE",
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("GIT_ALLOW_PROTOCOL", "file:git:http:https:ssh"),
    ("GIT_TERMINAL_PROMPT", "0"),
    // A program that fails at once: `git` and `ssh` then say what they would have asked for.
    ("GIT_ASKPASS", "false"),
    ("SSH_ASKPASS", "false"),
    ("SSH_ASKPASS_REQUIRE", "force"),
    ("GCM_INTERACTIVE", "never"),
    // `trouble` reads the messages.
    ("LC_ALL", "C"),
];

const SETTINGS: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "gc.auto=0",
    "maintenance.auto=false",
    // Everything received stays one pack: Git flushes packs to disk before it names them, loose objects it does not.
    "fetch.unpackLimit=1",
    // HTTP that sends less than a kilobyte a second for half a minute has hung.
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=30",
];

/// Becoming a connection's master is left out: a master that stays behind would hold the output pipes open.
const SSH: &str = "core.sshCommand=ssh -o BatchMode=yes -o ControlMaster=no -o ConnectTimeout=10 \
                   -o ServerAliveInterval=15 -o ServerAliveCountMax=3";

/// `git` on a repository, or on none. The working directory is the root, so that no repository is found by chance.
pub(super) fn git(dir: Option<&Path>) -> Program {
    let dir = dir.unwrap_or(Path::new("/dev/null"));
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let mut program = Program::new("git").dir("/").arg("--git-dir").arg(dir).arg("--no-pager");
    for key in REMOVED {
        program = program.without(key);
    }
    for (key, value) in ENVIRONMENT {
        program = program.env(key, value);
    }
    for setting in SETTINGS {
        program = program.arg("-c").arg(setting);
    }
    if owner_has_ssh_command() { program } else { program.arg("-c").arg(SSH) }
}

/// A fetch of `refspecs`; prunes what they cover and the remote no longer has, if asked to.
pub(super) fn fetch(dir: &Path, remote: &str, refspecs: &[String], prune: bool) -> Program {
    git(Some(dir))
        .args(["fetch", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--no-progress"])
        .arg(if prune { "--prune" } else { "--no-prune" })
        .arg("--")
        .arg(remote)
        .args(refspecs)
}

/// Whether the user or system configuration names an `ssh` command; ours would override it.
fn owner_has_ssh_command() -> bool {
    git2::Config::open_default().is_ok_and(|config| config.get_entry("core.sshcommand").is_ok())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;

    /// What a hook's environment holds must not reach `git`: the list is compared with the installed Git's own.
    #[tokio::test]
    async fn variables_of_other_repositories_are_removed() -> Result<(), crate::exec::ExecError> {
        let listed = git(None)
            .args(["rev-parse", "--local-env-vars"])
            .output(Duration::from_secs(20), &CancellationToken::new())
            .await?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("GIT_DIR"), "{listed}");
        for name in listed.lines() {
            assert!(REMOVED.contains(&name), "{name} is not removed");
        }
        Ok(())
    }
}
