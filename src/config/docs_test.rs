//! `docs/configuration.md`, the schema, the defaults and the readers say the same.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    LoadOptions, MissingSecrets, defaults, load_with, schema,
    tree::{self, Value},
};

const DOCS: &str = include_str!("../../docs/configuration.md");

/// `(table, key)` → the default column.
fn documented() -> BTreeMap<(String, String), String> {
    let mut keys = BTreeMap::new();
    let mut table = None;
    for line in DOCS.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            table = match title {
                "Top of the file" => Some(String::new()),
                "Secrets" => Some("secret".to_owned()),
                _ => title.strip_prefix('`').map(|name| name.trim_matches(['`', '[', ']']).replace("NAME", "*")),
            };
        } else if let (Some(table), Some(row)) = (&table, line.strip_prefix("| `")) {
            let cells: Vec<&str> = row.split(" | ").collect();
            let [key, kind, default, meaning] = cells[..] else { panic!("four columns: {line}") };
            assert!(!kind.is_empty() && meaning.len() > 5, "{line}");
            let key = (table.clone(), key.trim_end_matches('`').to_owned());
            assert!(keys.insert(key, default.to_owned()).is_none(), "twice: {line}");
        }
    }
    keys
}

/// `(table, key)` of everything the schema knows.
fn known() -> BTreeSet<(String, String)> {
    let pairs = schema::TABLES.iter().flat_map(|(table, keys)| keys.iter().map(move |key| (*table, *key)));
    pairs.map(|(table, key)| (table.to_owned(), key.to_owned())).collect()
}

#[test]
fn every_key_is_documented_and_every_documented_key_exists() {
    let documented: BTreeSet<_> = documented().into_keys().collect();
    let known = known();
    assert_eq!(known.difference(&documented).collect::<Vec<_>>(), Vec::<&(String, String)>::new(), "not documented");
    assert_eq!(documented.difference(&known).collect::<Vec<_>>(), Vec::<&(String, String)>::new(), "do not exist");
}

#[test]
fn the_documented_defaults_are_the_real_ones() {
    let tree = tree::parse(defaults::DEFAULTS, 0).unwrap();
    let real: BTreeMap<(String, String), &str> = entries(&tree)
        .flat_map(|(table, value)| entries(value).map(move |(key, value)| ((table.to_owned(), key.to_owned()), value)))
        .map(|(key, value)| (key, &defaults::DEFAULTS[value.at.span.clone()]))
        .collect();
    for (key, default) in documented() {
        let documented = default.strip_prefix('`').map(|text| text.trim_end_matches('`'));
        assert_eq!(documented, real.get(&key).copied(), "{key:?}");
    }
    assert!(real.keys().all(|key| known().contains(key)), "a default of a key that does not exist");
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_table().into_iter().flat_map(|table| &table.entries).map(|entry| (entry.key.as_str(), &entry.value))
}

/// A date is the wrong type for every key, so a key that swallows one is a key that nobody reads.
#[test]
fn every_key_is_read_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pipeline.toml");
    for (table, key) in known() {
        // The kind of an entry decides which keys are read.
        let kind = match (table.as_str(), key.as_str()) {
            ("backup", "path") => "kind = 'sqlite'\n",
            ("backup", "exclude" | "volume") => "kind = 'volume'\n",
            ("backup", "dump" | "restore" | "rehearse" | "env" | "secrets") => "kind = 'command'\n",
            ("backup", "kind") | ("app" | "environments.*" | "secret", _) => "",
            ("backup", _) => "kind = 'postgres'\n",
            ("smoke.check", "status" | "contains" | "absent" | "json" | "max_latency") => "http = '/'\n",
            _ => "",
        };
        let line = format!("{kind}{key} = 1979-05-27\n");
        let app = |line: &str| format!("[app]\nname = 'a'\nrepository = 'r'\n{line}");
        let environment = |line: &str| format!("[environments.production]\nbranch = 'main'\n{line}");
        let (text, path) = match table.as_str() {
            "" => (
                format!("{line}{}{}", replace(&key, "app", app("")), replace(&key, "environments", environment(""))),
                key.clone(),
            ),
            "app" => (format!("[app]\n{line}{}", environment("")), format!("app.{key}")),
            "environments.*" => {
                (format!("{}[environments.production]\n{line}", app("")), format!("environments.production.{key}"))
            }
            "secret" => {
                (format!("{}{}[start.secrets.X]\n{line}", app(""), environment("")), format!("start.secrets.X.{key}"))
            }
            "backup" | "test" => {
                (format!("{}{}[[{table}]]\n{line}", app(""), environment("")), format!("{table}[0].{key}"))
            }
            "smoke.check" => {
                (format!("{}{}[[{table}]]\n{line}", app(""), environment("")), format!("{table}[0].{key}"))
            }
            "test.coverage" => (
                format!("{}{}[[test]]\n[{table}]\n{line}", app(""), environment("")),
                format!("test[0].coverage.{key}"),
            ),
            _ => (format!("{}{}[{table}]\n{line}", app(""), environment("")), format!("{table}.{key}")),
        };
        std::fs::write(&file, &text).unwrap();
        let options = LoadOptions { env: &|_| None, missing_secrets: MissingSecrets::Error };
        let errors = load_with(&file, options).expect_err(&path);
        let found = errors.problems.iter().any(|problem| problem.key == path && problem.message.contains("found"));
        assert!(found, "{path}: {errors}\n{text}");
    }
}

/// `text`, or nothing where the key under test takes its place.
fn replace(key: &str, own: &str, text: String) -> String {
    if key == own { String::new() } else { text }
}
