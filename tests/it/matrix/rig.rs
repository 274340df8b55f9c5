//! An app all of whose eight stages do something, and a daemon that is told where to break.

use std::{collections::BTreeMap, fs, path::PathBuf};

use refit::{
    model::{CommitId, DeploymentId, DeploymentView, EnvironmentKey, StageStatus, Status},
    registry::{Filter, Registry},
};

use super::world;
use crate::support::{Site, disk::Disk, docker, poll};

/// What a push brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Good,
    /// Healthy, and its smoke check fails: everything is undone.
    Bad,
}

/// How a faulty run is watched; nothing here asserts, so that one run's violation does not hide the next one's.
#[derive(Debug)]
pub struct Rig {
    pub site: Site,
    pub key: EnvironmentKey,
    runtime: tokio::runtime::Runtime,
    /// What the start page of each commit says.
    pages: BTreeMap<CommitId, String>,
    pushes: u32,
    /// The configuration says where these are.
    pub state: PathBuf,
    pub backups: PathBuf,
    pub logs: PathBuf,
    /// A step was ordered to be done twice: the migration's command may have run twice for one deployment.
    pub repeats: bool,
    /// Docker was away at the end of a success: what tests and steps left is cleared away by the next deployment.
    pub untidy: bool,
    /// Where Docker is looked at: past what may be in between for Refit.
    engine: Option<String>,
    log_from: usize,
}

const EXTRA: &str = r#"
[[backup]]
kind = "sqlite"
path = "data.db"
[[test]]
name = "unit"
target = "app"
run = "sh /app/test.sh"
[migrate]
run = "sh /app/migrate.sh"
[smoke]
bake = "50ms"
interval = "20ms"
[[smoke.check]]
http = "/"
contains = ["version"]
[rollback]
keep = 1
"#;

/// A migration as tools do it: what the database says was applied is not applied again. `runs` counts how often the command ran.
const MIGRATE: &str = "\
v=$(cat /app/www/index.html)
echo \"$v\" >> /ledger/runs
grep -qxF \"$v\" /ledger/applied 2>/dev/null || echo \"$v\" >> /ledger/applied
";

/// Ends at once when asked to.
const APP: &str = "trap 'exit 0' TERM\nhttpd -f -p 8080 -h /app/www &\nwait\n";

impl Rig {
    /// With nothing live, and no daemon.
    pub fn new() -> Self {
        Self::with(Site::docker(), None)
    }

    /// Two versions run side by side, and the gate moves the traffic. A bad version fails once it has the traffic: its check names the public address.
    pub fn gated() -> Self {
        let rig = Self::new();
        rig.site.edit_config("strategy = \"recreate\"\n", "strategy = \"blue-green\"\n");
        let public = format!("http = \"http://127.0.0.1:{}/\"\ncontains", rig.site.port);
        rig.site.edit_config("http = \"/\"\ncontains", &public);
        rig
    }

    /// State, backups and logs are on a small disk of their own.
    pub fn with_disk() -> (Self, Disk) {
        let site = Site::docker();
        let disk = Disk::mount(&site.path().join("disk"), "size=48m,mode=0755");
        (Self::with(site, Some("disk")), disk)
    }

    fn with(site: Site, disk: Option<&str>) -> Self {
        let site = site.with(EXTRA);
        let ledger = site.path().join("ledger");
        let temporary = site.path().join("tmp");
        for dir in [&ledger, &temporary] {
            fs::create_dir(dir).expect("a directory");
        }
        site.edit_config(
            "stop_timeout = \"2s\"",
            &format!(
                "stop_timeout = \"2s\"\ncommand = \"sh /app/run.sh\"\nvolumes = [\"{}:/ledger\"]",
                ledger.display()
            ),
        );
        let base = disk.map_or_else(|| site.path().to_owned(), |disk| site.path().join(disk));
        let state = base.join(".refit");
        if let Some(disk) = disk {
            site.edit_config(
                "reconcile = \"0s\"",
                &format!(
                    "reconcile = \"0s\"\nmin_free_space = \"0\"\nstate_dir = \"{disk}/.refit\"\n\
                     backups_dir = \"{disk}/backups\"\nlogs_dir = \"{disk}/logs\""
                ),
            );
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(refit::data::make_example_database(&site.path().join("data.db"))).expect("a database");
        let temporary = temporary.display().to_string();
        let site = site.env("TMPDIR", &temporary);
        // Few steps: what a step costs is the engine's time, and there are hundreds of builds.
        site.write("Dockerfile", "FROM refit-test/busybox:1 AS app\nCOPY . /app\n");
        site.write("migrate.sh", MIGRATE);
        site.write("run.sh", APP);
        let production = "production".parse().expect("a name");
        let key = EnvironmentKey { app: site.app.parse().expect("a name"), environment: production };
        let pages = BTreeMap::new();
        let (backups, logs) = (base.join("backups"), base.join("logs"));
        Self {
            site,
            key,
            runtime,
            pages,
            pushes: 0,
            state,
            backups,
            logs,
            repeats: false,
            untidy: false,
            engine: None,
            log_from: 0,
        }
    }

    /// Makes a first release live.
    pub fn begin(&mut self) {
        self.push(Version::Good);
        self.site.deploy(0);
    }

    pub fn push(&mut self, version: Version) -> CommitId {
        self.pushes += 1;
        let page = match version {
            Version::Good => format!("version {}", self.pushes),
            Version::Bad => format!("broken {}", self.pushes),
        };
        self.site.write("www/index.html", &format!("{page}\n"));
        let commit: CommitId = self.site.push(&page).parse().expect("a commit");
        self.pages.insert(commit.clone(), page);
        commit
    }

    pub fn page_of(&self, commit: &CommitId) -> Option<&str> {
        self.pages.get(commit).map(String::as_str)
    }

    /// Starts a daemon with an order for `src/fault.rs`; `false` if it died before it answered.
    pub fn daemon(&mut self, faults: &str) -> bool {
        self.spawn(faults);
        self.site.daemon_is_up()
    }

    /// Starts it, and does not wait for anything.
    pub fn spawn(&mut self, faults: &str) {
        self.site.set_env("REFIT_FAULT", faults);
        self.log_from = self.site.daemon_log().len();
        self.site.spawn_daemon();
    }

    /// Another daemon, with another order.
    pub fn restart(&mut self, faults: &str) {
        self.site.kill_daemon();
        assert!(self.daemon(faults), "the daemon starts");
    }

    /// What the daemon that was started last has logged.
    pub fn log(&self) -> String {
        self.site.daemon_log().get(self.log_from..).unwrap_or_default().to_owned()
    }

    /// Tells the daemon of a commit, as GitHub would.
    pub fn deliver(&self, commit: &CommitId) {
        let answer = self.site.webhook(&format!("d-{commit}"), &self.site.push_body("main", commit.as_str()));
        assert_eq!(answer.status, 202, "{answer:?}");
    }

    /// Asks the store, which is opened for this only.
    pub fn ask<T>(&self, question: impl AsyncFnOnce(&Registry) -> refit::registry::Result<T>) -> T {
        let answer = self.runtime.block_on(async {
            let registry = Registry::open(&self.state.join("refit.db")).await?;
            let answer = question(&registry).await;
            registry.close().await;
            answer
        });
        answer.unwrap_or_else(|error| panic!("the store does not answer: {error}"))
    }

    /// The deployment of a commit, once it has an end.
    fn wait_for_end(&self, commit: &CommitId) -> Option<DeploymentView> {
        poll(|| self.runtime.block_on(self.end(commit)).ok().flatten())
    }

    pub fn has_ended(&self, commit: &CommitId) -> bool {
        self.runtime.block_on(self.end(commit)).is_ok_and(|end| end.is_some())
    }

    /// An error while the disk is full, or a daemon is just opening the store.
    async fn end(&self, commit: &CommitId) -> refit::registry::Result<Option<DeploymentView>> {
        let registry = Registry::open(&self.state.join("refit.db")).await?;
        let filter = Filter { commit: Some(commit.clone()), limit: Some(1), ..Filter::default() };
        let views = registry.deployments(&filter).await;
        registry.close().await;
        Ok(views?.into_iter().find(|d| d.status.is_end()))
    }

    /// A person has looked at a stuck deployment.
    pub fn resolve(&self, id: DeploymentId) {
        self.site.refit(&["resolve", &id.to_string(), "--reason", "looked at it"]).expect(0);
    }

    /// Waits for a deployment's end, which should be one of `expected`.
    pub fn ends(&self, commit: &CommitId, expected: &[Status]) -> Result<DeploymentView, String> {
        let ended = self.wait_for_end(commit).ok_or_else(|| format!("{commit} has no end"))?;
        if expected.contains(&ended.status) {
            return Ok(ended);
        }
        let error = ended.error.unwrap_or_default();
        Err(format!("deployment {} ended {} and should be {expected:?}: {error}", ended.id, ended.status))
    }

    pub fn deployment_ends(&self, id: DeploymentId) -> Result<DeploymentView, String> {
        let end = || self.ask(async |registry| registry.deployment(id).await).filter(|d| d.status.is_end());
        poll(end).ok_or_else(|| format!("deployment {id} has no end"))
    }

    /// Lets something happen, and says what is wrong then, and what is wrong after the next push, which has to deploy.
    /// No daemon runs before and after.
    pub fn observe(&mut self, happens: impl FnOnce(&mut Self) -> Result<(), String>) -> Vec<String> {
        let mut found = Vec::new();
        let log = self.site.daemon_log().len();
        if let Err(why) = happens(self).and_then(|()| self.look_and_go_on(&mut found)) {
            found.push(format!("{why}\n{}", self.site.daemon_log().get(log..).unwrap_or_default()));
        }
        self.site.kill_daemon();
        found
    }

    fn look_and_go_on(&mut self, found: &mut Vec<String>) -> Result<(), String> {
        found.extend(world::violations(self));
        self.untidy = false;
        let commit = self.push(Version::Good);
        self.deliver(&commit);
        self.ends(&commit, &[Status::Succeeded]).map_err(|why| format!("the next push: {why}"))?;
        found.extend(world::violations(self).into_iter().map(|violation| format!("after the next push: {violation}")));
        Ok(())
    }

    /// A daemon that was told to die somewhere does.
    pub fn dies(&mut self) -> Result<(), String> {
        if self.site.daemon_ends() { Ok(()) } else { Err("the daemon was not killed where it should be".to_owned()) }
    }

    /// Waits until the daemon paused at its point, by the file it makes there.
    pub fn paused(&self) -> Result<(), String> {
        let file = self.pause_file();
        poll(|| file.exists().then_some(())).ok_or_else(|| "the daemon never came to the point".to_owned())
    }

    pub fn go_on(&self) {
        fs::remove_file(self.pause_file()).expect("the pause ends");
    }

    pub fn pause_file(&self) -> PathBuf {
        self.site.path().join("paused")
    }

    /// Refit and the test use another engine than the machine's.
    pub fn use_engine(&mut self, host: &str) {
        self.site.set_env("DOCKER_HOST", host);
        self.engine = Some(host.to_owned());
    }

    pub fn docker(&self, args: &[&str]) -> String {
        match &self.engine {
            Some(host) => docker(&[&["--host", host.as_str()], args].concat()),
            None => docker(args),
        }
    }

    /// Whether the journal or the log of a deployment tells of something that did not work.
    pub fn was_hurt(&self, commit: &CommitId) -> bool {
        let hurt = async {
            let registry = Registry::open(&self.state.join("refit.db")).await?;
            let filter = Filter { commit: Some(commit.clone()), limit: Some(1), ..Filter::default() };
            let found = registry.deployments(&filter).await?.into_iter().next();
            registry.close().await;
            Ok::<_, refit::registry::RegistryError>(found)
        };
        let Ok(Some(deployment)) = self.runtime.block_on(hurt) else { return false };
        let log = deployment.log.map(|log| fs::read_to_string(self.logs.join(log)).unwrap_or_default());
        let failed = deployment.stages.iter().any(|stage| stage.status == StageStatus::Failed);
        let waits = log.is_some_and(|log| log.contains("cannot be undone yet"));
        // A bad version's smoke has failed before its undo.
        waits || (failed && self.page_of(commit).is_some_and(|page| page.starts_with("version")))
    }

    /// What the migration did: how often its command ran for each version, and what was applied.
    pub fn ledger(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.site.path().join("ledger").join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}
