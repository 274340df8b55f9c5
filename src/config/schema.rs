//! Every key there is. A reader can ask only for a key that stands here, an unknown key is one that does not, and a test holds
//! `docs/configuration.md` to this list.

/// A table's path and its keys. `environments.*` is any environment; `backup`, `test` and `smoke.check` are the entries of their
/// arrays; `secret` is what stands in place of a secret.
pub(super) const TABLES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "include",
            "bind",
            "paths",
            "requires",
            "parallel",
            "rehearse_backups",
            "app",
            "environments",
            "pull",
            "backup",
            "test",
            "build",
            "migrate",
            "start",
            "smoke",
            "rollback",
            "server",
            "webhooks",
            "telegram",
        ],
    ),
    ("app", &["name", "repository", "full_name"]),
    (
        "environments.*",
        &[
            "branch",
            "port",
            "bind",
            "paths",
            "requires",
            "parallel",
            "approval",
            "approval_timeout",
            "windows",
            "rehearse_backups",
            "pull",
            "backup",
            "test",
            "build",
            "migrate",
            "start",
            "smoke",
            "rollback",
        ],
    ),
    ("pull", &["timeout", "retries"]),
    (
        "backup",
        &[
            "kind",
            "name",
            "container",
            "database",
            "user",
            "password",
            "url",
            "tools",
            "format",
            "roles",
            "path",
            "volume",
            "exclude",
            "dump",
            "restore",
            "rehearse",
            "env",
            "secrets",
            "required",
            "keep",
            "keep_days",
            "timeout",
            "compression",
            "verify",
            "check",
        ],
    ),
    ("test", &["name", "target", "image", "run", "networks", "env", "secrets", "timeout", "coverage"]),
    ("test.coverage", &["report", "min"]),
    ("build", &["context", "dockerfile", "target", "args", "builder", "timeout", "run", "no_cache"]),
    (
        "migrate",
        &[
            "run",
            "version",
            "status",
            "down",
            "files",
            "database",
            "url",
            "lock_timeout",
            "timeout",
            "on_failure",
            "hold",
            "max_backup_age",
        ],
    ),
    (
        "start",
        &[
            "runtime",
            "strategy",
            "container_port",
            "networks",
            "volumes",
            "command",
            "env",
            "secrets",
            "user",
            "memory",
            "cpus",
            "init",
            "stop_timeout",
            "gate",
            "drain",
            "drain_websockets",
            "keep_warm",
            "hold",
            "log",
            "health",
        ],
    ),
    ("start.log", &["max_size", "max_file"]),
    ("start.health", &["path", "tcp", "exec", "image", "interval", "timeout", "successes", "deadline", "settle"]),
    ("smoke", &["check", "bake", "interval", "timeout", "max_error_rate"]),
    (
        "smoke.check",
        &["http", "tcp", "exec", "name", "status", "contains", "absent", "json", "max_latency", "timeout", "retries"],
    ),
    ("rollback", &["automatic", "keep"]),
    (
        "server",
        &[
            "listen",
            "state_dir",
            "backups_dir",
            "logs_dir",
            "reconcile",
            "max_body",
            "max_connections",
            "min_free_space",
            "log_keep_days",
        ],
    ),
    ("webhooks", &["github"]),
    ("webhooks.github", &["secret"]),
    ("telegram", &["token", "chat", "thread", "operators", "chats", "webhook", "quiet", "api_url"]),
    ("secret", &["env", "file"]),
];

/// The tables that an environment may override.
pub(super) const STAGES: [&str; 8] = ["pull", "backup", "test", "build", "migrate", "start", "smoke", "rollback"];

/// The keys of the root that hold for every environment that does not set its own.
pub(super) const COMMON: [&str; 5] = ["bind", "paths", "requires", "parallel", "rehearse_backups"];

/// The keys of a table; none for a table that is not in the list.
pub(super) fn keys(table: &str) -> &'static [&'static str] {
    TABLES.iter().find(|(name, _)| *name == table).map_or(&[], |(_, keys)| keys)
}

/// What to say about a key that `table` does not have: the nearest one it has, else the tables that have it, else all of
/// its keys.
pub(super) fn advice(table: &str, key: &str) -> String {
    let known = keys(table);
    if let Some(near) = nearest(key, known) {
        return format!("did you mean `{near}`?");
    }
    let homes: Vec<String> =
        TABLES.iter().filter(|(_, keys)| keys.contains(&key)).map(|(name, _)| header(name)).take(3).collect();
    if !homes.is_empty() && table != "secret" {
        return format!("`{key}` is a key of {}", homes.join(", "));
    }
    format!("the keys here are {}", crate::config::values::quoted(known))
}

/// How a table's header is written.
fn header(table: &str) -> String {
    match table {
        "" => "the top of the file, before the first table".to_owned(),
        "environments.*" => "`[environments.NAME]`".to_owned(),
        "backup" | "test" | "smoke.check" => format!("`[[{table}]]`"),
        _ => format!("`[{table}]`"),
    }
}

/// The candidate that differs from `word` by a typo or two.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let word: String = word.chars().take(60).collect::<String>().to_lowercase().replace('-', "_");
    candidates
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).clamp(1, 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_names_the_nearest_key_or_its_home() {
        assert_eq!(advice("environments.*", "brnach"), "did you mean `branch`?");
        assert_eq!(advice("start", "stop-timeout"), "did you mean `stop_timeout`?");
        assert_eq!(advice("app", "port"), "`port` is a key of `[environments.NAME]`");
        assert_eq!(advice("pull", "zzz"), "the keys here are `timeout`, `retries`");
    }
}
