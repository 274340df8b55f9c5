//! Walking a table: known keys, defaults, and a list of problems that only grows.
//!
//! A [`Reader`] stands on one table. Each read returns `None` where the value was missing or bad, and in the latter case has
//! left a [`Problem`] in the [`Context`]; the caller goes on with anything, since a configuration with problems is thrown away
//! in the end. That way one run shows every mistake.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    LoadOptions, MissingSecrets, defaults,
    error::{ConfigErrors, Place, Problem, conceal},
    schema,
    tree::{self, At, Kind, Table, Value},
    values::{Complaint, Parsed, variable, wrong_type},
};
use crate::secret::Secret;

/// A file that was read.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    text: String,
}

/// What the whole load shares.
pub(super) struct Context<'a> {
    pub options: LoadOptions<'a>,
    sources: RefCell<Vec<Source>>,
    problems: RefCell<Vec<(usize, Problem)>>,
    /// Places of values that must not be shown.
    hidden: RefCell<Vec<(usize, Range<usize>)>>,
    secrets: RefCell<Vec<Secret>>,
    defaults: Value,
    failed: Cell<bool>,
}

impl<'a> Context<'a> {
    pub fn new(options: LoadOptions<'a>) -> Self {
        let nothing =
            || Value { at: At { source: 0, span: 0..0, path: "".into() }, kind: Kind::Table(Table::default()) };
        Self {
            options,
            sources: RefCell::default(),
            problems: RefCell::default(),
            hidden: RefCell::default(),
            secrets: RefCell::default(),
            defaults: tree::parse(defaults::DEFAULTS, usize::MAX).unwrap_or_else(|_| nothing()),
            failed: Cell::new(false),
        }
    }

    /// Parses one file and remembers its text. `None` where it does not parse.
    pub fn parse(&self, path: &Path, text: String) -> Option<Value> {
        let index = self.sources.borrow().len();
        let parsed = tree::parse(&text, index);
        self.sources.borrow_mut().push(Source { path: path.to_owned(), text });
        match parsed {
            Ok(tree) => Some(tree),
            Err(errors) => {
                for (message, span) in errors.into_iter().take(5) {
                    let at = At { source: index, span: span.unwrap_or(0..0), path: "".into() };
                    self.problem(&at, Complaint::new(format!("invalid TOML: {message}")));
                }
                None
            }
        }
    }

    /// A problem at a place. The same one twice (a common table is read once for each environment) is kept once.
    pub fn problem(&self, at: &At, complaint: Complaint) {
        let at = complaint.at.as_ref().unwrap_or(at);
        let sources = self.sources.borrow();
        let (file, place) = match sources.get(at.source) {
            Some(source) => (source.path.clone(), Some(Place::of(&source.text, at.span.clone()))),
            None => (PathBuf::from("built-in defaults"), None),
        };
        let Complaint { message, help, .. } = complaint;
        self.push(at.source, Problem { file, place, key: at.path.to_string(), message, help });
    }

    /// A problem with a file that could not be read.
    pub fn file_problem(&self, file: &Path, complaint: Complaint) {
        let Complaint { message, help, .. } = complaint;
        let problem = Problem { file: file.to_owned(), place: None, key: String::new(), message, help };
        self.push(usize::MAX, problem);
    }

    fn push(&self, source: usize, problem: Problem) {
        self.failed.set(true);
        let mut problems = self.problems.borrow_mut();
        if !problems.iter().any(|(_, known)| *known == problem) {
            problems.push((source, problem));
        }
    }

    /// Keeps the value at a place out of every rendering.
    fn hide(&self, at: &At) {
        self.hidden.borrow_mut().push((at.source, at.span.clone()));
    }

    /// Every secret that was found, or every problem.
    pub fn finish(self) -> Result<Vec<Secret>, ConfigErrors> {
        if !self.failed.get() {
            return Ok(self.secrets.into_inner());
        }
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|(source, problem)| (*source, problem.place.as_ref().map_or(0, |place| place.span.start)));
        let hidden = self.hidden.into_inner();
        let texts = self.sources.into_inner().into_iter().enumerate().map(|(index, source)| {
            let spans: Vec<_> = hidden.iter().filter(|(at, _)| *at == index).map(|(_, span)| span.clone()).collect();
            (source.path, conceal(&source.text, &spans))
        });
        Err(ConfigErrors::new(problems.into_iter().map(|(_, problem)| problem).collect(), texts.collect()))
    }
}

static EMPTY: Table = Table { entries: Vec::new() };

/// One table being read.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    pub cx: &'a Context<'a>,
    pub at: At,
    /// What paths are relative to.
    pub dir: &'a Path,
    table: &'a Table,
    schema: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `value`, which must be a table, by the keys of `schema`; every key that is not one of them is a problem.
    pub fn new(cx: &'a Context<'a>, value: &'a Value, schema: &'static str, dir: &'a Path) -> Self {
        let table = value.as_table().unwrap_or_else(|| {
            cx.problem(&value.at, wrong_type("a table", value));
            &EMPTY
        });
        let reader = Self { cx, at: value.at.clone(), dir, table, schema };
        for entry in &table.entries {
            if !schema::keys(schema).contains(&entry.key.as_str()) {
                let complaint = Complaint::new("unknown key");
                cx.problem(&entry.at, complaint.help(schema::advice(schema, &entry.key)));
            }
        }
        reader
    }

    /// A table that is not there: defaults only.
    pub fn empty(cx: &'a Context<'a>, at: At, schema: &'static str, dir: &'a Path) -> Self {
        Self { cx, at, dir, table: &EMPTY, schema }
    }

    /// The table at `key`, or an empty one.
    pub fn child(&self, key: &str, schema: &'static str) -> Self {
        match self.own(key) {
            Some(value) => Self::new(self.cx, value, schema, self.dir),
            None => Self::empty(self.cx, self.at.key(key), schema, self.dir),
        }
    }

    /// An absent entry of an array of tables: its defaults.
    pub fn child_defaults(&self, schema: &'static str) -> Self {
        Self::empty(self.cx, self.at.key(schema), schema, self.dir)
    }

    /// The tables of an array of tables.
    pub fn children(&self, key: &str, schema: &'static str) -> Vec<Self> {
        self.own(key).map(|value| Self::each(self.cx, value, schema, self.dir)).unwrap_or_default()
    }

    /// One reader for each element of `value`, which must be an array of tables.
    pub fn each(cx: &'a Context<'a>, value: &'a Value, schema: &'static str, dir: &'a Path) -> Vec<Self> {
        if let Kind::Array(items) = &value.kind {
            return items.iter().map(|item| Self::new(cx, item, schema, dir)).collect();
        }
        let help = format!("write `[[{}]]`", value.at.path);
        cx.problem(&value.at, wrong_type("an array of tables", value).help(help));
        Vec::new()
    }

    /// What the user wrote.
    pub fn own(&self, key: &str) -> Option<&'a Value> {
        debug_assert!(schema::keys(self.schema).contains(&key), "`{key}` is not in the schema of `{}`", self.schema);
        self.table.get(key)
    }

    pub fn has(&self, key: &str) -> bool {
        self.own(key).is_some()
    }

    /// What the user wrote, or the default.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.own(key).or_else(|| self.cx.defaults.as_table()?.get(self.schema)?.as_table()?.get(key))
    }

    pub fn read<T>(&self, key: &str, parse: impl FnOnce(&Value) -> Parsed<T>) -> Option<T> {
        let value = self.value(key)?;
        parse(value).map_err(|complaint| self.cx.problem(&value.at, complaint)).ok()
    }

    /// For a key whose type has a natural zero, which stands in after a problem.
    pub fn get<T: Default>(&self, key: &str, parse: impl FnOnce(&Value) -> Parsed<T>) -> T {
        self.read(key, parse).unwrap_or_default()
    }

    pub fn required<T>(&self, key: &str, parse: impl FnOnce(&Value) -> Parsed<T>) -> Option<T> {
        if self.value(key).is_none() {
            self.missing(key, format!("add `{key} = …`"));
        }
        self.read(key, parse)
    }

    /// A key that must be there is not; a misspelt one is reported already.
    pub fn missing(&self, key: &str, help: String) {
        let known = schema::keys(self.schema);
        let misspelt = |word: &str| !known.contains(&word) && schema::nearest(word, known) == Some(key);
        if !self.table.entries.iter().any(|entry| misspelt(&entry.key)) {
            self.cx.problem(&self.at, Complaint::new("is missing").help(help).at(&self.at.key(key)));
        }
    }

    /// A problem with the value of `key`, or with the table where it has none.
    pub fn complain(&self, key: &str, complaint: Complaint) {
        match self.own(key) {
            Some(value) => self.cx.problem(&value.at, complaint),
            None => self.cx.problem(&self.at, complaint),
        }
    }

    /// Each of `keys` that the user wrote is a problem, because of something else.
    pub fn refuse(&self, keys: &[&str], why: &str, help: &str) {
        for key in keys.iter().filter(|key| self.has(key)) {
            self.complain(key, Complaint::new(why).help(help));
        }
    }

    /// An array; each bad element is a problem of its own.
    pub fn list<T>(&self, key: &str, parse: impl Fn(&Value) -> Parsed<T>) -> Vec<T> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Kind::Array(items) = &value.kind else {
            self.cx.problem(&value.at, wrong_type("an array", value));
            return Vec::new();
        };
        let one = |item| parse(item).map_err(|complaint| self.cx.problem(&item.at, complaint)).ok();
        items.iter().filter_map(one).collect()
    }

    /// A table of variables.
    pub fn variables<T>(&self, key: &str, parse: impl Fn(&Value) -> Parsed<T>) -> BTreeMap<String, T> {
        let mut found = BTreeMap::new();
        let Some(value) = self.value(key) else { return found };
        let Some(table) = value.as_table() else {
            self.cx.problem(&value.at, wrong_type("a table such as { NAME = … }", value));
            return found;
        };
        for entry in &table.entries {
            if let Err(complaint) = variable(&entry.key) {
                self.cx.problem(&entry.at, complaint);
            }
            match parse(&entry.value) {
                Ok(value) => drop(found.insert(entry.key.clone(), value)),
                Err(complaint) => self.cx.problem(&entry.value.at, complaint),
            }
        }
        found
    }

    /// A secret. One that is not there is a problem, or an empty one where the caller does not need it.
    pub fn secret(&self, value: &Value) -> Parsed<Secret> {
        match self.look_up(value)? {
            Lookup::Found(secret) => Ok(secret),
            Lookup::Missing(_) if self.cx.options.missing_secrets == MissingSecrets::Ignore => Ok(Secret::new("")),
            Lookup::Missing(complaint) => Err(complaint),
        }
    }

    /// Finds a secret by `{ env = "NAME" }` or `{ file = "path" }`, and lets the redactor know of it.
    pub fn look_up(&self, value: &Value) -> Parsed<Lookup> {
        const FORMS: &str = "write { env = \"NAME\" } or { file = \"path\" }";
        let Some(table) = value.as_table() else {
            self.cx.hide(&value.at);
            let complaint = match value.kind {
                Kind::String(_) => Complaint::new("a secret may not stand in the configuration itself"),
                _ => wrong_type("a secret's source", value),
            };
            return Err(complaint.help(format!("{FORMS}, and keep the value out of the repository")));
        };
        for entry in table.entries.iter().filter(|entry| !matches!(entry.key.as_str(), "env" | "file")) {
            self.cx.hide(&entry.value.at);
        }
        let [entry] = &table.entries[..] else {
            return Err(Complaint::new("a secret has exactly one of `env` and `file`").help(FORMS));
        };
        let Kind::String(name) = &entry.value.kind else {
            return Err(wrong_type("a string", &entry.value).at(&entry.value.at));
        };
        let found = match entry.key.as_str() {
            "env" => self.variable_secret(name, &entry.value)?,
            "file" => self.file_secret(name, &entry.value),
            other => {
                let complaint = Complaint::new("unknown key").at(&entry.at);
                return Err(complaint.help(schema::advice("secret", other)));
            }
        };
        if let Lookup::Found(secret) = &found {
            self.cx.secrets.borrow_mut().push(secret.clone());
        }
        Ok(found)
    }

    fn variable_secret(&self, name: &str, value: &Value) -> Parsed<Lookup> {
        variable(name).map_err(|complaint| complaint.at(&value.at))?;
        Ok(match (self.cx.options.env)(name) {
            Some(text) => Lookup::Found(Secret::new(text)),
            None => Lookup::Missing(Complaint::new(format!("the environment variable `{name}` is not set")).help(
                format!("set `{name}` where Refit runs (a systemd unit's `EnvironmentFile=`, or `export {name}=…`)"),
            )),
        })
    }

    fn file_secret(&self, name: &str, value: &Value) -> Lookup {
        let path = self.dir.join(name);
        match read_limited(&path, 64 * 1024) {
            Ok(text) => {
                let text =
                    text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
                Lookup::Found(Secret::new(text))
            }
            Err(why) => Lookup::Missing(
                Complaint::new(format!("the secret's file `{}` cannot be read: {why}", path.display()))
                    .help("make it, readable only by the user that Refit runs as")
                    .at(&value.at),
            ),
        }
    }
}

/// Where a secret's value is, if anywhere.
#[derive(Debug)]
pub(super) enum Lookup {
    Found(Secret),
    /// Nothing there, and what to say where that is a problem.
    Missing(Complaint),
}

/// A text file of at most `limit` bytes, or why not.
pub(super) fn read_limited(path: &Path, limit: u64) -> Result<String, String> {
    let meta = fs::metadata(path).map_err(|e| reason(&e))?;
    if !meta.is_file() {
        return Err("it is not a file".to_owned());
    }
    if meta.len() > limit {
        return Err(format!("it is larger than {} KiB", limit / 1024));
    }
    let bytes = fs::read(path).map_err(|e| reason(&e))?;
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
}

/// An I/O error in the words of the operating system, without its number.
pub(super) fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "it does not exist".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}
