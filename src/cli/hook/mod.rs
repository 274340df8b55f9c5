//! `refit hook`: the post-receive hook of a repository on this machine.
//!
//! `install` writes `hooks/post-receive` (one text, in this program and in the repository's root) with three values filled in.
//! `receive` is what the hook calls: it announces the push and shows the deployments to the pusher.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    args::{HookCommand, HookPlace},
    context::Context,
    error::{CliError, Result, exit},
};
use crate::{
    config::{App, Config},
    files,
};

mod receive;

const SCRIPT: &str = include_str!("../../../hooks/post-receive");

/// What only our hook contains.
const MARK: &str = "Written by `refit hook install`";

pub async fn run(context: &Context, command: HookCommand) -> Result<u8> {
    match command {
        HookCommand::Receive { app, no_follow } => return Box::pin(receive::run(context, &app, !no_follow)).await,
        HookCommand::Install { place, chain } => {
            let config = context.config_to_read()?;
            let app = app(&config, place.app.as_deref())?;
            let file = hook_file(&place, app)?;
            let done = install(&file, &config.file, app, &context.options()?.program, chain)?;
            context.print(&format!("{done} {}\n", file.display()))?;
        }
        HookCommand::Uninstall { place } => {
            // The configuration is only needed to find the repository.
            let file = match &place.repository {
                Some(dir) => hook_of(dir)?,
                None => {
                    let config = context.config_to_read()?;
                    hook_file(&place, app(&config, place.app.as_deref())?)?
                }
            };
            context.print(&format!("{} {}\n", uninstall(&file)?, file.display()))?;
        }
    }
    Ok(exit::OK)
}

/// The app that is meant; its name may be left out where there is one.
fn app<'a>(config: &'a Config, name: Option<&str>) -> Result<&'a App> {
    match (name, &config.apps[..]) {
        (Some(name), _) => config.app(name).map(AsRef::as_ref).ok_or_else(|| {
            CliError::usage(format!("there is no app `{}`", name.escape_default()), "`refit check` lists them")
        }),
        (None, [only]) => Ok(only),
        (None, _) => Err(CliError::usage("there are several apps", "--app NAME; `refit check` lists them")),
    }
}

fn hook_file(place: &HookPlace, app: &App) -> Result<PathBuf> {
    match (&place.repository, local_repository(&app.repository)) {
        (Some(dir), _) => hook_of(dir),
        (None, Some(dir)) => hook_of(&dir),
        (None, None) => Err(CliError::usage(
            format!("{} is not on this machine, so a hook cannot be installed into it", app.repository),
            "`refit hook install DIR` for a repository here, or a webhook (`refit init` says how)",
        )),
    }
}

/// The directory of a repository on this machine.
pub fn local_repository(repository: &str) -> Option<PathBuf> {
    let path = repository.strip_prefix("file://").unwrap_or(repository);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// The hook's place in a repository, bare or with a work tree.
pub fn hook_of(repository: &Path) -> Result<PathBuf> {
    let is_git_dir = |dir: &Path| dir.join("HEAD").is_file() && dir.join("objects").is_dir();
    let inner = repository.join(".git");
    let dir = [repository, &inner].into_iter().find(|dir| is_git_dir(dir)).ok_or_else(|| {
        CliError::usage(
            format!("{} is no Git repository", repository.display()),
            "`git init --bare` makes one to push to",
        )
    })?;
    let dir = dir.canonicalize().map_err(|e| CliError::io(format!("finding {}", dir.display()), e))?;
    Ok(dir.join("hooks").join("post-receive"))
}

/// Whether a hook is there that is not ours, ours, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    No,
    Ours,
    Another,
}

pub fn installed(file: &Path) -> Installed {
    match fs::read(file) {
        Ok(text) if String::from_utf8_lossy(&text).contains(MARK) => Installed::Ours,
        Ok(_) => Installed::Another,
        Err(_) => Installed::No,
    }
}

/// Says what it did, to be followed by the file's name.
pub fn install(file: &Path, config: &Path, app: &App, program: &Path, chain: bool) -> Result<&'static str> {
    let failed = |e: std::io::Error| CliError::io(format!("writing {}", file.display()), e);
    let earlier = file.with_extension("local");
    let text = script(program, config, app.name.as_str())?;
    let mut done = "installed";
    match installed(file) {
        Installed::No => {}
        Installed::Ours if fs::read(file).is_ok_and(|old| old == text.as_bytes()) => return Ok("is already there:"),
        Installed::Ours => done = "updated",
        Installed::Another if !chain => {
            return Err(CliError::usage(
                format!("{} is there already, and is not ours", file.display()),
                "--chain to keep it: it is renamed to post-receive.local and called first",
            ));
        }
        Installed::Another if earlier.exists() => {
            return Err(CliError::usage(
                format!("{} is there already, so the hook cannot be renamed to it", earlier.display()),
                "look at both hooks and remove one",
            ));
        }
        Installed::Another => {
            fs::rename(file, &earlier).map_err(failed)?;
            done = "installed, before which the earlier hook is called:";
        }
    }
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    files::write_atomically(file, text.as_bytes(), 0o755).map_err(failed)?;
    Ok(done)
}

fn uninstall(file: &Path) -> Result<&'static str> {
    let failed = |e: std::io::Error| CliError::io(format!("removing {}", file.display()), e);
    match installed(file) {
        Installed::No => return Ok("there is no"),
        Installed::Another => {
            return Err(CliError::usage(
                format!("{} was not written by `refit hook install`", file.display()),
                "remove it by hand if you are sure",
            ));
        }
        Installed::Ours => fs::remove_file(file).map_err(failed)?,
    }
    let earlier = file.with_extension("local");
    if earlier.exists() {
        fs::rename(&earlier, file).map_err(failed)?;
        return Ok("removed, and the earlier hook put back:");
    }
    Ok("removed")
}

fn script(program: &Path, config: &Path, app: &str) -> Result<String> {
    let text = |path: &Path| {
        path.to_str().map(shell_quoted).ok_or_else(|| {
            CliError::usage(
                format!("{} is not UTF-8, and cannot be written into a hook", path.display()),
                "another path",
            )
        })
    };
    // Each line by itself, so that a path with `@APP@` in it stays what it is.
    let line = |line: &str| {
        Ok(match line {
            "refit=@REFIT@" => format!("refit={}", text(program)?),
            "config=@CONFIG@" => format!("config={}", text(config)?),
            "app=@APP@" => format!("app={}", shell_quoted(app)),
            other => other.to_owned(),
        })
    };
    Ok(SCRIPT.lines().map(line).collect::<Result<Vec<_>>>()?.join("\n") + "\n")
}

/// A word that a POSIX shell reads back as it is.
pub fn shell_quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn odd_paths_reach_the_shell_as_they_are() {
        let odd = "/a b/$(touch owned)`x`'\"\\@APP@/\n/refit";
        let text = script(Path::new(odd), Path::new(odd), "app").unwrap_or_default();
        let head: String =
            text.split("pushed=").next().unwrap_or_default().to_owned() + "printf '%s|%s' \"$refit\" \"$app\"";
        let out = Command::new("sh").arg("-c").arg(head).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), format!("{odd}|app"));
    }

    #[test]
    fn only_repositories_here_are_local() {
        assert_eq!(local_repository("file:///srv/a.git"), Some(PathBuf::from("/srv/a.git")));
        assert_eq!(local_repository("/srv/a.git"), Some(PathBuf::from("/srv/a.git")));
        assert_eq!(local_repository("git@host:a.git"), None);
    }
}
