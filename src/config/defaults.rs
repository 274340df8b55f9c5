//! Every default, in the words of the file itself.
//!
//! A table here holds what a reader finds where the user's table has no such key; it goes through the same parsers, so a default
//! cannot be of another type than what a user may write. Keys without a default are missing here: they are required, or
//! off. `docs/configuration.md` repeats these values, and a test compares the two.

/// One quoted header a table of [`super::schema::TABLES`].
pub(super) const DEFAULTS: &str = r#"
["environments.*"]
bind = "0.0.0.0"
paths = []
requires = []
parallel = true
approval = false
approval_timeout = "24h"
windows = []
rehearse_backups = "0s"

["pull"]
timeout = "2m"
retries = 2

["backup"]
tools = "host"
format = "plain"
roles = false
exclude = []
env = {}
secrets = {}
required = false
keep_days = 7
timeout = "30m"
compression = "gzip"
verify = "checksums"

["test"]
name = "test"
networks = []
env = {}
secrets = {}
timeout = "15m"

["build"]
context = "."
dockerfile = "Dockerfile"
args = {}
builder = "auto"
timeout = "30m"
no_cache = false

["migrate"]
lock_timeout = "5s"
timeout = "10m"
on_failure = "keep"
hold = false
max_backup_age = "5m"

["start"]
runtime = "docker"
strategy = "auto"
networks = []
volumes = []
env = {}
secrets = {}
init = false
stop_timeout = "30s"
drain = "30s"
drain_websockets = "60s"
keep_warm = "0s"
hold = "30s"

["start.log"]
max_size = "100m"
max_file = 5

["start.health"]
interval = "200ms"
timeout = "5s"
successes = 2
deadline = "60s"
settle = "10s"

["smoke"]
check = []
bake = "10s"
interval = "1s"
timeout = "2m"

["smoke.check"]
status = 200
contains = []
absent = []
json = {}
timeout = "5s"
retries = 2

["rollback"]
automatic = true
keep = 5

["server"]
listen = "127.0.0.1:8787"
state_dir = ".refit"
backups_dir = "backups"
logs_dir = "logs"
reconcile = "5m"
max_body = "25m"
max_connections = 1024
min_free_space = "256m"
log_keep_days = 30

["telegram"]
operators = []
chats = []
quiet = false
api_url = "https://api.telegram.org"
"#;
