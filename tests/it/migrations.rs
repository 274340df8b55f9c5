//! Threat 32, with a real PostgreSQL: a migration that stops half way, one that hangs on a lock, and one that somebody applied by hand. Each
//! time the old version stays live, and the report says in which state the schema is.

use serde_json::Value;

use crate::{
    guestbook::setup::Guestbook,
    support::{docker, poll},
};

/// What the runner would have written.
const BY_HAND: &str = r"INSERT INTO schema_migrations (name, checksum)
    VALUES ('0003_add_mood', encode(sha256(E'ALTER TABLE entries ADD COLUMN mood text;\n'::bytea), 'hex'))";

/// A guestbook with its first version live, at the last of the shipped migrations.
fn live(more: &str) -> (Guestbook, String) {
    let guestbook = Guestbook::new("");
    if !more.is_empty() {
        guestbook.site.edit_config("[migrate]\n", &format!("[migrate]\n{more}\n"));
    }
    guestbook.site.push("first");
    guestbook.site.refit(&["deploy"]).expect(0);
    let schema = guestbook.schema();
    (guestbook, schema)
}

/// Deploys what is to fail in migrate; the first version goes on, and the report tells of the schema.
#[track_caller]
fn fails(guestbook: &Guestbook, expected: &[&str]) -> Value {
    guestbook.site.push("second");
    guestbook.site.refit(&["deploy"]).expect(3);
    let bad = guestbook.site.newest();
    assert_eq!((&bad["status"], &bad["failed_stage"]), (&"failed".into(), &"migrate".into()), "{bad:#}");
    let error = bad["error"].as_str().unwrap();
    for words in expected {
        assert!(error.contains(words), "{error}");
    }
    assert!(bad["undone"].to_string().contains("the schema was not rolled back"), "{bad:#}");
    let report = guestbook.site.refit(&["report", &bad["id"].to_string()]).expect(0).stdout;
    assert!(report.contains(expected[0]), "{report}");
    let containers = guestbook.site.containers(false);
    assert_eq!(containers.len(), 1, "the old version and nothing else: {containers:?}");
    // A server goes on with a statement whose client is gone, until it times out there; the app waits behind it as long.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'ALTER TABLE%'";
    let gone = poll(|| (guestbook.database.psql("guestbook", waiting) == "0").then_some(()));
    gone.expect("nobody waits for the lock any more");
    guestbook.sign(guestbook.site.port, "eve", "still here");
    assert!(guestbook.page().contains("still here"));
    bad
}

#[test]
fn docker_a_migration_that_fails_half_way_leaves_a_known_state() {
    let (guestbook, schema) = live("");
    guestbook.migration("0003_add_mood", "ALTER TABLE entries ADD COLUMN mood text;\n");
    guestbook.migration(
        "0004_broken",
        "ALTER TABLE entries ADD COLUMN colour text;\nALTER TABLE nothing ADD COLUMN x text;\n",
    );
    let moved = format!("the schema went from {schema} to 0003_add_mood");
    fails(&guestbook, &[&moved, "exit code"]);
    assert_eq!(guestbook.schema(), "0003_add_mood");
    // Mended, it goes on from there: nothing is applied twice.
    guestbook.migration("0004_broken", "ALTER TABLE entries ADD COLUMN colour text;\n");
    guestbook.site.push("mended");
    guestbook.site.refit(&["deploy"]).expect(0);
    assert_eq!(guestbook.schema(), "0004_broken");
}

#[test]
fn docker_a_migration_that_hangs_on_a_lock_ends_in_time() {
    let (guestbook, schema) = live("timeout = \"4s\"");
    // It gives up by itself, as a careful migration does, but later than we do.
    guestbook.edit("guestbook/migrate.py", "LOCK_TIMEOUT = \"5s\"", "LOCK_TIMEOUT = \"12s\"");
    let database = &guestbook.database;
    let hold = "BEGIN; SELECT * FROM entries; SELECT 'held by a test', pg_sleep(600)";
    docker(&["exec", "--detach", &database.name, "psql", "-U", "postgres", "-d", "guestbook", "-c", hold]);
    let sessions = |what: &str| {
        let count = format!("SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND {what}");
        database.psql("guestbook", &count).parse::<u32>().unwrap()
    };
    let holder = "query LIKE '%held by a test%'";
    poll(|| (sessions(holder) == 1).then_some(())).expect("the lock is held");
    guestbook.migration("0003_add_mood", "ALTER TABLE entries ADD COLUMN mood text;\n");
    let still = format!("the schema is still at {schema}");
    fails(&guestbook, &[&still, "the migration did not finish within 4s"]);
    // The server goes on with a statement whose client is gone; being in a transaction that nobody ends, it changes nothing.
    database.psql(
        "guestbook",
        &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND {holder}"),
    );
    poll(|| (sessions("query LIKE 'ALTER TABLE%'") == 0).then_some(())).expect("nobody waits for the lock any more");
    assert_eq!(guestbook.schema(), schema);
    guestbook.site.refit(&["rerun"]).expect(0);
    assert_eq!(guestbook.schema(), "0003_add_mood");
}

#[test]
fn docker_a_migration_that_was_applied_by_hand_is_told() {
    let (guestbook, schema) = live("");
    guestbook.database.psql("guestbook", "ALTER TABLE entries ADD COLUMN mood text");
    guestbook.migration("0003_add_mood", "ALTER TABLE entries ADD COLUMN mood text;\n");
    let still = format!("the schema is still at {schema}");
    let bad = fails(&guestbook, &[&still]);
    let log = guestbook.site.log_of(&bad);
    assert!(log.contains("already exists"), "{log}");
    assert_eq!(guestbook.schema(), schema);
    // Somebody says so in the migrations' table too, and the same commit goes through.
    guestbook.database.psql("guestbook", BY_HAND);
    guestbook.site.refit(&["rerun"]).expect(0);
    assert_eq!(guestbook.schema(), "0003_add_mood");
}
