//! TOML as a tree in which every key and value knows where it came from.
//!
//! Serde gives up at the first error and loses the place once tables are merged, so the reader walks this tree instead. A
//! value keeps its file, its span and its path *as written*: after `[environments.dev.start]` was merged over
//! `[start]`, a bad value is still reported where it stands.

use std::{ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A place in one of the files.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct At {
    /// The index of the file in the context.
    pub source: usize,
    /// Bytes.
    pub span: Range<usize>,
    /// Dotted, with `[n]` for elements, such as `smoke.check[0].http`; empty for the whole file.
    pub path: Arc<str>,
}

impl At {
    /// The same place under the path of one of its keys.
    pub fn key(&self, key: &str) -> Self {
        Self { path: join(&self.path, key), ..self.clone() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Value {
    pub at: At,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Array(Vec<Value>),
    Table(Table),
    /// A date, or a number that is too large: nothing that any key takes.
    Other(&'static str),
}

impl Value {
    /// With its article, for "expected …, found …".
    pub fn kind_name(&self) -> &'static str {
        match &self.kind {
            Kind::String(_) => "a string",
            Kind::Integer(_) => "an integer",
            Kind::Float(_) => "a floating-point number",
            Kind::Boolean(_) => "a boolean",
            Kind::Array(_) => "an array",
            Kind::Table(_) => "a table",
            Kind::Other(name) => name,
        }
    }

    pub fn as_table(&self) -> Option<&Table> {
        match &self.kind {
            Kind::Table(table) => Some(table),
            _ => None,
        }
    }
}

/// A table in the order of the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    pub entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    /// Where the key stands.
    pub at: At,
    pub value: Value,
}

impl Table {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn put(&mut self, entry: Entry) {
        match self.entries.iter_mut().find(|old| old.key == entry.key) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
    }
}

/// A message and, where the parser knows it, a span.
pub(super) type SyntaxError = (String, Option<Range<usize>>);

/// Parses one file. All syntax errors are returned at once.
pub(super) fn parse(text: &str, source: usize) -> Result<Value, Vec<SyntaxError>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let at = At { source, span: 0..0, path: Arc::from("") };
        Ok(Value { kind: Kind::Table(convert_table(table.get_ref(), &at)), at })
    } else {
        Err(errors.into_iter().map(|e| (e.message().to_owned(), e.span())).collect())
    }
}

fn convert_table(table: &DeTable<'_>, parent: &At) -> Table {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| {
            let path = join(&parent.path, key.get_ref());
            Entry {
                key: key.get_ref().to_string(),
                at: At { source: parent.source, span: key.span(), path: path.clone() },
                value: convert(value, parent.source, path),
            }
        })
        .collect();
    entries.sort_by_key(|entry| entry.at.span.start);
    Table { entries }
}

fn convert(value: &Spanned<DeValue<'_>>, source: usize, path: Arc<str>) -> Value {
    let at = At { source, span: value.span(), path };
    let kind = match value.get_ref() {
        DeValue::String(text) => Kind::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Kind::Other("an integer beyond 64 bits"), Kind::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or(Kind::Other("a floating-point number beyond 64 bits"), Kind::Float)
        }
        DeValue::Boolean(value) => Kind::Boolean(*value),
        DeValue::Datetime(_) => Kind::Other("a date or time"),
        DeValue::Array(items) => Kind::Array(
            items
                .iter()
                .enumerate()
                .map(|(i, item)| convert(item, source, format!("{}[{i}]", at.path).into()))
                .collect(),
        ),
        DeValue::Table(table) => Kind::Table(convert_table(table, &at)),
    };
    Value { at, kind }
}

/// `key` under `path`, quoted where TOML would ask for it.
fn join(path: &str, key: &str) -> Arc<str> {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key.into() } else { format!("{path}.{key}").into() }
}

/// Keys of which one replaces the others: an environment that asks for a TCP probe does not keep the path of the
/// common one.
const ALTERNATIVES: &[(&str, &[&str])] = &[("start.health", &["path", "tcp", "exec", "image"])];

/// Tables that are one value: `{ env }` does not become `{ env, file }`.
const WHOLE: &[&str] = &["start.secrets"];

/// `over` laid on `base`, key by key; arrays and everything else that is not a table are replaced. `path` is the stage's.
pub(super) fn merge(base: &Value, over: &Value, path: &str) -> Value {
    let (Kind::Table(below), Kind::Table(above)) = (&base.kind, &over.kind) else { return over.clone() };
    let mut table = below.clone();
    for (place, keys) in ALTERNATIVES {
        if *place == path && keys.iter().any(|key| above.has(key)) {
            table.entries.retain(|entry| !keys.contains(&entry.key.as_str()));
        }
    }
    for entry in &above.entries {
        let value = match below.get(&entry.key) {
            Some(old) if !WHOLE.contains(&path) => merge(old, &entry.value, &join(path, &entry.key)),
            _ => entry.value.clone(),
        };
        table.put(Entry { value, ..entry.clone() });
    }
    Value { at: base.at.clone(), kind: Kind::Table(table) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Value {
        parse(text, 0).unwrap()
    }

    fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
        path.iter().fold(value, |value, key| value.as_table().unwrap().get(key).unwrap())
    }

    #[test]
    fn values_know_their_path_and_span() {
        let text = "[a.\"b c\"]\nlist = [1, { x = true }]\n";
        let tree = tree(text);
        let Kind::Array(items) = &at(&tree, &["a", "b c", "list"]).kind else { panic!() };
        let x = at(&items[1], &["x"]);
        assert_eq!(&*x.at.path, "a.\"b c\".list[1].x");
        assert_eq!(&text[x.at.span.clone()], "true");
    }

    #[test]
    fn merging_goes_key_by_key_and_keeps_places() {
        let text = "[start]\nstop_timeout = '1s'\nenv = { A = 'a', B = 'b' }\nnetworks = ['x', 'y']\nhealth = { path = '/', timeout = '2s' }\n\
                    [o]\nenv = { B = 'c' }\nnetworks = ['z']\nhealth = { tcp = true }\n";
        let tree = tree(text);
        let merged = merge(at(&tree, &["start"]), at(&tree, &["o"]), "start");
        let b = at(&merged, &["env", "B"]);
        assert_eq!((&*b.at.path, &text[b.at.span.clone()]), ("o.env.B", "'c'"));
        assert_eq!(&*at(&merged, &["env", "A"]).at.path, "start.env.A");
        assert!(matches!(&at(&merged, &["networks"]).kind, Kind::Array(items) if items.len() == 1));
        let health = at(&merged, &["health"]).as_table().unwrap();
        assert!(health.has("tcp") && health.has("timeout") && !health.has("path"));
        assert!(merged.as_table().unwrap().has("stop_timeout"));
    }

    #[test]
    fn every_syntax_error_is_found() {
        let errors = parse("a = \nb = 1\nc = = 2\n", 0).unwrap_err();
        assert!(errors.len() >= 2, "{errors:?}");
    }
}
