//! The example app with its own `pipeline.toml`, its PostgreSQL and its unit tests: all eight stages by a signed push.

pub mod setup;

use serde_json::Value;

use self::setup::Guestbook;
use crate::support::{Site, docker};

const STAGES: [&str; 8] = ["pull", "backup", "test", "build", "tag", "migrate", "start", "smoke"];

/// Pushes to a branch as a person with a checkout would, and sends the delivery that GitHub would.
fn push(site: &Site, branch: &str, message: &str) -> String {
    let commit = site.commit(message);
    site.git(&["push", "-q", "--force", "origin", &format!("HEAD:{branch}")]);
    let answer = site.webhook(&format!("delivery-of-{branch}-{commit}"), &site.push_body(branch, &commit));
    assert_eq!(answer.status, 202, "{answer:?}");
    commit
}

/// The deployment of a commit, at its end, as `refit show` tells it.
#[track_caller]
fn deployed(site: &Site, commit: &str, status: &str) -> Value {
    let is_over = |d: &Value| d["commit"] == *commit && !matches!(d["status"].as_str(), Some("queued" | "running"));
    let id = site.wait_for("the end of the deployment", is_over)["id"].as_i64().expect("an id");
    let deployment = site.show(id);
    assert_eq!(deployment["status"], status, "{deployment:#}\n{}", site.log_of(&deployment));
    deployment
}

fn stage<'d>(deployment: &'d Value, name: &str) -> &'d Value {
    let stages = deployment["stages"].as_array().expect("stages");
    stages.iter().find(|stage| stage["name"] == name).expect("the stage")
}

/// The objects of the contract have these keys; a document may have more.
#[track_caller]
fn expect_keys(document: &Value, keys: &[&str]) {
    let missing: Vec<_> = keys.iter().filter(|key| document.get(key).is_none()).collect();
    assert!(missing.is_empty(), "{missing:?} of {document:#}");
}

/// Production as `refit status` and as `/_deploy/status` show it, which must be the same.
#[track_caller]
fn production(guestbook: &Guestbook) -> Value {
    let site = &guestbook.site;
    let by_command = site.refit(&["status", "--format", "json"]).expect(0).json();
    let by_http = guestbook.get(site.http, "/_deploy/status").json();
    assert_eq!(by_command, by_http["environments"]);
    let all = by_command.as_array().expect("environments");
    all.iter().find(|e| e["environment"] == "production").expect("production").clone()
}

#[test]
fn docker_guestbook_goes_through_all_eight_stages() {
    let mut guestbook = Guestbook::new("");
    guestbook.site.serve();
    let commit = push(&guestbook.site, "main", "Open the guestbook");
    let deployment = deployed(&guestbook.site, &commit, "succeeded");
    let site = &guestbook.site;

    expect_keys(
        &deployment,
        &[
            "id",
            "app",
            "environment",
            "commit",
            "ref",
            "trigger",
            "status",
            "failed_stage",
            "error",
            "exit_code",
            "queued_at",
            "started_at",
            "finished_at",
            "duration_ms",
            "stages",
            "image",
            "previous",
            "backup",
            "live",
        ],
    );
    expect_keys(&deployment["trigger"], &["kind", "by", "delivery"]);
    let stages = deployment["stages"].as_array().expect("stages");
    assert_eq!(stages.iter().map(|s| s["name"].as_str().unwrap_or_default()).collect::<Vec<_>>(), STAGES);
    for stage in stages {
        expect_keys(stage, &["name", "status", "started_at", "duration_ms", "output", "error"]);
        assert_eq!((&stage["status"], &stage["error"]), (&"succeeded".into(), &Value::Null), "{stage:#}");
        assert!(stage["output"].is_object() && stage["duration_ms"].is_u64(), "{stage:#}");
        for time in
            [&stage["started_at"], &deployment["queued_at"], &deployment["started_at"], &deployment["finished_at"]]
        {
            let time = time.as_str().expect("a time");
            assert!(time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok(), "{time}");
        }
    }
    assert_eq!(
        [&deployment["app"], &deployment["environment"], &deployment["ref"], &deployment["trigger"]["kind"]],
        [&site.app as &str, "production", "refs/heads/main", "github"]
    );
    assert_eq!((&deployment["exit_code"], &deployment["live"]), (&0.into(), &true.into()));
    assert_eq!((&deployment["failed_stage"], &deployment["previous"]), (&Value::Null, &Value::Null));
    assert!(deployment["image"].as_str().is_some_and(|image| image.starts_with("sha256:")));

    let suite = &stage(&deployment, "test")["output"]["suites"][0];
    assert!(suite["coverage"].as_f64().is_some_and(|percent| (70.0..=100.0).contains(&percent)), "{suite:#}");
    let migrated = &stage(&deployment, "migrate")["output"];
    assert_eq!((&migrated["before"], &migrated["after"]), (&"none".into(), &"0002_limit_messages".into()));
    assert_eq!(guestbook.schema(), "0002_limit_messages");

    let health = guestbook.get(site.port, "/health");
    assert_eq!(health.json()["version"], commit, "the image knows which commit it is");
    guestbook.sign(site.port, "Ada", "Hello+%3Cb%3Efrom%3C%2Fb%3E+%F0%9F%8E%89");
    assert!(guestbook.page().contains("Hello &lt;b&gt;from&lt;/b&gt; 🎉"), "{}", guestbook.page());
    assert!(guestbook.database.rows("guestbook").contains("|Ada|Hello <b>from</b> 🎉|"));

    let status = production(&guestbook);
    assert_eq!((&status["service"]["state"], &status["live"]["commit"]), (&"running".into(), &commit.as_str().into()));
    assert_eq!(status["databases"], serde_json::json!([{ "name": "guestbook", "state": "running" }]));
    assert_eq!(status["migrations"], "0002_limit_messages");
    let table = site.refit(&["status"]).expect(0).stdout;
    assert!(table.contains("guestbook running") && table.contains("0002_limit_messages"), "{table}");

    the_other_branch_has_its_own(&guestbook);
    assert_eq!(guestbook.leaks(), [""; 0]);
    docker(&["stop", "--time", "1", &guestbook.database.name]);
    assert_eq!(production(&guestbook)["databases"][0]["state"], "stopped");
    assert_eq!(guestbook.get(guestbook.site.port, "/health").status, 503);
}

/// A push to `dev` goes to the other port and the other database, and production does not notice.
fn the_other_branch_has_its_own(guestbook: &Guestbook) {
    let site = &guestbook.site;
    let production = site.containers(true);
    let commit = push(site, "dev", "Try something");
    let deployment = deployed(site, &commit, "succeeded");
    assert_eq!(deployment["environment"], "dev");
    assert!(guestbook.backup_of(&deployment).join("guestbook_dev.sql.gz").is_file());
    guestbook.sign(guestbook.dev_port, "Grace", "Only+a+test");
    assert!(guestbook.database.rows("guestbook_dev").contains("|Grace|"));
    assert!(!guestbook.page().contains("Grace"));
    let all = site.containers(true);
    assert!(all.len() == 2 && production.iter().all(|name| all.contains(name)), "{production:?} {all:?}");
}

/// A second dump of the same database, in the format that is a choice.
const ARCHIVE: &str = r#"
[[backup]]
kind = "postgres"
name = "archive"
container = "guestbook-db"
database = "guestbook"
user = "guestbook"
format = "custom"
"#;

#[test]
fn docker_guestbook_keeps_its_data_and_a_backup_of_it() {
    let mut guestbook = Guestbook::new(ARCHIVE);
    guestbook.site.serve();
    let first = push(&guestbook.site, "main", "Open the guestbook");
    deployed(&guestbook.site, &first, "succeeded");
    for (author, message) in
        [("Ada", "It%27s+a+%5C+%24%28test%29"), ("Grace", "two%0Alines%09and+a+tab"), ("Bj%C3%B6rk", "%F0%9F%8E%89")]
    {
        guestbook.sign(guestbook.site.port, author, message);
    }
    let (site, database) = (&guestbook.site, &guestbook.database);
    let before = database.rows("guestbook");
    assert!(before.contains("It's a \\ $(test)") && before.contains("Björk|🎉"), "{before}");

    guestbook.migration("0003_add_mood", "ALTER TABLE entries ADD COLUMN mood text NOT NULL DEFAULT 'calm';\n");
    let second = push(site, "main", "Give entries a mood");
    let deployment = deployed(site, &second, "succeeded");
    let migrated = &stage(&deployment, "migrate")["output"];
    assert_eq!((&migrated["before"], &migrated["after"]), (&"0002_limit_messages".into(), &"0003_add_mood".into()));
    assert_eq!(database.rows("guestbook"), before, "every entry is still there");
    assert!(guestbook.page().contains("Björk"));

    let set = guestbook.backup_of(&deployment);
    database.shell(&set, "sha256sum guestbook.sql.gz archive.dump; ! gunzip -c guestbook.sql.gz | grep -q mood");
    let restores = [
        ("plain", "gunzip -c guestbook.sql.gz | docker exec -i $DB psql -Xq -v ON_ERROR_STOP=1 -U guestbook -d plain"),
        ("custom", "docker exec -i $DB pg_restore --exit-on-error -U guestbook -d custom <archive.dump"),
    ];
    for (empty, line) in restores {
        database.create(empty);
        database.shell(&set, line);
        assert_eq!(database.rows(empty), before, "{line}");
        assert_eq!(database.psql(empty, "SELECT max(name) FROM schema_migrations"), "0002_limit_messages");
        let columns = "SELECT string_agg(column_name, ' ' ORDER BY ordinal_position) FROM information_schema.columns WHERE table_name = 'entries'";
        assert_eq!(database.psql(empty, columns), "id author message created_at");
        assert_eq!(database.psql("guestbook", columns), "id author message created_at mood");
        // Not only the rows: the next entry gets the next number, and the rules hold.
        let insert = "INSERT INTO entries (author, message) VALUES ('Eve', 'x') RETURNING id";
        assert_eq!(database.psql(empty, insert), "4");
    }
}

#[test]
fn docker_guestbook_goes_back_when_a_version_is_bad() {
    let mut guestbook = Guestbook::new("");
    guestbook.site.serve();
    let good = push(&guestbook.site, "main", "Open the guestbook");
    let first = deployed(&guestbook.site, &good, "succeeded");
    guestbook.sign(guestbook.site.port, "Ada", "Hello");
    let site = &guestbook.site;
    let rows = guestbook.database.rows("guestbook");
    let running = site.containers(true);
    let good_is_live = || {
        assert_eq!(site.containers(true), running);
        let health = guestbook.get(site.port, "/health");
        assert_eq!((health.status, &health.json()["version"]), (200, &good.as_str().into()));
        assert!(guestbook.page().contains("Hello"));
        assert_eq!(guestbook.database.rows("guestbook"), rows);
        assert_eq!(production(&guestbook)["live"]["commit"], good);
        let id = |tag: &str| docker(&["inspect", "--format", "{{.Id}}", &format!("{}:{tag}", site.app)]);
        assert_eq!(id("latest").trim(), first["image"].as_str().unwrap());
    };
    good_is_live();

    // It starts, is healthy, talks about its secrets, and shows the wrong page. Its migration has run by then.
    let tell = "    from urllib.parse import unquote, urlsplit\n\
                \x20   secret = urlsplit(chosen.database_url).password or \"\"\n\
                \x20   print(chosen.database_url, secret, unquote(secret), flush=True)\n";
    guestbook.edit("guestbook/__main__.py", "    server.serve", &format!("{tell}    server.serve"));
    guestbook.edit("guestbook/pages.py", "Guestbook", "Visitors");
    guestbook.migration("0003_add_mood", "ALTER TABLE entries ADD COLUMN mood text;\n");
    let bad = push(site, "main", "Call it something else");
    let deployment = deployed(site, &bad, "rolled_back");
    assert_eq!((&deployment["failed_stage"], &deployment["exit_code"]), (&"smoke".into(), &4.into()));
    assert!(deployment["error"].as_str().is_some_and(|e| e.contains("does not contain `Guestbook`")), "{deployment:#}");
    good_is_live();
    assert_eq!(guestbook.schema(), "0003_add_mood");
    let not_undone = "the schema was not rolled back: it stays at 0003_add_mood (it was 0002_limit_messages)";
    assert_eq!(
        deployment["undone"].as_array().and_then(|all| all.last()),
        Some(&format!("migrate: {not_undone}").into())
    );
    let report = site.refit(&["report", &deployment["id"].to_string()]).expect(0).stdout;
    assert!(report.contains(not_undone), "{report}");
    assert!(site.log_of(&deployment).contains("[masked]"), "the secret was there to be masked");
    assert_eq!(production(&guestbook)["migrations"], "0003_add_mood");
    site.git(&["reset", "-q", "--hard", &good]);

    // A test that fails ends it before anything is touched: the migration that came with it has not run.
    guestbook.edit("guestbook/web.py", "\"failing\"", "\"fine\"");
    guestbook.migration("0003_add_mood", "ALTER TABLE entries ADD COLUMN mood text;\n");
    guestbook.migration("0004_drop_everything", "DROP TABLE entries;\n");
    let images = || docker(&["images", "--format", "{{.Tag}} {{.ID}}", "--filter", &format!("reference={}", site.app)]);
    let before = images();
    let untested = site.push("Always look on the bright side");
    site.refit(&["deploy"]).expect(1);
    let deployment = deployed(site, &untested, "failed");
    assert_eq!((&deployment["failed_stage"], &deployment["exit_code"]), (&"test".into(), &1.into()));
    assert_eq!((&deployment["live"], &deployment["undone"]), (&false.into(), &serde_json::json!([])));
    for later in &STAGES[4..] {
        assert_eq!(stage(&deployment, later)["status"], "pending", "{later}");
    }
    assert!(site.log_of(&deployment).contains("test_health_says_why_it_is_bad"));
    good_is_live();
    assert_eq!(guestbook.schema(), "0003_add_mood");
    assert_eq!(images(), before);
    assert_eq!(guestbook.leaks(), [""; 0]);
}
