//! What is read, what is refused, and what is made of it.

use proptest::prelude::*;

use super::{parse::*, *};

/// As PostgreSQL 15 and 16 write it, at its oddest.
const GOOD: &str = r#"--
-- PostgreSQL database cluster dump
--

\restrict cpDftpQJJm7E

SET default_transaction_read_only = off;

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

CREATE ROLE "it's"" \ $(x); --";
ALTER ROLE "it's"" \ $(x); --" WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 3 PASSWORD 'SCRAM-SHA-256$4096:Iy4O==$dM/G+=:eW=' VALID UNTIL '2030-01-01 00:00:00+00';
CREATE ROLE boss;
ALTER ROLE boss WITH SUPERUSER INHERIT CREATEROLE CREATEDB LOGIN REPLICATION BYPASSRLS PASSWORD 'md50123456789abcdef0123456789abcdef';
COMMENT ON ROLE boss IS E'the \\ ''owner''';
CREATE ROLE "Ünï ""two
lines";
ALTER ROLE "Ünï ""two
lines" WITH NOSUPERUSER NOINHERIT NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS;
SECURITY LABEL FOR selinux ON ROLE boss IS 'system_u:object_r';

--
-- User Config "boss"
--

ALTER ROLE boss SET search_path TO 'a b', '$user', 'public';
ALTER ROLE boss SET "TimeZone" TO 'UTC';
ALTER ROLE boss SET session_preload_libraries TO '/tmp/evil';
ALTER ROLE boss SET "shop.tenant" TO E'it''s \\ x';

GRANT boss TO "it's"" \ $(x); --" WITH ADMIN OPTION, INHERIT FALSE, SET TRUE GRANTED BY postgres;
GRANT pg_monitor TO boss GRANTED BY postgres;

\unrestrict cpDftpQJJm7E

--
-- PostgreSQL database cluster dump complete
--

"#;

const ODD: &str = r#"it's" \ $(x); --"#;

fn server(roles: &[&str]) -> Server {
    let settings = [
        ("search_path", "user"),
        ("timezone", "user"),
        ("session_preload_libraries", "superuser"),
        ("local_preload_libraries", "user"),
    ];
    Server {
        version: 160_003,
        user: "app".to_owned(),
        superuser: true,
        createrole: true,
        createdb: true,
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        settings: settings.map(|(name, context)| (name.to_owned(), context.to_owned())).into(),
    }
}

#[test]
fn what_pg_dumpall_writes_is_understood() {
    let found = parse(GOOD).unwrap();
    let names: Vec<_> = found.roles.iter().map(|role| role.name.as_str()).collect();
    assert_eq!(names, [ODD, "boss", "Ünï \"two\nlines"]);
    let odd = &found.roles[0];
    assert_eq!((&odd.attributes[..], odd.connections), (&["INHERIT", "LOGIN"][..], Some(3)));
    assert!(odd.password.as_ref().unwrap().expose().ends_with(":eW="));
    let boss = &found.roles[1];
    assert_eq!(boss.comment.as_deref(), Some(r"the \ 'owner'"));
    assert_eq!(boss.settings[0].1, ["a b", "$user", "public"]);
    assert_eq!(boss.settings[3], ("shop.tenant".to_owned(), vec![r"it's \ x".to_owned()]));
    assert!(found.roles[2].attributes.is_empty());
    assert_eq!((found.memberships.len(), found.labels), (2, 1));
    let first = &found.memberships[0];
    assert_eq!((first.admin, first.inherit, first.set), (true, Some(false), Some(true)));
}

#[test]
fn everything_else_is_refused_and_nothing_of_it_is_told() {
    let hostile = [
        "DROP ROLE app;",
        "CREATE ROLE a SUPERUSER;",
        "CREATE ROLE a; CREATE ROLE a;",
        "ALTER ROLE app WITH SUPERUSER;",
        "CREATE ROLE a; ALTER ROLE a WITH LOGIN PASSWORD 'hunter22';",
        "CREATE ROLE a; ALTER ROLE a WITH LOGIN ROLE b;",
        "CREATE ROLE a; ALTER ROLE a RENAME TO b;",
        "CREATE ROLE a; ALTER ROLE a SET search_path TO DEFAULT;",
        "CREATE ROLE a; ALTER ROLE a IN DATABASE d SET work_mem TO '1';",
        "CREATE ROLE a; ALTER ROLE a RESET ALL;",
        "CREATE ROLE a; COMMENT ON ROLE a IS NULL;",
        "CREATE ROLE a; COMMENT ON ROLE a IS E'\\x41';",
        "GRANT ALL ON DATABASE d TO a;",
        "GRANT a, b TO c;",
        "GRANT a TO b WITH GRANT OPTION;",
        "SET role = 'postgres';",
        "SET client_encoding = 'SJIS';",
        "SET standard_conforming_strings = off;",
        "CREATE ROLE A;",
        "CREATE ROLE \"\";",
        "CREATE ROLE \"a\0\";",
        "CREATE ROLE a",
        "CREATE ROLE \"a;",
        "CREATE ROLE a /* x */;",
        "CREATE ROLE a; \\! id",
        "CREATE ROLE a \\restrict x\n;",
        "\\! id\n",
        "\\restrict a;\\! id\n",
        "\\restrict\n",
        "DO $$ BEGIN END $$;",
        "SELECT 1;",
    ];
    for text in hostile {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with("there is something at line 1 ") && !error.contains("hunter22"), "{text}: {error}");
    }
}

#[test]
fn what_reaches_beyond_the_database_is_not_given_back() {
    let plan = Plan::make(&parse(GOOD).unwrap(), &server(&["postgres", "pg_monitor"]));
    assert_eq!(plan.made, [ODD, "boss", "Ünï \"two\nlines"]);
    insta::assert_snapshot!(plan.sql);
    insta::assert_snapshot!(plan.notes.join("\n"));
}

#[test]
fn roles_that_are_there_are_left_alone() {
    let plan = Plan::make(&parse(GOOD).unwrap(), &server(&["postgres", ODD, "boss", "Ünï \"two\nlines"]));
    assert_eq!((plan.sql.as_str(), plan.made.len(), plan.notes.len()), ("", 0, 0));
    // A right of one that is there already is nobody's to give, nor to take.
    let plan = Plan::make(&parse(GOOD).unwrap(), &server(&["postgres", "boss"]));
    assert!(!plan.sql.contains("GRANT") && !plan.sql.contains("\"boss\""), "{}", plan.sql);
    assert!(plan.notes.join("\n").contains("GRANT \"boss\" TO "), "{:?}", plan.notes);
}

#[test]
fn who_may_make_no_roles_is_told_so() {
    let none = Server { superuser: false, createrole: false, ..server(&[]) };
    let plan = Plan::make(&parse(GOOD).unwrap(), &none);
    assert_eq!(plan.sql, "");
    assert!(plan.notes[0].contains("`app` may not make them"), "{:?}", plan.notes);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,300}", good in any::<bool>(), cut in 0_usize..2000) {
        let start = if good { GOOD.get(..cut).unwrap_or(GOOD) } else { "" };
        let _ = parse(&format!("{start}{text}"));
    }

    #[test]
    fn names_and_values_come_through(name in "[^\0]{1,20}", value in "[^\0]{0,20}") {
        let text = format!("CREATE ROLE {0};\nCOMMENT ON ROLE {0} IS {1};\n", ident(&name), literal(&value));
        let found = parse(&text).unwrap();
        prop_assert_eq!(&found.roles[0].name, &name);
        prop_assert_eq!(found.roles[0].comment.as_ref(), Some(&value));
    }
}
