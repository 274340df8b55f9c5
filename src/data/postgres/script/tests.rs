//! What passes, what is refused, and that it does not matter how a dump is cut into pieces.

use proptest::prelude::*;

use super::*;

/// What `psql` gets, and the rows; in pieces of `cut` bytes.
fn follow(dump: &str, cut: usize, strict: bool) -> Result<(String, Vec<TableRows>), Refused> {
    let (mut script, mut out) = (Script::new(strict), Vec::new());
    for piece in dump.as_bytes().chunks(cut) {
        script.take(piece, &mut out)?;
    }
    Ok((String::from_utf8(out).unwrap(), script.finish()?))
}

fn rows(tables: &[(&str, u64)]) -> Vec<TableRows> {
    tables.iter().map(|(name, rows)| TableRows { name: (*name).to_owned(), rows: *rows }).collect()
}

/// What `pg_dump` writes, at its oddest.
const GOOD: &str = r#"--
-- PostgreSQL database dump
--

\restrict a1B2c3

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
CREATE FUNCTION public.odd(n integer) RETURNS text
    LANGUAGE sql
    AS $_$ SELECT '\! id' || $1; -- \! id
\! id
$_$;
CREATE FUNCTION public.body() RETURNS integer
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT CASE WHEN true THEN 1 ELSE 2 END;
 SELECT 2;
END;
COMMENT ON TABLE public.t IS 'a path C:\ and '' and
\! id in a comment';
COMMENT ON COLUMN public.t."we""ird;\! id" IS E'tab\t quote\' \\ and ''more''';
CREATE VIEW v AS SELECT (a.x[1:n] - 1) AS m, (- 2)::numeric FROM t$1 a; /* nested /* \! */ ; ' */
COPY public.t (id, "we""ird, FROM stdin") FROM stdin;
1	it's \\ \\. \N
2	\.x
\\.	"

\.


COPY public."none"  FROM stdin;
\.

COPY "S; --"."T""1" (a) FROM stdin;
$$ ' /* --
\.

BEGIN;

SELECT pg_catalog.lo_open('424242', 131072);
SELECT pg_catalog.lowrite(0, '\x00ff');
SELECT pg_catalog.lo_close(0);

COMMIT;

--
-- PostgreSQL database dump complete
--

\unrestrict a1B2c3

"#;

#[test]
fn what_pg_dump_writes_passes_but_for_fences_and_transactions() {
    let expected = rows(&[("public.t", 4), ("public.\"none\"", 0), ("\"S; --\".\"T\"\"1\"", 1)]);
    let wanted: String = GOOD
        .lines()
        .filter(|l| !l.contains("restrict ") && !matches!(*l, "BEGIN;" | "COMMIT;"))
        .map(|l| format!("{l}\n"))
        .collect();
    let bare = |text: &str| text.lines().filter(|l| !l.is_empty()).map(|l| format!("{l}\n")).collect::<String>();
    for cut in [1, 2, 3, 7, 64, 100_000] {
        let (out, tables) = follow(GOOD, cut, false).unwrap();
        assert_eq!(tables, expected, "{cut}");
        assert_eq!(bare(&out), bare(&wanted), "{cut}");
    }
}

#[test]
fn whatever_could_be_a_command_of_psql_is_refused() {
    let hostile = [
        "\\! id\n",
        "SELECT 1;\n\\! id\n",
        "SELECT 1 \\! id\n",
        "SELECT 1 \\g |id\n",
        "-- an object named by somebody\r\\! id\n",
        "-- an object named by somebody\n\\! id\n",
        "\\restrict a\\! id\n",
        "\\restrict\n",
        "\\restrict x; \\! id\n",
        "  \\restrict abc\n",
        "SELECT '\\'; \\! id\n --'\n",
        "SELECT E'\\\\'; \\! id\n --'\n",
        "SELECT E'a\\''; \\! id\n --'\n",
        "SELECT \"a\"\"\"; \\! id\n --\"\n",
        "SELECT $a$ $b$ $a$; \\! id\n --$b$\n",
        "SELECT $$a$$; \\! id\n",
        "SELECT $1$ \\! id $1$;\n",
        "SELECT 1$a$ ' $a$ \\! id ';\n",
        "SELECT 1E'\\'; \\! id --';\n",
        "SELECT 1.E'\\'; \\! id --';\n",
        "SELECT E'a'\n- 'b\\'; \\! id --';\n",
        "SELECT E'a' 'b\\'; \\! id --';\n",
        "/* /* */ \\! id */ \\! id\n",
        "/*/ */ \\! id\n",
        "SELECT (1; \\! id\n)",
        ":DBNAME\n",
        "SELECT 1 :USER;\n",
        // Where a `COPY` is not what it looks like.
        "COPY t FROM PROGRAM 'id';\n",
        "COPY t FROM '/etc/passwd';\n",
        "COPY t TO PROGRAM 'id';\n",
        "COPY (SELECT 1) TO PROGRAM 'id';\n",
        "COPY t FROM PROGRAM 'id' WHERE x IS DISTINCT FROM stdin;\n",
        "COPY t FROM stdin WITH (FORMAT csv);\n1\n\\.\n",
        "COPY t FROM /* */ stdin;\n\\.\n",
        "COPY t FROM stdin; \\! id\n\\.\n",
        "COPY t FROM stdin;SELECT 1;\n\\.\n",
        "COPY t FROM stdin;\n1\n\\.\n\\! id\n",
        "COPY t FROM stdin;\n1\n\\.\r\n\\! id\n",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC COPY t FROM stdin;\nEND;\n\\! id\n\\.\n",
        "(COPY t FROM stdin;\n) \\! id\n\\.\n",
        "SELECT 1;\0\n",
        // The restore has its own transaction.
        "COMMIT; DROP TABLE t;\nCOMMIT AND CHAIN;\n",
        "COMMIT AND CHAIN;\n",
        "COMMIT/**/;\n",
        "commit work;\n",
        "ROLLBACK;\n",
        "END;\n",
        "Abort;\n",
        "PREPARE TRANSACTION 'x';\n",
        "SAVEPOINT a;\n",
        "BEGIN ISOLATION LEVEL SERIALIZABLE;\n",
        // Cut off.
        "SELECT 1",
        "SELECT 'a;\n",
        "SELECT $$;\n",
        "COPY t FROM stdin;\n1\n",
        "/* ",
    ];
    for dump in hostile {
        for cut in [1, 2, 5, 1000] {
            let whole = format!("{dump}SELECT 1;\n");
            let text = if dump.ends_with('\n') { &whole } else { dump };
            let followed = follow(text, cut, false);
            assert!(followed.is_err(), "{cut} {dump:?}: {followed:?}");
        }
    }
}

#[test]
fn of_an_old_psql_more_is_demanded() {
    for dump in ["SELECT 'C:\\';\n", "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END;\n"] {
        assert!(follow(dump, 3, false).is_ok(), "{dump}");
        assert!(follow(dump, 3, true).is_err(), "{dump}");
    }
    assert!(follow("SELECT 'C:\\\\';\n", 4, true).is_ok());
}

#[test]
fn a_refusal_names_the_line() {
    let dump = "SELECT 1;\nCOPY t FROM stdin;\n1\n2\n\\.\n\nSELECT '\n\n';\n\\! id\n";
    assert_eq!(follow(dump, 3, false).unwrap_err().line, 10);
}

proptest! {
    #[test]
    fn how_it_is_cut_makes_no_difference(
        words in proptest::collection::vec(
            proptest::sample::select(vec![
                "'", "\"", "$$", "$a$", "\\", "\\.\n", ";", "\n", "--", "/*", "*/", "E'", "COPY t (a) FROM stdin;\n", "BEGIN", "COMMIT",
                "x", "1", " ", "(", ")", "\\restrict a\n", "CREATE FUNCTION f() BEGIN ATOMIC ", "END", "é", "-", ":", "DBNAME", "\r",
            ]),
            0..30,
        ),
        cut in 1_usize..9,
        strict in any::<bool>(),
    ) {
        let dump = words.concat();
        prop_assert_eq!(follow(&dump, cut, strict), follow(&dump, dump.len().max(1), strict));
    }
}
