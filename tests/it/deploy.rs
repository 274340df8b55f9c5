//! What a deployment does besides ending: stages, rules, tags, several suites, cancelling, reruns.

use serde_json::Value;

use crate::support::{Site, docker, http};

fn statuses(deployment: &Value) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let stages = deployment["stages"].as_array().expect("stages");
    stages.iter().map(|s| (text(&s["name"]), text(&s["status"]))).collect()
}

#[test]
fn docker_a_deployment_has_the_shape_of_the_contract() {
    let site = Site::docker().with("[[test]]\nname = \"unit\"\ntarget = \"test\"\nrun = \"sh test.sh\"");
    let commit = site.push("first line\n\nbody");
    let deployment = site.deploy(0);
    let expected = ["pull", "backup", "test", "build", "tag", "migrate", "start", "smoke"];
    let done = statuses(&deployment);
    assert_eq!(done.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), expected);
    let skipped: Vec<&str> = done.iter().filter(|(_, s)| s == "skipped").map(|(n, _)| n.as_str()).collect();
    assert_eq!(skipped, ["backup", "migrate"]);
    for key in [
        "id",
        "app",
        "environment",
        "commit",
        "ref",
        "trigger",
        "status",
        "failed_stage",
        "error",
        "exit_code",
        "queued_at",
        "started_at",
        "finished_at",
        "duration_ms",
        "stages",
        "image",
        "previous",
        "backup",
        "live",
    ] {
        assert!(deployment.get(key).is_some(), "{key} is missing");
    }
    for key in ["name", "status", "started_at", "duration_ms", "output", "error"] {
        assert!(deployment["stages"][0].get(key).is_some(), "stages[].{key} is missing");
    }
    assert_eq!(deployment["subject"], "first line");
    assert_eq!(deployment["ref"], "refs/heads/main");
    assert!(deployment["finished_at"].as_str().is_some_and(|t| t.ends_with('Z')), "RFC 3339, UTC");
    let image = deployment["image"].as_str().expect("an image");
    let labels: Value =
        serde_json::from_str(&docker(&["inspect", "--format", "{{json .Config.Labels}}", image])).unwrap();
    assert_eq!(labels["org.opencontainers.image.revision"], commit);
    assert!(labels["org.opencontainers.image.created"].is_string());
}

#[test]
fn docker_the_way_back_is_tagged_before_anything_moves() {
    let site = Site::docker();
    site.push("first");
    let first = site.deploy(0);
    site.version("two");
    site.push("second");
    let second = site.deploy(0);
    let id =
        |name: &str| docker(&["inspect", "--format", "{{.Id}}", &format!("{}:{name}", site.app)]).trim().to_owned();
    assert_eq!(id("rollback"), first["image"].as_str().unwrap());
    assert_eq!(id("latest"), second["image"].as_str().unwrap());
    // A failed deployment puts both tags back.
    site.write("www/health", "bad");
    site.push("third");
    site.deploy(4);
    assert_eq!(id("rollback"), first["image"].as_str().unwrap());
    assert_eq!(id("latest"), second["image"].as_str().unwrap());
}

#[test]
fn docker_the_same_tree_is_not_built_again() {
    let site = Site::docker();
    site.push("first");
    let first = site.deploy(0);
    site.push("nothing changed");
    let second = site.deploy(0);
    assert_ne!(first["commit"], second["commit"]);
    assert_eq!(first["image"], second["image"]);
    assert_eq!(second["stages"][3]["output"]["reused"], true);
}

#[test]
fn docker_suites_run_in_targets_and_images_and_coverage_has_a_floor() {
    let suite = |min: u32| {
        format!(
            "[[test]]\nname = \"unit\"\ntarget = \"test\"\nrun = \"sh test.sh\"\n\
             coverage = {{ report = \"lcov.info\", min = {min} }}\n\
             [[test]]\nname = \"lint\"\nimage = \"refit-test/busybox:1\"\nrun = \"pwd; test -f Dockerfile\"\n"
        )
    };
    let site = Site::docker().with(&suite(70));
    site.write("test.sh", "printf 'SF:a\\nDA:1,1\\nDA:2,1\\nDA:3,1\\nDA:4,0\\nend_of_record\\n' > lcov.info\n");
    site.push("three of four lines");
    let good = site.deploy(0);
    let suites = &good["stages"][2]["output"]["suites"];
    assert_eq!((&suites[0]["coverage"], &suites[1]["name"]), (&75.0.into(), &"lint".into()), "{suites:#}");
    assert!(site.log_of(&good).contains("/src"), "an image's suite works in the commit's tree");

    let site = site.with("");
    site.write("test.sh", "printf 'SF:a\\nDA:1,1\\nDA:2,0\\nend_of_record\\n' > lcov.info\n");
    site.push("half");
    let bad = site.deploy(1);
    assert!(bad["error"].as_str().is_some_and(|e| e.contains("50.0 %") && e.contains("70")), "{bad:#}");
    site.write("test.sh", "true\n");
    site.push("no report");
    let bad = site.deploy(1);
    assert!(bad["error"].as_str().is_some_and(|e| e.contains("no coverage report")), "{bad:#}");
}

#[test]
fn docker_any_commit_tag_or_branch_can_be_deployed_by_hand() {
    let site = Site::docker();
    let first = site.push("first");
    site.git(&["tag", "-a", "v1", "-m", "one"]);
    site.git(&["push", "-q", "origin", "v1"]);
    site.version("two");
    site.push("second");
    site.deploy(0);
    site.expect_page("two");
    site.refit(&["deploy", "--ref", "v1"]).expect(0);
    site.expect_page("one");
    assert_eq!(site.newest()["commit"], first);
    site.git(&["checkout", "-q", "-b", "feature/three"]);
    site.version("three");
    let third = site.commit("third");
    site.git(&["push", "-q", "origin", "feature/three"]);
    site.refit(&["deploy", "--ref", "feature/three"]).expect(0);
    site.expect_page("three");
    site.refit(&["deploy", "--commit", &first]).expect(0);
    site.expect_page("one");
    let id = site.history().iter().find(|d| d["commit"] == *third).unwrap()["id"].to_string();
    site.refit(&["rerun", &id]).expect(0);
    site.expect_page("three");
    let unknown = site.refit(&["deploy", "--ref", "no-such-branch"]).expect(1);
    assert!(unknown.stderr.contains("no-such-branch") || unknown.stdout.contains("no-such-branch"), "{unknown:?}");
    site.expect_page("three");
}

#[test]
fn docker_one_publishes_networks_volumes_and_environment() {
    let site = Site::docker();
    let volume = format!("{}-data", site.app);
    let site = site
        .env("APP_TOKEN", "s3cr3t-token")
        .with("[start.env]\nGREETING = \"hello world\"\n[start.secrets]\nTOKEN = { env = \"APP_TOKEN\" }\n");
    let file = std::fs::read_to_string(site.config_file()).unwrap();
    std::fs::write(
        site.config_file(),
        file.replace("[start]\n", &format!("[start]\nvolumes = [\"{volume}:/data\"]\n")),
    )
    .unwrap();
    site.write(
        "run.sh",
        "echo \"$GREETING $TOKEN\" >> /data/all; cp /data/all www/all; exec httpd -f -p 8080 -h /app/www\n",
    );
    site.push("first");
    site.deploy(0);
    site.push("second");
    site.deploy(0);
    let seen = http(site.port, "GET", "/all", &[], b"").unwrap().body;
    assert_eq!(seen, "hello world s3cr3t-token\n".repeat(2), "the volume outlives a version");
    drop(site);
    docker(&["volume", "rm", &volume]);
}

#[test]
fn docker_old_releases_are_retired() {
    let site = Site::docker().with("[rollback]\nkeep = 1");
    for n in 1..=4 {
        site.version(&n.to_string());
        site.push(&format!("number {n}"));
        site.deploy(0);
    }
    assert_eq!(site.containers(false).len(), 2, "the live one and one to go back to");
    // What is kept for the builder's cache has names of its own: `images.rs` bounds those.
    let images = docker(&["images", "-q", &site.app]);
    let mut images: Vec<&str> = images.lines().collect();
    images.sort_unstable();
    images.dedup();
    assert_eq!(images.len(), 2, "and their images");
    site.expect_page("4");
}

#[test]
fn paths_and_skip_markers_decide_about_pushes_only() {
    let mut site = Site::process().with_environment("paths = [\"www/**\", \"run.sh\"]");
    let first = site.push("first");
    site.serve();
    site.webhook("d-1", &site.push_body("main", &first));
    assert_eq!(site.settled()["status"], "succeeded");
    site.write("README.md", "words");
    let docs = site.push("docs only");
    site.webhook("d-2", &site.push_body("main", &docs));
    let skipped = site.wait_for("a skip", |d| d["commit"] == *docs && d["status"] == "skipped");
    assert!(skipped["error"].as_str().is_some_and(|e| e.contains("paths")), "{skipped:#}");
    site.version("two");
    let marked = site.push("change [skip ci]");
    site.webhook("d-3", &site.push_body("main", &marked));
    site.wait_for("a skip", |d| d["commit"] == *marked && d["status"] == "skipped");
    site.expect_page("one");
    site.refit(&["deploy"]).expect(0);
    site.expect_page("two");
}
