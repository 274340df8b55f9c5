//! What a set is put back into need not be there yet.

use super::{
    docker_mysql::mysql_in,
    postgres::{Container, engine},
    restore::put_back,
    *,
};

fn names(environment: &Environment) -> Vec<&str> {
    environment.backups.iter().map(|backup| backup.name.as_str()).collect()
}

async fn there(environment: &Environment) -> Environment {
    let engine = engine();
    present(environment, Reach { containers: Some(&engine), scratch: Some(&engine) }, &job()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_database_is_made_as_it_was_and_dropped_again_if_that_fails() {
    let db = Container::postgres_on_network().await;
    let odd = "odd \"name\"; --";
    let quoted = odd.replace('"', "\"\"");
    db.psql("postgres", "CREATE ROLE far SUPERUSER LOGIN PASSWORD 'hunter22'");
    db.psql("postgres", &format!("CREATE DATABASE \"{quoted}\" TEMPLATE template0 ENCODING 'LATIN1'"));
    db.psql(odd, "CREATE TABLE held AS SELECT generate_series(1, 1000) AS x");
    let url = format!("postgres://far:hunter22@{}/{}?sslmode=disable", db.address(), "odd%20%22name%22;%20--");
    let url = BackupSource::PostgresUrl {
        url: Secret::new(url),
        tools: crate::config::DatabaseTools::Host,
        format: PostgresFormat::Custom,
        roles: false,
    };
    let beside = postgres_in(&db.0, odd, PostgresFormat::Plain);
    let missing = || db.psql("postgres", "SELECT count(*) FROM pg_database WHERE datname LIKE 'odd%'") == "0";
    let dir = tempfile::tempdir().unwrap();
    for source in [beside, url] {
        let ask = |check: &str| Backup { check: Some(check.to_owned()), ..backup("app", source.clone()) };
        let all = environment(vec![ask("SELECT count(*) FROM held")]);
        assert_eq!(names(&there(&all).await), ["app"]);
        let report = take(dir.path(), all.backups.clone(), Some(&engine()), &job()).await.unwrap();
        assert_eq!(report.failures, []);
        let set = dir.path().join(report.set.unwrap());
        db.psql("postgres", &format!("DROP DATABASE \"{quoted}\""));
        assert!(missing());
        assert_eq!(names(&there(&all).await), [""; 0]);

        // Damaged since it was made, in a way that its checksum does not tell.
        let whole = std::fs::read(set.join(&report.parts[0].file)).unwrap();
        restore::forge(&set, |manifest| manifest.parts[0].raw_bytes += 1);
        put_back(&all, &set, Some(&engine()), &job()).await.unwrap_err();
        assert!(missing(), "what was made for a restore that failed goes again");
        restore::forge(&set, |manifest| manifest.parts[0].raw_bytes -= 1);
        assert_eq!(std::fs::read(set.join(&report.parts[0].file)).unwrap(), whole);

        for _ in 0..2 {
            let restored = put_back(&all, &set, Some(&engine()), &job()).await.unwrap();
            assert_eq!(restored.restored[0].rows, Some(1000));
            let told = db.psql(odd, "SELECT count(*), getdatabaseencoding() FROM held");
            assert_eq!(told, "1000|LATIN1");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mysql_database_and_files_are_made_too_and_what_cannot_be_asked_counts_as_there() {
    let db = Container::mariadb().await;
    db.sql("mysql", "CREATE DATABASE shop");
    db.sql("shop", "CREATE TABLE held AS SELECT seq AS x FROM seq_1_to_1000");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/uploads");
    trees::write(&path.join("a"), "kept");
    let sources = vec![
        backup("shop", mysql_in(&db.0, "shop")),
        trees::files("uploads", &path, &[]),
        backup("away", mysql_in("refit-no-such-container", "shop")),
    ];
    let all = environment(sources);
    assert_eq!(names(&there(&all).await), ["shop", "uploads", "away"]);
    let report = take(dir.path(), all.backups[..2].to_vec(), Some(&engine()), &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    db.sql("mysql", "DROP DATABASE shop");
    std::fs::remove_dir_all(dir.path().join("deep")).unwrap();
    assert_eq!(names(&there(&all).await), ["away"]);
    // One that fails because of another part leaves nothing behind.
    let broken = Backup { check: Some("SELECT 0".to_owned()), ..all.backups[0].clone() };
    put_back(&environment(vec![broken, all.backups[1].clone()]), &set, Some(&engine()), &job()).await.unwrap_err();
    restore::forge(&set, |manifest| manifest.parts[1].tree.as_mut().unwrap().listing.entries += 1);
    put_back(&all, &set, Some(&engine()), &job()).await.unwrap_err();
    assert_eq!((db.databases().as_str(), path.exists()), ("NULL", false));
    restore::forge(&set, |manifest| manifest.parts[1].tree.as_mut().unwrap().listing.entries -= 1);
    put_back(&all, &set, Some(&engine()), &job()).await.unwrap();
    assert_eq!((db.sql("shop", "SELECT COUNT(*) FROM held").as_str(), db.databases().as_str()), ("1000", "shop"));
    assert_eq!(std::fs::read_to_string(path.join("a")).unwrap(), "kept");
}
