//! What each command takes beside the global options.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::{cli::gate::args::OnOff, model::Status};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For scripts
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    Text,
    Markdown,
    Json,
}

#[derive(Debug, Args)]
pub struct FormatArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Which environment is meant.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// The app; needed where the configuration has several
    #[arg(long, value_name = "NAME")]
    pub app: Option<String>,
    /// The environment; by default the only one, or `production`
    #[arg(long, alias = "environment", value_name = "NAME")]
    pub env: Option<String>,
}

/// Which commit is meant, where it is not the newest of the environment's branch.
#[derive(Debug, Args)]
pub struct RevisionArgs {
    /// A commit, in full or its beginning
    #[arg(long, value_name = "SHA", conflicts_with = "reference")]
    commit: Option<String>,
    /// A branch or tag; by default the environment's branch
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
}

impl RevisionArgs {
    pub fn named(&self) -> Option<&str> {
        self.commit.as_deref().or(self.reference.as_deref())
    }
}

/// How an acting command behaves.
#[derive(Debug, Args)]
pub struct ActArgs {
    /// Watch until the end (the default)
    #[arg(long, conflicts_with = "detach")]
    pub follow: bool,
    /// Hand the deployment to the daemon and return at once
    #[arg(long)]
    pub detach: bool,
    /// Exit with 75 instead of waiting if another deployment holds the environment
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Work in this directory, which must not exist yet; else in a temporary one
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave everything running at the end, to look around
    #[arg(long)]
    pub keep: bool,
    /// Show after each push what a Telegram chat would show of it; no message leaves this machine
    #[arg(long)]
    pub chat: bool,
    /// End and remove what an earlier `--keep` left in this directory
    #[arg(long, value_name = "DIR", conflicts_with_all = ["dir", "keep", "chat"])]
    pub clean: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DemoAppArgs {
    #[arg(long)]
    pub port: u16,
    /// The files that it serves
    #[arg(long)]
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Look at this repository, as `git clone` would be given it, and not at the one in this directory
    #[arg(long, value_name = "URL")]
    pub repository: Option<String>,
    /// The app's name; by default made from the repository's or the directory's
    #[arg(long)]
    pub name: Option<String>,
    /// Replace an existing pipeline.toml
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Accept secrets that are not set here
    #[arg(long)]
    pub without_secrets: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct SetupArgs {
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Answer yes to every question
    #[arg(long)]
    pub yes: bool,
    /// Make an SSH key without a passphrase if there is none, for use as a deploy key
    #[arg(long)]
    pub ssh_key: bool,
    /// Write a systemd unit for `refit serve`
    #[arg(long)]
    pub systemd: bool,
    /// The user that the unit runs as; by default the one who runs setup
    #[arg(long, value_name = "NAME", requires = "systemd")]
    pub user: Option<String>,
    /// Where the unit goes
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system", requires = "systemd")]
    pub unit_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct DeployArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub revision: RevisionArgs,
    #[command(flatten)]
    pub act: ActArgs,
}

#[derive(Debug, Args)]
pub struct RerunArgs {
    /// The deployment's number; by default the newest of the environment
    pub id: Option<i64>,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub act: ActArgs,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct RollbackArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Go to the release of this deployment
    #[arg(long, value_name = "ID", group = "which")]
    pub to: Option<i64>,
    /// Go to the release of this commit, in full or its beginning
    #[arg(long, value_name = "SHA", group = "which", allow_hyphen_values = true)]
    pub commit: Option<String>,
    /// Go to this version, such as `guestbook:0123456789`, or its tag
    #[arg(long, value_name = "TAG", group = "which")]
    pub version: Option<String>,
    /// Go forward again, to what was live before the last rollback
    #[arg(long, group = "which")]
    pub undo: bool,
    /// Why; for the record and the report
    #[arg(long, value_name = "TEXT", required_unless_present = "preview")]
    pub reason: Option<String>,
    /// Only show what would change; changes nothing
    #[arg(long, conflicts_with_all = ["follow", "detach", "no_wait", "force"])]
    pub preview: bool,
    /// Go on though a safety check says no
    #[arg(long)]
    pub force: bool,
    /// Put the data back as well, as it was when the release was replaced; what is there now is backed up first
    #[arg(long)]
    pub restore_data: bool,
    /// Do not ask before data is put back
    #[arg(long)]
    pub yes: bool,
    /// A service of the app; an app is one service in this version
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    #[command(flatten)]
    pub act: ActArgs,
}

#[derive(Debug, Args)]
pub struct IdArgs {
    /// The deployment's number, as `refit history` shows it
    pub id: i64,
}

#[derive(Debug, Args)]
pub struct ApproveArgs {
    #[command(flatten)]
    pub id: IdArgs,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Debug, Args)]
pub struct ReasonArgs {
    #[command(flatten)]
    pub id: IdArgs,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct MaintenanceArgs {
    /// Begin or end
    #[arg(value_enum)]
    pub state: OnOff,
    #[command(flatten)]
    pub target: TargetArgs,
    /// A sentence for the page
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Rollbacks: what came back, why, and who was told
    #[arg(long)]
    pub rollbacks: bool,
    /// Only deployments (or rollbacks) in this state, such as `failed` or `rolled_back`
    #[arg(long, value_name = "STATUS", value_parser = clap::builder::PossibleValuesParser::new(Status::ALL.iter().map(|s| s.as_str())))]
    pub status: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: u32,
    /// Not older than this: `90m`, `12h`, `7d`, or a date such as 2026-11-01
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pub id: IdArgs,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The deployment's number; by default the newest
    pub id: Option<i64>,
    /// Go on until the deployment ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only the lines of one stage
    #[arg(long, value_name = "STAGE", value_parser = clap::builder::PossibleValuesParser::new(crate::model::Stage::ALL.iter().map(|s| s.as_str())))]
    pub stage: Option<String>,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    #[command(flatten)]
    pub id: IdArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
}

#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct TelegramArgs {
    #[command(subcommand)]
    pub command: TelegramCommand,
}

#[derive(Debug, Subcommand)]
pub enum TelegramCommand {
    /// Send a message to the chat, edit it and delete it again
    ///
    /// Says of each step whether it works, and what to do if not: a wrong token, a bot that is not in the chat or may not write
    /// there, a topic that is missing. Exits with 0 if all work, else 69.
    #[command(
        after_help = "Example:\n  refit telegram test\n  refit telegram test --format json | jq '.[] | select(.ok | not)'"
    )]
    Test(FormatArgs),
    /// List the chats in which somebody has said something to the bot
    ///
    /// Write to the bot first, or add it to a group and say /start@its_name there. Works before there is a configuration, with the token in an
    /// environment variable. Takes no message away from the daemon, and refuses to ask while one listens.
    #[command(
        after_help = "Example:\n  TELEGRAM_API_TOKEN=… refit telegram chats\n  refit telegram chats --format json | jq '.[].chat'"
    )]
    Chats {
        #[command(flatten)]
        target: TelegramTarget,
        #[command(flatten)]
        format: FormatArgs,
    },
}

/// A bot that is not configured yet.
#[derive(Debug, Args)]
pub struct TelegramTarget {
    /// The environment variable with the token, where [telegram] has none
    #[arg(long, value_name = "NAME", default_value = "TELEGRAM_API_TOKEN")]
    pub token_env: String,
    /// Another server of the Bot API, where [telegram] names none
    #[arg(long, value_name = "URL", default_value = "https://api.telegram.org")]
    pub api_url: String,
}

#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct HookArgs {
    #[command(subcommand)]
    pub command: HookCommand,
}

#[derive(Debug, Subcommand)]
pub enum HookCommand {
    /// Write the post-receive hook into a bare repository
    ///
    /// The hook announces each push to the daemon and shows the stages to the pusher. It never fails a push: if the daemon is away,
    /// it says so, and the push is found later. `git config refit.hook.follow false` in the repository turns the watching off.
    #[command(after_help = "Example:\n  refit hook install /srv/git/app.git --chain")]
    Install {
        #[command(flatten)]
        place: HookPlace,
        /// Keep an existing hook: it is renamed to post-receive.local and called first
        #[arg(long)]
        chain: bool,
    },
    /// Remove the hook again; a hook that was kept with --chain gets its name back
    ///
    /// Removes nothing but what `refit hook install` wrote.
    #[command(after_help = "Example:\n  refit hook uninstall /srv/git/app.git")]
    Uninstall {
        #[command(flatten)]
        place: HookPlace,
    },
    /// What the hook calls: reads `old new ref` lines from standard input
    #[command(hide = true)]
    Receive {
        #[arg(long)]
        app: String,
        /// Do not wait for the deployments
        #[arg(long)]
        no_follow: bool,
    },
}

#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct MigrateArgs {
    #[command(subcommand)]
    pub command: MigrateCommand,
}

#[derive(Debug, Subcommand)]
pub enum MigrateCommand {
    /// Show each migration: applied, pending, edited, missing or dirty
    ///
    /// Asks the database and reads the files of a commit; changes nothing.
    #[command(
        after_help = "Example:\n  refit migrate status\n  refit migrate status --commit 0123456789 --format json"
    )]
    Status(MigrateStatusArgs),
    /// Apply what is pending
    ///
    /// Everything is checked before anything is applied. A backup is taken first.
    #[command(after_help = "Example:\n  refit migrate up\n  refit migrate up --to 7 --no-backup")]
    Up(MigrateActArgs),
    /// Take migrations back with their `.down.sql`, the newest first
    ///
    /// Without --to it is the newest one; with it, everything above that number (0: everything). A backup is taken first.
    #[command(after_help = "Example:\n  refit migrate down\n  refit migrate down --to 6 --commit 0123456789 --yes")]
    Down(MigrateActArgs),
    /// Take migrations back and apply them again
    ///
    /// For one that is being written: down as `refit migrate down`, then up again.
    #[command(after_help = "Example:\n  refit migrate redo --env dev --yes")]
    Redo(MigrateActArgs),
}

/// Whose files.
#[derive(Debug, Args)]
pub struct MigrateFilesArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub revision: RevisionArgs,
}

#[derive(Debug, Args)]
pub struct MigrateStatusArgs {
    #[command(flatten)]
    pub files: MigrateFilesArgs,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct MigrateActArgs {
    #[command(flatten)]
    pub files: MigrateFilesArgs,
    /// Up to and with this number; of down and redo: down to it
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i64).range(0..))]
    pub to: Option<i64>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Take no backup first
    #[arg(long)]
    pub no_backup: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct HookPlace {
    /// The repository's directory; by default the app's repository, if it is on this machine
    pub repository: Option<PathBuf>,
    /// The app; needed where the configuration has several
    #[arg(long, value_name = "NAME")]
    pub app: Option<String>,
}
