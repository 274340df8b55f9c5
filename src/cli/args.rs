//! The command line's grammar, and its help: each command has a line, a paragraph and an example.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::gate::args::GateArgs;

mod options;

pub use options::*;

const TEACH: &str = "\
First steps:
  refit demo      watch the whole story on this machine, in a minute
  refit init      look at this repository and write pipeline.toml
  refit doctor    see what is missing on this machine, and how to fix it
  refit deploy    put the newest commit live, here and now
  refit serve     wait for pushes and deploy each of them

Exit codes of deploy, rerun and rollback:
  0 live and healthy   1 stopped before anything changed   2 build failed
  3 migrate or start failed, the old version is live       4 smoke failed, rolled back
  5 rollback failed: a person is needed                    130 cancelled
Of every command:
  64 wrong usage   69 something needed is not there   75 busy   78 configuration error";

/// Turns `git push` into a safe deployment on your own server.
#[derive(Debug, Parser)]
#[command(
    name = "refit",
    version,
    after_help = TEACH,
    max_term_width = 100,
    disable_help_subcommand = true,
    long_about = "Turns `git push` into a safe deployment on your own server.\n\n\
        A push starts a pipeline: pull, backup, test, build, tag, migrate, start, smoke. At its end either the new version is \
        live and healthy, or the old one still is, and a report says which and why."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// The configuration; else `pipeline.toml` here or in the nearest directory above
    #[arg(short, long, global = true, value_name = "FILE", env = "REFIT_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Print without colours (also: NO_COLOR=1)
    #[arg(long, global = true)]
    pub no_color: bool,
    /// Say more on standard error; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch it work: four pushes of a small app on this machine, two of them bad
    ///
    /// Self-contained and offline. Makes a small web app in a temporary directory, starts a daemon, pushes four versions through the real
    /// hook and a signed webhook, shows after each what users see, and removes everything again. Uses Docker if it is there, else plain
    /// processes. Exits with 0 if every push ended as it should.
    #[command(
        after_help = "Example:\n  refit demo\n  refit demo --keep    # and look around\n  refit demo --chat    # with what Telegram would show"
    )]
    Demo(DemoArgs),

    /// Write a pipeline.toml for the repository in this directory
    ///
    /// Looks at the Dockerfile, the compose file and the Git remote, writes a configuration that works, makes a webhook secret, and
    /// says what to paste into GitHub. An existing file is left alone.
    #[command(
        after_help = "Example:\n  cd my-app && refit init && refit check\n  mkdir /srv/shop && cd /srv/shop && refit init --repository git@git.example:me/shop.git"
    )]
    Init(InitArgs),

    /// Validate the configuration and show what a push would do
    ///
    /// Reads pipeline.toml and what it includes, reports every problem with its line, and prints for each environment the branch,
    /// port, runtime and the stages that are on.
    #[command(
        after_help = "Example:\n  refit check\n  refit check --without-secrets    # in CI, where they are not set"
    )]
    Check(CheckArgs),

    /// Look for what is missing on this machine, with a fix beside each finding
    ///
    /// Checks Docker, Git and access to the repository, disk space, the state directory, the daemon, hooks, database containers and
    /// webhook secrets. Exits with 0 if nothing fails, else 69.
    #[command(
        after_help = "Example:\n  refit doctor\n  refit doctor --format json | jq '.[] | select(.status == \"fail\")'"
    )]
    Doctor(FormatArgs),

    /// Prepare this machine in one go; running it again changes nothing
    ///
    /// Checks Git, learns the remote's SSH host key, installs the hook in a local repository, and can write a sandboxed systemd unit.
    /// Says what it does before it does it.
    #[command(after_help = "Example:\n  refit setup --dry-run\n  sudo refit setup --systemd --user deploy --yes")]
    Setup(SetupArgs),

    /// Run the daemon: webhooks, hooks, the queue and the status pages
    ///
    /// Listens where [server] says, carries out one deployment an environment at a time, and asks the remotes now and then for pushes
    /// that nobody announced. Speaks systemd's notify protocol. SIGTERM lets running deployments finish; a second one undoes them.
    #[command(after_help = "Example:\n  refit serve\n  refit -c /srv/app/pipeline.toml serve")]
    Serve,

    /// Deploy now: the tip of the environment's branch, or a commit
    ///
    /// Goes through the running daemon, else works here under the same lock. Shows the stages as they happen and ends with the
    /// deployment's own exit code.
    ///
    /// Ctrl-C: without a daemon the deployment is cancelled and undone (a second Ctrl-C leaves at once; the next run recovers from the
    /// journal). With a daemon only the watching ends, with exit code 130; `refit cancel ID` stops the deployment.
    #[command(
        after_help = "Example:\n  refit deploy\n  refit deploy --env dev --ref feature/login\n  refit deploy --commit 0123456789 --detach"
    )]
    Deploy(DeployArgs),

    /// Deploy the same commit again
    ///
    /// Repeats a deployment, by default the newest of the environment: after a flaky test, or when something that was away is back. Ctrl-C
    /// works as in `refit deploy`.
    #[command(after_help = "Example:\n  refit rerun        # the newest\n  refit rerun 41")]
    Rerun(RerunArgs),

    /// Go back to a release that was live and healthy
    ///
    /// Starts the old release's own container again, with the settings it had; where the container is gone it is made again from its
    /// image. Nothing is built. By default it goes to the newest release before the live one. The old release is checked and watched
    /// like a new one; if it fails, what was live is started again and the deployment ends as `stuck`, exit code 5.
    ///
    /// Safety checks come first. An error stops the rollback before anything is changed (exit code 1), unless --force is given: so a
    /// healthy version is not rolled back by accident. Data stays as it is, unless --restore-data puts back the backup that was taken
    /// when the old release was replaced.
    #[command(
        after_help = "Example:\n  refit rollback --preview\n  refit rollback --reason \"orders fail since 14:00\"\n  refit rollback --to 41 \
                      --reason \"the last one without the new cart\" --force\n  refit rollback --undo --reason \"it was the database\""
    )]
    Rollback(RollbackArgs),

    /// Take, look at, put back and remove backups
    ///
    /// A deployment takes a backup before it changes anything; this is for all the rest. A set is a directory with a dump of each [[backup]]
    /// and a manifest with checksums and the commands that restore it without Refit.
    #[command(
        after_help = "Example:\n  refit backup list\n  refit backup create --reason \"before the upgrade\"\n  refit backup restore latest"
    )]
    Backup(super::backup::args::BackupArgs),

    /// Stop a queued or running deployment and undo what it did
    ///
    /// The deployment stops what it started (containers, processes), undoes its finished stages in reverse, and ends as `cancelled`. What
    /// was live stays live. Needs the daemon; a deployment that runs in a terminal is cancelled there, with Ctrl-C.
    #[command(after_help = "Example:\n  refit cancel 42")]
    Cancel(IdArgs),

    /// Let a deployment that waits for approval go on
    ///
    /// With `approval = true` a deployment stops before migrate until somebody has looked: `refit show ID` and its log tell what was
    /// tested and built. Any process can say yes; the one that runs the deployment hears it. Who said it, and when, is kept with the deployment.
    #[command(after_help = "Example:\n  refit status          # what waits, and until when\n  refit approve 42")]
    Approve(ApproveArgs),

    /// Say no to a deployment that waits for approval
    ///
    /// What it did is undone, and it ends as `failed`. What was live stays live. The reason is kept with the deployment.
    #[command(after_help = "Example:\n  refit reject 42 --reason \"not before the release on Monday\"")]
    Reject(ReasonArgs),

    /// Say that you have looked at a stuck deployment
    ///
    /// A deployment whose way back failed ends as `stuck`, and from then on nothing is deployed to its environment by itself; what you
    /// ask for by hand still is. Once users see a good version again, this lets pushes through, and the remote is asked at
    /// once for those that were held back.
    #[command(
        after_help = "Example:\n  refit resolve 42 --reason \"port 8000 was taken by a test server, stopped it\""
    )]
    Resolve(ReasonArgs),

    /// Look at SQL migrations, and apply them or take them back by hand
    ///
    /// For environments with `files` in `[migrate]`. A deployment applies what is pending by itself; by hand is for looking, for getting out of
    /// trouble, and for what must not wait for a deployment. The files are those of the branch's tip, or of --commit. Up, down and redo work here and now,
    /// and need the daemon to be stopped.
    #[command(
        after_help = "Example:\n  refit migrate status\n  refit migrate down --to 6 --env dev\n  refit migrate redo --yes"
    )]
    Migrate(MigrateArgs),

    /// Show what is live in each environment, and what happens now
    ///
    /// Works with and without a daemon, and changes nothing.
    #[command(after_help = "Example:\n  refit status\n  refit status --format json | jq '.[].live.commit'")]
    Status(StatusArgs),

    /// List deployments, the newest first
    ///
    /// Narrow it by app, environment, status and time. With --rollbacks it lists the releases that came back: those that somebody asked
    /// for, and those that Refit brought back when a deployment failed.
    #[command(
        after_help = "Example:\n  refit history --limit 5\n  refit history --env production --status rolled_back --since 7d\n  refit history --rollbacks --since 30d"
    )]
    History(HistoryArgs),

    /// Show one deployment, stage by stage
    ///
    /// With `--format json` it is the same object that the API gives.
    #[command(after_help = "Example:\n  refit show 42\n  refit show 42 --format json")]
    Show(ShowArgs),

    /// Print a deployment's log, and follow it as it grows
    ///
    /// By default the newest deployment. With -f it goes on until the deployment ends.
    #[command(after_help = "Example:\n  refit logs -f\n  refit logs 42 --stage build")]
    Logs(LogsArgs),

    /// Tell the story of one deployment: what, why, what was undone, what next
    ///
    /// Meant for people: to read, to mail, to paste into an issue.
    #[command(after_help = "Example:\n  refit report 42\n  refit report 42 --format markdown > incident.md")]
    Report(ReportArgs),

    /// Install, remove or serve the post-receive hook of a repository on this machine
    ///
    /// With the hook a push to a repository on this very machine is deployed at once, and its stages appear in the pusher's
    /// terminal.
    #[command(after_help = "Example:\n  refit hook install /srv/git/app.git")]
    Hook(HookArgs),

    /// Run the gate: the proxy that switches between versions and drops nothing
    ///
    /// It owns the public ports. Runs in the foreground until SIGTERM. It keeps its routes on disk and serves at once what was live when it starts again. With --take-over a new
    /// gate replaces the running one: the sockets are handed over, so no connection is refused meanwhile. The commands ask a running gate.
    #[command(
        after_help = "Example:\n  refit gate --state-dir /srv/gate\n  refit gate route shop/production --listen 0.0.0.0:8000 --to \
                      42=127.0.0.1:49152\n  refit gate status\n  refit gate --take-over    # after an upgrade of refit"
    )]
    Gate(Box<GateArgs>),

    /// Show a maintenance page in place of an app, or the app again
    ///
    /// Every request to the environment gets the page, with status 503, until `off`; what was begun is finished. The app goes on running. It needs the
    /// gate: `gate = true` or `strategy = "blue-green"` in [start]. Deployments go on behind it.
    #[command(
        after_help = "Example:\n  refit maintenance on --message \"back at 14:00\"\n  refit maintenance on --env staging\n  refit maintenance off"
    )]
    Maintenance(MaintenanceArgs),

    /// Try the bot, or find the id of its chat
    ///
    /// With a bot, a deployment is watched, approved and taken back from a chat. docs/telegram.md leads there in five minutes.
    #[command(
        after_help = "Example:\n  refit telegram chats    # after you have written to the bot\n  refit telegram test"
    )]
    Telegram(TelegramArgs),

    /// Print a completion script for a shell
    ///
    /// Put it where your shell looks for completions.
    #[command(after_help = "Example:\n  refit completions bash > ~/.local/share/bash-completion/completions/refit")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },

    /// Keep one process of the process runtime running; started by refit itself
    #[command(hide = true)]
    Supervise {
        /// The instance's directory
        dir: PathBuf,
    },

    /// The web server of the demo's app
    #[command(hide = true)]
    DemoApp(DemoAppArgs),
}
