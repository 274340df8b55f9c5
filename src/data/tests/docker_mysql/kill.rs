//! A Refit that is killed at each step of a restore. This test runs itself once more as the process that is killed.

use std::os::unix::process::ExitStatusExt;

use super::*;

/// In the environment of the process that is to be killed: container, set, and the point.
const ROLE: &str = "REFIT_TEST_KILLED_RESTORE";

/// Where the process kills itself: before its `n`th command in the container, or as soon as that command was given something to read.
#[derive(Debug)]
struct Killer {
    engine: crate::runtime::docker::Engine,
    at: usize,
    in_the_middle: bool,
    commands: std::sync::atomic::AtomicUsize,
}

fn die() {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}

impl Killer {
    fn is_due(&self) -> bool {
        self.commands.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == self.at
    }
}

/// Gives a piece, then kills the process that asked for more.
struct Deadly<'a> {
    source: &'a mut (dyn AsyncRead + Send + Unpin),
    given: bool,
}

impl AsyncRead for Deadly<'_> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        if self.given {
            die();
        }
        let polled = std::pin::Pin::new(&mut self.source).poll_read(cx, buf);
        self.given = polled.is_ready();
        polled
    }
}

#[async_trait]
impl ContainerExec for Killer {
    async fn exec_into(
        &self,
        container: &str,
        command: &[String],
        env: &[(&str, &Secret)],
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        job: &Job,
    ) -> crate::runtime::Result<ExecOutcome> {
        if self.is_due() && !self.in_the_middle {
            die();
        }
        self.engine.exec_into(container, command, env, sink, job).await
    }

    async fn exec_through(
        &self,
        container: &str,
        command: &[String],
        env: &[(&str, &Secret)],
        source: &mut (dyn AsyncRead + Send + Unpin),
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        job: &Job,
    ) -> crate::runtime::Result<ExecOutcome> {
        if !self.is_due() {
            return self.engine.exec_through(container, command, env, source, sink, job).await;
        }
        if !self.in_the_middle {
            die();
        }
        let mut deadly = Deadly { source, given: false };
        self.engine.exec_through(container, command, env, &mut deadly, sink, job).await
    }
}

async fn be_killed(role: &str) {
    let words: Vec<&str> = role.split('|').collect();
    let [container, set, at, middle] = words[..] else { panic!("{role}") };
    let killer = Killer {
        engine: engine(),
        at: at.parse().unwrap(),
        in_the_middle: middle == "true",
        commands: std::sync::atomic::AtomicUsize::new(0),
    };
    let environment = environment(vec![backup("shop", mysql_in(container, "shop"))]);
    put_back(&environment, Path::new(set), Some(&killer), &job()).await.unwrap();
}

const MADE: &str = "CREATE TABLE a (id INT PRIMARY KEY, x TEXT); CREATE TABLE b (id INT PRIMARY KEY, aid INT, FOREIGN KEY (aid) REFERENCES a (id)); \
    INSERT INTO a SELECT seq, REPEAT('new ', 50) FROM seq_1_to_2000; INSERT INTO b SELECT id, id FROM a; CREATE TABLE gone (x INT); \
    CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW SET @new = 1; CREATE VIEW v AS SELECT COUNT(*) FROM a; CREATE PROCEDURE p() SELECT 'new'; \
    CREATE EVENT e ON SCHEDULE EVERY 1 YEAR STARTS '2035-01-01 00:00:00' DO SET @new = 1;";

const SINCE: &str = "DELETE FROM b; UPDATE a SET x = 'old'; DROP TABLE gone; CREATE TABLE came (x INT); DROP TRIGGER t; \
    CREATE TRIGGER u AFTER INSERT ON came FOR EACH ROW SET @old = 1; DROP VIEW v; CREATE TABLE v (x INT); DROP PROCEDURE p; CREATE PROCEDURE p() SELECT 'old'; \
    CREATE VIEW gone AS SELECT 1; DROP EVENT e; CREATE EVENT f ON SCHEDULE EVERY 1 YEAR STARTS '2036-01-01 00:00:00' DO SET @old = 1;";

/// Kills a restore at each of its steps in turn, and lets the next backup meet what is left.
async fn kill_at_each_step(test: &str, in_the_middle: bool) {
    if let Ok(role) = std::env::var(ROLE) {
        return be_killed(&role).await;
    }
    let db = Container::mariadb().await;
    let make = |more: &str| {
        db.sql("mysql", &format!("DROP DATABASE IF EXISTS shop; CREATE DATABASE shop; USE shop; {MADE} {more}"));
        db.dumped("shop")
    };
    let new = make("");
    let dir = tempfile::tempdir().unwrap();
    let source = backup("shop", mysql_in(&db.0, "shop"));
    let (set, _) = set_of(dir.path(), &source).await;
    let me = std::env::current_exe().unwrap();
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let mut ends = std::collections::BTreeMap::<&str, u32>::new();
    let mut reads_nothing = 0;
    for at in 0..60 {
        let old = make(SINCE);
        assert_ne!(old, new);
        let role = format!("{}|{}|{at}|{in_the_middle}", db.0, set.display());
        let killed = Command::new(&me).args(["--exact", &name, "--nocapture"]).env(ROLE, &role).output().unwrap();
        if killed.status.success() {
            assert_eq!(db.dumped("shop"), new, "{role}");
            // Of the commands that are given nothing to read, none has a middle; and none comes after the last.
            reads_nothing += 1;
            if !in_the_middle || reads_nothing > 3 {
                break;
            }
            continue;
        }
        assert_eq!(killed.status.signal(), Some(9), "{role}: {killed:?}");
        let (_, part) = set_of(dir.path(), &source).await;
        let now = db.dumped("shop");
        let end = if now == old { "old" } else { "new" };
        assert_eq!(now, if end == "old" { old } else { new.clone() }, "{role}");
        assert_eq!(db.databases(), "shop", "{role}");
        assert_eq!(part.tables.iter().any(|t| t.name == "came"), end == "old", "{role}");
        *ends.entry(end).or_default() += 1;
    }
    assert!(ends["old"] > 5 && ends["new"] > 3, "{ends:?}");
    make(SINCE);
    put_back(&environment(vec![source]), &set, Some(&engine()), &job()).await.unwrap();
    assert_eq!(db.dumped("shop"), new);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_any_step_the_data_is_all_old_or_all_new() {
    kill_at_each_step("killed_before_any_step_the_data_is_all_old_or_all_new", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_within_any_step_the_data_is_all_old_or_all_new() {
    kill_at_each_step("killed_within_any_step_the_data_is_all_old_or_all_new", true).await;
}
