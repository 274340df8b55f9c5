//! The words every room uses: names, commits, stages, statuses, and a deployment as people and scripts see it.
//!
//! Nothing here does input or output. Values that come from outside (names, commit ids, refs) can only be made through
//! a checking constructor, so a room that receives one need not check it again.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Why a value from outside was refused: the value (shortened) and the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{value}` {rule}")]
pub struct InvalidValue {
    pub what: &'static str,
    pub value: String,
    pub rule: &'static str,
}

impl InvalidValue {
    fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        let value = value.chars().take(80).flat_map(char::escape_default).collect();
        Self { what, value, rule }
    }
}

/// A name of an app, an environment or a test suite. It becomes part of container names, image names, paths and URLs,
/// so the rule is the strictest of theirs, which is Docker's for repositories: words of `[a-z0-9]` joined by `-`, `--`, …, `_` or `__`; at
/// most 40 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let rule = "may have only lower-case letters and digits, joined by `-` or `_`, and be 1 to 40 long";
        let joined = |joint: &str| matches!(joint, "_" | "__") || joint.bytes().all(|b| b == b'-');
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let whole = text.starts_with(is_word) && text.ends_with(is_word);
        if whole && text.split(is_word).all(joined) && text.len() <= 40 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidValue::new("name", text, rule))
        }
    }
}

/// A full commit id: 40 lower-case hexadecimal digits (SHA-1 repositories), never all zero.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId(String);

impl CommitId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first ten digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..10]
    }
}

impl FromStr for CommitId {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let hex = text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !hex {
            return Err(InvalidValue::new("commit", text, "is not 40 lower-case hexadecimal digits"));
        }
        if text.bytes().all(|b| b == b'0') {
            return Err(InvalidValue::new("commit", text, "is all zeros: it stands for a deleted branch"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A branch name that Git would accept (`git check-ref-format`) and that is safe to show and to pass after `--`:
/// no leading `-`, no control characters, no shell or glob metacharacters Git itself forbids.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Branch(String);

impl Branch {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The branch of a `refs/heads/…` reference; `None` for tags and anything else.
    pub fn of_reference(reference: &str) -> Option<Result<Self, InvalidValue>> {
        reference.strip_prefix("refs/heads/").map(str::parse)
    }
}

impl FromStr for Branch {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let bad_char = |c: char| {
            c.is_control()
                || c.is_whitespace()
                || matches!(
                    c,
                    '~' | '^'
                        | ':'
                        | '?'
                        | '*'
                        | '['
                        | '\\'
                        | '$'
                        | '`'
                        | ';'
                        | '&'
                        | '|'
                        | '<'
                        | '>'
                        | '"'
                        | '\''
                        | '('
                        | ')'
                        | '{'
                        | '}'
                        | '!'
                )
        };
        let bad_part = |p: &str| p.is_empty() || p.starts_with('.') || p.ends_with(".lock");
        let rule = if text.starts_with('-') {
            "starts with `-`"
        } else if text.is_empty() || text.len() > 200 {
            "must be 1 to 200 characters long"
        } else if text.chars().any(bad_char)
            || text.contains("..")
            || text.contains("@{")
            || text == "@"
            || text.ends_with('.')
        {
            "has characters that a branch name may not have"
        } else if text.split('/').any(bad_part) {
            "has an empty part, or a part that starts with `.` or ends with `.lock`"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(InvalidValue::new("branch", text, rule))
    }
}

macro_rules! text_value {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidValue;
            fn try_from(text: String) -> Result<Self, InvalidValue> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0
            }
        }
    )*};
}
text_value!(Name, CommitId, Branch);

/// An environment of an app: the unit that has one live release and runs one deployment at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EnvironmentKey {
    pub app: Name,
    pub environment: Name,
}

impl fmt::Display for EnvironmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.environment)
    }
}

/// A deployment's number. It counts up in one state directory and is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeploymentId(pub i64);

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! text_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant),* }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = InvalidValue;
            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                match text {
                    $($text => Ok($name::$variant),)*
                    _ => Err(InvalidValue::new(stringify!($name), text, concat!("is none of", $(" `", $text, "`",)*))),
                }
            }
        }
    };
}

text_enum! {
    /// The eight stages, in the order in which they are undone backwards.
    Stage {
        Pull = "pull",
        Backup = "backup",
        Test = "test",
        Build = "build",
        Tag = "tag",
        Migrate = "migrate",
        Start = "start",
        Smoke = "smoke",
    }
}

text_enum! {
    /// Where a deployment is. All but `queued`, `running` and `awaiting_approval` are end states.
    Status {
        Queued = "queued",
        Running = "running",
        /// Everything before migrate is done, and a person has to say yes.
        AwaitingApproval = "awaiting_approval",
        /// The new version is live and healthy.
        Succeeded = "succeeded",
        /// Ended before anything changed for users.
        Failed = "failed",
        /// Something had changed, and the old version is live again.
        RolledBack = "rolled_back",
        /// An undo failed: a person is needed.
        Stuck = "stuck",
        /// A newer push took its place before it began.
        Superseded = "superseded",
        Cancelled = "cancelled",
        /// A rule said that there is nothing to deploy.
        Skipped = "skipped",
    }
}

impl Status {
    pub fn is_end(self) -> bool {
        !matches!(self, Status::Queued | Status::Running | Status::AwaitingApproval)
    }
}

text_enum! {
    /// Where one stage of a deployment is.
    StageStatus {
        Pending = "pending",
        Running = "running",
        Succeeded = "succeeded",
        /// It failed, and the deployment goes on (a backup that is not required).
        Warned = "warned",
        Failed = "failed",
        /// Nothing to do, or not configured.
        Skipped = "skipped",
        Undone = "undone",
        UndoFailed = "undo_failed",
    }
}

text_enum! {
    /// Which door a deployment came through.
    TriggerKind {
        Github = "github",
        Hook = "hook",
        Cli = "cli",
        Rerun = "rerun",
        /// Found by asking the remote: the push was never announced.
        Reconcile = "reconcile",
        Telegram = "telegram",
        Api = "api",
        /// `refit rollback`: the deployment brings a release back.
        Rollback = "rollback",
        /// `refit backup restore`: the deployment puts data back under the release that is live.
        Restore = "restore",
    }
}

text_enum! {
    /// Why a release came back.
    RollbackKind {
        /// To the release before the live one.
        Previous = "previous",
        /// To one that was named.
        Specific = "specific",
        /// By Refit itself, because a deployment failed.
        Automatic = "automatic",
        /// Forward again, to what was live before the last rollback.
        Undo = "undo",
        /// To the release that is live, with the data of a backup.
        Restore = "restore",
    }
}

impl TriggerKind {
    /// Whether a person asked for exactly this deployment, so that the rules for pushes (already deployed, older than
    /// live, paths, `[skip ci]`) do not apply.
    pub fn is_explicit(self) -> bool {
        matches!(self, Self::Cli | Self::Rerun | Self::Telegram | Self::Api | Self::Rollback | Self::Restore)
    }

    /// Whether an order in the registry says what is to be brought back: a release, data, or both.
    pub fn has_order(self) -> bool {
        matches!(self, Self::Rollback | Self::Restore)
    }
}

/// Who asked for a deployment, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    pub kind: TriggerKind,
    /// The pusher's or the operator's name, as the door knows it; for display only.
    pub by: Option<String>,
    /// The delivery id that a Git host gave.
    pub delivery: Option<String>,
    /// The push said that it replaced history: it may take the branch back to a commit that was live before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
}

/// One stage of a deployment as JSON shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageView {
    pub name: Stage,
    pub status: StageStatus,
    pub started_at: Option<Timestamp>,
    pub duration_ms: Option<i64>,
    /// What the stage recorded: its shape is documented in the stage's file.
    pub output: Option<serde_json::Value>,
    pub error: Option<String>,
}

text_enum! {
    /// Where the approval of a deployment is.
    ApprovalState {
        Waiting = "waiting",
        Approved = "approved",
        Rejected = "rejected",
        /// Nobody said anything in time.
        Expired = "expired",
        /// The deployment was cancelled before anybody said anything.
        Cancelled = "cancelled",
    }
}

/// What was said to a deployment that asked for approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalView {
    pub state: ApprovalState,
    /// Who said it, why, and when; nobody while it waits.
    pub by: Option<String>,
    pub reason: Option<String>,
    pub at: Option<Timestamp>,
    pub requested_at: Timestamp,
    pub expires_at: Timestamp,
}

/// That a person has looked at a stuck deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    pub by: String,
    pub reason: String,
    pub at: Timestamp,
}

/// A release that came back, or was to: asked for by a person, or done by Refit when a deployment failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackEvent {
    /// The deployment that did it: a rollback of its own, or the one that failed.
    pub id: DeploymentId,
    pub app: Name,
    pub environment: Name,
    #[serde(rename = "type")]
    pub kind: RollbackKind,
    /// Of the rollback: `succeeded` where a deployment ended `rolled_back`.
    pub status: Status,
    pub reason: Option<String>,
    /// Nobody, where Refit did it by itself.
    pub by: Option<String>,
    pub from: Option<DeploymentId>,
    pub to: Option<DeploymentId>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// When its report was sent.
    pub notified_at: Option<Timestamp>,
}

/// A deployment as every door shows it. The fields and their names are a contract (design, section 8).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeploymentView {
    pub id: DeploymentId,
    pub app: Name,
    pub environment: Name,
    /// Unknown until the ref of a deployment by ref has been fetched.
    pub commit: Option<CommitId>,
    /// `refs/heads/main`, or what a person named.
    #[serde(rename = "ref")]
    pub reference: String,
    pub trigger: Trigger,
    pub status: Status,
    pub failed_stage: Option<Stage>,
    pub error: Option<String>,
    /// The exit code of `refit deploy` for this end (design, section 8); none while it runs.
    pub exit_code: Option<u8>,
    pub queued_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub duration_ms: Option<i64>,
    pub stages: Vec<StageView>,
    /// The digest that was built (or the release directory's name for the process runtime).
    pub image: Option<String>,
    /// The deployment that was live when this one began.
    pub previous: Option<DeploymentId>,
    /// The backup set, relative to the backups directory.
    pub backup: Option<String>,
    /// Whether this deployment is what users see now.
    pub live: bool,
    /// First line of the commit's message and its author, once known.
    pub subject: Option<String>,
    pub author: Option<String>,
    /// The log file.
    pub log: Option<String>,
    /// What was undone, and what could not be, in the order it happened.
    pub undone: Vec<String>,
    /// Bytes that retention gave back at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freed: Option<u64>,
    /// What it was asked to bring back; `previous` is what it was to leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackView>,
    /// The releases that went then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<DeploymentId>,
    /// Where its environment asks for approval, once it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalView>,
    /// Of a stuck one: that a person has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Resolution>,
}

impl RollbackView {
    /// The set of a restore by hand: the release that is live stays, and only data goes back.
    pub fn restored_set(&self) -> Option<&str> {
        self.restore.as_deref().filter(|_| self.kind == RollbackKind::Restore)
    }
}

/// A rollback that somebody asked for, as its deployment shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackView {
    pub kind: RollbackKind,
    /// The deployment whose release comes back.
    pub to: DeploymentId,
    pub reason: String,
    /// Asked for though a safety check said no.
    pub forced: bool,
    /// The backup set that is put back; data stays as it is where unset.
    pub restore: Option<String>,
    /// Only these parts of it; all where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Name>,
    /// The safety checks as they were when it was asked for: see `rollback::Check`.
    pub checks: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for bad in ["", "..", "a/b", "-a", "a b", "A", "a;b", "a$b", "é", "a-", "_a", "a-_b", "a___b", &"a".repeat(41)]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        assert_eq!("guest--book__2".parse::<Name>().map(String::from), Ok("guest--book__2".to_owned()));
    }

    #[test]
    fn commits_must_be_whole() {
        let zero = "0".repeat(40);
        for bad in
            ["abc1234", "-bc1234567890123456789012345678901234567", zero.as_str(), &"g".repeat(40), &"A".repeat(40)]
        {
            assert!(bad.parse::<CommitId>().is_err(), "{bad:?}");
        }
        assert!("0123456789abcdef0123456789abcdef01234567".parse::<CommitId>().is_ok());
    }

    #[test]
    fn branches_follow_gits_rules() {
        for bad in [
            "main;touch${IFS}owned",
            "--upload-pack=x",
            "a..b",
            "a b",
            "a/.b",
            "a//b",
            "x.lock",
            "@",
            "a@{b",
            "a\nb",
            "$(x)",
        ] {
            assert!(bad.parse::<Branch>().is_err(), "{bad:?}");
        }
        for good in ["main", "feature/one-2", "v1.2", "bücher", "user@host"] {
            assert!(good.parse::<Branch>().is_ok(), "{good:?}");
        }
    }
}
