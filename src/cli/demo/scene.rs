//! Where the demo plays: a directory with a small web app in a Git repository, the repository it is pushed to, and `pipeline.toml`.
//!
//! The app is one page. `build.sh` fills in its template; `test.sh` looks at the template; the smoke check looks at the page that
//! users would get. A mistake that only the last of them can see is what the fourth push is about. Versions replace each other behind the
//! gate, so the smoke check comes before a visitor does.

use std::{
    fs,
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::ground::Ground;
use crate::{
    cli::error::{CliError, Result},
    config::RuntimeKind,
    exec::Program,
    files,
    model::{CommitId, EnvironmentKey, Name},
};

/// By this file `--clean` knows a demo's directory.
const RECORD: &str = "demo.json";

const RECORD_VERSION: u32 = 1;

/// For a `git` command here; all of them are local.
const GIT_LIMIT: Duration = Duration::from_secs(60);

/// What has to be known to clear a demo away. On disk before anything is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Unique: label and name of everything that Docker keeps for the demo.
    pub app: Name,
    pub on_docker: bool,
    /// The daemon's process id, once there was one.
    pub daemon: Option<i32>,
}

#[derive(Debug, Clone)]
pub struct Scene {
    pub dir: PathBuf,
    pub record: Record,
    /// This binary.
    pub program: PathBuf,
    pub docker_host: Option<String>,
    /// The port that users see.
    pub port: u16,
    /// Where the daemon listens.
    pub listen: u16,
    pub secret: String,
    /// Where the daemon finds a Bot API, with `--chat`.
    pub bot_api: Option<SocketAddr>,
}

impl Scene {
    /// Makes the directory and writes its record. `dir` must not exist.
    pub fn make(dir: PathBuf, ground: &Ground, program: PathBuf, docker_host: Option<String>) -> Result<Self> {
        let app = format!("demo-{}", hex::encode(random::<3>()?));
        let record = Record {
            version: RECORD_VERSION,
            app: app.parse().map_err(|e| CliError::io("naming the app", e))?,
            on_docker: ground.on_docker(),
            daemon: None,
        };
        fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => CliError::usage(
                format!("{} is there already", dir.display()),
                "a directory that does not exist yet, or `refit demo --clean DIR` if it is an earlier demo's",
            ),
            _ => CliError::io(format!("making {}", dir.display()), e),
        })?;
        let dir = dir.canonicalize().map_err(|e| CliError::io(format!("finding {}", dir.display()), e))?;
        let port = free_port(None)?;
        let scene = Self {
            dir,
            record,
            program,
            docker_host,
            port,
            listen: free_port(Some(port))?,
            secret: hex::encode(random::<20>()?),
            bot_api: None,
        };
        scene.write_record()?;
        Ok(scene)
    }

    /// An earlier demo's.
    pub fn find(dir: &Path, program: PathBuf, docker_host: Option<String>) -> Result<Self> {
        let none = || {
            CliError::usage(
                format!("{} is not a demo's directory", dir.display()),
                "the directory that `refit demo --keep` named at its end",
            )
        };
        let dir = dir.canonicalize().map_err(|_| none())?;
        let text = fs::read(dir.join(RECORD)).map_err(|_| none())?;
        let record: Record = serde_json::from_slice(&text).map_err(|_| none())?;
        if record.version != RECORD_VERSION {
            return Err(CliError::usage(
                format!("{} was made by another version of refit", dir.display()),
                "that version, to remove it",
            ));
        }
        Ok(Self { dir, record, program, docker_host, port: 0, listen: 0, secret: String::new(), bot_api: None })
    }

    pub fn write_record(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.record).map_err(|e| CliError::io("writing JSON", e))?;
        self.write_file(&self.dir.join(RECORD), &text)
    }

    pub fn key(&self) -> Result<EnvironmentKey> {
        let environment = "production".parse().map_err(|e| CliError::io("naming the environment", e))?;
        Ok(EnvironmentKey { app: self.record.app.clone(), environment })
    }

    pub fn base_image(&self) -> String {
        format!("{}-base", self.record.app)
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.join("pipeline.toml")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join(".refit")
    }

    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    pub fn daemon_log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    pub fn page_url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    pub fn hook_url(&self) -> String {
        format!("http://127.0.0.1:{}/hooks/github", self.listen)
    }

    /// The repositories, the app without its page, the configuration and what it needs.
    pub async fn furnish(&self, cancel: &CancellationToken) -> Result<()> {
        fs::create_dir(self.work()).map_err(|e| CliError::io("making the work tree", e))?;
        self.git(&self.dir, &["init", "-q", "--bare", "-b", "main", "origin.git"], cancel).await?;
        for args in [
            &["init", "-q", "-b", "main"][..],
            &["remote", "add", "origin", "../origin.git"],
            &["config", "user.name", "Ada"],
            &["config", "user.email", "ada@example.org"],
        ] {
            self.git(&self.work(), args, cancel).await?;
        }
        for (name, text) in app_files(self.record.on_docker, &self.base_image()) {
            self.write_file(&self.work().join(name), text.as_bytes())?;
        }
        self.write_secret("webhook-secret", &self.secret)?;
        self.write_secret("telegram-token", super::chat::TOKEN)?;
        crate::data::make_example_database(&self.dir.join("guests.db"))
            .await
            .map_err(|e| CliError::io("making the app's database", e))?;
        self.write_file(&self.config_file(), self.config().as_bytes())
    }

    fn write_file(&self, path: &Path, text: &[u8]) -> Result<()> {
        files::write_atomically(path, text, 0o644).map_err(|e| CliError::io(format!("writing {}", path.display()), e))
    }

    fn write_secret(&self, name: &str, secret: &str) -> Result<()> {
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.dir.join(name));
        file.and_then(|mut file| file.write_all(secret.as_bytes()))
            .map_err(|e| CliError::io(format!("writing {name}"), e))
    }

    /// Writes a version of the page and commits it.
    pub async fn commit(&self, page: &str, subject: &str, cancel: &CancellationToken) -> Result<CommitId> {
        self.write_file(&self.work().join("page.html"), page.as_bytes())?;
        self.git(&self.work(), &["add", "-A"], cancel).await?;
        self.git(&self.work(), &["commit", "-q", "-m", subject], cancel).await?;
        let id = self.git(&self.work(), &["rev-parse", "HEAD"], cancel).await?;
        id.parse().map_err(|e| CliError::io("reading the new commit's id", e))
    }

    /// A program with nothing of the user's own settings, so that the demo is the same everywhere: hooks, signing and identities
    /// of a global Git configuration are left out.
    pub fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Program {
        let program = Program::new(program).clean_env().env("HOME", &self.dir).env("GIT_CONFIG_NOSYSTEM", "1");
        // Who pushed, for the hook.
        let program = program.env("LOGNAME", "ada");
        match &self.docker_host {
            Some(host) => program.env("DOCKER_HOST", host),
            None => program,
        }
    }

    /// This binary with the demo's configuration.
    pub fn refit(&self, args: &[&str]) -> Program {
        self.program(&self.program).arg("--config").arg(self.config_file()).args(args)
    }

    async fn git(&self, dir: &Path, args: &[&str], cancel: &CancellationToken) -> Result<String> {
        let git = self.program("git").args(args).dir(dir);
        let done = git.output(GIT_LIMIT, cancel).await.map_err(|e| super::stopped_or(cancel, &e))?;
        if !done.success() {
            return Err(CliError::io(format!("`git {}`", args.join(" ")), done.stderr.join("; ")));
        }
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    }

    fn config(&self) -> String {
        let (test, build, start) = if self.record.on_docker {
            ("target = \"test\"\n", "", "container_port = 8080\n".to_owned())
        } else {
            let program = toml_text(&format!(
                "exec {} demo-app --port \"$PORT\" --dir public",
                crate::cli::hook::shell_quoted(&self.program.to_string_lossy())
            ));
            let start = format!("runtime = \"{}\"\ncommand = {program}\n", RuntimeKind::Process.as_str());
            ("", "[build]\nrun = \"sh build.sh\"\n\n", start)
        };
        let telegram = self.bot_api.map(|address| {
            format!(
                "[telegram]\ntoken = {{ file = \"telegram-token\" }}\nchat = {}\noperators = [10001]\n\
                 api_url = \"http://{address}\"\n\n",
                super::chat::CHAT
            )
        });
        format!(
            "# Made by `refit demo`. `refit check` shows what it means.\n\
             [app]\nname = \"{app}\"\nrepository = \"origin.git\"\n\n\
             [server]\nlisten = \"127.0.0.1:{listen}\"\n\n\
             [webhooks.github]\nsecret = {{ file = \"webhook-secret\" }}\n\n\
             {telegram}[environments.production]\nbranch = \"main\"\nport = {port}\nbind = \"127.0.0.1\"\n\n\
             [[backup]]\nkind = \"sqlite\"\npath = \"guests.db\"\nrequired = true\n\n\
             [[test]]\nname = \"unit\"\n{test}run = \"sh test.sh\"\n\n\
             {build}[start]\nstrategy = \"blue-green\"\n{start}stop_timeout = \"2s\"\n\
             health = {{ path = \"/health\", interval = \"100ms\", deadline = \"20s\" }}\n\n\
             [smoke]\nbake = \"2s\"\ninterval = \"250ms\"\n\n\
             [[smoke.check]]\nhttp = \"/\"\ncontains = \"Hello\"\nabsent = \"{{{{\"\nretries = 1\n",
            app = self.record.app,
            listen = self.listen,
            port = self.port,
            telegram = telegram.unwrap_or_default(),
        )
    }
}

/// The page as it is committed: a template.
pub fn page(title: &str, greeting: &str) -> String {
    format!("<!doctype html>\n{title}\n<h1>{greeting}</h1>\n")
}

/// Whether users get what they should.
pub fn is_whole(page: &str) -> bool {
    page.contains("Hello") && !page.contains("{{")
}

/// What a reader of the page sees.
pub fn heading(page: &str) -> &str {
    page.split_once("<h1>").and_then(|(_, rest)| rest.split_once("</h1>")).map_or("", |(heading, _)| heading)
}

fn app_files(on_docker: bool, base: &str) -> Vec<(&'static str, String)> {
    let build = "# Fills in the template: the page that users get.\n\
         mkdir -p public\nsed 's/{{name}}/world/' page.html >public/index.html\necho ok >public/health\n";
    let test = "# Looks at the template, not at the page that is made of it.\n\
         grep -q '<title>.*</title>' page.html || { echo 'FAILED: the page has no title'; exit 1; }\n\
         grep -q 'Hello' page.html || { echo 'FAILED: the page greets nobody'; exit 1; }\n\
         echo '2 tests passed'\n";
    let mut files = vec![("build.sh", build.to_owned()), ("test.sh", test.to_owned())];
    if on_docker {
        let dockerfile = format!(
            "FROM {base}:1 AS site\nWORKDIR /site\nCOPY . .\nRUN sh build.sh\n\n\
             FROM site AS test\n\nFROM site\nCMD [\"sh\", \"start.sh\"]\n"
        );
        let start = "# As process 1 of a container, a shell ends on SIGTERM only if it says so.\n\
             httpd -f -p 8080 -h public &\ntrap 'kill $!' TERM\nwait\n";
        files.extend([("Dockerfile", dockerfile), ("start.sh", start.to_owned())]);
    } else {
        files.push((".gitignore", "public/\n".to_owned()));
    }
    files
}

/// A TOML string.
fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| CliError::io("getting random bytes", e))?;
    Ok(bytes)
}

/// A port that nobody listens on, below those that are given to processes behind the gate and those that the system hands out by itself.
fn free_port(not: Option<u16>) -> Result<u16> {
    for _ in 0..200 {
        let port = 10_000 + u16::from_le_bytes(random()?) % 10_000;
        if Some(port) != not && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(CliError::unavailable("no free port was found between 10000 and 20000", "see what listens there: `ss -ltn`"))
}
