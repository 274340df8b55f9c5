//! The example as its owner would have it on a server: a repository of its own, the shipped `pipeline.toml`, a network, and
//! PostgreSQL in a container.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::support::{Answer, Ran, Site, docker, free_port, http, poll};

/// With what URLs must encode, so that the password has two spellings.
const PASSWORD: &str = "correct/horse@battery";
const PASSWORD_IN_URL: &str = "correct%2Fhorse%40battery";

/// The owner (over the local socket) is trusted, the app needs its password; nothing here has to survive a power cut.
const SERVER: &str = r#"
set -e
install -d -o postgres /run/postgresql
su postgres -c '
    PATH=/usr/lib/postgresql/15/bin:$PATH
    initdb --no-sync --encoding=UTF8 --locale=C --auth=trust /tmp/data >/dev/null
    printf "local all all trust\nhost all all all scram-sha-256\n" > /tmp/data/pg_hba.conf
    exec postgres -D /tmp/data -c fsync=off -c listen_addresses=* -c shared_buffers=16MB
'
"#;

/// PostgreSQL with the databases `guestbook` and `guestbook_dev`, and the network it is on; both go when this does.
#[derive(Debug)]
pub struct Database {
    /// The container and the network.
    pub name: String,
}

impl Database {
    pub fn start(name: &str) -> Self {
        let database = Self { name: name.to_owned() };
        docker(&["network", "create", name]);
        docker(&["run", "--detach", "--name", name, "--network", name, "refit-test/postgres:15", "sh", "-c", SERVER]);
        let up = poll(|| (database.try_psql("postgres", "SELECT 1").code == 0).then_some(()));
        up.unwrap_or_else(|| panic!("PostgreSQL is not up: {}", docker(&["logs", name])));
        database.psql("postgres", &format!("CREATE ROLE guestbook LOGIN PASSWORD '{PASSWORD}'"));
        for new in ["guestbook", "guestbook_dev"] {
            database.create(new);
        }
        database
    }

    /// An empty database of the app's role.
    pub fn create(&self, database: &str) {
        self.psql("postgres", &format!("CREATE DATABASE {database} OWNER guestbook"));
    }

    fn try_psql(&self, database: &str, sql: &str) -> Ran {
        let psql =
            ["exec", "-i", &self.name, "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database];
        let mut docker = Command::new("docker");
        docker.args(psql).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut docker = docker.spawn().expect("docker runs");
        // Not as an argument: another test may be looking for the password in those of every process.
        let _ = docker.stdin.take().expect("a pipe").write_all(sql.as_bytes());
        docker.wait_with_output().expect("docker ends").into()
    }

    #[track_caller]
    pub fn psql(&self, database: &str, sql: &str) -> String {
        self.try_psql(database, sql).expect(0).stdout.trim().to_owned()
    }

    /// Every entry, whole, in order.
    #[track_caller]
    pub fn rows(&self, database: &str) -> String {
        self.psql(database, "SELECT id, author, message, created_at FROM entries ORDER BY id")
    }

    /// A shell command line, run in `dir`, that finds the container's name in `$DB`.
    #[track_caller]
    pub fn shell(&self, dir: &Path, line: &str) {
        let mut shell = Command::new("sh");
        shell.args(["-euc", line]).current_dir(dir).env("DB", &self.name);
        Ran::from(shell.output().expect("sh runs")).expect(0);
    }

    fn url(&self, database: &str) -> String {
        format!("postgresql://guestbook:{PASSWORD_IN_URL}@{}:5432/{database}", self.name)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "--force", "--volumes", &self.name]).output();
        let _ = Command::new("docker").args(["network", "rm", &self.name]).output();
    }
}

/// The base image under a name and with a layer cache of its own: a test that removes its images must not take
/// away the layers that another is building on at that moment.
#[derive(Debug)]
struct Base(String);

impl Base {
    fn make(name: &str) -> Self {
        let build = ["build", "--quiet", "--tag", name, "-"];
        let build = Command::new("docker")
            .args(build)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut build = build.expect("docker runs");
        let dockerfile = format!("FROM refit-test/python:3\nLABEL refit.test={name}\n");
        let sent = build.stdin.take().expect("a pipe").write_all(dockerfile.as_bytes());
        let ended = build.wait().expect("docker ends");
        assert!(sent.is_ok() && ended.success(), "the base image was not made: {sent:?}, {ended}");
        Self(name.to_owned())
    }
}

impl Drop for Base {
    /// With all that was built on it: each image has inherited the label, and the classic builder leaves nameless ones
    /// behind for stages that no image was made of. The newest come first in the list, so that none has children.
    fn drop(&mut self) {
        let filter = format!("label=refit.test={}", self.0);
        let Ok(listed) = Command::new("docker").args(["images", "-a", "-q", "--filter", &filter]).output() else {
            return;
        };
        for image in String::from_utf8_lossy(&listed.stdout).lines() {
            let _ = Command::new("docker").args(["rmi", "--force", image]).output();
        }
    }
}

/// The site, its database and its images. They go in this order.
#[derive(Debug)]
pub struct Guestbook {
    pub site: Site,
    pub database: Database,
    pub dev_port: u16,
    _base: Base,
}

impl Guestbook {
    /// Everything in place, nothing deployed, the daemon not started. `more` is added to the shipped `pipeline.toml`.
    pub fn new(more: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("refit-guestbook-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let base = Base::make(&name);
        let database = Database::start(&name);
        let (url, dev_url) = (database.url("guestbook"), database.url("guestbook_dev"));
        let site = Site::docker().env("DATABASE_URL", &url).env("DEV_DATABASE_URL", &dev_url);
        let guestbook = Self { site, database, dev_port: free_port(), _base: base };
        guestbook.take_the_example();
        let config = fs::read_to_string(example().join("pipeline.toml")).expect("the example's pipeline.toml");
        fs::write(guestbook.site.config_file(), guestbook.configured(config + more)).expect("pipeline.toml");
        guestbook
    }

    /// The example's files in the place of the site's own.
    fn take_the_example(&self) {
        let work = self.site.work();
        for file in ["run.sh", "test.sh", "Dockerfile"] {
            fs::remove_file(work.join(file)).expect("the site's own file");
        }
        fs::remove_dir_all(work.join("www")).expect("the site's own directory");
        copy(&example(), &work);
    }

    /// The shipped file, with the names, ports and address of this machine in the place of the example's.
    fn configured(&self, shipped: String) -> String {
        let Site { app, port, http, .. } = &self.site;
        let overrides = [
            (
                "name = \"guestbook\"\nrepository = \"https://git.example/acme/guestbook.git\"",
                format!("name = \"{app}\"\nrepository = \"origin.git\"\nfull_name = \"acme/{app}\""),
            ),
            ("branch = \"main\"\nport = 8000", format!("branch = \"main\"\nport = {port}")),
            ("branch = \"dev\"\nport = 8001", format!("branch = \"dev\"\nport = {}", self.dev_port)),
            ("container = \"guestbook-db\"", format!("container = \"{}\"", self.database.name)),
            ("networks = [\"guestbook\"]", format!("networks = [\"{}\"]", self.database.name)),
            ("bake = \"10s\"", "bake = \"300ms\"".to_owned()),
            ("bake = \"2s\"", "bake = \"0s\"".to_owned()),
        ];
        let adapt = |text: String, (old, new): (&str, String)| {
            assert!(text.contains(old), "the example's pipeline.toml no longer says {old:?}");
            text.replace(old, &new)
        };
        let adapted = overrides.into_iter().fold(shipped, adapt);
        format!(
            "{adapted}\n[build]\nargs = {{ BASE = \"{}\" }}\n[server]\nlisten = \"127.0.0.1:{http}\"\nreconcile = \"0s\"\n",
            self.database.name
        )
    }

    /// Changes a file of the app; what it changes must be there.
    #[track_caller]
    pub fn edit(&self, path: &str, old: &str, new: &str) {
        let text = fs::read_to_string(self.site.work().join(path)).expect("the app's file");
        assert!(text.contains(old), "{path} has no {old:?}");
        self.site.write(path, &text.replace(old, new));
    }

    pub fn migration(&self, name: &str, sql: &str) {
        self.site.write(&format!("guestbook/migrations/{name}.sql"), sql);
    }

    /// Signs the guestbook as a visitor would.
    #[track_caller]
    pub fn sign(&self, port: u16, author: &str, message: &str) {
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let body = format!("author={author}&message={message}");
        let answer = http(port, "POST", "/entries", &form, body.as_bytes()).expect("the app answers");
        assert_eq!(answer.status, 303, "{answer:?}");
    }

    #[track_caller]
    pub fn page(&self) -> String {
        self.site.page().expect("the start page")
    }

    pub fn get(&self, port: u16, path: &str) -> Answer {
        http(port, "GET", path, &[], b"").expect("an answer")
    }

    /// What the migrations' table names as last.
    pub fn schema(&self) -> String {
        self.database.psql("guestbook", "SELECT max(name) FROM schema_migrations")
    }

    /// The directory of a deployment's backup set.
    #[track_caller]
    pub fn backup_of(&self, deployment: &serde_json::Value) -> PathBuf {
        let set = deployment["backup"].as_str().unwrap_or_else(|| panic!("no backup: {deployment:#}"));
        self.site.path().join("backups").join(set)
    }

    /// Everywhere that either spelling of the password can be seen, but where it belongs.
    pub fn leaks(&self) -> Vec<String> {
        let site = &self.site;
        let secret = |text: &str| text.contains(PASSWORD) || text.contains(PASSWORD_IN_URL);
        let mut seen = Vec::new();
        let mut look = |place: String, text: &str| {
            if secret(text) {
                seen.push(place);
            }
        };
        for args in [&["status"] as &[&str], &["status", "--format", "json"], &["history"]] {
            let ran = site.refit(args);
            look(format!("{args:?}"), &(ran.stdout + &ran.stderr));
        }
        for path in ["/_deploy/status", "/_deploy/health"] {
            look(path.to_owned(), &self.get(site.http, path).body);
        }
        for deployment in site.history() {
            let id = deployment["id"].to_string();
            for args in
                [&["show", &id] as &[&str], &["show", &id, "--format", "json"], &["logs", &id], &["report", &id]]
            {
                let ran = site.refit(args);
                look(format!("{args:?}"), &(ran.stdout + &ran.stderr));
            }
        }
        let images = docker(&["images", "-q", "--filter", &format!("label=refit.app={}", site.app)]);
        for image in images.lines() {
            look(format!("history of {image}"), &docker(&["history", "--no-trunc", image]));
            look(format!("image {image}"), &docker(&["image", "inspect", image]));
        }
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            look(entry.path().display().to_string(), &String::from_utf8_lossy(&line));
        }
        files(site.path(), &mut |path| {
            // What an old release is started again with, and the state before a rollback; only their owner may read them.
            if path.ends_with("environment.json") || path.starts_with(site.path().join(".refit/rollbacks")) {
                let mode =
                    std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).expect("its mode").permissions());
                assert_eq!(mode & 0o777, 0o600, "{}", path.display());
                return;
            }
            look(path.display().to_string(), &String::from_utf8_lossy(&fs::read(path).unwrap_or_default()));
        });
        seen
    }
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/guestbook")
}

/// A directory's files, without what running the app or its tests by hand leaves there.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("the example").flatten() {
        let name = entry.file_name();
        let left_over = ["__pycache__", ".pytest_cache", ".coverage", "coverage.xml"];
        if left_over.iter().any(|n| name == *n) {
            continue;
        }
        let to = to.join(&name);
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("a copy");
        }
    }
}

/// Every file below a directory; links are not followed.
fn files(dir: &Path, see: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), see),
            Ok(kind) if kind.is_file() => see(&entry.path()),
            _ => {}
        }
    }
}
