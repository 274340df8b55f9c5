//! `refit setup`: prepares this machine in one go.
//!
//! Each step looks first, says what it would do, and does only what is missing, so that a second run changes nothing and `--dry-run`
//! is the same walk without the last part. A step that cannot be done is told and does not stop the others.

use std::{fmt, path::Path, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    args::SetupArgs,
    context::Context,
    error::{CliError, Result, exit},
    hook::{Installed, hook_of, install, installed, local_repository},
};
use crate::{config::Config, exec::Program, files};

mod ssh;
mod unit;

/// What became of a step.
#[derive(Debug)]
enum Step {
    /// It was so already.
    There(String),
    Done(String),
    /// With `--dry-run`.
    Would(String),
    /// Somebody else has to do it, or said no.
    Left {
        what: String,
        fix: String,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::There(what) => write!(f, "there    {what}"),
            Self::Done(what) => write!(f, "done     {what}"),
            Self::Would(what) => write!(f, "would    {what}"),
            Self::Left { what, fix } => write!(f, "to do    {what}\n         try: {fix}"),
        }
    }
}

pub async fn run(context: &Context, args: &SetupArgs) -> Result<u8> {
    let config = context.config_to_read()?;
    let git = super::doctor::git_is_there().await;
    report(
        context,
        &match git {
            Ok(version) => Step::There(version),
            Err(why) => Step::Left { what: why, fix: "`apt-get install git`".to_owned() },
        },
    )?;
    for step in directories(&config, args).await {
        report(context, &step)?;
    }
    let hosts = ssh::hosts(&config);
    if !hosts.is_empty() || args.ssh_key {
        report(context, &ssh::key(args).await)?;
    }
    for host in hosts {
        report(context, &ssh::known_host(context, args, &host).await)?;
    }
    for step in hooks(context, &config, args)? {
        report(context, &step)?;
    }
    if args.systemd {
        for step in unit::write(context, &config, args)? {
            report(context, &step)?;
        }
    }
    context.print("\n`refit doctor` checks the rest\n")?;
    Ok(exit::OK)
}

fn report(context: &Context, step: &Step) -> Result<()> {
    context.print(&format!("{step}\n"))
}

/// The daemon's directories: under the unit's sandbox it could not make them itself.
async fn directories(config: &Config, args: &SetupArgs) -> Vec<Step> {
    let server = &config.server;
    let mut steps = Vec::new();
    for (dir, of) in [(&server.state_dir, "state"), (&server.backups_dir, "backups"), (&server.logs_dir, "logs")] {
        let what = format!("the {of} directory {}", dir.display());
        steps.push(if dir.is_dir() {
            Step::There(what)
        } else if args.dry_run {
            Step::Would(format!("make {what}"))
        } else {
            match make_dir(dir, args.user.as_deref()).await {
                Ok(()) => Step::Done(what),
                Err(why) => {
                    Step::Left { what: format!("{what}: {why}"), fix: format!("`mkdir -m 700 {}`", dir.display()) }
                }
            }
        });
    }
    steps
}

/// Makes a directory that belongs to `user`, and to nobody else.
async fn make_dir(dir: &Path, user: Option<&str>) -> std::result::Result<(), String> {
    files::make_private_dir(dir).map_err(|e| e.to_string())?;
    let Some(user) = user else { return Ok(()) };
    let program = Program::new("chown").arg("--").arg(format!("{user}:")).arg(dir);
    let done = program.output(Duration::from_secs(10), &CancellationToken::new()).await.map_err(|e| e.to_string())?;
    if done.success() { Ok(()) } else { Err(done.stderr.join(" ")) }
}

/// The hook of every app whose repository is on this machine.
fn hooks(context: &Context, config: &Config, args: &SetupArgs) -> Result<Vec<Step>> {
    let program = context.options()?.program;
    let mut steps = Vec::new();
    for app in &config.apps {
        let Some(dir) = local_repository(&app.repository) else { continue };
        steps.push(match hook_of(&dir) {
            Err(error) => left(&error, &dir),
            Ok(file) => match installed(&file) {
                Installed::Another => Step::Left {
                    what: format!("{} is another hook", file.display()),
                    fix: format!("`refit hook install {} --chain` keeps it and calls it first", dir.display()),
                },
                _ if args.dry_run => Step::Would(format!("install {}", file.display())),
                _ => match install(&file, &config.file, app, &program, false) {
                    Ok("is already there:") => Step::There(format!("the hook {}", file.display())),
                    Ok(done) => Step::Done(format!("{done} {}", file.display())),
                    Err(error) => left(&error, &file),
                },
            },
        });
    }
    Ok(steps)
}

fn left(error: &CliError, place: &Path) -> Step {
    match error {
        CliError::Failed { message, hint, .. } => Step::Left {
            what: message.clone(),
            fix: hint.clone().unwrap_or_else(|| format!("look at {}", place.display())),
        },
        other => Step::Left { what: format!("{}: {other:?}", place.display()), fix: "look at it".to_owned() },
    }
}
