//! Whole files: what loads, what does not, and how the errors read.

use std::{fs, path::Path, time::Duration};

use insta::assert_snapshot;
use proptest::prelude::*;
use tempfile::TempDir;

use super::{Strategy, *};
use crate::model::EnvironmentKey;

mod backups;
mod start;

/// A directory with files, and variables.
struct House {
    dir: TempDir,
    vars: Vec<(&'static str, &'static str)>,
}

impl House {
    fn new(main: &str) -> Self {
        let house = Self { dir: tempfile::tempdir().unwrap(), vars: Vec::new() };
        house.file("pipeline.toml", main)
    }

    fn file(self, name: &str, text: &str) -> Self {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn var(mut self, name: &'static str, value: &'static str) -> Self {
        self.vars.push((name, value));
        self
    }

    fn load_as(&self, missing_secrets: MissingSecrets) -> Result<Config, ConfigErrors> {
        let env = |name: &str| self.vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        load_with(&self.dir.path().join("pipeline.toml"), LoadOptions { env: &env, missing_secrets })
    }

    #[track_caller]
    fn config(&self) -> Config {
        self.load_as(MissingSecrets::Error).unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// The plain form, without the directory.
    #[track_caller]
    fn errors(&self) -> String {
        self.hide_dir(self.load_as(MissingSecrets::Error).unwrap_err().to_string())
    }

    fn hide_dir(&self, text: String) -> String {
        text.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

const SMALL: &str = "[app]\nname = 'guestbook'\nrepository = 'https://git.example/acme/guestbook.git'\n\
                     [environments.production]\nbranch = 'main'\nport = 8000\n";

/// The fuller example of the design, without what this version does not have yet.
const FULL: &str = r#"
[app]
name = "guestbook"
repository = "https://git.example/acme/guestbook.git"
[server]
listen = "127.0.0.1:8787"
[webhooks.github]
secret = [{ env = "GITHUB_WEBHOOK_SECRET" }, { file = "old-secret" }]
[telegram]
token = { env = "TELEGRAM_API_TOKEN" }
chat = { env = "TELEGRAM_CHAT_ID" }
operators = [10001]
chats = [10001, -100300]
webhook = "https://deploy.example.org/hooks/telegram"
api_url = "https://api.telegram.org"
[environments.production]
branch = "main"
port = 8000
paths = ["src/**", "Dockerfile"]
approval = false
windows = []
[environments.dev]
branch = "dev"
port = 8001
[environments.dev.start]
strategy = "recreate"
env = { LOG_LEVEL = "debug" }
health = { tcp = true }
[pull]
timeout = "2m"
[[backup]]
kind = "postgres"
container = "guestbook-db"
database = "guestbook"
user = "guestbook"
required = false
keep = 10
keep_days = 7
[[test]]
name = "unit"
target = "test"
run = "pytest -q"
coverage = { report = "coverage.xml", min = 70 }
[build]
context = "."
dockerfile = "Dockerfile"
args = { EDITION = "full" }
[migrate]
run = "alembic upgrade head"
on_failure = "keep"
[start]
runtime = "docker"
container_port = 8000
networks = ["guestbook"]
volumes = ["uploads:/app/uploads"]
env = { LOG_LEVEL = "info", MODE = "web" }
secrets = { DATABASE_URL = { env = "DATABASE_URL" } }
stop_timeout = "30s"
log = { max_size = "100m", max_file = 5 }
health = { path = "/health", interval = "200ms", successes = 2, deadline = "60s" }
[smoke]
bake = "10s"
[[smoke.check]]
http = "/health"
status = 200
json = { "database" = "ok" }
[[smoke.check]]
exec = ["python", "-c", "import app"]
[rollback]
automatic = true
keep = 5
"#;

fn full() -> House {
    House::new(FULL)
        .file("old-secret", "an old secret\r\n")
        .var("GITHUB_WEBHOOK_SECRET", "a new secret")
        .var("TELEGRAM_API_TOKEN", "12345:token")
        .var("TELEGRAM_CHAT_ID", "-100200")
        .var("DATABASE_URL", "postgres://guestbook:hunter22@db/guestbook")
}

#[test]
fn the_smallest_file_has_every_default() {
    let house = House::new(SMALL);
    let config = house.config();
    assert_eq!(config.file, house.dir.path().join("pipeline.toml"));
    assert_eq!(config.server.socket(), house.dir.path().join(".refit/refit.sock"));
    assert_eq!((config.server.max_body, config.server.reconcile), (25 << 20, Duration::from_secs(300)));
    assert!(config.telegram.is_none());
    let app = &config.apps[0];
    assert_eq!(app.full_name.as_deref(), Some("acme/guestbook"));
    assert!(app.github_secrets.is_empty());
    let environment = &app.environments[0];
    assert_eq!((environment.port, environment.bind.to_string().as_str()), (Some(8000), "0.0.0.0"));
    assert_eq!(environment.start.health.probe, Probe::Tcp);
    assert_eq!(environment.start.strategy, Strategy::BlueGreen);
    assert!(environment.start.side_by_side());
    assert_eq!((environment.backup_retention.keep, environment.backup_retention.keep_days), (10, 7));
    assert!(environment.parallel && environment.migrate.is_none() && environment.paths.set.is_none());
    assert!(environment.tests.is_empty() && environment.backups.is_empty() && environment.smoke.checks.is_empty());
}

#[test]
fn the_fuller_example_loads() {
    let config = full().config();
    let app = &config.apps[0];
    let secrets: Vec<&str> = app.github_secrets.iter().map(|secret| secret.expose()).collect();
    assert_eq!(secrets, ["a new secret", "an old secret"]);
    let telegram = config.telegram.as_ref().unwrap();
    assert_eq!((telegram.chat, telegram.operators.as_slice()), (-100_200, &[10_001][..]));
    assert_eq!(telegram.chats, [10_001, -100_300]);
    assert_eq!(telegram.webhook.as_deref(), Some("https://deploy.example.org/hooks/telegram"));
    assert_eq!(config.redactor.mask("hunter22 in postgres://guestbook:hunter22@db/guestbook"), "[masked] in [masked]");

    let production = config.environment(None, None).unwrap();
    assert_eq!(production.key.to_string(), "guestbook/production");
    assert_eq!(production.start.health.probe, Probe::Http { path: "/health".into() });
    assert_eq!(production.backups[0].name.as_str(), "guestbook");
    assert!(production.paths.set.as_ref().unwrap().is_match("src/a/b.py"));
    let checks: Vec<&str> = production.smoke.checks.iter().map(|check| check.name.as_str()).collect();
    assert_eq!(checks, ["GET /health", "exec python -c import app"]);

    let dev = config.environment(Some("guestbook"), Some("dev")).unwrap();
    assert_eq!(dev.start.env["LOG_LEVEL"], "debug");
    assert_eq!(dev.start.env["MODE"], "web");
    assert_eq!(dev.start.health.probe, Probe::Tcp);
    assert_eq!(dev.start.health.deadline, Duration::from_secs(60));
    assert_eq!(dev.start.networks, ["guestbook"]);
    assert!(matches!(&dev.migrate.as_ref().unwrap().with, MigrateWith::Command(c) if c.run == "alembic upgrade head"));
}

#[test]
fn environments_override_key_by_key_and_replace_lists() {
    let text = FULL.to_owned()
        + "[environments.lab]\nbranch = 'lab'\nparallel = false\nbackup = []\nmigrate = { run = '' }\nsmoke = { bake = '1s' }\n\
           [[environments.lab.test]]\nimage = 'refit-test/x:1'\nrun = 'true'\n[environments.lab.start.secrets]\nDATABASE_URL = { file = 'old-secret' }\n\
           [environments.lab.start.health]\ntcp = false\n";
    let text = text.replace("http = \"/health\"", "http = \"http://127.0.0.1:9/health\"");
    let config = House { dir: House::new(&text).file("old-secret", "old").dir, ..full() }.config();
    let lab = config.environment(None, Some("lab")).unwrap();
    assert!(!lab.parallel && lab.backups.is_empty() && lab.migrate.is_none() && lab.port.is_none());
    assert_eq!((lab.smoke.bake, lab.smoke.checks.len()), (Duration::from_secs(1), 2));
    assert!(matches!(&lab.tests[..], [TestSuite { place: TestPlace::Image(image), .. }] if image == "refit-test/x:1"));
    assert_eq!(lab.start.secrets["DATABASE_URL"].expose(), "old");
    assert_eq!(lab.start.health.probe, Probe::Running);
}

#[test]
fn the_top_of_the_file_speaks_for_every_environment() {
    let text = format!(
        "requires = ['db']\nbind = '127.0.0.1'\nparallel = false\n{SMALL}[environments.dev]\nbranch = 'dev'\nrequires = []\n"
    );
    let config = House::new(&text).config();
    let production = config.environment(None, Some("production")).unwrap();
    let dev = config.environment(None, Some("dev")).unwrap();
    assert_eq!(production.requires, ["db"]);
    assert!(dev.requires.is_empty() && !dev.parallel && dev.bind.is_loopback());
}

#[test]
fn many_mistakes_are_shown_at_once_at_their_places() {
    let house = House::new(
        r#"parralel = false
[app]
name = "Guest Book"
repository = "ext::sh -c true"
port = 1
[environments.production]
brnach = "main"
port = 80000
[environments."no/good"]
branch = "main"
[environments.dev]
branch = "--upload-pack=x"
paths = ["["]
[environments.dev.start]
stop_timeout = "5"
helth = { path = "/" }
[environments.dev.smoke]
bake = 10
[start]
strategy = "bluegreen"
memory = "lots"
[start.env]
"A-B" = "x"
N = 5
"#,
    );
    assert_snapshot!(house.errors(), @r#"
    pipeline.toml:1:1: `parralel`: unknown key; did you mean `parallel`?
    pipeline.toml:3:8: `app.name`: name `Guest Book` may have only lower-case letters and digits, joined by `-` or `_`, and be 1 to 40 long
    pipeline.toml:4:14: `app.repository`: `ext::` runs a program of its own to fetch; use an https, http, ssh, git or file URL, `user@host:path`, or a local path
    pipeline.toml:5:1: `app.port`: unknown key; `port` is a key of `[environments.NAME]`
    pipeline.toml:7:1: `environments.production.brnach`: unknown key; did you mean `branch`?
    pipeline.toml:8:8: `environments.production.port`: 80000 is not between 1 and 65535
    pipeline.toml:9:15: `environments."no/good"`: name `no/good` may have only lower-case letters and digits, joined by `-` or `_`, and be 1 to 40 long
    pipeline.toml:12:10: `environments.dev.branch`: branch `--upload-pack=x` starts with `-`
    pipeline.toml:13:10: `environments.dev.paths[0]`: `[` is not a glob pattern: unclosed character class; missing ']'
    pipeline.toml:15:16: `environments.dev.start.stop_timeout`: `5` has no unit; expected a duration such as "200ms", "30s", "2m", "1h" or "7d"
    pipeline.toml:16:1: `environments.dev.start.helth`: unknown key; did you mean `health`?
    pipeline.toml:18:8: `environments.dev.smoke.bake`: expected a duration such as "200ms", "30s", "2m", "1h" or "7d", found an integer; write a string with a number and its unit
    pipeline.toml:20:12: `start.strategy`: `bluegreen` is none of `auto`, `recreate`, `blue-green`; did you mean `blue-green`?
    pipeline.toml:21:10: `start.memory`: expected a size in bytes, such as 1048576, "512k", "100m" or "2g", found `lots`
    pipeline.toml:23:1: `start.env.A-B`: `A-B` is not a name of a variable; it may have letters, digits and `_`, and must not start with a digit
    pipeline.toml:24:5: `start.env.N`: expected a string, found an integer; put it in quotes
    "#);
}

#[test]
fn the_graphical_form_shows_the_lines() {
    let house = House::new(&SMALL.replace("branch =", "brnach ="));
    let errors = house.load_as(MissingSecrets::Error).unwrap_err();
    assert_snapshot!(house.hide_dir(errors.render(false)), @r#"
     × `environments.production.brnach`: unknown key
      ╭─[pipeline.toml:5:1]
    4 │ [environments.production]
    5 │ brnach = 'main'
      · ───┬──
      ·    ╰── here
    6 │ port = 8000
      ╰────
     help: did you mean `branch`?
    "#);
    assert!(!errors.render(false).contains('\u{1b}'));
    assert!(errors.render(true).contains('\u{1b}'));
    assert_eq!(ConfigErrors::EXIT_CODE, 78);
}

#[test]
fn a_missing_file_says_what_to_do() {
    let env = |_: &str| None;
    let errors = load(Path::new("/nowhere/pipeline.toml"), &env).unwrap_err();
    assert_snapshot!(errors, @"/nowhere/pipeline.toml: cannot be read: it does not exist; run `refit init` to write one, or name another with `--config`");
    assert!(errors.render(false).contains("refit init"));
}

#[test]
fn broken_toml_is_shown_without_the_secrets_in_it() {
    let house = House::new(
        "[telegram]\ntoken = \"12345:hunter22\n[app\nname = \"x\"\nrepository = \"https://u:hunter22@h/x\"\n",
    );
    let errors = house.load_as(MissingSecrets::Error).unwrap_err();
    let shown = format!("{errors}{}", errors.render(false));
    assert!(shown.contains("invalid TOML") && shown.contains("pipeline.toml:2:"), "{shown}");
    assert!(!shown.contains("hunter22"), "{shown}");
}

#[test]
fn later_features_are_refused_plainly() {
    let house = House::new(&format!(
        "{SMALL}windows = ['Mon-Fri 09:00-17:00']\n[[backup]]\nkind = 'mongodb'\n[start]\nruntime = 'kubernetes'\n"
    ));
    assert_snapshot!(house.errors(), @r#"
    pipeline.toml:7:11: `environments.production.windows`: this version does not know deployment windows yet; remove the key
    pipeline.toml:9:8: `backup[0].kind`: this version cannot make this kind of backup yet; it knows `postgres`, `mysql`, `sqlite`, `files`, `volume` and `command`; remove the entry
    pipeline.toml:11:11: `start.runtime`: this version does not have this runtime yet; use "docker" or "process"
    "#);
}

const DATABASE: &str = "[[backup]]\nkind = 'sqlite'\npath = 'app.db'\n";

#[test]
fn sql_files_find_their_database() {
    let files = |text: &str| {
        let house = House::new(&format!("{SMALL}{text}")).var("DATABASE_URL", "postgres://u:p4ssw0rd@db/app");
        let config = house.config();
        let migrate = config.apps[0].environments[0].migrate.clone().unwrap();
        let MigrateWith::Files(files) = migrate.with else { panic!("{migrate:?}") };
        (files, migrate.on_failure, migrate.hold)
    };
    let (only, way_back, hold) = files(&format!("{DATABASE}[migrate]\nfiles = 'db/migrations'\n"));
    assert!(matches!(only.database, MigrationDatabase::Backup(name) if name.as_str() == "app"));
    assert_eq!((only.dir.as_str(), only.lock_timeout), ("db/migrations", Duration::from_secs(5)));
    assert_eq!((way_back, hold), (OnMigrateFailure::Keep, false));
    let (url, way_back, hold) = files(
        "[[backup]]\nkind = 'sqlite'\npath = 'app.db'\n[migrate]\nfiles = 'm'\nurl = { env = 'DATABASE_URL' }\non_failure = 'restore'\nhold = true\n",
    );
    assert!(matches!(url.database, MigrationDatabase::Url(url) if url.expose().ends_with("/app")));
    assert_eq!((way_back, hold), (OnMigrateFailure::Restore, true));
}

#[test]
fn migrations_that_could_not_keep_their_promise_are_refused() {
    let told = |text: &str| {
        let house = House::new(&format!("{SMALL}{text}")).var("DATABASE_URL", "oracle://u:p4ssw0rd@db/app");
        house.errors()
    };
    let all = [
        told("[migrate]\n"),
        told("[migrate]\nfiles = 'm'\n"),
        told(&format!("{DATABASE}[migrate]\nfiles = 'm'\nrun = 'x'\n")),
        told(&format!("{DATABASE}[migrate]\nfiles = '../m'\n")),
        told(&format!("{DATABASE}[migrate]\nfiles = 'm'\ndatabase = 'other'\n")),
        told(&format!("{DATABASE}{}[migrate]\nfiles = 'm'\n", DATABASE.replace("app", "two"))),
        told(&format!("{DATABASE}[migrate]\nfiles = 'm'\nversion = 'v'\ndown = 'd'\n")),
        told("[migrate]\nfiles = 'm'\nurl = { env = 'DATABASE_URL' }\n"),
        told(&format!("{DATABASE}[migrate]\nfiles = 'm'\nurl = {{ env = 'DATABASE_URL' }}\ndatabase = 'app'\n")),
        told("[migrate]\nrun = 'x'\non_failure = 'down'\n"),
        told("[migrate]\nrun = 'x'\ndown = 'y'\nlock_timeout = '1s'\n"),
        told(&format!("{DATABASE}[migrate]\nrun = 'x'\non_failure = 'restore'\n")),
        told("[migrate]\nrun = 'x'\non_failure = 'restore'\nhold = true\n"),
        told("[migrate]\nrun = 'x'\non_failure = 'downn'\n"),
    ];
    assert!(!all.iter().any(|text| text.contains("p4ssw0rd")));
    assert_snapshot!(all.join("\n"));
}

#[test]
fn secrets_that_are_missing_name_variable_and_key() {
    let mut house = full();
    house.vars.clear();
    assert_snapshot!(house.errors(), @r#"
    pipeline.toml:8:11: `webhooks.github.secret[0]`: the environment variable `GITHUB_WEBHOOK_SECRET` is not set; set `GITHUB_WEBHOOK_SECRET` where Refit runs (a systemd unit's `EnvironmentFile=`, or `export GITHUB_WEBHOOK_SECRET=…`)
    pipeline.toml:57:28: `start.secrets.DATABASE_URL`: the environment variable `DATABASE_URL` is not set; set `DATABASE_URL` where Refit runs (a systemd unit's `EnvironmentFile=`, or `export DATABASE_URL=…`)
    "#);
    let config = house.load_as(MissingSecrets::Ignore).unwrap();
    assert!(config.telegram.is_none());
    assert_eq!(config.apps[0].github_secrets.len(), 1);
    assert!(config.apps[0].environments[0].start.secrets["DATABASE_URL"].is_empty());
    house.vars.push(("TELEGRAM_API_TOKEN", "12345:token"));
    assert!(house.errors().contains("`TELEGRAM_CHAT_ID` is not set"));
    assert!(house.load_as(MissingSecrets::Ignore).unwrap().telegram.is_none());
}

#[test]
fn literal_secrets_are_refused_and_never_shown() {
    let house = House::new(&format!(
        "{SMALL}[telegram]\ntoken = 'hunter22'\nchat = 1\n[webhooks.github]\nsecret = ['hunter22']\n\
         [start.secrets]\nA = 'hunter22'\nB = {{ value = 'hunter22' }}\nC = {{ env = 'X', file = 'Y' }}\nD = {{ file = 'gone' }}\nE = {{ env = 'a-b' }}\n\
         [[backup]]\nkind = 'postgres'\ncontainer = 'db'\ndatabase = 'd'\nuser = 'u'\npasword = 'hunter22'\n"
    ));
    let errors = house.load_as(MissingSecrets::Error).unwrap_err();
    assert!(!format!("{errors}{}", errors.render(false)).contains("hunter22"));
    assert_snapshot!(house.errors(), @r#"
    pipeline.toml:8:9: `telegram.token`: a secret may not stand in the configuration itself; write { env = "NAME" } or { file = "path" }, and keep the value out of the repository
    pipeline.toml:11:11: `webhooks.github.secret[0]`: a secret may not stand in the configuration itself; write { env = "NAME" } or { file = "path" }, and keep the value out of the repository
    pipeline.toml:13:5: `start.secrets.A`: a secret may not stand in the configuration itself; write { env = "NAME" } or { file = "path" }, and keep the value out of the repository
    pipeline.toml:14:7: `start.secrets.B.value`: unknown key; the keys here are `env`, `file`
    pipeline.toml:15:5: `start.secrets.C`: a secret has exactly one of `env` and `file`; write { env = "NAME" } or { file = "path" }
    pipeline.toml:16:14: `start.secrets.D.file`: the secret's file `gone` cannot be read: it does not exist; make it, readable only by the user that Refit runs as
    pipeline.toml:17:13: `start.secrets.E.env`: `a-b` is not a name of a variable; it may have letters, digits and `_`, and must not start with a digit
    pipeline.toml:23:1: `backup[0].pasword`: unknown key; did you mean `password`?
    "#);
}

#[test]
fn an_empty_webhook_secret_is_refused() {
    for secret in ["{ env = 'EMPTY' }", "[{ env = 'EMPTY' }]", "[]", "{ file = 'empty' }"] {
        let house =
            House::new(&format!("{SMALL}[webhooks.github]\nsecret = {secret}\n")).file("empty", "\n").var("EMPTY", " ");
        let errors = house.errors();
        assert!(errors.contains("is empty") && errors.contains("the daemon does not start"), "{secret}: {errors}");
    }
    let errors = House::new(&format!("{SMALL}[webhooks.github]\n")).errors();
    assert!(errors.contains("`webhooks.github.secret`: is missing"), "{errors}");
}

#[test]
fn updates_come_over_tls_to_a_port_that_telegram_sends_to() {
    let errors = |webhook: &str, chats: &str| {
        let table =
            format!("[telegram]\ntoken = {{ env = 'TOKEN' }}\nchat = 5\nwebhook = '{webhook}'\nchats = {chats}\n");
        House::new(&format!("{SMALL}{table}")).var("TOKEN", "1:x").errors()
    };
    assert!(errors("http://deploy.example/hooks/telegram", "[]").contains("must begin with https://"));
    assert!(errors("https://deploy.example:8787/", "[]").contains("a port that Telegram does not send to"));
    assert!(errors("https://deploy.example:8443/", "[0]").contains("is not a chat's id"));
    assert!(errors("https://deploy.example:8443/", "['x']").contains("chats"));
}

#[test]
fn an_empty_token_means_no_telegram() {
    let text = format!("{SMALL}[telegram]\ntoken = {{ env = 'TOKEN' }}\nchat = 5\n");
    let off = House::new(&text).config();
    assert!(off.telegram.is_none() && off.telegram_without_token);
    assert!(!House::new(SMALL).config().telegram_without_token);
    assert!(House::new(&text).var("TOKEN", "").config().telegram.is_none());
    assert!(House::new(&text).var("TOKEN", "1:x").config().telegram.is_some_and(|telegram| !telegram.quiet));
    let quiet = format!("{text}quiet = true\n");
    assert!(House::new(&quiet).var("TOKEN", "1:x").config().telegram.is_some_and(|telegram| telegram.quiet));
    let errors = House::new(&format!("{text}quiet = 'yes'\n")).var("TOKEN", "1:x").errors();
    assert!(errors.contains("`telegram.quiet`: expected `true` or `false`"), "{errors}");
}

#[test]
fn what_must_be_unique_is() {
    let house = House::new(&format!(
        "{SMALL}[environments.dev]\nbranch = 'dev'\nport = 8000\nbind = '127.0.0.1'\n[environments.old]\nbranch = 'old'\nport = 8787\n\
         [environments.a]\nbranch = 'a'\nport = 9000\nbind = '127.0.0.1'\n[environments.b]\nbranch = 'a'\nport = 9000\nbind = '127.0.0.2'\n\
         [[test]]\nname = 'unit'\ntarget = 'test'\nrun = 'x'\n[[test]]\nname = 'unit'\ntarget = 'test'\nrun = 'y'\n\
         [[backup]]\nkind = 'sqlite'\npath = 'a/x.db'\n[[backup]]\nkind = 'sqlite'\npath = 'b/x.db'\n"
    ));
    assert_snapshot!(house.errors(), @r#"
    pipeline.toml:9:8: `environments.dev.port`: port 8000 is taken by environment `guestbook/production`; give each environment a port of its own
    pipeline.toml:13:8: `environments.old.port`: port 8787 is taken by `[server] listen`; give each environment a port of its own
    pipeline.toml:27:8: `test[1].name`: there is another test suite called `unit` in this environment; give each a `name` of its own
    pipeline.toml:33:1: `backup[1]`: there is another backup called `x` in this environment; give each a `name` of its own
    "#);
}

#[test]
fn paths_that_leave_the_tree_are_refused() {
    let house = House::new(&format!(
        "{SMALL}[build]\ncontext = '/'\ndockerfile = '../Dockerfile'\n[[test]]\ntarget = 't'\nrun = 'x'\ncoverage = {{ report = '/etc/passwd', min = 120 }}\n\
         [start]\nnetworks = ['-x']\nvolumes = ['/var/run/docker.sock:/s']\n"
    ));
    assert_snapshot!(house.errors(), @r#"
    pipeline.toml:8:11: `build.context`: must be relative; name a path inside the repository, such as `docker/Dockerfile`
    pipeline.toml:9:14: `build.dockerfile`: must not have `..`; name a path inside the repository, such as `docker/Dockerfile`
    pipeline.toml:13:23: `test[0].coverage.report`: must be relative; name a path inside the repository, such as `docker/Dockerfile`
    pipeline.toml:13:44: `test[0].coverage.min`: 120 is not between 0 and 100
    pipeline.toml:15:13: `start.networks[0]`: `-x` is not a name that Docker takes; it may have letters, digits and `_`, `.`, `-`, must start with a letter or digit, and be 1 to 128 long
    pipeline.toml:16:12: `start.volumes[0]`: gives the app Docker's own socket; whoever reaches it owns this machine; an app that is deployed here must not
    "#);
}

const MAIN: &str = "include = ['apps/*.toml']\n[webhooks.github]\nsecret = { env = 'MAIN' }\n";

fn included_app(name: &str, port: u16) -> String {
    SMALL.replace("'guestbook'", &format!("'{name}'")).replace("8000", &port.to_string())
}

#[test]
fn included_apps_load_in_order_and_share_a_secret_only_of_a_main_file_without_an_app() {
    let own = included_app("b", 2)
        + "[webhooks.github]\nsecret = { file = 'own' }\n[[backup]]\nkind = 'sqlite'\npath = 'b.db'\n";
    let house = House::new(MAIN)
        .file("apps/b.toml", &own)
        .file("apps/own", "own")
        .file("apps/a.toml", &included_app("a", 1))
        .file("apps/.hidden.toml", "nonsense")
        .var("MAIN", "main");
    let config = house.config();
    let secrets = |config: &Config, app: &str| -> Vec<String> {
        config.app(app).unwrap().github_secrets.iter().map(|secret| secret.expose().to_owned()).collect()
    };
    assert_eq!(config.apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((secrets(&config, "a"), secrets(&config, "b")), (vec!["main".to_owned()], vec!["own".to_owned()]));
    let backup = &config.app("b").unwrap().environments[0].backups[0];
    assert!(matches!(&backup.source, BackupSource::Sqlite { path } if *path == house.dir.path().join("apps/b.db")));

    let with_app =
        House::new(&format!("{MAIN}{SMALL}")).file("apps/a.toml", &included_app("a", 1)).var("MAIN", "main").config();
    assert_eq!(secrets(&with_app, "guestbook"), ["main"]);
    assert!(secrets(&with_app, "a").is_empty());
}

#[test]
fn mistakes_in_included_files_are_shown_there() {
    let house = House::new(&format!("include = ['apps/*.toml', 'gone.toml', 'a/**']\n{SMALL}"))
        .file("apps/a.toml", &format!("{}[server]\nlisten = '1.2.3.4:5'\n", included_app("guestbook", 8000)))
        .file("apps/b.toml", "x = \n");
    assert_snapshot!(house.errors(), @r#"
    pipeline.toml:1:27: `include[1]`: there is no file `gone.toml`
    pipeline.toml:1:40: `include[2]`: `**` is not supported here; name each directory, such as `apps/*/*.toml`
    apps/a.toml:2:8: `app.name`: there is another app called `guestbook`; give each app a name of its own
    apps/a.toml:6:8: `environments.production.port`: port 8000 is taken by environment `guestbook/production`; give each environment a port of its own
    apps/a.toml:7:1: `server`: may stand only in the main file; move it there
    apps/b.toml:1:5: invalid TOML: string values must be quoted, expected literal string
    "#);
    assert!(House::new("include = ['apps/*.toml']\n").errors().contains("there is no app in this file"));
    assert!(House::new("").errors().contains("`app`: is missing"));
}

#[test]
fn selection_lists_what_there_is() {
    let house = House::new("include = ['*.toml']\n").file("a.toml", &included_app("a", 1)).file(
        "b.toml",
        &included_app("b", 2)
            .replace("production", "live")
            .replace("[environments", "[environments.dev]\nbranch = 'd'\n[environments"),
    );
    let config = house.config();
    let fail = |app, environment| config.environment(app, environment).unwrap_err().to_string();
    assert_eq!(fail(None, None), "there are several apps, name one of `a`, `b`");
    assert_eq!(fail(Some("c"), None), "there is no app `c`; there is `a`, `b`; did you mean `a`?");
    assert_eq!(fail(Some("b"), None), "`b` has several environments, name one of `dev`, `live`");
    assert_eq!(
        fail(Some("b"), Some("liv")),
        "`b` has no environment `liv`; it has `dev`, `live`; did you mean `live`?"
    );
    assert_eq!(config.environment(Some("a"), None).unwrap().key.to_string(), "a/production");
    let key = EnvironmentKey { app: "b".parse().unwrap(), environment: "live".parse().unwrap() };
    assert_eq!(config.by_key(&key).unwrap().port, Some(2));
}

/// A line that may or may not be TOML.
fn line() -> impl Strategy_<Value = String> {
    let word = prop_oneof![
        "(app|environments|start|health|smoke|check|backup|test|secret|secrets|webhooks|github|telegram|include|[a-zé]{1,4})",
        "(name|repository|branch|port|path|env|file|kind|run|target|http|tcp|exec|json|token|chat|bind|paths)",
    ];
    let scalar =
        prop_oneof!["-?[0-9]{1,20}", "'[^']{0,12}'", "\"\\PC{0,8}\"", "(true|false|inf|nan|1.5e400|1979-05-27)"];
    let value = scalar.prop_recursive(3, 12, 3, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(|items| format!("[{}]", items.join(", "))),
            ("(env|file|path|tcp|a)", inner).prop_map(|(key, value)| format!("{{ {key} = {value} }}")),
        ]
    });
    prop_oneof![
        4 => (word.clone(), value).prop_map(|(key, value)| format!("{key} = {value}")),
        2 => proptest::collection::vec(word.clone(), 1..4).prop_map(|path| format!("[{}]", path.join("."))),
        1 => proptest::collection::vec(word, 1..3).prop_map(|path| format!("[[{}]]", path.join("."))),
        1 => "\\PC{0,30}",
    ]
}

use proptest::strategy::Strategy as Strategy_;

proptest! {
    #[test]
    fn no_file_makes_it_panic(lines in proptest::collection::vec(line(), 0..12)) {
        let house = House::new(&lines.join("\n"));
        if let Err(errors) = house.load_as(MissingSecrets::Error) {
            prop_assert!(!errors.problems.is_empty());
            prop_assert!(!errors.to_string().is_empty() && !errors.render(true).is_empty());
        }
    }

    #[test]
    fn no_change_to_a_good_file_makes_it_panic(at in 0..FULL.len(), with in "[\\PC\n]{0,3}", cut in 0usize..6) {
        let end = (at + cut).min(FULL.len());
        let house = House::new(&format!("{}{with}{}", &FULL[..at], &FULL[end..]));
        if let Err(errors) = house.load_as(MissingSecrets::Error) {
            prop_assert!(!errors.render(false).is_empty());
        }
    }
}
