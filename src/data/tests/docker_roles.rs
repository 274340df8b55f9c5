//! Roles of one real server come to another: through Refit, by hand, and in a rehearsal.

use std::process::Stdio;

use super::{
    postgres::{Container, engine},
    restore::{forge, put_back},
    *,
};

/// Roles with everything that is odd about names and values, and what belongs to them.
const ROLES: &str = r#"
CREATE ROLE "it's"" \ $(id); --" LOGIN PASSWORD 'pa''ss\' CONNECTION LIMIT 3 VALID UNTIL '2099-01-01';
CREATE ROLE guest LOGIN PASSWORD 'hunter22' NOINHERIT CREATEDB;
CREATE ROLE boss SUPERUSER CREATEROLE BYPASSRLS PASSWORD 'b0ss';
CREATE ROLE "Ünï ""two
lines";
CREATE ROLE there LOGIN PASSWORD 'from the set';
GRANT "Ünï ""two
lines" TO "it's"" \ $(id); --" WITH ADMIN OPTION;
GRANT boss TO guest; GRANT there TO guest; GRANT pg_monitor TO guest;
ALTER ROLE guest SET search_path TO 'a b', "$user", public;
ALTER ROLE guest SET "TimeZone" TO 'Asia/Tokyo';
ALTER ROLE guest SET shop.tenant TO 'it''s \ x';
ALTER ROLE guest SET session_preload_libraries TO 'auto_explain';
COMMENT ON ROLE guest IS 'a \ ''guest''';
"#;

const OWNED: &str = r#"
CREATE TABLE theirs AS SELECT generate_series(1, 100) AS x;
ALTER TABLE theirs OWNER TO "Ünï ""two
lines";
GRANT SELECT ON theirs TO "it's"" \ $(id); --";
"#;

/// All that is known of each role but its password, and who is a member of which.
const KNOWN: &str = "SELECT r.rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, \
     rolconnlimit, rolvaliduntil, shobj_description(r.oid, 'pg_authid'), \
     (SELECT array_agg(s ORDER BY s) FROM pg_db_role_setting, unnest(setconfig) s WHERE setrole = r.oid), \
     (SELECT array_agg(roleid::regrole::text || admin_option) FROM pg_auth_members m WHERE member = r.oid), \
     md5(rolpassword) FROM pg_authid r WHERE r.rolname !~ '^pg_' AND r.rolname <> 'boss' ORDER BY 1";

struct Scene {
    db: Container,
    dir: tempfile::TempDir,
    source: Backup,
}

impl Scene {
    async fn new(user: &str) -> Self {
        let db = Container::postgres().await;
        db.psql("postgres", ROLES);
        db.psql("postgres", "CREATE ROLE plain LOGIN");
        db.psql("postgres", "CREATE DATABASE app OWNER plain");
        db.psql("app", OWNED);
        db.psql("app", "GRANT SELECT ON theirs TO plain");
        let source = backup("app", of(&db, user));
        Self { db, dir: tempfile::tempdir().unwrap(), source }
    }

    async fn set(&self, job: &Job) -> PathBuf {
        let report = take(self.dir.path(), vec![self.source.clone()], Some(&engine()), job).await.unwrap();
        assert_eq!(report.failures, []);
        self.dir.path().join(report.set.unwrap())
    }
}

fn of(db: &Container, user: &str) -> BackupSource {
    BackupSource::Postgres {
        container: db.0.clone(),
        database: "app".to_owned(),
        user: user.to_owned(),
        password: None,
        format: PostgresFormat::Plain,
        roles: true,
    }
}

/// A server that has one of the roles already, and the database.
async fn another() -> Container {
    let db = Container::postgres().await;
    db.psql("postgres", "CREATE ROLE there LOGIN PASSWORD 'its own' VALID UNTIL '2050-01-01'");
    db.psql("postgres", "CREATE DATABASE app");
    db
}

fn roles(db: &Container) -> String {
    db.psql("postgres", "SELECT string_agg(rolname, ',' ORDER BY rolname) FROM pg_roles WHERE rolname !~ '^pg_'")
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_come_to_another_server_and_what_reaches_further_does_not() {
    let scene = Scene::new("postgres").await;
    let log = scene.dir.path().join("log");
    let log = DeploymentLog::open(&log, Redactor::default()).unwrap();
    let job = Job { log: log.stage(Stage::Backup), cancel: CancellationToken::new() };
    let set = scene.set(&job).await;
    let manifest = read_manifest(&set).unwrap();
    let file = manifest.parts[0].roles.clone().unwrap();
    assert_eq!((file.file.as_str(), file.count, file.passwords), ("app.roles.sql", 7, true));
    assert_eq!((manifest.version, manifest.warnings.len()), (3, 0));
    assert_eq!(set.join(&file.file).metadata().unwrap().permissions().mode() & 0o777, 0o600);

    // Tried out where there are no roles.
    let engine = engine();
    let both = Reach { containers: Some(&engine), scratch: Some(&engine) };
    let sources = environment(vec![scene.source.clone()]);
    let request = VerifyRequest { environment: Some(&sources), set: &set, depth: Depth::Restore, parts: &[] };
    let looked = verify_set(request, both, &job).await.unwrap();
    assert!(looked.ok, "{looked:#?}");
    assert!(looked.parts[0].checks.iter().any(|c| c.what == "roles" && c.detail == "7, with their passwords"));

    let other = another().await;
    let was = other.psql("postgres", &KNOWN.replace(" ORDER BY 1", " AND r.rolname = 'there'"));
    let environment = environment(vec![backup("app", of(&other, "postgres"))]);
    for round in 0..2 {
        let report = put_back(&environment, &set, Some(&engine), &job).await.unwrap();
        let note = report.restored[0].note.clone().unwrap_or_default();
        if round == 0 {
            for held in [
                "ALTER ROLE \"boss\" WITH SUPERUSER CREATEROLE BYPASSRLS;",
                "GRANT \"there\" TO \"guest\";",
                "GRANT \"pg_monitor\" TO \"guest\";",
                "ALTER ROLE \"guest\" SET \"session_preload_libraries\" TO ",
            ] {
                assert!(note.contains(held), "{note}");
            }
        } else {
            assert_eq!(note, "", "all are there");
        }
        assert_eq!(
            other.psql(
                "app",
                "SELECT count(*), pg_get_userbyid(relowner) FROM theirs, pg_class WHERE relname = 'theirs' GROUP BY 2"
            ),
            "100|Ünï \"two\nlines"
        );
    }
    // What was held back, and what was there.
    let expected: Vec<String> = scene.db.psql("postgres", KNOWN).lines().map(str::to_owned).collect();
    let found = other.psql("postgres", KNOWN);
    for line in &expected {
        let line = line.replace(",session_preload_libraries=auto_explain", "");
        let line = line.replace("boss", "");
        if line.starts_with("guest|") {
            let (start, _) = line.split_once("|{").unwrap();
            assert!(found.contains(start), "{start}\n{found}");
        } else if !line.starts_with("there|") {
            assert!(found.contains(&line), "{line}\n{found}");
        }
    }
    assert!(found.contains(&was), "{was}\n{found}");
    assert_eq!(
        other.psql("postgres", "SELECT rolsuper OR rolcreaterole OR rolbypassrls FROM pg_roles WHERE rolname = 'boss'"),
        "f"
    );
    let member = "SELECT string_agg(roleid::regrole::text, ',') FROM pg_auth_members WHERE member = 'guest'::regrole";
    assert_eq!(other.psql("postgres", member), "boss", "only of what was just made");
    let settings = "SELECT array_to_string(setconfig, ';') FROM pg_db_role_setting WHERE setrole = 'guest'::regrole";
    let settings = other.psql("postgres", settings);
    assert_eq!(settings, r#"search_path="a b", "$user", public;TimeZone=Asia/Tokyo;shop.tenant=it's \ x"#);
    // The password came with it: `guest` has to give one.
    let enter = |password: &str| {
        let password = format!("PGPASSWORD={password}");
        let psql = ["psql", "-XAtq", "-U", "guest", "-d", "app", "-c", "SELECT 1"];
        let command = [&["exec", "-e", &password, &other.0][..], &psql].concat();
        Command::new("docker").args(command).stdin(Stdio::null()).output().unwrap().status.success()
    };
    assert!(enter("hunter22") && !enter("hunter23"));

    // Hashes are in that one file, and nowhere else.
    let text = std::fs::read_to_string(set.join(&file.file)).unwrap();
    let hash = text.split_once("SCRAM-SHA-256$").unwrap().1.split_once('\'').unwrap().0;
    let logged = std::fs::read_to_string(log.path()).unwrap();
    assert!(logged.contains("dumped the 7 roles") && logged.contains("made 5 roles that were missing"), "{logged}");
    for text in [logged, std::fs::read_to_string(set.join(MANIFEST)).unwrap()] {
        assert!(!text.contains(hash) && !text.contains("SCRAM"), "{text}");
    }
    let said = Command::new("docker").args(["logs", &other.0]).output().unwrap();
    assert!(!String::from_utf8_lossy(&said.stderr).contains("SCRAM"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_leaves_no_roles_and_a_hostile_file_makes_none() {
    let scene = Scene::new("postgres").await;
    let set = scene.set(&job()).await;
    let other = another().await;
    let before = roles(&other);
    let environment = environment(vec![backup("app", of(&other, "postgres"))]);
    let real = read_manifest(&set).unwrap().parts[0].raw_bytes;

    // Found at the end of the dump, when the roles were made long since.
    forge(&set, |m| m.parts[0].raw_bytes = real + 1);
    let error = put_back(&environment, &set, Some(&engine()), &job()).await.unwrap_err().to_string();
    assert!(error.contains("and should to "), "{error}");
    assert!(error.ends_with("; no data was changed"), "{error}");
    assert_eq!(roles(&other), before);
    forge(&set, |m| m.parts[0].raw_bytes = real);

    let whole = std::fs::read_to_string(set.join("app.roles.sql")).unwrap();
    let replace = |text: &str| {
        std::fs::write(set.join("app.roles.sql"), text).unwrap();
        forge(&set, |m| {
            let file = m.parts[0].roles.as_mut().unwrap();
            file.bytes = text.len() as u64;
            file.sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(text));
        });
    };
    for hostile in [
        "ALTER ROLE stranger WITH PASSWORD 'md50123456789abcdef0123456789abcdef';\n",
        "\\! touch /tmp/owned\n",
        "DROP TABLE theirs;\n",
        "CREATE ROLE x; ALTER ROLE x WITH LOGIN PASSWORD 'plain words';\n",
    ] {
        replace(&format!("{whole}{hostile}"));
        let error = put_back(&environment, &set, Some(&engine()), &job()).await.unwrap_err().to_string();
        assert!(error.contains("`app.roles.sql` is refused: there is something at line "), "{error}");
        assert!(!error.contains("plain words") && error.ends_with("; no data was changed"), "{error}");
        assert_eq!(roles(&other), before);
        let engine = engine();
        let request = VerifyRequest { environment: None, set: &set, depth: Depth::Catalogue, parts: &[] };
        let both = Reach { containers: Some(&engine), scratch: Some(&engine) };
        assert!(!verify_set(request, both, &job()).await.unwrap().ok);
    }
    assert!(other.exec(&["sh", "-c", "! test -e /tmp/owned"]).status.success());
    // One byte of the roles is as much as one of the dump.
    replace(&whole);
    std::fs::write(set.join("app.roles.sql"), whole.replacen("CREATE ROLE boss", "CREATE ROLE b0ss", 1)).unwrap();
    let problem = verify_checksums(&set).unwrap_err().to_string();
    assert!(problem.contains("`app.roles.sql` has another SHA-256 than recorded"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_superuser_backs_roles_up_without_passwords() {
    let scene = Scene::new("plain").await;
    let set = scene.set(&job()).await;
    let manifest = read_manifest(&set).unwrap();
    let file = manifest.parts[0].roles.clone().unwrap();
    assert_eq!((file.count, file.passwords), (7, false));
    assert!(manifest.warnings[0].starts_with("the 7 roles of `app` are without their passwords"), "{manifest:?}");
    let text = std::fs::read_to_string(set.join(&file.file)).unwrap();
    assert!(!text.contains("PASSWORD"), "{text}");

    // By hand, as the manifest says.
    let other = another().await;
    let hint = file.restore.replace(&scene.db.0, &other.0).replace("--username=plain", "--username=postgres");
    let ran = Command::new("sh").arg("-c").arg(&hint).current_dir(&set).output().unwrap();
    assert!(ran.status.success(), "{hint}: {ran:?}");
    assert_eq!(roles(&other), roles(&scene.db));

    // Nor may it make any: it is told which are missing, and the data says the rest.
    let third = another().await;
    third.psql("postgres", "CREATE ROLE plain LOGIN; ALTER DATABASE app OWNER TO plain");
    let environment = environment(vec![backup("app", of(&third, "plain"))]);
    let log = scene.dir.path().join("log");
    let log = DeploymentLog::open(&log, Redactor::default()).unwrap();
    let job = Job { log: log.stage(Stage::Backup), cancel: CancellationToken::new() };
    let error = put_back(&environment, &set, Some(&engine()), &job).await.unwrap_err().to_string();
    assert!(error.contains("does not exist") && error.ends_with("; no data was changed"), "{error}");
    let logged = std::fs::read_to_string(log.path()).unwrap();
    let told = "`plain` may not make them, which takes CREATEROLE: `boss`, `guest`, ";
    assert!(logged.contains(told), "{logged}");
}
