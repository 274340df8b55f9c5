//! From one TOML value to one checked value: durations, sizes, names, paths.
//!
//! Every parser takes a [`Value`] and returns what the program wants, or a [`Complaint`] that says what was expected. What
//! becomes part of a container's name, an argument or a path is held to the strictest rule that still lets real names
//! through; nothing is repaired silently.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use globset::{GlobBuilder, GlobSetBuilder};
use jiff::{Span, SpanRelativeTo};

use super::{
    tree::{At, Kind, Value},
    types::{DatabaseTools, PathRules},
};
use crate::model::InvalidValue;

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Complaint {
    /// A more exact place than the value that was handed in.
    pub at: Option<At>,
    pub message: String,
    pub help: Option<String>,
}

impl Complaint {
    pub fn new(message: impl Into<String>) -> Self {
        Self { at: None, message: message.into(), help: None }
    }

    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    pub fn at(self, at: &At) -> Self {
        Self { at: Some(at.clone()), ..self }
    }
}

impl From<InvalidValue> for Complaint {
    fn from(error: InvalidValue) -> Self {
        Self::new(error.to_string())
    }
}

pub(super) type Parsed<T> = Result<T, Complaint>;

/// The complaint about a value of the wrong type.
pub(super) fn wrong_type(expected: &str, found: &Value) -> Complaint {
    Complaint::new(format!("expected {expected}, found {}", found.kind_name()))
}

/// `` `a`, `b` ``
pub(super) fn quoted<S: AsRef<str>>(words: &[S]) -> String {
    words.iter().map(|word| format!("`{}`", word.as_ref())).collect::<Vec<_>>().join(", ")
}

/// A string without NUL, which no process environment, argument or path can carry.
pub(super) fn text(value: &Value) -> Parsed<String> {
    match &value.kind {
        Kind::String(text) if text.contains('\0') => Err(Complaint::new("has a NUL character")),
        Kind::String(text) => Ok(text.clone()),
        Kind::Integer(_) | Kind::Float(_) | Kind::Boolean(_) => {
            Err(wrong_type("a string", value).help("put it in quotes"))
        }
        _ => Err(wrong_type("a string", value)),
    }
}

/// A string that is not empty or blank.
pub(super) fn filled(value: &Value) -> Parsed<String> {
    let text = text(value)?;
    if text.trim().is_empty() { Err(Complaint::new("is empty")) } else { Ok(text) }
}

pub(super) fn boolean(value: &Value) -> Parsed<bool> {
    match value.kind {
        Kind::Boolean(flag) => Ok(flag),
        _ => Err(wrong_type("`true` or `false`", value)),
    }
}

/// A whole number in a range.
pub(super) fn integer<T: TryFrom<i64>>(range: RangeInclusive<i64>) -> impl Fn(&Value) -> Parsed<T> {
    move |value| {
        let Kind::Integer(number) = value.kind else { return Err(wrong_type("an integer", value)) };
        let bounds = || Complaint::new(format!("{number} is not between {} and {}", range.start(), range.end()));
        if range.contains(&number) { T::try_from(number).map_err(|_| bounds()) } else { Err(bounds()) }
    }
}

pub(super) fn number(range: RangeInclusive<f64>) -> impl Fn(&Value) -> Parsed<f64> {
    move |value| {
        let number = match value.kind {
            Kind::Integer(number) => number as f64,
            Kind::Float(number) => number,
            _ => return Err(wrong_type("a number", value)),
        };
        if range.contains(&number) {
            Ok(number)
        } else {
            Err(Complaint::new(format!("{number} is not between {} and {}", range.start(), range.end())))
        }
    }
}

/// A share from 0 to 1, such as `0.02`, or in percent, such as `"2%"`.
pub(super) fn share(value: &Value) -> Parsed<f64> {
    let help = "write a share such as 0.02, or \"2%\"";
    let percent = match &value.kind {
        Kind::Integer(_) | Kind::Float(_) => return number(0.0..=1.0)(value).map_err(|complaint| complaint.help(help)),
        Kind::String(text) => text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok()),
        _ => return Err(wrong_type("a share such as 0.02 or \"2%\"", value)),
    };
    percent
        .filter(|percent| (0.0..=100.0).contains(percent))
        .map(|percent| percent / 100.0)
        .ok_or_else(|| Complaint::new("is not between \"0%\" and \"100%\"").help(help))
}

/// A string of a type that checks itself.
pub(super) fn checked<T: FromStr<Err = InvalidValue>>(value: &Value) -> Parsed<T> {
    Ok(text(value)?.parse()?)
}

/// One word of a list.
pub(super) fn choice<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&Value) -> Parsed<T> {
    move |value| {
        let word = text(value)?;
        if let Some((_, found)) = words.iter().find(|(known, _)| *known == word) {
            return Ok(*found);
        }
        let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
        let complaint = Complaint::new(format!("`{}` is none of {}", printable(&word), quoted(&known)));
        Err(match super::schema::nearest(&word, &known) {
            Some(near) => complaint.help(format!("did you mean `{near}`?")),
            None => complaint,
        })
    }
}

/// Shortened and with control characters escaped, for messages.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(80).flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Nothing here waits longer; beyond it, adding to a clock could overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// A duration that may be zero, which turns something off.
pub(super) fn duration_or_zero(value: &Value) -> Parsed<Duration> {
    const EXPECTED: &str = "a duration such as \"200ms\", \"30s\", \"2m\", \"1h\" or \"7d\"";
    let Kind::String(text) = &value.kind else {
        return Err(wrong_type(EXPECTED, value).help("write a string with a number and its unit"));
    };
    let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_digit()) && text.len() <= 60;
    let span: Option<Span> = if starts_well { text.parse().ok() } else { None };
    let duration = span
        .and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok())
        .and_then(|duration| Duration::try_from(duration).ok());
    match duration {
        Some(duration) if duration <= LONGEST => Ok(duration),
        Some(_) => Err(Complaint::new(format!("`{}` is longer than 366 days", printable(text)))),
        None if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            Err(Complaint::new(format!("`{}` has no unit", printable(text))).help(format!("expected {EXPECTED}")))
        }
        None => Err(Complaint::new(format!("expected {EXPECTED}, found `{}`", printable(text)))),
    }
}

pub(super) fn duration(value: &Value) -> Parsed<Duration> {
    match duration_or_zero(value)? {
        Duration::ZERO => Err(Complaint::new("must be longer than zero")),
        duration => Ok(duration),
    }
}

/// Bytes: an integer, or a string with `k`, `m`, `g` or `t`, each 1024 of the one before.
pub(super) fn size(value: &Value) -> Parsed<u64> {
    let expected = "a size in bytes, such as 1048576, \"512k\", \"100m\" or \"2g\"";
    let wrong = || wrong_type(expected, value);
    let text = match &value.kind {
        Kind::Integer(bytes) => return u64::try_from(*bytes).map_err(|_| Complaint::new("a size cannot be negative")),
        Kind::String(text) => text.trim().to_ascii_lowercase(),
        _ => return Err(wrong()),
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(Complaint::new(format!("expected {expected}, found `{}`", printable(&text)))),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes
        .filter(|bytes| *bytes <= i64::MAX as u64)
        .ok_or_else(|| Complaint::new(format!("expected {expected}, found `{}`", printable(&text))))
}

/// What may stand in a word that is handed to Docker or a database's tools.
fn word(value: &Value, what: &str, more: &str, longest: usize) -> Parsed<String> {
    let text = text(value)?;
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || (b == b'_' && more.contains('_')));
    let rest = text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    if first && rest && text.len() <= longest {
        return Ok(text);
    }
    let more: Vec<String> = more.chars().map(String::from).collect();
    Err(Complaint::new(format!("`{}` is not {what}", printable(&text))).help(format!(
        "it may have letters, digits and {}, must start with a letter or digit, and be 1 to {longest} long",
        quoted(&more)
    )))
}

/// Docker's own rule for containers, networks and volumes.
pub(super) fn docker_name(value: &Value) -> Parsed<String> {
    word(value, "a name that Docker takes", "_.-", 128)
}

pub(super) fn image(value: &Value) -> Parsed<String> {
    let name = word(value, "an image's name", "_.-/:@", 255)?;
    // It becomes part of a path of Docker's API. (The grammar is the distribution project's: parts begin with a letter or digit, and dots
    // stand alone.)
    let part = |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric()) && !part.contains("..");
    if name.split('/').all(part) {
        return Ok(name);
    }
    Err(Complaint::new(format!("`{}` is not an image's name", printable(&name)))
        .help("write it as `docker pull` takes it, such as `python:3.13-slim`"))
}

/// `host`, or an image that has the tools.
pub(super) fn tools(value: &Value) -> Parsed<DatabaseTools> {
    let name = image(value)?;
    Ok(if name == "host" { DatabaseTools::Host } else { DatabaseTools::Image(name) })
}

pub(super) fn target(value: &Value) -> Parsed<String> {
    word(value, "a name of a Dockerfile's stage", "_.-", 128)
}

/// A database or its user. No `=`, no `:`: `pg_dump` would read a connection string.
pub(super) fn database_word(value: &Value) -> Parsed<String> {
    word(value, "a plain database or user name", "_.-", 63)
}

/// `user`, `uid`, `user:group`.
pub(super) fn user(value: &Value) -> Parsed<String> {
    word(value, "a user, such as `app`, `1000` or `1000:1000`", "_.-:", 64)
}

/// The name of an environment variable or build argument.
pub(super) fn variable(key: &str) -> Parsed<()> {
    let first = key.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if first && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Ok(());
    }
    Err(Complaint::new(format!("`{}` is not a name of a variable", printable(key)))
        .help("it may have letters, digits and `_`, and must not start with a digit"))
}

/// A path inside a tree that cannot leave it.
pub(super) fn inner_path(value: &Value) -> Parsed<String> {
    let text = filled(value)?;
    let help = "name a path inside the repository, such as `docker/Dockerfile`";
    let complaint = if text.starts_with('/') {
        "must be relative"
    } else if text.split('/').any(|part| part == "..") {
        "must not have `..`"
    } else if text.starts_with('-') || text.chars().any(char::is_control) || text.contains('\\') {
        "must not start with `-` or have control characters or backslashes"
    } else {
        return Ok(text);
    };
    Err(Complaint::new(complaint).help(help))
}

/// A path on this host, made absolute by `dir`, the directory of the file it stands in.
pub(super) fn host_path(dir: &Path) -> impl Fn(&Value) -> Parsed<PathBuf> + '_ {
    move |value| Ok(dir.join(filled(value)?))
}

/// A path of a URL.
pub(super) fn url_path(value: &Value) -> Parsed<String> {
    let text = text(value)?;
    if text.starts_with('/') && !text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        Ok(text)
    } else {
        Err(Complaint::new(format!("expected a path that starts with `/`, found `{}`", printable(&text))))
    }
}

/// An `http://` or `https://` address, without a trailing slash.
pub(super) fn web_address(value: &Value) -> Parsed<String> {
    let text = text(value)?;
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or_default();
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.contains('@') {
        return Err(Complaint::new("has a user or password in it"));
    }
    if host.is_empty() || host.starts_with('-') || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Complaint::new(format!(
            "expected an `http://` or `https://` address, found `{}`",
            printable(&text)
        )));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// `host:port`.
pub(super) fn host_port(value: &Value) -> Parsed<String> {
    let text = text(value)?;
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let ip = bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_ipv6() == (bare.len() != host.len()));
        let name = !host.is_empty()
            && !host.starts_with('-')
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        port.parse::<u16>().is_ok() && (ip || name)
    });
    if good {
        Ok(text)
    } else {
        Err(Complaint::new(format!("expected host and port, such as `127.0.0.1:8787`, found `{}`", printable(&text))))
    }
}

pub(super) fn address(value: &Value) -> Parsed<std::net::IpAddr> {
    let text = text(value)?;
    text.parse().map_err(|_| {
        Complaint::new(format!("expected an IP address, found `{}`", printable(&text)))
            .help("use `0.0.0.0` for every interface, `127.0.0.1` for this machine only")
    })
}

/// A string, or an array of strings.
pub(super) fn one_or_many(value: &Value) -> Parsed<Vec<String>> {
    match &value.kind {
        Kind::Array(items) => items.iter().map(|item| text(item).map_err(|e| e.at(&item.at))).collect(),
        _ => Ok(vec![text(value)?]),
    }
}

/// A program with its arguments.
pub(super) fn command(value: &Value) -> Parsed<Vec<String>> {
    let Kind::Array(items) = &value.kind else {
        return Err(wrong_type("an array of strings, such as [\"python\", \"-V\"]", value));
    };
    let words: Vec<String> = items.iter().map(|item| text(item).map_err(|e| e.at(&item.at))).collect::<Parsed<_>>()?;
    match words.first() {
        Some(program) if !program.is_empty() => Ok(words),
        _ => Err(Complaint::new("has no program to run")),
    }
}

/// Glob patterns of paths in the repository: `*` stays inside a directory, `**` crosses them.
pub(super) fn path_rules(value: &Value) -> Parsed<PathRules> {
    let Kind::Array(items) = &value.kind else { return Err(wrong_type("an array of glob patterns", value)) };
    globs(items, |pattern, fail| {
        if pattern.starts_with(['/', '!']) || pattern.starts_with("./") {
            return Err(fail(format!("`{}` must not start with `/`, `./` or `!`", printable(pattern)))
                .help("patterns are relative to the repository's root, such as `src/**`"));
        }
        Ok(pattern.to_owned())
    })
}

/// Glob patterns of what a backup leaves out, relative to the directory that is backed up. One without a slash holds at every depth.
pub(super) fn exclusions(value: &Value) -> Parsed<PathRules> {
    let Kind::Array(items) = &value.kind else { return Err(wrong_type("an array of glob patterns", value)) };
    globs(items, |pattern, fail| {
        let inside = pattern.trim_end_matches('/');
        if inside.is_empty()
            || inside.starts_with(['/', '!'])
            || inside.split('/').any(|part| matches!(part, "." | ".."))
        {
            return Err(fail(format!("`{}` must not start with `/` or `!`, or have `.` or `..`", printable(pattern)))
                .help("patterns are relative to the directory that is backed up, such as `*.tmp` or `cache/**`"));
        }
        Ok(if inside.contains('/') { inside.to_owned() } else { format!("**/{inside}") })
    })
}

/// `checked` gives the pattern that is compiled for one that was written, or what is wrong with that, by way of `fail`.
fn globs(
    items: &[Value],
    checked: impl Fn(&str, &dyn Fn(String) -> Complaint) -> Result<String, Complaint>,
) -> Parsed<PathRules> {
    let mut set = GlobSetBuilder::new();
    let mut patterns = Vec::new();
    for item in items {
        let fail = |message: String| Complaint::new(message).at(&item.at);
        let pattern = filled(item).map_err(|e| e.at(&item.at))?;
        let glob = GlobBuilder::new(&checked(&pattern, &fail)?).literal_separator(true).build();
        set.add(glob.map_err(|e| fail(format!("`{}` is not a glob pattern: {}", printable(&pattern), e.kind())))?);
        patterns.push(pattern);
    }
    if patterns.is_empty() {
        return Ok(PathRules::default());
    }
    let set = set.build().map_err(|e| Complaint::new(format!("these patterns do not compile: {}", e.kind())))?;
    Ok(PathRules { patterns, set: Some(set) })
}

/// `name:/path[:ro]` or `/host/path:/path[:ro]`; `./path` is made absolute by `dir`.
pub(super) fn volume(dir: &Path) -> impl Fn(&Value) -> Parsed<String> + '_ {
    move |value| {
        let text = text(value)?;
        let wrong = || {
            Complaint::new(format!(
                "expected a volume such as `data:/app/data` or `/host/path:/path:ro`, found `{}`",
                printable(&text)
            ))
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (source, inside, mode) = match parts[..] {
            [source, inside] => (source, inside, "rw"),
            [source, inside, mode @ ("ro" | "rw")] => (source, inside, mode),
            _ => return Err(wrong()),
        };
        if text.chars().any(char::is_control) || !inside.starts_with('/') || inside.split('/').any(|part| part == "..")
        {
            return Err(wrong().help("the path in the container must be absolute and without `..`"));
        }
        let on_host = source.starts_with(['/', '.']);
        if source.ends_with("docker.sock") && on_host {
            return Err(Complaint::new("gives the app Docker's own socket")
                .help("whoever reaches it owns this machine; an app that is deployed here must not"));
        }
        let source = if on_host {
            dir.join(source.strip_prefix("./").unwrap_or(source)).display().to_string()
        } else {
            docker_name(&Value { at: value.at.clone(), kind: Kind::String(source.to_owned()) })?
        };
        Ok(if mode == "ro" { format!("{source}:{inside}:ro") } else { format!("{source}:{inside}") })
    }
}

/// Dotted paths and the values that must stand there. Nested tables are the same as dotted keys.
pub(super) fn json_rules(value: &Value) -> Parsed<BTreeMap<String, serde_json::Value>> {
    let Some(table) = value.as_table() else {
        return Err(wrong_type("a table such as { \"database\" = \"ok\" }", value));
    };
    let mut rules = BTreeMap::new();
    for entry in &table.entries {
        if entry.value.as_table().is_some() {
            let below = json_rules(&entry.value)?;
            rules.extend(below.into_iter().map(|(path, value)| (format!("{}.{path}", entry.key), value)));
        } else {
            rules.insert(entry.key.clone(), json(&entry.value)?);
        }
    }
    Ok(rules)
}

fn json(value: &Value) -> Parsed<serde_json::Value> {
    Ok(match &value.kind {
        Kind::String(text) => text.clone().into(),
        Kind::Integer(number) => (*number).into(),
        Kind::Float(number) => (*number).into(),
        Kind::Boolean(flag) => (*flag).into(),
        Kind::Array(items) => items.iter().map(json).collect::<Parsed<Vec<_>>>()?.into(),
        Kind::Table(table) => {
            let pairs = table.entries.iter().map(|entry| Ok((entry.key.clone(), json(&entry.value)?)));
            serde_json::Value::Object(pairs.collect::<Parsed<_>>()?)
        }
        Kind::Other(_) => return Err(wrong_type("a value that JSON has", value).at(&value.at)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(toml: &str) -> Value {
        let tree = super::super::tree::parse(&format!("v = {toml}"), 0).unwrap();
        tree.as_table().unwrap().get("v").unwrap().clone()
    }

    #[test]
    fn durations_have_units() {
        let good =
            [("200ms", 200), ("30s", 30_000), ("2m", 120_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("0s", 0)];
        for (text, ms) in good {
            assert_eq!(duration_or_zero(&value(&format!("'{text}'"))), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["'5'", "5", "'-5s'", "'1mo'", "'5 parsecs'", "''", "'99999999h'", "'2y'", "'1m ago'", "true"] {
            assert!(duration_or_zero(&value(bad)).is_err(), "{bad}");
        }
        assert!(duration(&value("'0s'")).is_err());
    }

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [("7", 7), ("'512k'", 524_288), ("'25 MB'", 26_214_400), ("'1GiB'", 1 << 30), ("'0'", 0)] {
            assert_eq!(size(&value(text)), Ok(bytes), "{text}");
        }
        for bad in ["-1", "'m'", "'1.5g'", "'99999999t'", "1.0", "'10x'"] {
            assert!(size(&value(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_cannot_become_options_or_commands() {
        for bad in ["'-rf'", "'a;b'", "'a b'", "'$(x)'", "'a=b'", "''", "'.hidden'", "'../x'", "'a\\nb'"] {
            for parser in [docker_name, image, target, database_word, user] {
                assert!(parser(&value(bad)).is_err(), "{bad}");
            }
        }
        assert!(database_word(&value("'postgresql://h/d'")).is_err());
        assert!(image(&value("'registry.example:5000/a/b:1.2@sha256:00ff'")).is_ok());
        assert!(user(&value("'1000:1000'")).is_ok());
    }

    #[test]
    fn inner_paths_stay_inside() {
        for bad in ["'/etc/passwd'", "'../x'", "'a/../../x'", "''", "'-f'", "'a\\\\b'"] {
            assert!(inner_path(&value(bad)).is_err(), "{bad}");
        }
        assert!(inner_path(&value("'docker/Dockerfile'")).is_ok());
    }

    #[test]
    fn volumes_are_whole_and_safe() {
        let parse = |text: &str| volume(Path::new("/srv"))(&value(text));
        assert_eq!(parse("'uploads:/app/uploads'"), Ok("uploads:/app/uploads".to_owned()));
        assert_eq!(parse("'./data:/data:ro'"), Ok("/srv/data:/data:ro".to_owned()));
        for bad in ["'a'", "'a:b'", "'a:/b:x'", "'/var/run/docker.sock:/x'", "'a:/../b'", "'-a:/b'", "':/b'"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn listening_needs_host_and_port() {
        for good in ["'127.0.0.1:8787'", "'localhost:0'", "'[::1]:80'"] {
            assert!(host_port(&value(good)).is_ok(), "{good}");
        }
        for bad in ["'8787'", "':80'", "'h:99999'", "'::1:80'", "'-h:1'", "'[x]:1'"] {
            assert!(host_port(&value(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn json_paths_may_be_written_either_way() {
        let rules = json_rules(&value("{ \"a.b\" = 1, c = { d = ['x', { e = true }] } }")).unwrap();
        assert_eq!(serde_json::to_string(&rules).unwrap(), r#"{"a.b":1,"c.d":["x",{"e":true}]}"#);
        assert!(json_rules(&value("{ a = 1979-05-27 }")).is_err());
    }

    #[test]
    fn globs_do_not_cross_directories_by_one_star() {
        let rules = path_rules(&value("['src/*.rs', 'docs/**']")).unwrap().set.unwrap();
        assert!(rules.is_match("src/a.rs") && rules.is_match("docs/a/b") && !rules.is_match("src/a/b.rs"));
        for bad in ["['[']", "['/src']", "['!x']", "['']", "'src'", "[1]"] {
            assert!(path_rules(&value(bad)).is_err(), "{bad}");
        }
    }
}
