//! What a repository says of itself: enough of Dockerfile and compose syntax to make a good guess, and no more.

use std::{fs, path::Path, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    cli::error::{CliError, Result},
    exec::Program,
    git::{GitError, Mirror},
    log::DeploymentLog,
    model::{Branch, Name},
    redact::Redactor,
    runtime::Job,
};

/// For a repository that is only looked at.
const FETCH: Duration = Duration::from_secs(120);

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub in_git: bool,
    /// The remote, without a user's password; or the directory itself where there is none.
    pub repository: String,
    pub local_repository: bool,
    pub branch: String,
    pub dockerfile: Option<Dockerfile>,
    /// For repositories without a Dockerfile: the build, and what starts the app.
    pub build: Option<String>,
    pub command: Option<String>,
    pub services: Vec<Service>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dockerfile {
    /// The last `EXPOSE`.
    pub port: Option<u16>,
    /// The path that a `HEALTHCHECK` asks for.
    pub health_path: Option<String>,
    pub has_healthcheck: bool,
    /// There is a stage called `test`.
    pub has_test: bool,
}

/// A service of the compose file that is a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub image: String,
    pub container: Option<String>,
    pub user: Option<String>,
    pub database: Option<String>,
}

/// What the repository in `dir` says.
pub async fn at(dir: &Path, name: Option<&str>) -> Result<Found> {
    let in_git = in_git(dir).await;
    let remote = git(dir, &["config", "--get", "remote.origin.url"]).await.filter(|url| !url.is_empty());
    let repository = remote.as_deref().map_or_else(|| dir.display().to_string(), without_password);
    let name = checked_name(name, &dir.file_name().unwrap_or_default().to_string_lossy())?;
    Ok(Found { name, in_git, branch: branch(dir).await, ..found(dir, repository) })
}

/// What the repository at `address` says; it is fetched to `scratch`, which is the caller's to remove. `dir` is where the configuration
/// will be.
pub async fn remote(address: &str, dir: &Path, scratch: &Path, name: Option<&str>) -> Result<Found> {
    let repository = if is_remote(address) || address.contains("://") {
        without_password(address)
    } else {
        let path = dir.join(address);
        path.canonicalize().unwrap_or(path).display().to_string()
    };
    let last = repository.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or_default();
    let name = checked_name(name, last)?;
    let unusable = |error: GitError| {
        CliError::unavailable(error.to_string(), format!("see that `git ls-remote {repository}` works as this user"))
    };
    let mirror = Mirror::new(scratch.join("mirror"), &repository);
    let branch = mirror.default_branch(FETCH).await.map_err(unusable)?;
    let job =
        Job { log: DeploymentLog::discard(Redactor::default()).section("init"), cancel: CancellationToken::new() };
    let tree = scratch.join("tree");
    if let Some(branch) = &branch
        && let Some(tip) = mirror.fetch_branch(branch, FETCH, &job).await.map_err(unusable)?
    {
        mirror.export(&tip, &tree).map_err(unusable)?;
    }
    let branch = branch.map_or_else(|| "main".to_owned(), String::from);
    Ok(Found { name, in_git: in_git(dir).await, branch, ..found(&tree, repository) })
}

async fn in_git(dir: &Path) -> bool {
    git(dir, &["rev-parse", "--is-inside-work-tree"]).await.is_some_and(|yes| yes == "true")
}

/// The name that was asked for, or one made from `other`.
fn checked_name(name: Option<&str>, other: &str) -> Result<String> {
    match name {
        Some(name) => match name.parse::<Name>() {
            Ok(name) => Ok(name.to_string()),
            Err(error) => Err(CliError::usage(error.to_string(), "--name with another name")),
        },
        None => Ok(name_from(other)),
    }
}

/// What the files in `dir` say.
fn found(dir: &Path, repository: String) -> Found {
    let dockerfile = fs::read_to_string(dir.join("Dockerfile")).ok().map(|text| dockerfile(&text));
    let (build, command) = if dockerfile.is_some() { (None, None) } else { native(dir) };
    let compose = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
    let services = compose.iter().find_map(|file| fs::read_to_string(dir.join(file)).ok());
    Found {
        local_repository: !is_remote(&repository),
        repository,
        dockerfile,
        build,
        command,
        services: services.map(|text| databases(&text)).unwrap_or_default(),
        ..Found::default()
    }
}

/// The remote's default branch, else the current one, else `main`.
async fn branch(dir: &Path) -> String {
    let remote = git(dir, &["symbolic-ref", "--short", "refs/remotes/origin/HEAD"]).await;
    let remote = remote.and_then(|name| name.strip_prefix("origin/").map(str::to_owned));
    let found = match remote {
        Some(branch) => Some(branch),
        None => git(dir, &["symbolic-ref", "--short", "HEAD"]).await,
    };
    found.filter(|name| name.parse::<Branch>().is_ok()).unwrap_or_else(|| "main".to_owned())
}

/// The first line that `git` prints, if it is content.
async fn git(dir: &Path, args: &[&str]) -> Option<String> {
    let program = Program::new("git").args(args).dir(dir).clean_env();
    let done = program.output(Duration::from_secs(10), &CancellationToken::new()).await.ok()?;
    let line = String::from_utf8(done.stdout.clone()).ok()?.lines().next()?.trim().to_owned();
    done.success().then_some(line)
}

/// A directory's name as an app's name.
fn name_from(dir: &str) -> String {
    let mut name = String::new();
    for c in dir.trim_end_matches(".git").to_lowercase().chars() {
        let c = if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' { c } else { '-' };
        if !(c == '-' && (name.is_empty() || name.ends_with('-'))) {
            name.push(c);
        }
    }
    let name: String = name.trim_matches(['-', '_']).chars().take(40).collect();
    if name.is_empty() { "app".to_owned() } else { name }
}

fn is_remote(repository: &str) -> bool {
    repository.contains("://") && !repository.starts_with("file://")
        || repository.split_once(':').is_some_and(|(host, _)| !host.contains('/'))
}

/// `https://user:token@host/x` → `https://host/x`: a password does not belong into a file that is committed.
fn without_password(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme @ ("https" | "http"), rest)) => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}/{path}")
        }
        _ => url.to_owned(),
    }
}

fn dockerfile(text: &str) -> Dockerfile {
    let mut found = Dockerfile::default();
    let mut values: Vec<(String, String)> = Vec::new();
    for line in text.replace("\\\n", " ").lines() {
        let (instruction, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
        match instruction.to_ascii_uppercase().as_str() {
            "ARG" | "ENV" => values.extend(assignments(rest)),
            "EXPOSE" => found.port = rest.split_whitespace().find_map(|word| port(word, &values)).or(found.port),
            "HEALTHCHECK" => {
                found.has_healthcheck = !rest.trim().eq_ignore_ascii_case("none");
                found.health_path = local_path(rest);
            }
            "FROM" => {
                let words: Vec<&str> = rest.split_whitespace().collect();
                found.has_test |=
                    words.windows(2).any(|w| w[0].eq_ignore_ascii_case("as") && w[1].eq_ignore_ascii_case("test"));
            }
            _ => {}
        }
    }
    found
}

fn assignments(text: &str) -> Vec<(String, String)> {
    let pair =
        |word: &str| word.split_once('=').map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned()));
    text.split_whitespace().filter_map(pair).collect()
}

/// `8000`, `8000/tcp`, `$PORT`, `${PORT}`.
fn port(word: &str, values: &[(String, String)]) -> Option<u16> {
    let (number, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let number = match number.strip_prefix('$') {
        Some(name) => {
            let name = name.trim_matches(['{', '}']);
            values.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())?
        }
        None => number,
    };
    number.parse().ok().filter(|port| *port > 0 && protocol.eq_ignore_ascii_case("tcp"))
}

/// The path of the first URL on this machine in a command.
fn local_path(command: &str) -> Option<String> {
    let start = ["http://localhost", "http://127.0.0.1", "http://0.0.0.0"]
        .iter()
        .find_map(|host| command.find(host).map(|at| at + host.len()))?;
    let rest = &command[start..];
    let path = &rest[rest.find('/')?..];
    let end = path.find(|c: char| !(c.is_ascii_alphanumeric() || "/-_.~".contains(c))).unwrap_or(path.len());
    // A slash that belongs to something after the URL.
    let between = &rest[..rest.len() - path.len()];
    between
        .chars()
        .all(|c| c == ':' || c.is_ascii_digit() || "${}".contains(c) || c.is_ascii_uppercase())
        .then(|| path[..end].to_owned())
}

/// How an app without a Dockerfile is built and started, by the files it has.
fn native(dir: &Path) -> (Option<String>, Option<String>) {
    let has = |file: &str| dir.join(file).is_file();
    let web = fs::read_to_string(dir.join("Procfile")).ok().and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix("web:").map(|command| command.trim().to_owned()))
    });
    let (build, start) = if has("package.json") {
        (Some("npm ci"), Some("npm start"))
    } else if has("requirements.txt") {
        (Some("python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"), None)
    } else if has("go.mod") {
        (Some("go build -o app ."), Some("./app"))
    } else if has("Cargo.toml") {
        (Some("cargo build --release"), None)
    } else {
        (None, None)
    };
    (build.map(str::to_owned), web.or(start.map(str::to_owned)))
}

/// The databases among the services of a compose file: two levels of `key: value` by indentation are all that is read.
fn databases(text: &str) -> Vec<Service> {
    let mut services: Vec<Service> = Vec::new();
    let (mut inside, mut level) = (false, None);
    for line in text.lines() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with('#') {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        if indent == 0 {
            inside = bare == "services:";
            level = None;
            continue;
        }
        if !inside {
            continue;
        }
        if indent == *level.get_or_insert(indent) {
            let name = bare.trim_end_matches(':').trim_matches(['"', '\'']).to_owned();
            services.push(Service { name, image: String::new(), container: None, user: None, database: None });
        } else if let Some(service) = services.last_mut() {
            note(service, bare.trim_start_matches("- "));
        }
    }
    services.retain(|service| is_postgres(&service.image));
    services
}

fn note(service: &mut Service, line: &str) {
    let Some((key, value)) = line.split_once([':', '=']) else { return };
    let value = value.trim().trim_matches(['"', '\'']).to_owned();
    // A value that compose itself would look up says nothing here.
    let known = (!value.is_empty() && !value.contains('$')).then_some(value);
    match key.trim().trim_matches(['"', '\'']) {
        "image" => service.image = known.unwrap_or_default(),
        "container_name" => service.container = known,
        "POSTGRES_USER" => service.user = known,
        "POSTGRES_DB" => service.database = known,
        _ => {}
    }
}

fn is_postgres(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or_default();
    let name = name.split([':', '@']).next().unwrap_or_default();
    name.contains("postgres") || name.contains("postgis") || name.contains("timescaledb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dockerfile_tells_port_path_and_stages() {
        let text = "ARG PORT=9000\nFROM x AS build\nEXPOSE 1\nFROM build as Test\nRUN pytest\nFROM x\nEXPOSE 53/udp ${PORT}/tcp\n\
                    HEALTHCHECK --interval=5s \\\n  CMD curl -f http://localhost:$PORT/healthz || exit 1\n";
        let found = dockerfile(text);
        assert_eq!((found.port, found.has_test, found.has_healthcheck), (Some(9000), true, true));
        assert_eq!(found.health_path.as_deref(), Some("/healthz"));
        assert_eq!(dockerfile("FROM scratch\nHEALTHCHECK NONE\nEXPOSE $UNKNOWN"), Dockerfile::default());
        assert_eq!(local_path("curl http://localhost:80 > /dev/null"), None);
    }

    #[test]
    fn a_compose_file_tells_its_databases() {
        let text = "version: '3'\nservices:\n  web:\n    build: .\n    image: me/postgres-admin-ui\n  db:\n    image: \"postgres:16-alpine\"\n\
                    \x20   container_name: guestbook-db\n    environment:\n      - POSTGRES_USER=guest\n      POSTGRES_DB: ${DB}\nvolumes:\n  postgres:\n";
        let all = databases(text);
        let db = all.iter().find(|s| s.name == "db");
        assert_eq!(
            db,
            Some(&Service {
                name: "db".to_owned(),
                image: "postgres:16-alpine".to_owned(),
                container: Some("guestbook-db".to_owned()),
                user: Some("guest".to_owned()),
                database: None,
            })
        );
    }

    #[test]
    fn names_and_addresses_become_usable() {
        assert_eq!(
            ["My App.git", "---", "é", "a__b", "x".repeat(60).as_str()].map(name_from),
            ["my-app".to_owned(), "app".to_owned(), "app".to_owned(), "a__b".to_owned(), "x".repeat(40)]
        );
        assert_eq!(without_password("https://u:tok@git.example/a/b.git"), "https://git.example/a/b.git");
        assert_eq!(without_password("git@git.example:a/b.git"), "git@git.example:a/b.git");
        assert!(is_remote("git@git.example:a/b.git") && is_remote("https://x/y") && !is_remote("/srv/a:b"));
    }
}
