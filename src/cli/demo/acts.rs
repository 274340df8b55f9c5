//! The four pushes, each through a real door, and whether each ended as the story says.

use std::{future::Future, time::Duration};

use futures_util::StreamExt;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio_util::sync::CancellationToken;

use super::{
    scene::{self, Scene, heading},
    stopped, stopped_or,
    visitors::{self, Seen, Visitors},
    voice::Voice,
};
use crate::{
    cli::{
        client::Daemon,
        error::{CliError, Result},
        progress::{Line, Narrator},
        style::{Tone, clip, took, words},
    },
    control::Update,
    model::{CommitId, DeploymentId, DeploymentView, Stage, Status, TriggerKind},
    registry::{Filter, Registry},
};

/// For one push, from `git push` to the end of its deployment. It takes seconds.
const ACT_LIMIT: Duration = Duration::from_secs(90);

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How a push is announced to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Hook,
    Webhook,
}

impl Door {
    fn kind(self) -> TriggerKind {
        match self {
            Self::Hook => TriggerKind::Hook,
            Self::Webhook => TriggerKind::Github,
        }
    }

    pub fn words(self) -> &'static str {
        match self {
            Self::Hook => "post-receive hook",
            Self::Webhook => "signed webhook",
        }
    }
}

/// One push, and how it has to end.
#[derive(Debug, Clone, Copy)]
pub struct Act {
    pub title: &'static str,
    about: &'static str,
    pub subject: &'static str,
    page_title: &'static str,
    greeting: &'static str,
    pub door: Door,
    status: Status,
    failed_stage: Option<Stage>,
    exit_code: u8,
    /// The version on the page that users get in the end.
    users_see: &'static str,
}

const TITLE: &str = "<title>Guests</title>";

pub const ACTS: [Act; 4] = [
    Act {
        title: "A good version",
        about: "Pushed to a repository on this machine. Its post-receive hook tells the daemon, and the stages come back to the \
                pusher's terminal:",
        subject: "Greet the world",
        page_title: TITLE,
        greeting: "Hello, {{name}}! This is version 1.",
        door: Door::Hook,
        status: Status::Succeeded,
        failed_stage: None,
        exit_code: 0,
        users_see: "version 1",
    },
    Act {
        title: "A better version",
        about: "This time the hook is taken out, and the push is announced as GitHub would do it: by a webhook with a signature.",
        subject: "Welcome everybody",
        page_title: TITLE,
        greeting: "Hello and welcome, {{name}}! This is version 2.",
        door: Door::Webhook,
        status: Status::Succeeded,
        failed_stage: None,
        exit_code: 0,
        users_see: "version 2",
    },
    Act {
        title: "A version whose tests fail",
        about: "The page has lost its title, and a test asks for one. Nothing may change for users:",
        subject: "Tidy the page up",
        page_title: "",
        greeting: "Hello and welcome, {{name}}! This is version 3.",
        door: Door::Hook,
        status: Status::Failed,
        failed_stage: Some(Stage::Test),
        exit_code: 1,
        users_see: "version 2",
    },
    Act {
        title: "A version that passes its tests and is broken all the same",
        about: "The template asks for {{visitor}}, which nobody fills in. The tests do not notice; the smoke check reads the page \
                that users would get, while they still get the old version:",
        subject: "Greet the visitor by name",
        page_title: TITLE,
        greeting: "Hello again, {{visitor}}! This is version 4.",
        door: Door::Hook,
        status: Status::RolledBack,
        failed_stage: Some(Stage::Start),
        exit_code: 3,
        users_see: "version 2",
    },
];

/// How it went.
#[derive(Debug)]
pub struct Played {
    pub deployment: DeploymentView,
    /// The page's heading, as a user gets it; empty where nobody answers.
    pub page: String,
    pub live: Option<DeploymentId>,
    pub seen: Seen,
    /// What is not as the story says.
    pub differences: Vec<String>,
}

/// What every act needs.
#[derive(Debug)]
pub struct Stagehands<'a> {
    pub scene: &'a Scene,
    pub voice: Voice<'a>,
    pub http: &'a reqwest::Client,
    pub cancel: &'a CancellationToken,
    pub visitors: &'a Visitors,
}

impl Stagehands<'_> {
    /// `good`: the newest deployment that succeeded.
    pub async fn play(&self, n: usize, act: &Act, good: Option<DeploymentId>) -> Result<Played> {
        self.voice.heading(n, act.title)?;
        self.voice.paragraph(act.about)?;
        let page = scene::page(act.page_title, act.greeting);
        let commit = self.scene.commit(&page, act.subject, self.cancel).await?;
        self.voice.line(&format!("commit {}  {}", commit.short(), act.subject))?;
        let announced = async {
            match act.door {
                Door::Hook => self.push().await?,
                Door::Webhook => self.push_with_webhook(&commit).await?,
            }
            self.ended(&commit).await
        };
        let deployment = self.within(act.title, announced).await?;
        let played = self.look(act, deployment, good).await?;
        self.tell(&played)?;
        if act.door == Door::Webhook {
            self.voice.blank()?;
            self.refit(&["hook", "install"]).await?;
        }
        Ok(played)
    }

    async fn within<T>(&self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = tokio::time::timeout(ACT_LIMIT, work) => done.unwrap_or_else(|_| {
                Err(CliError::unavailable(
                    format!("\"{what}\" did not end within {} s", ACT_LIMIT.as_secs()),
                    "`refit demo --keep`, and look at daemon.log in its directory",
                ))
            }),
            () = self.cancel.cancelled() => Err(stopped()),
        }
    }

    /// A line of what happens, and beside it, every now and then, what visitors notice of it.
    fn says(&self, line: &str) -> Result<()> {
        match self.visitors.count_to_show() {
            Some(count) => self.voice.output_beside(line, &count.to_string()),
            None => self.voice.output(line),
        }
    }

    async fn push(&self) -> Result<()> {
        self.voice.command("git push origin main")?;
        let git = self.scene.program("git").args(["push", "origin", "main"]).dir(self.scene.work());
        let mut shown = Ok(());
        let pushed = git.stream(ACT_LIMIT, self.cancel, |line| shown = self.says(line)).await;
        shown?;
        match pushed {
            Ok(done) if done.success() => Ok(()),
            Ok(done) => Err(CliError::io("`git push` failed", done.stderr.join("; "))),
            Err(error) => Err(stopped_or(self.cancel, &error)),
        }
    }

    async fn push_with_webhook(&self, commit: &CommitId) -> Result<()> {
        self.refit(&["hook", "uninstall"]).await?;
        self.push().await?;
        let body = self.payload(commit);
        let signature = signature(&self.scene.secret, body.as_bytes())?;
        let delivery = format!("demo-{}", commit.short());
        self.voice.command(&format!("POST {}", self.scene.hook_url()))?;
        self.voice.output("X-GitHub-Event: push")?;
        self.voice.output(&format!("X-Hub-Signature-256: {}", clip(&signature, 24)))?;
        let answer = self
            .http
            .post(self.scene.hook_url())
            .header("content-type", "application/json")
            .header("x-github-event", "push")
            .header("x-github-delivery", delivery)
            .header("x-hub-signature-256", signature)
            .body(body)
            .send()
            .await
            .map_err(|e| CliError::io("sending the webhook", e))?;
        let status = answer.status();
        if status.as_u16() != 202 {
            let said = answer.text().await.unwrap_or_default();
            return Err(CliError::io("the daemon did not take the webhook", format!("{status} {}", clip(&said, 200))));
        }
        self.voice.output(&format!("answered {status}: it is on disk, and nothing will lose it"))?;
        self.follow(commit).await
    }

    /// What GitHub sends, as far as it is read.
    fn payload(&self, commit: &CommitId) -> String {
        serde_json::json!({
            "ref": "refs/heads/main",
            "before": "0".repeat(40),
            "after": commit,
            "created": false, "deleted": false, "forced": false,
            "repository": { "full_name": format!("demo/{}", self.scene.record.app) },
            "pusher": { "name": "ada" },
            "head_commit": { "id": commit, "message": "", "timestamp": jiff::Timestamp::now() },
        })
        .to_string()
    }

    /// Shows the stages as they happen.
    async fn follow(&self, commit: &CommitId) -> Result<()> {
        let id = self.deployment_of(commit).await?.id;
        self.voice.command(&format!("refit logs -f {id}"))?;
        let daemon = Daemon::connect(&self.scene.state_dir().join("refit.sock")).await;
        let daemon = daemon.ok_or_else(|| CliError::io("the daemon", "it does not answer on its socket"))?;
        let mut narrator = Narrator::new(id);
        let mut updates = daemon.follow(id, 0);
        while let Some(update) = updates.next().await {
            let Update::Event(recorded) = update? else { break };
            if let Some(Line::Says { text, .. }) = narrator.line(&recorded)
                && !text.is_empty()
            {
                self.says(&text)?;
            }
        }
        Ok(())
    }

    async fn registry(&self) -> Result<Registry> {
        let found = Registry::open_existing(&self.scene.state_dir().join("refit.db")).await?;
        found.ok_or_else(|| CliError::io("reading the daemon's records", "there are none yet"))
    }

    /// The deployment of a commit, once the queue has made it.
    async fn deployment_of(&self, commit: &CommitId) -> Result<DeploymentView> {
        let registry = self.registry().await?;
        let filter = Filter { commit: Some(commit.clone()), limit: Some(1), ..Filter::default() };
        loop {
            if let Some(found) = registry.deployments(&filter).await?.into_iter().next() {
                return Ok(found);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn ended(&self, commit: &CommitId) -> Result<DeploymentView> {
        loop {
            let found = self.deployment_of(commit).await?;
            if found.status.is_end() {
                return Ok(found);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Runs one of our own commands for its effect.
    pub async fn refit(&self, args: &[&str]) -> Result<()> {
        self.voice.command(&format!("refit {}", args.join(" ")))?;
        let mut shown = Ok(());
        let ran = self.scene.refit(args).stream(ACT_LIMIT, self.cancel, |line| shown = self.voice.output(line)).await;
        shown?;
        match ran {
            Ok(done) if done.success() => Ok(()),
            Ok(done) => Err(CliError::io(format!("`refit {}` failed", args.join(" ")), done.stderr.join("; "))),
            Err(error) => Err(stopped_or(self.cancel, &error)),
        }
    }

    /// What is so now, against what the story says.
    async fn look(&self, act: &Act, deployment: DeploymentView, good: Option<DeploymentId>) -> Result<Played> {
        let page = visitors::page(self.http, &self.scene.page_url()).await.unwrap_or_default();
        let live = self.registry().await?.live(&self.scene.key()?).await?.map(|release| release.deployment);
        let wanted_live = if act.status == Status::Succeeded { Some(deployment.id) } else { good };
        let mut differences = Vec::new();
        let mut compare = |what: &str, is: String, wanted: String| {
            if is != wanted {
                differences.push(format!("{what} is {is}, and should be {wanted}"));
            }
        };
        compare("the status", deployment.status.to_string(), act.status.to_string());
        compare("the failed stage", stage(deployment.failed_stage), stage(act.failed_stage));
        compare("the exit code", code(deployment.exit_code), act.exit_code.to_string());
        compare("the trigger", format!("{:?}", deployment.trigger.kind), format!("{:?}", act.door.kind()));
        compare("the live deployment", number(live), number(wanted_live));
        if !page.contains(act.users_see) || !scene::is_whole(&page) {
            differences.push(format!("users see \"{}\", and should see {}", heading(&page), act.users_see));
        }
        let page = heading(&page).to_owned();
        let seen = self.visitors.take().await;
        if seen.failed + seen.broken > 0 {
            differences.push(format!("{} requests failed, and none should", seen.failed + seen.broken));
        }
        Ok(Played { deployment, page, live, seen, differences })
    }

    fn tell(&self, played: &Played) -> Result<()> {
        let view = &played.deployment;
        let (tone, mark) = match view.status {
            Status::Succeeded => (Tone::Good, "✔"),
            Status::RolledBack | Status::Failed => (Tone::Warn, "✘"),
            _ => (Tone::Bad, "✘"),
        };
        let place = view.failed_stage.map(|stage| format!(" in {stage}")).unwrap_or_default();
        let end = match view.status {
            Status::Failed => format!("failed{place}, before anything changed"),
            Status::RolledBack => format!("failed{place} and was rolled back"),
            other => words(other.as_str()) + &place,
        };
        let time = took(view.duration_ms.unwrap_or_default());
        let text = format!("{mark} deployment {} {end}: exit code {}, after {time}", view.id, code(view.exit_code));
        self.voice.blank()?;
        self.voice.toned(tone, &text)?;
        let live = played.live.map_or_else(|| "nothing is live".to_owned(), |id| format!("deployment {id} is live"));
        let page = if played.page.is_empty() { "no page".to_owned() } else { format!("\"{}\"", played.page) };
        self.voice.fact("users see", &format!("{page}  ({live})"))?;
        self.voice.fact("meanwhile", &played.seen.words())?;
        for difference in &played.differences {
            self.voice.toned(Tone::Bad, &format!("this is not how the story goes: {difference}"))?;
        }
        Ok(())
    }
}

/// `sha256=…`, as GitHub signs.
fn signature(secret: &str, body: &[u8]) -> Result<String> {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).map_err(|e| CliError::io("signing the webhook", e))?;
    Ok(format!("sha256={}", hex::encode(mac.chain_update(body).finalize().into_bytes())))
}

fn stage(stage: Option<Stage>) -> String {
    stage.map_or_else(|| "none".to_owned(), |stage| stage.to_string())
}

fn number(id: Option<DeploymentId>) -> String {
    id.map_or_else(|| "none".to_owned(), |id| id.to_string())
}

pub fn code(code: Option<u8>) -> String {
    code.map_or_else(|| "none".to_owned(), |code| code.to_string())
}
