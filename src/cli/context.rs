//! What every command needs: the terminal, the configuration, the store. The process environment is read here and nowhere deeper.

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;

use super::{
    args::{Global, TargetArgs},
    error::{CliError, Result, output},
    style::{Clock, Paint},
};
use crate::{
    config::{self, Config, LoadOptions, MissingSecrets},
    control::Options,
    fault::Faults,
    model::{DeploymentId, DeploymentView, EnvironmentKey},
    registry::{Filter, Registry},
};

/// The configuration's usual name.
pub const CONFIG_FILE: &str = "pipeline.toml";

#[derive(Debug, Clone)]
pub struct Context {
    named_config: Option<PathBuf>,
    /// For standard output.
    pub paint: Paint,
    /// For standard error.
    pub paint_errors: Paint,
    /// Whether standard error can show moving progress.
    pub live: bool,
    /// Columns of standard output, where it is a terminal.
    pub width: Option<u16>,
    pub clock: Clock,
}

impl Context {
    pub fn new(global: &Global) -> Self {
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let width = comfy_table::Table::new().width().filter(|width| *width >= 40);
        Self {
            named_config: global.config.clone(),
            paint: Paint::new(out && may_color(global.no_color)),
            paint_errors: Paint::new(err && may_color(global.no_color)),
            live: err && env::var_os("TERM").is_none_or(|term| term != "dumb"),
            width,
            clock: Clock::system(),
        }
    }

    /// The same terminal, with another configuration.
    pub fn with_config(&self, file: PathBuf) -> Self {
        Self { named_config: Some(file), clock: Clock::system(), ..self.clone() }
    }

    /// The named file, or the nearest `pipeline.toml` here or above, as Git looks for its repository.
    pub fn config_file(&self) -> Result<PathBuf> {
        let here = current_dir()?;
        if let Some(named) = &self.named_config {
            return Ok(here.join(named));
        }
        here.ancestors().map(|dir| dir.join(CONFIG_FILE)).find(|file| file.is_file()).ok_or_else(|| CliError::Failed {
            message: format!("there is no {CONFIG_FILE} in {} or above it", here.display()),
            hint: Some("`refit init` in your repository, or name a file with --config FILE".to_owned()),
            code: config::ConfigErrors::EXIT_CODE,
        })
    }

    pub fn config(&self, missing_secrets: MissingSecrets) -> Result<Arc<Config>> {
        let env = |name: &str| env::var(name).ok();
        let config = config::load_with(&self.config_file()?, LoadOptions { env: &env, missing_secrets })?;
        super::logging::mask_with(&config.redactor);
        Ok(Arc::new(config))
    }

    /// For commands that only read: secrets that are not set in this shell do not matter to them.
    pub fn config_to_read(&self) -> Result<Arc<Config>> {
        self.config(MissingSecrets::Ignore)
    }

    pub fn options(&self) -> Result<Options> {
        let program = env::current_exe().map_err(|e| CliError::io("finding refit's own program file", e))?;
        let docker_host = env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
        Ok(Options { docker_host, program, faults: faults()? })
    }

    /// Writes to standard output.
    pub fn print(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| output(&e))
    }

    pub fn print_json(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|e| CliError::io("writing JSON", e))?;
        self.print(&(text + "\n"))
    }

    /// A line on standard error, for what is no result. Nobody listening is no error.
    pub fn say(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Asks on standard error for a line; `None` where nobody can answer.
    pub fn ask(&self, question: &str) -> Option<String> {
        if !io::stdin().is_terminal() {
            return None;
        }
        let _ = write!(io::stderr().lock(), "{question}");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).ok().map(|_| answer.trim().to_owned())
    }

    /// Asks on standard error; `false` where nobody can answer.
    pub fn confirm(&self, question: &str) -> bool {
        if !io::stdin().is_terminal() {
            return false;
        }
        let _ = write!(io::stderr().lock(), "{question} [y/N] ");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
    }
}

/// The store, for reading; an error where nothing was ever deployed.
pub async fn open_registry(config: &Config) -> Result<Registry> {
    let found = Registry::open_existing(&config.server.registry()).await?;
    found.ok_or_else(|| {
        CliError::usage(format!("nothing was deployed yet with {}", config.file.display()), "`refit deploy`")
    })
}

/// One deployment by its number.
pub async fn find_deployment(registry: &Registry, id: i64) -> Result<DeploymentView> {
    let found = registry.deployment(DeploymentId(id)).await?;
    found.ok_or_else(|| CliError::usage(format!("there is no deployment {id}"), "`refit history` lists them"))
}

/// The newest deployment of what was named, or of everything.
pub async fn newest_deployment(registry: &Registry, target: &TargetArgs) -> Result<DeploymentView> {
    let filter = Filter { limit: Some(1), ..filter(target) };
    let found = registry.deployments(&filter).await?.into_iter().next();
    found.ok_or_else(|| {
        CliError::usage("there is no such deployment yet", "`refit history` lists all, `refit deploy` makes one")
    })
}

pub fn filter(target: &TargetArgs) -> Filter {
    Filter { app: target.app.clone(), environment: target.env.clone(), ..Filter::default() }
}

/// Names on the command line that the configuration does not know are an error, and never an empty answer.
pub fn check_target(config: &Config, target: &TargetArgs) -> Result<()> {
    if target.app.is_none() && target.env.is_none() {
        return Ok(());
    }
    match (&target.app, &target.env) {
        (None, Some(env)) if config.environments().any(|e| e.key.environment.as_str() == env) => Ok(()),
        (Some(app), None) if config.app(app).is_some() => Ok(()),
        (app, env) => Ok(config.environment(app.as_deref(), env.as_deref()).map(|_| ())?),
    }
}

/// Whether a key is what was asked for.
pub fn is_wanted(key: &EnvironmentKey, target: &TargetArgs) -> bool {
    target.app.as_deref().is_none_or(|app| app == key.app.as_str())
        && target.env.as_deref().is_none_or(|env| env == key.environment.as_str())
}

pub fn current_dir() -> Result<PathBuf> {
    env::current_dir().map_err(|e| CliError::io("finding the current directory", e))
}

/// Who gives the command, for the record.
pub fn user() -> Option<String> {
    ["SUDO_USER", "LOGNAME", "USER"].iter().find_map(|name| env::var(name).ok()).filter(|user| !user.is_empty())
}

/// `REFIT_FAULT`, for the tests: a release build has no such door.
fn faults() -> Result<Faults> {
    match env::var("REFIT_FAULT") {
        Ok(order) if cfg!(debug_assertions) => {
            Faults::parse(&order).map_err(|why| CliError::usage(format!("REFIT_FAULT: {why}"), "see src/fault.rs"))
        }
        _ => Ok(Faults::default()),
    }
}

/// The home directory, where one is set.
pub fn home() -> Option<PathBuf> {
    env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
}

/// The log file of a deployment; a relative one is in the logs directory.
pub fn log_file(config: &Config, view: &DeploymentView) -> Option<PathBuf> {
    view.log.as_ref().map(|log| config.server.logs_dir.join(Path::new(log)))
}

fn may_color(refused: bool) -> bool {
    let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    !refused && !set("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb")
}
