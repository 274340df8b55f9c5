//! `refit init`: looks at a repository, the one in the current directory or the one that was named, and writes a configuration that works.
//!
//! `look` finds out (Dockerfile, compose file, Git); `write` turns the findings into text; this file touches the disk. What is written
//! is loaded back before it counts, so that `refit check` cannot disagree.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    args::InitArgs,
    context::{CONFIG_FILE, Context, current_dir},
    error::{CliError, Result, exit},
};
use crate::{
    config::{LoadOptions, MissingSecrets, load_with},
    files,
};

mod look;
mod write;

/// Relative to the configuration.
const SECRET_FILE: &str = ".refit/github-webhook-secret";

/// Directories of Refit's own, which do not belong into the repository.
const IGNORED: [&str; 3] = ["/.refit/", "/logs/", "/backups/"];

pub async fn run(context: &Context, args: &InitArgs) -> Result<u8> {
    let dir = current_dir()?;
    let file = dir.join(CONFIG_FILE);
    if file.exists() && !args.force {
        return Err(CliError::usage(
            format!("{} exists already", file.display()),
            "`refit check` to see what it does, or --force to replace it",
        ));
    }
    let found = match &args.repository {
        None => look::at(&dir, args.name.as_deref()).await?,
        Some(address) => look_at_remote(address, &dir, args.name.as_deref()).await?,
    };
    let text = write::configuration(&found);
    let made_secret = make_secret(&dir.join(SECRET_FILE))?;
    save(&file, &text)?;
    let ignored = if found.in_git { ignore(&dir)? } else { Vec::new() };
    context.print(&write::next_steps(&found, &written(&dir, made_secret, &ignored)))?;
    Ok(exit::OK)
}

async fn look_at_remote(address: &str, dir: &Path, name: Option<&str>) -> Result<look::Found> {
    let scratch = dir.join(format!(".refit-init-{}", std::process::id()));
    files::make_private_dir(&scratch).map_err(|e| CliError::io(format!("making {}", scratch.display()), e))?;
    let found = look::remote(address, dir, &scratch, name).await;
    // What is left of it would be found by its name; the look is what matters.
    let _ = fs::remove_dir_all(&scratch);
    found
}

/// Writes the file and proves that it is valid; a file that is not is a bug here, and is taken away again.
fn save(file: &Path, text: &str) -> Result<()> {
    let before = fs::read(file).ok();
    files::write_atomically(file, text.as_bytes(), 0o644)
        .map_err(|e| CliError::io(format!("writing {}", file.display()), e))?;
    let options = LoadOptions { env: &|_| None, missing_secrets: MissingSecrets::Error };
    load_with(file, options).map(|_| ()).map_err(|errors| {
        // Best effort: the errors below are what matters.
        let _ = match before {
            Some(before) => files::write_atomically(file, &before, 0o644),
            None => fs::remove_file(file),
        };
        CliError::from(errors)
    })
}

/// 32 random bytes in hexadecimal, readable by the owner only. An existing secret stays: GitHub may know it already.
fn make_secret(file: &Path) -> Result<bool> {
    let failed = |e: &dyn std::fmt::Display| CliError::io(format!("writing {}", file.display()), e);
    if fs::metadata(file).is_ok_and(|found| found.len() > 0) {
        return Ok(false);
    }
    if let Some(dir) = file.parent() {
        files::make_private_dir(dir).map_err(|e| failed(&e))?;
    }
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|e| failed(&e))?;
    files::write_atomically(file, format!("{}\n", hex::encode(bytes)).as_bytes(), 0o600).map_err(|e| failed(&e))?;
    Ok(true)
}

/// Adds what is missing to `.gitignore`; returns it.
fn ignore(dir: &Path) -> Result<Vec<&'static str>> {
    let file = dir.join(".gitignore");
    let before = fs::read_to_string(&file).unwrap_or_default();
    let has = |entry: &str| {
        let bare = entry.trim_matches('/');
        before.lines().any(|line| line.trim().trim_matches('/').trim_end_matches("/*") == bare)
    };
    let missing: Vec<&str> = IGNORED.iter().copied().filter(|entry| !has(entry)).collect();
    if !missing.is_empty() {
        let gap = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
        let text = format!("{before}{gap}{}\n", missing.join("\n"));
        files::write_atomically(&file, text.as_bytes(), 0o644)
            .map_err(|e| CliError::io(format!("writing {}", file.display()), e))?;
    }
    Ok(missing)
}

fn written(dir: &Path, made_secret: bool, ignored: &[&str]) -> Vec<(PathBuf, String)> {
    let mut written = vec![(dir.join(CONFIG_FILE), "what happens on a push".to_owned())];
    let secret = if made_secret { "a new webhook secret, for you alone" } else { "the webhook secret that was there" };
    written.push((dir.join(SECRET_FILE), secret.to_owned()));
    if !ignored.is_empty() {
        written.push((dir.join(".gitignore"), format!("now ignores {}", ignored.join(" "))));
    }
    written
}
