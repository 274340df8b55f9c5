//! Threat 23: secrets planted everywhere a deployment touches are seen nowhere but where they belong.

use crate::support::{Site, docker};

const SECRET: &str = "hunter2-correct-horse-battery";

#[test]
fn docker_a_planted_secret_is_not_seen() {
    let mut site = Site::docker().env("APP_SECRET", SECRET).with(
        "[start.secrets]\nTOKEN = { env = \"APP_SECRET\" }\n\
         [[test]]\nname = \"unit\"\ntarget = \"test\"\nrun = \"sh test.sh\"\n[test.secrets]\nTOKEN = { env = \"APP_SECRET\" }\n",
    );
    site.write("test.sh", "echo the token is $TOKEN; echo $TOKEN >&2; test \"$TOKEN\"\n");
    site.write("run.sh", "echo started with $TOKEN; test \"$TOKEN\" || exit 1; exec httpd -f -p 8080 -h /app/www\n");
    site.push(&format!("a message with {SECRET} in it"));
    site.deploy(0);
    site.write("run.sh", "echo dying with $TOKEN; exit 1\n");
    let bad = site.push("bad");
    site.serve();
    site.webhook("d-1", &site.push_body("main", &bad));
    let failed = site.settled();
    assert_eq!(failed["status"], "rolled_back", "{failed:#}");

    let mut seen = Vec::new();
    for deployment in site.history() {
        let id = deployment["id"].to_string();
        for args in [vec!["show", &id], vec!["show", &id, "--format", "json"], vec!["logs", &id], vec!["report", &id]] {
            let ran = site.refit(&args);
            if ran.stdout.contains(SECRET) || ran.stderr.contains(SECRET) {
                seen.push(format!("{args:?}"));
            }
        }
        let log = site.log_of(&deployment);
        assert!(log.contains("[masked]"), "it was there to be masked: {log}");
    }
    let status = crate::support::http(site.http, "GET", "/_deploy/status", &[], b"").unwrap();
    if status.body.contains(SECRET) {
        seen.push("/_deploy/status".to_owned());
    }
    // Every file but the one that is meant to hold it.
    let grep = std::process::Command::new("grep")
        .args(["-rla", SECRET, "logs", ".refit", "backups", "daemon.log", "pipeline.toml"])
        .current_dir(site.path())
        .output()
        .unwrap();
    for file in String::from_utf8_lossy(&grep.stdout).lines() {
        let kept = file.ends_with("environment.json");
        // The mirror holds the owner's own commit message.
        if !kept && !file.starts_with(".refit/git/") {
            seen.push(file.to_owned());
        }
        if kept {
            let mode = std::os::unix::fs::PermissionsExt::mode(
                &std::fs::metadata(site.path().join(file)).unwrap().permissions(),
            );
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }
    let images = docker(&["images", "-q", "--filter", &format!("label=refit.app={}", site.app)]);
    for image in images.lines() {
        if docker(&["history", "--no-trunc", image]).contains(SECRET) {
            seen.push(format!("history of {image}"));
        }
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(SECRET) {
            seen.push(format!("{}", entry.path().display()));
        }
    }
    assert_eq!(seen, [""; 0]);
}
