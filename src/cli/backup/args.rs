//! The grammar of `refit backup`, and its help.

use clap::{Args, Subcommand};

use crate::cli::args::{FormatArgs, TargetArgs};

#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct BackupArgs {
    #[command(subcommand)]
    pub command: BackupCommand,
}

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Take a backup now
    ///
    /// Dumps everything that the environment's [[backup]] tables name into a new set, as a deployment does before it changes anything. Who asked and
    /// why is kept in the set. With --part only that is dumped, and the set says that the rest is not in it. Exits with 1 if something could not be backed up; the rest of the set is there then, unless a `required` part failed.
    #[command(
        after_help = "Example:\n  refit backup create --reason \"before the server is upgraded\"\n  refit backup create --part shop        # one [[backup]] alone\n  refit backup create --env dev --format json | jq -r .set"
    )]
    Create(CreateArgs),

    /// List the sets, the newest first
    ///
    /// Of every environment, unless one is named. KEPT FOR says why a set stays whatever the retention rule says. Works with and without a daemon.
    #[command(
        after_help = "Example:\n  refit backup list --env production --newer-than 7d\n  refit backup list --commit 0123456789 --format json"
    )]
    List(ListArgs),

    /// Show one set: what is in it, and how to restore it by hand
    ///
    /// Prints the manifest for people, with the command lines that put each part back with the database's own tools and no Refit.
    #[command(
        after_help = "Example:\n  refit backup show latest\n  refit backup show 2026-11-21_10-15-30 --format json"
    )]
    Show(OneArgs),

    /// See whether a set can be trusted
    ///
    /// By default every checksum, and what the dump says of itself; with --restore the set is restored into throw-away databases, and the
    /// rows of each table are compared with those that were counted when it was made. Nothing else is changed. The result is kept, and `refit
    /// status` shows it. Exits with 1 if the set is not good.
    #[command(
        after_help = "Example:\n  refit backup verify                # the newest\n  refit backup verify 2026-11-21_10-15-30 --restore"
    )]
    Verify(VerifyArgs),

    /// Put a set back
    ///
    /// The data as it is now is backed up first. Then the live version is stopped, the data exchanged, and the same version started and
    /// judged again, as a deployment of its own: if anything fails, or Refit is killed in the middle, the data is as it was before. Where nothing
    /// is live (a new machine) the data is put in place at once, or not at all. Asks for the environment's name, unless --yes is given.
    #[command(
        after_help = "Example:\n  refit backup restore latest --reason \"orders were deleted by mistake\"\n  refit backup restore \
                      2026-11-21_10-15-30 --part shop --yes"
    )]
    Restore(RestoreArgs),

    /// Remove sets by name
    ///
    /// All of those named, or none: not the last good copy of anything, nor a set that a kept release or an unfinished deployment goes
    /// back to (exit code 1).
    #[command(after_help = "Example:\n  refit backup delete 2026-11-21_10-15-30 --yes")]
    Delete(DeleteArgs),

    /// Remove what the retention rule (`keep`, `keep_days`) lets go
    ///
    /// Every deployment does this after its own backup. The last good copy of anything stays, and so does what a kept release goes back to.
    #[command(after_help = "Example:\n  refit backup prune --dry-run")]
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Only this [[backup]]; can be given several times
    #[arg(long = "part", value_name = "NAME")]
    pub parts: Vec<String>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Exit with 75 instead of waiting if a deployment holds the environment
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Only sets older than this: `90m`, `12h`, `7d`, or a date such as 2026-11-01
    #[arg(long, value_name = "TIME")]
    pub older_than: Option<String>,
    /// Only sets newer than this
    #[arg(long, value_name = "TIME")]
    pub newer_than: Option<String>,
    /// Only sets taken for this commit, in full or its beginning
    #[arg(long, value_name = "SHA")]
    pub commit: Option<String>,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct OneArgs {
    /// The set: its name as `list` has it, or `latest`
    pub set: String,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The set: its name as `list` has it; by default the newest
    pub set: Option<String>,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Restore it into something that is thrown away, and count
    #[arg(long, conflicts_with = "checksums")]
    pub restore: bool,
    /// Only the checksums
    #[arg(long)]
    pub checksums: bool,
    /// Exit with 75 instead of waiting if a deployment holds the environment
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The set: its name as `list` has it, or `latest`
    pub set: String,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Only this part of it; can be given several times
    #[arg(long = "part", value_name = "NAME")]
    pub parts: Vec<String>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Go on though the data as it is now cannot be backed up
    #[arg(long)]
    pub force: bool,
    /// Hand it to the daemon and return at once, where a version is live; else it is waited for
    #[arg(long)]
    pub detach: bool,
    /// Exit with 75 instead of waiting if a deployment holds the environment
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The sets: their names as `list` has them
    #[arg(required = true)]
    pub sets: Vec<String>,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Exit with 75 instead of waiting if a deployment holds the environment
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Exit with 75 instead of waiting if a deployment holds the environment
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}
