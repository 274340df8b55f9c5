//! Names, and what is to be done.

use proptest::prelude::*;

use super::*;

/// A row as sqlx writes it for a file.
fn row(files: &Files, version: i64) -> Applied {
    let file = files.get(version).unwrap();
    Applied {
        version,
        name: file.name.clone(),
        checksum: file.checksum().to_vec(),
        success: true,
        at: "2026-11-21T10:00:00Z".to_owned(),
    }
}

fn versions(migrations: &[&Migration]) -> Vec<i64> {
    migrations.iter().map(|migration| migration.version).collect()
}

#[test]
fn the_files_of_sqlx_are_read() {
    let files = files(&[
        ("20261121101500_add_mood.up.sql", "ALTER"),
        ("20261121101500_add_mood.down.sql", "-- no-transaction\nALTER"),
        ("0002_first.of_two.sql", "-- no-transaction\nCREATE"),
        ("1_x.sql", ""),
    ]);
    let read: Vec<_> =
        files.migrations.iter().map(|m| (m.title(), m.has_down(), m.in_transaction(), m.file.as_str())).collect();
    assert_eq!(
        read,
        [
            ("1 (x)".to_owned(), false, true, "migrations/1_x.sql"),
            ("2 (first.of two)".to_owned(), false, false, "migrations/0002_first.of_two.sql"),
            ("20261121101500 (add mood)".to_owned(), true, true, "migrations/20261121101500_add_mood.up.sql"),
        ]
    );
    assert!(Files::wants("1_x.sql") && Files::wants("1_X.SQL") && !Files::wants("README.md"));
}

#[test]
fn every_bad_name_says_what_to_do() {
    let bad = [
        ("1_a.sql", ""),
        ("01_b.up.sql", ""),
        ("2_a.down.sql", ""),
        ("3-dash.sql", ""),
        ("4_.sql", ""),
        ("5_.up.sql", ""),
        ("6_x.Up.sql", ""),
        ("7_x.SQL", ""),
        ("8_a.up.sql", ""),
        ("8_b.down.sql", ""),
        ("0_zero.sql", ""),
        ("99999999999999999999_much.sql", ""),
        ("-1_x.sql", ""),
        ("schema.sql", ""),
        ("9_evil\u{1b}[31m.up.sql.down.sql", ""),
    ];
    let mut given = owned(&bad);
    given.push(("10_latin.sql".to_owned(), vec![b'-', b'-', 0xe4]));
    let problems = Files::read("db", given).unwrap_err();
    let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn every_problem_is_found_before_anything_is_applied() {
    let set = files(&[("1_a.up.sql", "A"), ("1_a.down.sql", ""), ("2_b.sql", "B"), ("3_c.sql", "C"), ("5_e.sql", "E")]);
    let edited = Applied { checksum: vec![1], ..row(&set, 1) };
    let missing = Applied { version: 4, name: "d".to_owned(), ..row(&set, 3) };
    let dirty = Applied { success: false, ..row(&set, 3) };
    let told = |applied: &[Applied], to, reversible| plan_up(&set, applied, to, reversible).unwrap_err().to_string();
    let text = [
        told(std::slice::from_ref(&edited), None, false),
        told(&[row(&set, 1), row(&set, 2), row(&set, 3), missing.clone()], None, false),
        told(&[row(&set, 1), row(&set, 2), dirty.clone()], None, false),
        told(&[row(&set, 1), row(&set, 3)], None, false),
        told(&[], Some(4), false),
        told(&[row(&set, 1)], None, true),
        told(&[edited, dirty, missing], None, false),
        plan_down(&set, &[row(&set, 1), row(&set, 2)], 0).unwrap_err().to_string(),
        plan_down(&set, &[row(&set, 1)], 7).unwrap_err().to_string(),
    ];
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn going_back_needs_no_files_of_what_stays() {
    let old = files(&[("1_a.sql", "A")]);
    let set = files(&[("2_b.up.sql", "B"), ("2_b.down.sql", "")]);
    let applied = [row(&old, 1), row(&set, 2)];
    assert_eq!(versions(&plan_down(&set, &applied, 1).unwrap()), [2]);
    assert!(plan_down(&set, &applied, 0).is_err());
}

#[test]
fn the_states_of_rows_are_told() {
    let set = files(&[("1_a.sql", "A"), ("2_b.sql", "B"), ("3_c.sql", "C"), ("4_d.sql", "D"), ("6_f.sql", "F")]);
    let applied = [
        row(&set, 1),
        Applied { checksum: vec![0], ..row(&set, 3) },
        Applied { success: false, ..row(&set, 4) },
        Applied { version: 5, ..row(&set, 4) },
    ];
    let told: Vec<_> = rows(&set, &applied).iter().map(|row| (row.version, row.state.as_str())).collect();
    let expected =
        [(1, "applied"), (2, "too late"), (3, "edited"), (4, "dirty"), (5, "missing"), (6, "pending")];
    assert_eq!(told, expected);
}

proptest! {
    /// Whatever was applied in order: up brings the rest in order, and down brings back what was there, newest first.
    #[test]
    fn up_and_down_are_each_others_way(count in 0_usize..12, done in 0_usize..12, to in 0_usize..12) {
        let names: Vec<(String, Vec<u8>)> = (1..=count)
            .flat_map(|n| [(format!("{n}_x.up.sql"), vec![b'u']), (format!("{n}_x.down.sql"), vec![b'd'])])
            .collect();
        let set = Files::read("m", names).unwrap();
        let done = done.min(count);
        let applied: Vec<Applied> = (1..=done).map(|n| row(&set, i64::try_from(n).unwrap())).collect();
        let numbers = |range: std::ops::RangeInclusive<usize>| range.map(|n| i64::try_from(n).unwrap()).collect::<Vec<_>>();
        prop_assert_eq!(versions(&plan_up(&set, &applied, None, true).unwrap()), numbers(done + 1..=count));
        let to = to.min(done);
        let mut back = numbers(to + 1..=done);
        back.reverse();
        prop_assert_eq!(versions(&plan_down(&set, &applied, i64::try_from(to).unwrap()).unwrap()), back);
    }

    /// No name panics, and what is taken is what sqlx would take: a number, and a name.
    #[test]
    fn no_name_is_too_odd(name in "[0-9_a-zA-Z.\u{0}-\u{ff}-]{0,12}(\\.up|\\.down|)\\.(sql|SQL)") {
        if let Ok(set) = Files::read("m", [(name.clone(), Vec::new())]) {
            let number = name.split('_').next().unwrap().parse::<i64>().unwrap();
            prop_assert_eq!(set.migrations[0].version, number);
        }
    }
}
