//! Threat 28: the disk is full while a database is dumped, while a log is written, and while the store is. The deployment fails and says why,
//! what is live goes on, and once there is room again so do deployments. Each disk is a small file system of its own, which only
//! root can make: for another user these tests fail and say so.

use std::{fs, path::Path};

use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::support::{Site, disk::Disk, poll};

/// The preflight would see such a small disk, and begin nothing.
fn without_preflight(site: &Site) {
    site.edit_config("reconcile = \"0s\"\n", "reconcile = \"0s\"\nmin_free_space = 0\n");
}

/// A database of a megabyte that does not compress.
fn database(path: &Path) {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let fill = async {
        let mut file = SqliteConnection::connect_with(&options).await?;
        sqlx::raw_sql("CREATE TABLE t (x BLOB); INSERT INTO t VALUES (randomblob(1000000))").execute(&mut file).await?;
        file.close().await
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(fill).unwrap();
}

#[test]
fn while_dumping() {
    let site = Site::process();
    site.push("good");
    site.deploy(0);
    let file = site.path().join("app.db");
    database(&file);
    let disk = Disk::mount(&site.path().join("backups"), "size=256k,mode=0700");
    let backup = |required: bool| {
        format!("[[backup]]\nkind = \"sqlite\"\npath = \"{}\"\nrequired = {required}\n", file.display())
    };
    let site = site.with(&backup(true));
    without_preflight(&site);
    site.version("two");
    site.push("two");
    let bad = site.deploy(1);
    assert_eq!((&bad["status"], &bad["failed_stage"]), (&"failed".into(), &"backup".into()), "{bad:#}");
    assert!(bad["error"].to_string().contains("no space left on"), "{bad:#}");
    site.expect_page("one");
    let left = |dir: &Path| fs::read_dir(dir.join(&site.app).join("production")).map_or(0, Iterator::count);
    assert_eq!(left(disk.path()), 0, "no half of a set stays");
    // One that is not required is a warning, and the disk stays as empty.
    site.edit_config("required = true", "required = false");
    let warned = site.deploy(0);
    assert_eq!(warned["stages"][1]["status"], "warned", "{warned:#}");
    site.expect_page("two");
    assert_eq!(left(disk.path()), 0);
    drop(disk);
    site.push("three");
    assert_eq!(site.deploy(0)["stages"][1]["status"], "succeeded");
}

#[test]
fn while_logging() {
    let site = Site::process();
    site.push("good");
    site.deploy(0);
    let site = site.with("[build]\nrun = \"sh build.sh\"");
    without_preflight(&site);
    let disk = Disk::mount(&site.path().join("logs"), "size=64k,mode=0700");
    site.write("build.sh", "for n in $(seq 4000); do echo this is line $n of a build that says a lot; done\n");
    site.version("two");
    site.push("says a lot");
    let bad = site.deploy(69);
    assert_eq!((&bad["status"], &bad["failed_stage"]), (&"failed".into(), &"build".into()), "{bad:#}");
    assert!(bad["error"].to_string().contains("free some space"), "{bad:#}");
    site.expect_page("one");
    drop(disk);
    site.refit(&["rerun"]).expect(0);
    site.expect_page("two");
}

#[test]
fn docker_while_writing_the_store() {
    let mut site = Site::docker();
    let disk = Disk::mount(&site.path().join(".refit"), "size=8m,mode=0700");
    without_preflight(&site);
    site.push("good");
    site.deploy(0);
    let before = site.containers(false);
    let pause = site.path().join("paused");
    site = site.env("REFIT_FAULT", &format!("step:build:effect=pause:{}", pause.display()));
    site.version("two");
    site.push("two");
    site.serve();
    site.refit(&["deploy", "--detach"]).expect(0);
    poll(|| pause.exists().then_some(())).expect("the build is done");
    disk.fill();
    fs::remove_file(&pause).unwrap();
    // Without a record nothing is begun, and nobody is told that it went well.
    poll(|| site.daemon_log().contains("cannot go on").then_some(())).expect("it stops");
    site.expect_page("one");
    assert_eq!(site.containers(false), before);
    disk.give_way();
    let ended = site.settled();
    assert_eq!(ended["status"], "failed", "{ended:#}");
    site.expect_page("one");
    assert_eq!(site.containers(false), before);
    assert_eq!(site.stop_daemon(), 0);
    let site = site.env("REFIT_FAULT", "");
    // Full from the start: what is live is not even looked at.
    disk.fill();
    let ran = site.refit(&["deploy"]);
    assert_ne!(ran.code, 0, "{ran:?}");
    site.expect_page("one");
    disk.give_way();
    site.push("two again");
    site.deploy(0);
    site.expect_page("two");
}
