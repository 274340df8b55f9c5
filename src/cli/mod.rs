//! Commands: one file each.
//!
//! [`main`] reads the arguments, hands them to a command, and turns what comes back into an exit code; every error passes through
//! [`error::CliError::render`] on its way out. Commands that read open the store themselves and need no daemon. Commands that
//! act go through [`hands`]: the daemon where one answers, else this process under the same lock.
//!
//! Results go to standard output, everything else (progress, errors, questions) to standard error, so that `--format json`
//! can be piped while somebody watches.

use std::{
    ffi::OsString,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

use clap::{ColorChoice, CommandFactory, FromArgMatches, error::ErrorKind};

mod approve;
mod args;
mod backup;
mod cancel;
mod check;
pub mod client;
mod completions;
mod context;
mod demo;
mod deploy;
mod doctor;
mod error;
mod follow;
mod gate;
mod hands;
mod history;
mod hook;
mod init;
mod logging;
mod logs;
mod maintenance;
mod migrate;
mod outputs;
mod progress;
mod report;
mod resolve;
mod rollback;
mod rollbacks;
#[cfg(test)]
mod sample;
pub mod serve;
mod setup;
mod show;
mod status;
mod story;
mod style;
mod telegram;

use args::{Cli, Command};
use context::Context;
use error::{CliError, Result, exit};

/// The whole program: `args` begins with its own name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    logging::install_panic_hook();
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match parse(&args) {
        Ok(cli) => cli,
        Err(error) => return told_by_clap(&error),
    };
    // A supervisor lives as long as its app: it gets neither a runtime nor a configuration that it does not need.
    if let Command::Supervise { dir } = &cli.command {
        return crate::runtime::process::supervisor::run(dir).into();
    }
    let context = Context::new(&cli.global);
    let usual = match &cli.command {
        Command::Serve => "info",
        // Whatever a stranger sends is worth a line to pingora; the gate has its own words for what matters.
        Command::Gate(args) if args.command.is_none() => "info,pingora_core=off,pingora_proxy=off",
        _ => "warn",
    };
    logging::install(cli.global.verbose, usual, context.live && context.paint_errors.is_on());
    // Fails only if a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ran = catch_unwind(AssertUnwindSafe(|| run(&context, cli.command)));
    let code = match ran {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            let text = logging::mask(&error.render(context.paint_errors.is_on()));
            let _ = io::stderr().lock().write_all(text.as_bytes());
            error.exit_code()
        }
        // The panic hook has told it.
        Err(_) => exit::SOFTWARE,
    };
    code.into()
}

fn parse(args: &[OsString]) -> std::result::Result<Cli, clap::Error> {
    let mut command = Cli::command();
    if args.iter().any(|arg| arg == "--no-color") {
        command = command.color(ColorChoice::Never);
    }
    Cli::from_arg_matches(&command.try_get_matches_from(args)?)
}

/// Help and version are results; everything else is wrong usage.
fn told_by_clap(error: &clap::Error) -> ExitCode {
    let code = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::OK,
        _ => exit::USAGE,
    };
    // The reader may have gone away: then there is nobody to tell.
    let _ = error.print();
    code.into()
}

fn run(context: &Context, command: Command) -> Result<u8> {
    let runtime = make_runtime(&command).map_err(|e| CliError::io("starting the runtime", e))?;
    let code = runtime.block_on(Box::pin(dispatch(context, command)));
    // What is still running (a stopped follower's connection, a read of standard input) ends with the process.
    runtime.shutdown_background();
    code
}

fn make_runtime(command: &Command) -> io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Command::Gate(args) = command
        && let Some(threads) = args.run.threads
    {
        builder.worker_threads(usize::from(threads));
    }
    builder.enable_all().build()
}

/// The exit code of a command that did its work.
async fn dispatch(context: &Context, command: Command) -> Result<u8> {
    match command {
        Command::Demo(args) => Box::pin(demo::run(context, &args)).await,
        Command::DemoApp(args) => demo::app::run(&args).await,
        Command::Init(args) => init::run(context, &args).await,
        Command::Check(args) => check::run(context, &args),
        Command::Doctor(args) => doctor::run(context, &args).await,
        Command::Setup(args) => setup::run(context, &args).await,
        Command::Serve => serve_daemon(context).await,
        Command::Deploy(args) => deploy::run(context, args).await,
        Command::Rerun(args) => deploy::rerun(context, args).await,
        Command::Rollback(args) => Box::pin(rollback::run(context, args)).await,
        Command::Backup(args) => Box::pin(backup::run(context, args)).await,
        Command::Cancel(args) => cancel::run(context, &args).await,
        Command::Approve(args) => approve::approve(context, args).await,
        Command::Reject(args) => approve::reject(context, args).await,
        Command::Resolve(args) => resolve::run(context, args).await,
        Command::Migrate(args) => Box::pin(migrate::run(context, args.command)).await,
        Command::Status(args) => status::run(context, &args).await,
        Command::History(args) => history::run(context, &args).await,
        Command::Show(args) => show::run(context, &args).await,
        Command::Logs(args) => logs::run(context, &args).await,
        Command::Report(args) => report::run(context, &args).await,
        Command::Telegram(args) => Box::pin(telegram::run(context, args.command)).await,
        Command::Hook(args) => hook::run(context, args.command).await,
        Command::Gate(args) => Box::pin(gate::run(context, *args)).await,
        Command::Maintenance(args) => maintenance::run(context, args).await,
        Command::Completions { shell } => completions::run(context, shell),
        // Handled before there was a runtime.
        Command::Supervise { .. } => Ok(exit::OK),
    }
}

async fn serve_daemon(context: &Context) -> Result<u8> {
    let config = context.config(crate::config::MissingSecrets::Error)?;
    match serve::run(config, context.options()?).await {
        Ok(()) => Ok(exit::OK),
        Err(error) => Err(CliError::Failed { message: error.to_string(), hint: error.hint(), code: error.exit_code() }),
    }
}
