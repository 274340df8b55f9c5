//! Threat 23: secrets planted everywhere a deployment touches are seen nowhere but where they belong.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::support::{
    Ran, Site, docker, http,
    telegram::{self, BotApi},
};

const SECRET: &str = "hunter2-correct-horse-battery";

/// Stands in a URL that is itself a secret: apps take such URLs apart.
const PASSWORD: &str = "opensesame-0451";

/// Stands in addresses that are no secrets.
const USER_PART: &str = "token-of-the-package-index";

const PLANTED: [&str; 4] = [SECRET, PASSWORD, USER_PART, telegram::TOKEN];

/// Looks at the arguments of every process, again and again.
struct Watch {
    stop: Arc<AtomicBool>,
    seen: JoinHandle<BTreeSet<String>>,
}

impl Watch {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let seen = thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                for entry in fs::read_dir("/proc").unwrap().flatten() {
                    let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line).replace('\0', " ");
                    if PLANTED.iter().any(|secret| line.contains(secret)) {
                        seen.insert(format!("arguments: {line}"));
                    }
                }
                thread::sleep(Duration::from_millis(2));
            }
            seen
        });
        Self { stop, seen }
    }

    fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.seen.join().unwrap()
    }
}

fn note(seen: &mut BTreeSet<String>, place: &str, text: &str) {
    for secret in PLANTED.iter().filter(|secret| text.contains(*secret)) {
        seen.insert(format!("{place}: {secret}"));
    }
}

fn note_ran(seen: &mut BTreeSet<String>, place: &str, ran: &Ran) {
    note(seen, place, &ran.stdout);
    note(seen, place, &ran.stderr);
}

#[test]
fn docker_a_planted_secret_is_not_seen() {
    let api = BotApi::start();
    let address = format!("https://ci:{USER_PART}@index.example/simple");
    let mut site = Site::docker()
        .env("APP_SECRET", SECRET)
        .env("DATABASE_URL", &format!("postgres://app:{PASSWORD}@db:5432/app"))
        .with_telegram(&api)
        .with(
            "[start.secrets]\nTOKEN = { env = \"APP_SECRET\" }\nDATABASE_URL = { env = \"DATABASE_URL\" }\n\
             [[test]]\nname = \"unit\"\ntarget = \"test\"\nrun = \"sh test.sh\"\n[test.secrets]\nTOKEN = { env = \"APP_SECRET\" }\n\
             DATABASE_URL = { env = \"DATABASE_URL\" }\n[migrate]\nrun = \"echo migrating with $DATABASE_URL and $TOKEN\"\n",
        );
    // All of it in one place, as careless programs print it.
    let leak = format!(
        "echo \"$TOKEN\"; echo \"$DATABASE_URL\" >&2; rest=${{DATABASE_URL#*app:}}; echo \"password=${{rest%@*}}\"; env; \
         echo getting {address}/flask; echo \"{{\\\"token\\\": \\\"$TOKEN\\\"}}\"; test \"$TOKEN\""
    );
    site.write("test.sh", &format!("{leak}\n"));
    site.write("run.sh", &format!("{leak} || exit 1; exec httpd -f -p 8080 -h /app/www\n"));
    site.write(
        "Dockerfile",
        "FROM refit-test/busybox:1 AS base\nCOPY . /app\nWORKDIR /app\nRUN env; echo \"built with $TOKEN.\"\n\
         FROM base AS test\nFROM base AS app\nCMD [\"sh\", \"/app/run.sh\"]\n",
    );
    site.push(&format!("a message with {SECRET} in it"));

    let watch = Watch::start();
    let mut seen = BTreeSet::new();
    note_ran(&mut seen, "refit deploy", &site.refit(&["deploy"]).expect(0));
    site.serve();
    let announce = |n: u32| {
        let commit = site.push("bad");
        site.webhook(&format!("d-{n}"), &site.push_body("main", &commit));
        site.wait_for("its end", |d| d["commit"] == *commit && d["finished_at"].is_string())
    };
    site.write("run.sh", &format!("{leak}; echo dying; exit 1\n"));
    assert_eq!(announce(1)["status"], "rolled_back");
    site.write("test.sh", &format!("{leak}; echo {address}; exit 1\n"));
    assert_eq!(announce(2)["failed_stage"], "test");
    site.write("test.sh", &format!("{leak}\n"));
    site.write(
        "Dockerfile",
        &format!(
            "FROM refit-test/busybox:1 AS test\nCOPY . /app\nWORKDIR /app\n\
             FROM refit-test/busybox:1\nRUN echo getting {address}; exit 1\n"
        ),
    );
    assert_eq!(announce(3)["failed_stage"], "build");
    // What a Dockerfile says is the repository's own text, also where the engine runs it.
    seen.extend(watch.end().into_iter().filter(|line| !line.contains(&format!("echo getting {address}"))));

    for deployment in site.history() {
        let id = deployment["id"].to_string();
        for args in [
            &["show", &id][..],
            &["show", &id, "--format", "json"],
            &["logs", &id],
            &["report", &id],
            &["report", &id, "--format", "markdown"],
            &["history", "--format", "json"],
            &["status", "--format", "json"],
            &["check"],
            &["doctor"],
        ] {
            note_ran(&mut seen, &format!("{args:?}"), &site.refit(args));
        }
        let log = site.log_of(&deployment);
        assert!(log.contains("[masked]"), "it was there to be masked: {log}");
    }
    for path in ["/_deploy/status", "/_deploy/health"] {
        note(&mut seen, path, &http(site.http, "GET", path, &[], b"").unwrap().body);
    }
    let messages = api.wait_for_rings(4);
    for message in &messages {
        note(&mut seen, "a message", &message.raw);
    }
    let quoting = messages.iter().filter(|m| m.text.contains("last lines") && m.text.contains("[masked]")).count();
    assert!(quoting >= 2, "reports quote the log, masked: {messages:#?}");

    // Every file but those that are meant to hold it.
    for secret in PLANTED {
        let mut grep = Command::new("grep");
        grep.args(["-rla", secret, "logs", ".refit", "daemon.log", "pipeline.toml"]).current_dir(site.path());
        let found = grep.output().unwrap();
        for file in String::from_utf8_lossy(&found.stdout).lines() {
            // The mirror holds the owner's own commits.
            if file.starts_with(".refit/git/") {
                continue;
            }
            let kept = file.ends_with("environment.json") || file.starts_with(".refit/rollbacks/");
            let kept = kept && [SECRET, PASSWORD].contains(&secret);
            let mode = fs::metadata(site.path().join(file)).unwrap().permissions().mode() & 0o777;
            if !kept || mode != 0o600 {
                seen.insert(format!("{file} ({mode:o}): {secret}"));
            }
        }
    }
    let images = docker(&["images", "-q", "--no-trunc", "--filter", &format!("label=refit.app={}", site.app)]);
    assert!(images.lines().count() >= 1);
    for image in images.lines() {
        note(&mut seen, "an image's history", &docker(&["history", "--no-trunc", image]));
        note(&mut seen, "an image", &docker(&["inspect", image]));
    }
    assert_eq!(seen, BTreeSet::new());
}

#[test]
fn a_secret_cannot_be_a_build_argument_or_a_part_of_an_address() {
    let site = Site::docker().env("APP_SECRET", SECRET);
    site.push("first");
    let file = fs::read_to_string(site.config_file()).unwrap();
    for (from, to) in [
        ("[start]\n", "[build]\nargs = { TOKEN = { env = \"APP_SECRET\" } }\n[start]\n".to_owned()),
        ("[start]\n", "[start]\nenv = { TOKEN = { env = \"APP_SECRET\" } }\n".to_owned()),
        ("[start]\n", format!("[start]\nsecrets = {{ TOKEN = \"{SECRET}\" }}\n")),
        ("\"origin.git\"", format!("\"https://ci:{SECRET}@git.example/acme/site.git\"")),
        ("\"origin.git\"", format!("\"https://{SECRET}{SECRET}@git.example/acme/site.git\"")),
        ("http = \"/health\"", format!("http = \"http://ci:{SECRET}@127.0.0.1:{}/health\"", site.port)),
    ] {
        fs::write(site.config_file(), file.replacen(from, &to, 1)).unwrap();
        let ran = site.refit(&["check"]);
        assert_eq!(ran.code, 78, "{to}: {ran:?}");
        let shown = format!("{}{}", ran.stdout, ran.stderr);
        assert!(!shown.contains(SECRET), "{shown}");
    }
}
