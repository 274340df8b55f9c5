//! A store that an earlier version wrote opens with this one, and everything goes on; one that a later version wrote is left alone.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::PathBuf,
};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::support::{Site, http, telegram::BotApi};

/// What the first released version left: see the file's own words.
const FIRST: &str = include_str!("../fixtures/store-0001.sql");

/// The live release of that store, as its directory is called.
const LIVE: &str = "11-ac467fb782";

fn store(site: &Site) -> PathBuf {
    site.path().join(".refit/refit.db")
}

/// Runs SQL on the store's file, as another program would.
pub fn sql(site: &Site, statements: &str) {
    let options = SqliteConnectOptions::new().filename(store(site)).create_if_missing(true);
    let run = async {
        let mut file = SqliteConnection::connect_with(&options).await?;
        sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut file).await?;
        file.close().await
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run).unwrap();
}

/// A site in the state of [`FIRST`]: the store, the live release's tree and what it kept of its settings. Its instance is gone, as
/// after somebody tidied up.
fn first_version() -> Site {
    let site = Site::process();
    let refit = site.path().join(".refit");
    fs::DirBuilder::new().mode(0o700).create(&refit).unwrap();
    sql(&site, &FIRST.replace("oldstore", &site.app));
    let write = |path: String, text: &str| {
        let path = refit.join(path.replace("APP", &site.app));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    let release = format!("process/APP/production/releases/{LIVE}");
    write(format!("{release}/www/health"), "ok");
    write(format!("{release}/www/index.html"), "version three\n");
    // It says which environment it was given.
    let run =
        "printf '%s' \"$GREETING\" >www/greeting\nexec python3 -m http.server --bind 127.0.0.1 --directory www $PORT\n";
    write(format!("{release}/run.sh"), run);
    let kept = "{\"env\":{\"GREETING\":\"hello from the first version\"},\"secrets\":{\"DATABASE_URL\":\"postgres://db\"},\"version\":1}";
    let kept = write("releases/APP/production/11/environment.json".to_owned(), kept);
    fs::set_permissions(kept, fs::Permissions::from_mode(0o600)).unwrap();
    site
}

fn statuses(site: &Site) -> Vec<String> {
    let mut all: Vec<Value> = site.history();
    all.sort_by_key(|d| d["id"].as_i64());
    all.iter().map(|d| d["status"].as_str().unwrap().to_owned()).collect()
}

const LEFT: [&str; 12] = [
    "succeeded",
    "succeeded",
    "failed",
    "rolled_back",
    "rolled_back",
    "skipped",
    "cancelled",
    "superseded",
    "succeeded",
    "stuck",
    "succeeded",
    "running",
];

#[test]
fn a_store_of_the_first_version_is_read() {
    let site = first_version();
    assert_eq!(statuses(&site), LEFT);
    let stuck = site.show(10);
    assert_eq!((&stuck["exit_code"], &stuck["failed_stage"]), (&5.into(), &"start".into()), "{stuck:#}");
    assert_eq!(stuck["stages"][6]["status"], "undo_failed", "{stuck:#}");
    assert_eq!(site.show(11)["live"], true);
    assert!(site.show(11).get("freed").is_none());
    for id in 1..=12 {
        for command in ["show", "report"] {
            site.refit(&[command, &id.to_string()]).expect(0);
        }
    }
    let status = site.refit(&["status"]).expect(0).stdout;
    assert!(status.contains("ac467fb782"), "{status}");
}

#[test]
fn a_store_of_the_first_version_is_taken_up() {
    let mut site = first_version();
    let commit = site.push("after the upgrade");
    site.serve();
    // What was cut off in start is undone: the live release is started with the environment that it kept, which today's file does not have. Then
    // the delivery that was accepted before the upgrade is deployed, though a deployment was stuck once: one after it succeeded.
    let ended = site.wait_for("the old delivery's deployment", |d| d["id"] == 13 && d["status"] == "succeeded");
    assert_eq!((&ended["commit"], &ended["previous"]), (&commit.into(), &11.into()), "{ended:#}");
    site.expect_page("one");
    let recovered = site.show(12);
    assert_eq!((&recovered["status"], &recovered["previous"]), (&"rolled_back".into(), &11.into()), "{recovered:#}");
    assert!(recovered["undone"].to_string().contains("deployment 11 (ac467fb782) is live again"), "{recovered:#}");
    let mut expected = LEFT.map(str::to_owned).to_vec();
    expected.pop();
    expected.extend(["rolled_back", "succeeded"].map(str::to_owned));
    assert_eq!(statuses(&site), expected);
    assert_eq!(site.stop_daemon(), 0);
    site.version("two");
    site.push("two");
    site.deploy(0);
    site.expect_page("two");
}

#[test]
fn what_waits_in_the_outbox_of_the_first_version_is_sent() {
    let api = BotApi::start();
    let mut site = first_version().with_telegram(&api);
    sql(&site, "UPDATE outbox SET sent_at = NULL, next_at = 0 WHERE deployment = 11 AND kind = 'end'");
    site.serve();
    site.wait_for_settled_reports(1);
    let report = api.rung().remove(0);
    assert!(report.text.contains("number 11") && report.reply_to.is_none(), "{report:#?}");
}

#[test]
fn going_back_to_a_release_of_the_first_version_runs_it_as_it_ran() {
    let site = first_version().with("[environments.production.start.env]\nGREETING = \"hello from today\"");
    site.write("run.sh", "exit 1\n");
    site.push("never comes up");
    // The store holds a push that nobody has looked at: it would be queued behind this deployment, and take its place.
    sql(&site, "UPDATE deliveries SET outcome = '[]' WHERE outcome IS NULL");
    // The first command that acts recovers what was cut off.
    let bad = site.deploy(3);
    assert_eq!(
        (&bad["id"], &bad["status"], &bad["previous"]),
        (&13.into(), &"rolled_back".into(), &11.into()),
        "{bad:#}"
    );
    site.expect_page("three");
    let greeting = http(site.port, "GET", "/greeting", &[], b"").unwrap();
    assert_eq!(greeting.body, "hello from the first version");
}

#[test]
fn a_store_of_a_later_version_is_refused_and_left_alone() {
    let mut site = Site::process();
    site.push("first");
    site.deploy(0);
    sql(&site, "INSERT INTO _sqlx_migrations VALUES (9999, 'later', '2030-01-01 00:00:00', 1, X'00', 1)");
    let before = fs::read(store(&site)).unwrap();
    for command in [&["history"][..], &["deploy"], &["serve"]] {
        let ran = site.refit(command);
        assert_eq!(ran.code, 69, "{ran:?}");
        assert!(ran.stderr.contains("was written by a newer version of refit"), "{ran:?}");
    }
    assert!(fs::read(store(&site)).unwrap() == before, "nothing was written");
    sql(&site, "DELETE FROM _sqlx_migrations WHERE version = 9999");
    site.serve();
    site.expect_page("one");
}

/// Threat 36: the clock was years ahead once, and was set right. Numbers and sequence give the order.
#[test]
fn a_clock_that_was_set_back_changes_no_order() {
    let mut site = Site::process().with("[rollback]\nkeep = 1");
    site.push("first");
    site.deploy(0);
    site.version("two");
    site.push("second");
    site.deploy(0);
    sql(
        &site,
        "UPDATE deployments SET queued_at = queued_at + 1e12, started_at = started_at + 1e12, finished_at = finished_at + 1e12;
         UPDATE events SET at = at + 1e12 - seq * 1000;
         UPDATE releases SET live_since = live_since + 1e12 * (3 - deployment);
         INSERT INTO deliveries (source, delivery, app, branch, commit_id, forced, received_at, outcome)
         SELECT 'github', 'd-1', app, 'main', commit_id, 0, queued_at, '[]' FROM deployments WHERE id = 1;",
    );
    // Steps that took a negative time took none.
    for stage in site.show(1)["stages"].as_array().unwrap() {
        assert!(stage["duration_ms"].as_i64().unwrap_or(0) >= 0, "{stage:#}");
    }
    site.serve();
    site.version("three");
    let third = site.push("third");
    assert_eq!(site.webhook("d-2", &site.push_body("main", &third)).status, 202);
    let ended = site.wait_for("the third", |d| d["id"] == 3 && d["status"] == "succeeded");
    assert_eq!((&ended["commit"], &ended["previous"]), (&third.clone().into(), &2.into()), "{ended:#}");
    assert_eq!(ended["retired"], serde_json::json!([1]), "the oldest goes, whatever its times say: {ended:#}");
    let ids: Vec<i64> = site.history().iter().filter_map(|d| d["id"].as_i64()).collect();
    assert_eq!(ids, [3, 2, 1]);
    site.expect_page("three");
    // And what waits is taken by number: the newest of what came, not what has the latest time.
    sql(&site, "UPDATE deliveries SET received_at = 0 WHERE delivery = 'd-2'");
    site.version("four");
    let fourth = site.push("fourth");
    assert_eq!(site.webhook("d-3", &site.push_body("main", &fourth)).status, 202);
    site.wait_for("the fourth", |d| d["id"] == 4 && d["status"] == "succeeded");
    site.expect_page("four");
}
