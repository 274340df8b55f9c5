//! The files of a configuration: the main one, what it includes, and what stands in each.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use globset::GlobBuilder;

use super::{
    ConfigErrors, LoadOptions, MissingSecrets,
    environment::{self, AppFile},
    read::{Context, Lookup, Reader, read_limited, reason},
    repository, schema,
    tree::{At, Kind, Value},
    types::{App, Config, Server, Telegram},
    values::{self, Complaint, Parsed, integer, printable},
};
use crate::{
    model::{EnvironmentKey, Name},
    redact::Redactor,
    secret::Secret,
};

/// Larger files are refused, in bytes.
const LARGEST_FILE: u64 = 1024 * 1024;

/// Includes beyond this are refused.
const MOST_FILES: usize = 1000;

/// Loads a configuration whose secrets must all be there.
///
/// # Errors
/// Everything that is wrong, all at once.
pub fn load(file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigErrors> {
    load_with(file, LoadOptions { env, missing_secrets: MissingSecrets::Error })
}

/// Loads a configuration. A relative `file` is relative to the working directory.
///
/// # Errors
/// Everything that is wrong, all at once.
pub fn load_with(file: &Path, options: LoadOptions<'_>) -> Result<Config, ConfigErrors> {
    let cx = Context::new(options);
    let config = read_main(&cx, file);
    let secrets = cx.finish()?;
    match config {
        Some(config) => Ok(Config { redactor: Redactor::new(&secrets), ..config }),
        // No problem and no configuration: a reader gave up without saying why.
        None => Err(ConfigErrors::unexplained(file)),
    }
}

fn read_main(cx: &Context<'_>, file: &Path) -> Option<Config> {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let dir = absolute.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned);
    let text = read_limited(&absolute, LARGEST_FILE)
        .map_err(|why| {
            let help = "run `refit init` to write one, or name another with `--config`";
            cx.file_problem(file, Complaint::new(format!("cannot be read: {why}")).help(help));
        })
        .ok()?;
    let tree = cx.parse(file, text)?;
    let root = Reader::new(cx, &tree, "", &dir);

    let server = read_server(&root.child("server", "server"));
    let telegram = root.has("telegram").then(|| read_telegram(&root.child("telegram", "telegram"))).flatten();
    let secrets = github_secrets(&root);
    let mut claims = Claims::default();
    claims.listener(&server.listen);
    let mut apps = Vec::new();
    if root.has("app") || has_app_tables(&root) || !root.has("include") {
        let own = AppFile { root: &root, github_secrets: secrets.clone() };
        apps.extend(environment::app(&own, &mut claims));
    }
    let shared = if root.has("app") { Vec::new() } else { secrets };
    let mut files = vec![absolute.clone()];
    for (shown, path) in included(&root, &absolute, file) {
        apps.extend(include(cx, &shown, &path, &shared, &mut claims));
        files.push(path);
    }
    if apps.is_empty() && root.has("include") {
        root.complain("include", Complaint::new("there is no app in this file or in what it includes"));
    }
    let apps: Vec<Arc<App>> = apps.into_iter().map(Arc::new).collect();
    let telegram_without_token = root.has("telegram") && telegram.is_none();
    Some(Config {
        file: absolute,
        files,
        server,
        telegram,
        telegram_without_token,
        apps,
        redactor: Redactor::default(),
    })
}

/// Whether the file has tables that only make sense with an `[app]`.
fn has_app_tables(root: &Reader<'_>) -> bool {
    root.has("environments") || schema::STAGES.iter().any(|stage| root.has(stage))
}

/// One included file.
fn include(cx: &Context<'_>, shown: &Path, path: &Path, shared: &[Secret], claims: &mut Claims) -> Option<App> {
    let text = read_limited(path, LARGEST_FILE)
        .map_err(|why| cx.file_problem(shown, Complaint::new(format!("cannot be read: {why}"))))
        .ok()?;
    let tree = cx.parse(shown, text)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let root = Reader::new(cx, &tree, "", dir);
    root.refuse(&["server", "telegram", "include"], "may stand only in the main file", "move it there");
    let own = github_secrets(&root);
    let github_secrets = if root.has("webhooks") { own } else { shared.to_vec() };
    environment::app(&AppFile { root: &root, github_secrets }, claims)
}

/// The files that `include` names, each as it is shown and as it is read, sorted within a pattern, none twice.
fn included(root: &Reader<'_>, main: &Path, shown_main: &Path) -> Vec<(PathBuf, PathBuf)> {
    let patterns = root.list("include", |value| {
        let pattern = values::filled(value)?;
        let files = expand(root.dir, &pattern)?;
        if files.is_empty() && !has_wildcard(&pattern) {
            return Err(Complaint::new(format!("there is no file `{}`", printable(&pattern))));
        }
        Ok(files)
    });
    let shown_dir = shown_main.parent().unwrap_or(Path::new(""));
    let mut found: Vec<(PathBuf, PathBuf)> = Vec::new();
    for path in patterns.into_iter().flatten() {
        let shown = path.strip_prefix(root.dir).map_or_else(|_| path.clone(), |below| shown_dir.join(below));
        if path != main && !found.iter().any(|(_, known)| *known == path) {
            found.push((shown, path));
        }
    }
    if found.len() > MOST_FILES {
        root.complain("include", Complaint::new(format!("more than {MOST_FILES} files are included")));
        found.clear();
    }
    found
}

fn has_wildcard(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

/// The files that match a pattern, part by part; hidden ones only if the part says so.
fn expand(dir: &Path, pattern: &str) -> Parsed<Vec<PathBuf>> {
    let mut paths = vec![if pattern.starts_with('/') { PathBuf::from("/") } else { dir.to_owned() }];
    for part in pattern.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part.contains("**") {
            return Err(
                Complaint::new("`**` is not supported here").help("name each directory, such as `apps/*/*.toml`")
            );
        }
        if !has_wildcard(part) {
            paths = paths.into_iter().map(|path| path.join(part)).filter(|path| path.exists()).collect();
            continue;
        }
        let glob = GlobBuilder::new(part).literal_separator(true).build();
        let glob = glob.map_err(|e| Complaint::new(format!("is not a glob pattern: {}", e.kind())))?.compile_matcher();
        let mut next = Vec::new();
        for path in paths.iter().filter(|path| path.is_dir()) {
            let unreadable = |e: &std::io::Error| Complaint::new(format!("`{}`: {}", path.display(), reason(e)));
            for entry in std::fs::read_dir(path).map_err(|e| unreadable(&e))? {
                let name = entry.map_err(|e| unreadable(&e))?.file_name();
                let hidden = name.to_string_lossy().starts_with('.') && !part.starts_with('.');
                if !hidden && glob.is_match(&name) {
                    next.push(path.join(name));
                }
            }
        }
        next.sort();
        paths = next;
    }
    Ok(paths.into_iter().filter(|path| path.is_file()).collect())
}

fn read_server(reader: &Reader<'_>) -> Server {
    let path = |key| reader.get(key, values::host_path(reader.dir));
    Server {
        listen: reader.get("listen", values::host_port),
        state_dir: path("state_dir"),
        backups_dir: path("backups_dir"),
        logs_dir: path("logs_dir"),
        reconcile: reader.get("reconcile", values::duration_or_zero),
        max_body: reader.get("max_body", |value| match values::size(value)? {
            0..1024 => Err(Complaint::new("is less than 1 KiB: no webhook would fit")),
            bytes => Ok(bytes),
        }),
        max_connections: reader.get("max_connections", integer(1..=100_000)),
        min_free_space: reader.get("min_free_space", values::size),
        log_keep_days: reader.get("log_keep_days", integer(1..=36_500)),
    }
}

/// `None` without a token: then reports go to the terminal only.
fn read_telegram(reader: &Reader<'_>) -> Option<Telegram> {
    let token = match reader.required("token", |value| reader.look_up(value)) {
        Some(Lookup::Found(token)) if !token.expose().trim().is_empty() => Some(Secret::new(token.expose().trim())),
        _ => None,
    };
    let thread = reader.read("thread", integer(1..=i64::from(i32::MAX)));
    let operators = reader.list("operators", integer(1..=i64::MAX));
    let chats = reader.list("chats", chat_id);
    let webhook = reader.read("webhook", webhook);
    let quiet = reader.get("quiet", values::boolean);
    let api_url = reader.get("api_url", values::web_address);
    // Without a token the variable of the chat may well be missing too; a chat that stands in the file is checked all the same.
    let written = reader.own("chat").is_some_and(|value| value.as_table().is_none());
    if token.is_none() && !written {
        return None;
    }
    let chat = reader.required("chat", |value| chat(reader, value)).flatten();
    Some(Telegram { token: token?, chat: chat?, thread, operators, chats, webhook, quiet, api_url })
}

/// Telegram sends updates over TLS only, and to four ports (Bot API, `setWebhook`).
fn webhook(value: &Value) -> Parsed<String> {
    const PORTS: [u16; 4] = [443, 80, 88, 8443];
    let address = values::web_address(value)?;
    let help = "such as https://deploy.example.org/hooks/telegram: a proxy with a certificate passes it on to `[server] listen`";
    let url = reqwest::Url::parse(&address).map_err(|e| Complaint::new(format!("is not a URL: {e}")).help(help))?;
    if url.scheme() != "https" {
        return Err(Complaint::new("must begin with https://").help(help));
    }
    if !url.port_or_known_default().is_some_and(|port| PORTS.contains(&port)) {
        return Err(Complaint::new("has a port that Telegram does not send to").help("it takes 443, 80, 88 and 8443"));
    }
    Ok(address)
}

/// A chat's id, written as a number.
fn chat_id(value: &Value) -> Parsed<i64> {
    match &value.kind {
        Kind::Integer(id) if *id != 0 => Ok(*id),
        Kind::Integer(_) => Err(Complaint::new("is not a chat's id").help("`refit telegram chats` shows them")),
        _ => Err(values::wrong_type("a chat's id", value)),
    }
}

/// A chat's id: an integer, the same in quotes, or where to find it. `None` where it is not there and need not be.
fn chat(reader: &Reader<'_>, value: &Value) -> Parsed<Option<i64>> {
    let text = match &value.kind {
        Kind::Integer(id) => id.to_string(),
        Kind::String(text) => text.clone(),
        Kind::Table(_) => {
            let found = reader.secret(value)?;
            if found.is_empty() && reader.cx.options.missing_secrets == MissingSecrets::Ignore {
                return Ok(None);
            }
            found.expose().to_owned()
        }
        _ => return Err(values::wrong_type("a chat's id", value)),
    };
    match text.trim().parse::<i64>() {
        Ok(id) if id != 0 => Ok(Some(id)),
        _ => Err(Complaint::new("is not a chat's id")
            .help("a chat's id is a number such as 10001 or -1001234567890; `refit telegram chats` finds it")),
    }
}

/// `[webhooks.github] secret`: one or several, none of them empty.
fn github_secrets(root: &Reader<'_>) -> Vec<Secret> {
    if !root.has("webhooks") {
        return Vec::new();
    }
    let webhooks = root.child("webhooks", "webhooks");
    if !webhooks.has("github") {
        return Vec::new();
    }
    let github = webhooks.child("github", "webhooks.github");
    let help = "the daemon does not start without one: anybody could deploy; make one with `openssl rand -hex 32`";
    let one = |value: &Value| -> Parsed<Secret> {
        let secret = github.secret(value)?;
        let lenient = github.cx.options.missing_secrets == MissingSecrets::Ignore;
        if secret.expose().trim().is_empty() && !lenient {
            return Err(Complaint::new("the webhook's secret is empty").help(help));
        }
        Ok(secret)
    };
    let secrets = match github.own("secret").map(|value| &value.kind) {
        None => {
            github.missing("secret", help.to_owned());
            Vec::new()
        }
        Some(Kind::Array(items)) if items.is_empty() => {
            github.complain("secret", Complaint::new("the list of secrets is empty").help(help));
            Vec::new()
        }
        Some(Kind::Array(_)) => github.list("secret", one),
        Some(_) => github.read("secret", one).into_iter().collect(),
    };
    secrets.into_iter().filter(|secret| !secret.expose().trim().is_empty()).collect()
}

/// What may be taken once in the whole configuration.
#[derive(Debug, Default)]
pub(super) struct Claims {
    apps: Vec<Name>,
    ports: Vec<(IpAddr, u16, String)>,
}

impl Claims {
    /// The daemon's own port.
    fn listener(&mut self, listen: &str) {
        let Some((host, port)) = listen.rsplit_once(':') else { return };
        let host = if host == "localhost" { "127.0.0.1" } else { host.trim_matches(['[', ']']) };
        if let (Ok(ip), Ok(port)) = (host.parse(), port.parse())
            && port != 0
        {
            self.ports.push((ip, port, "`[server] listen`".to_owned()));
        }
    }

    pub fn app(&mut self, cx: &Context<'_>, name: &Name, at: &At) {
        if self.apps.contains(name) {
            let complaint = Complaint::new(format!("there is another app called `{name}`"));
            cx.problem(at, complaint.help("give each app a name of its own"));
        }
        self.apps.push(name.clone());
    }

    pub fn port(&mut self, cx: &Context<'_>, ip: IpAddr, port: u16, owner: &EnvironmentKey, at: &At) {
        let overlap = |other: IpAddr| ip == other || ip.is_unspecified() || other.is_unspecified();
        if let Some((.., other)) = self.ports.iter().find(|(other, taken, _)| *taken == port && overlap(*other)) {
            let complaint = Complaint::new(format!("port {port} is taken by {other}"));
            cx.problem(at, complaint.help("give each environment a port of its own"));
        }
        self.ports.push((ip, port, format!("environment `{owner}`")));
    }
}

/// `[app]` with its names: `full_name` is the repository's unless it is set.
pub(super) fn read_app(root: &Reader<'_>) -> (Option<Name>, repository::Repository) {
    let app = root.child("app", "app");
    let name = app.required("name", values::checked::<Name>);
    let found = app.required("repository", |value| repository::parse(&values::text(value)?, app.dir));
    let mut found = found.unwrap_or_default();
    if let Some(full_name) = app.read("full_name", |value| repository::check_full_name(&values::text(value)?)) {
        found.full_name = Some(full_name);
    }
    (name, found)
}
