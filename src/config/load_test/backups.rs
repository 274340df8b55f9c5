//! `[[backup]]`, and how long sets stay.

use super::*;

#[test]
fn backups_say_how_long_they_stay_and_how_far_they_are_looked_at() {
    let text = SMALL.to_owned()
        + "[environments.dev]\nbranch = 'dev'\nrehearse_backups = '1d'\n[environments.lab]\nbranch = 'lab'\n\
           [[environments.lab.backup]]\nkind = 'sqlite'\npath = 'a.db'\nkeep = 3\nverify = 'off'\n\
           [[environments.lab.backup]]\nkind = 'sqlite'\npath = 'b.db'\n\
           [[backup]]\nkind = 'sqlite'\npath = 'app.db'\ncheck = 'SELECT count(*) FROM guests'\nverify = 'restore'\n";
    let config = House::new(&text).config();
    let of = |name: &str| config.environment(None, Some(name)).unwrap();
    let keep = |name: &str| of(name).backup_retention.keep;
    assert_eq!([keep("production"), keep("dev"), keep("lab")], [10, 5, 5], "the most that any entry asks for");
    assert_eq!(
        (of("production").rehearse_backups, of("dev").rehearse_backups),
        (None, Some(Duration::from_secs(86_400)))
    );
    let dev = &of("dev").backups[0];
    assert_eq!((dev.verify, dev.check.as_deref()), (VerifyBackup::Restore, Some("SELECT count(*) FROM guests")));
    assert_eq!(
        of("lab").backups.iter().map(|b| b.verify).collect::<Vec<_>>(),
        [VerifyBackup::Off, VerifyBackup::Checksums]
    );
    let wrong = SMALL.to_owned() + "[[backup]]\nkind = 'sqlite'\npath = 'a.db'\nverify = 'sometimes'\ncheck = ''\n";
    let errors = House::new(&wrong).load_as(MissingSecrets::Error).unwrap_err().problems;
    assert_eq!(errors.len(), 2, "{errors:#?}");
}

#[test]
fn files_volumes_and_commands_can_be_backed_up() {
    let house = House::new(&format!(
        "{SMALL}[[backup]]\nkind = 'files'\npath = 'data/uploads'\nexclude = ['*.tmp', 'cache/**', 'old/']\n\
         [[backup]]\nkind = 'volume'\nvolume = 'app_Data'\n\
         [[backup]]\nkind = 'command'\ndump = 'd'\nrestore = 'r'\ncontainer = 'c'\nenv = {{ A = '1' }}\n"
    ));
    let config = house.load_as(MissingSecrets::Error).unwrap();
    let backups = &config.apps[0].environments[0].backups;
    let names: Vec<_> = backups.iter().map(|backup| backup.name.as_str()).collect();
    assert_eq!(names, ["uploads", "app_data", "command"]);
    let BackupSource::Files { path, exclude } = &backups[0].source else { panic!("{backups:?}") };
    assert_eq!(*path, house.dir.path().join("data/uploads"));
    let excluded = |path: &str| exclude.set.as_ref().unwrap().is_match(path);
    for (path, expected) in [
        ("x.tmp", true),
        ("a/b/x.tmp", true),
        ("cache/page", true),
        ("cache", false),
        ("a/cache/page", false),
        ("a/old", true),
        ("x.tmp/y", false),
    ] {
        assert_eq!(excluded(path), expected, "{path}");
    }
    let BackupSource::Command(command) = &backups[2].source else { panic!("{backups:?}") };
    assert_eq!((command.container.as_deref(), command.env["A"].as_str()), (Some("c"), "1"));
}

#[test]
fn every_kind_of_backup_says_which_keys_it_has() {
    let house = House::new(&format!(
        "{SMALL}[[backup]]\nkind = 'files'\npath = '/'\nvolume = 'x'\n\
         [[backup]]\nkind = 'volume'\nvolume = '../x'\nexclude = ['../y']\n\
         [[backup]]\nkind = 'command'\ndump = ''\nuser = 'x'\n\
         [[backup]]\nkind = 'sqlite'\npath = 'x.db'\nexclude = ['y']\n"
    ));
    assert_snapshot!(house.errors(), @r"
    pipeline.toml:9:8: `backup[0].path`: is the root of this host's files; name the directory that holds the app's files
    pipeline.toml:10:10: `backup[0].volume`: a `files` backup has no `volume`; remove the key
    pipeline.toml:13:10: `backup[1].volume`: `../x` is not a name that Docker takes; it may have letters, digits and `_`, `.`, `-`, must start with a letter or digit, and be 1 to 128 long
    pipeline.toml:14:12: `backup[1].exclude[0]`: `../y` must not start with `/` or `!`, or have `.` or `..`; patterns are relative to the directory that is backed up, such as `*.tmp` or `cache/**`
    pipeline.toml:15:1: `backup[2].restore`: is missing; add `restore = …`
    pipeline.toml:17:8: `backup[2].dump`: is empty
    pipeline.toml:18:8: `backup[2].user`: a `command` backup has no `user`; remove the key
    pipeline.toml:22:11: `backup[3].exclude`: a `sqlite` backup has no `exclude`; remove the key
    ");
}

#[test]
fn a_mysql_backup_names_its_container_and_nothing_of_other_kinds() {
    let with =
        |lines: &str| House::new(&format!("{SMALL}[[backup]]\nkind = 'mysql'\n{lines}")).var("MYSQL", "hunter22");
    let house = with("container = 'db'\ndatabase = 'Shop'\nuser = 'app'\npassword = { env = 'MYSQL' }\n");
    let config = house.config();
    let backup = &config.apps[0].environments[0].backups[0];
    assert_eq!(backup.name.as_str(), "shop");
    let BackupSource::Mysql { container, database, user, password } = &backup.source else { panic!("{backup:?}") };
    assert_eq!((container.as_str(), database.as_str(), user.as_str()), ("db", "Shop", "app"));
    assert_eq!(password.as_ref().map(|password| password.expose()), Some("hunter22"));
    let errors = with("container = 'db'\nuser = 'app'\nformat = 'custom'\n").errors();
    assert!(errors.contains("`backup[0].format`: a `mysql` backup is of a database on a server"), "{errors}");
    assert!(errors.contains("backup[0]") && errors.contains("`database`"), "{errors}");
}

#[test]
fn only_postgres_has_roles() {
    let roles = |text: &str| {
        let house =
            House::new(&format!("{SMALL}[[backup]]\n{text}")).var("DATABASE_URL", "postgres://u:p4ssw0rd@db/app");
        let config = house.config();
        match config.apps[0].environments[0].backups[0].source {
            BackupSource::Postgres { roles, .. } | BackupSource::PostgresUrl { roles, .. } => roles,
            ref other => panic!("{other:?}"),
        }
    };
    let container = "kind = 'postgres'\ncontainer = 'db'\ndatabase = 'd'\nuser = 'u'\n";
    assert!(!roles(container));
    assert!(roles(&format!("{container}roles = true\n")));
    assert!(roles("kind = 'postgres'\nurl = { env = 'DATABASE_URL' }\nroles = true\n"));
    let house = House::new(&format!("{SMALL}[[backup]]\nkind = 'sqlite'\npath = 'a.db'\nroles = true\n"));
    assert_snapshot!(house.errors(), @"pipeline.toml:10:9: `backup[0].roles`: a `sqlite` backup has no `roles`; remove the key");
}

#[test]
fn a_mysql_backup_may_name_its_url_instead() {
    let with = |lines: &str| {
        House::new(&format!("{SMALL}[[backup]]\nkind = 'mysql'\n{lines}")).var("MYSQL", "mysql://u:hunter22@h/d")
    };
    let house = with("url = { env = 'MYSQL' }\n");
    let backup = &house.config().apps[0].environments[0].backups[0];
    assert_eq!(backup.name.as_str(), "mysql");
    let BackupSource::MysqlUrl { url, tools: DatabaseTools::Host } = &backup.source else { panic!("{backup:?}") };
    assert_eq!(url.expose(), "mysql://u:hunter22@h/d");
    let house = with("name = 'shop'\nurl = { env = 'MYSQL' }\ntools = 'mariadb:11'\n");
    let backup = &house.config().apps[0].environments[0].backups[0];
    let BackupSource::MysqlUrl { tools: DatabaseTools::Image(image), .. } = &backup.source else {
        panic!("{backup:?}")
    };
    assert_eq!((backup.name.as_str(), image.as_str()), ("shop", "mariadb:11"));
    let errors = with("url = { env = 'MYSQL' }\ncontainer = 'db'\npath = 'x'\n").errors();
    assert!(errors.contains("`backup[0].container`: the `url` says where the database is"), "{errors}");
    assert!(errors.contains("`backup[0].path`") && !errors.contains("hunter22"), "{errors}");
}
