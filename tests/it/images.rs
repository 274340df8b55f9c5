//! What deployments leave in the engine: as many images after the tenth as after the fifth, and a cache that still works.

use std::collections::BTreeSet;

use crate::support::{Site, docker};

/// An app whose image copies from a stage that runs something, and whose tests are a stage of their own.
const DOCKERFILE: &str = "FROM refit-test/busybox:1 AS deps\nRUN echo deps-were-made; mkdir /deps; echo x > /deps/x\n\
    FROM deps AS test\nRUN echo tools-were-made\nCOPY . /app\nWORKDIR /app\n\
    FROM refit-test/busybox:1 AS compile\nCOPY www /www\nRUN echo compiled\n\
    FROM refit-test/busybox:1\nCOPY --from=deps /deps /deps\nCOPY --from=compile /www /app/www\nCOPY run.sh /app/\n\
    CMD [\"sh\", \"/app/run.sh\"]\n";

fn site() -> Site {
    let site =
        Site::docker().with("[rollback]\nkeep = 2\n[[test]]\nname = \"unit\"\ntarget = \"test\"\nrun = \"sh test.sh\"");
    site.write("Dockerfile", DOCKERFILE);
    site
}

/// Every image of the app, those of steps included, by id; and the names that images of it have.
fn images(site: &Site) -> (BTreeSet<String>, Vec<String>) {
    let filter = format!("label=refit.app={}", site.app);
    let ids = docker(&["images", "-aq", "--no-trunc", "--filter", &filter]);
    let names = docker(&["images", "--filter", &filter, "--format", "{{.Repository}}:{{.Tag}}"]);
    let mut names: Vec<String> = names.lines().map(|name| name.trim_start_matches(&site.app).to_owned()).collect();
    names.sort();
    (ids.lines().map(str::to_owned).collect(), names)
}

/// How often a step that prints `line` ran.
fn ran(log: &str, line: &str) -> usize {
    log.lines().filter(|l| l.ends_with(&format!("| {line}"))).count()
}

#[test]
fn docker_ten_deployments_leave_no_more_images_than_releases_and_the_cache_need() {
    let site = site();
    let mut commits = Vec::new();
    let mut counts = Vec::new();
    let mut cached = Vec::new();
    for n in 1..=10 {
        site.version(&n.to_string());
        commits.push(site.push(&format!("version {n}")));
        let deployment = site.deploy(0);
        let (ids, names) = images(&site);
        assert!(!names.iter().any(|name| name.contains("<none>") || name.starts_with("-test:")), "{names:?}");
        counts.push(ids.len());
        cached.push(site.log_of(&deployment));
    }
    // Three releases (`keep` and the live one). The ends of the app's stages: deps, compile, and the last step before the labels; the test's.
    let mut wanted: Vec<String> = commits[7..].iter().map(|commit| format!(":{}", &commit[..10])).collect();
    wanted.extend([":latest", ":rollback"].map(str::to_owned));
    wanted.extend([0, 1, 2].map(|n| format!("-cache:production-app-{n}")));
    wanted.push("-cache:production-test-test-0".to_owned());
    wanted.sort();
    assert_eq!(images(&site).1, wanted);
    // Once the first releases are retired, each new image takes the place of an old one.
    assert!(counts[3..].iter().all(|count| *count == counts[3]), "{counts:?}");
    // Test and build of the first deployment shared a stage, and neither built what only the other needs. Later ones found it all.
    for (n, log) in cached.iter().enumerate() {
        let count = |line| ran(log, line);
        let first = usize::from(n == 0);
        assert_eq!([count("deps-were-made"), count("tools-were-made"), count("compiled")], [first, first, 1], "{log}");
        assert!(log.contains("Using cache"), "{log}");
    }
}

/// The test's stage and the app's begin with the same image, and with another step or the same one. Both are in the cache.
#[test]
fn docker_stages_that_begin_with_the_same_image_are_all_found_again() {
    for same in ["", "WORKDIR /app\n"] {
        let site = Site::docker().with("[[test]]\nname = \"unit\"\ntarget = \"test\"\nrun = \"sh test.sh\"");
        let dockerfile = format!(
            "FROM refit-test/busybox:1 AS test\n{same}RUN echo tools-were-made\nCOPY . /app\nWORKDIR /app\n\
             FROM refit-test/busybox:1\n{same}RUN echo app-was-prepared\nCOPY . /app\nCMD [\"sh\", \"/app/run.sh\"]\n"
        );
        site.write("Dockerfile", &dockerfile);
        for ran_once in [1, 0] {
            site.version(&format!("{ran_once}"));
            site.push("another page");
            let log = site.log_of(&site.deploy(0));
            assert_eq!([ran(&log, "tools-were-made"), ran(&log, "app-was-prepared")], [ran_once; 2], "{log}");
        }
    }
}

#[test]
fn docker_a_failed_deployment_leaves_its_cache_and_no_image() {
    let site = site();
    site.push("good");
    site.deploy(0);
    let before = images(&site).1;
    // An expensive step changes, and in the same commit the tests fail; then the build.
    for (n, test, compile, code) in
        [(1, "exit 1", "echo compiled", 1), (2, "echo ok", "exit 1", 2), (3, "exit 1", "echo compiled", 1)]
    {
        let dockerfile =
            DOCKERFILE.replace("mkdir /deps", "echo new-deps; mkdir /deps").replace("echo compiled", compile);
        site.write("Dockerfile", &dockerfile);
        site.write("test.sh", test);
        site.push("bad");
        let log = site.log_of(&site.deploy(code));
        assert_eq!(ran(&log, "new-deps"), usize::from(n == 1), "failure {n}: {log}");
        // A build that was cancelled may still have ended a step, whose image the next deployment clears away.
        let left = images(&site)
            .1
            .into_iter()
            .filter(|name| !name.starts_with("-cache:production-") && name != "<none>:<none>");
        assert!(left.eq(before.iter().filter(|name| !name.starts_with("-cache:")).cloned()), "{:?}", images(&site).1);
    }
    site.write("Dockerfile", &DOCKERFILE.replace("mkdir /deps", "echo new-deps; mkdir /deps"));
    site.write("test.sh", "echo tests ran");
    site.push("mended");
    let log = site.log_of(&site.deploy(0));
    assert_eq!(ran(&log, "new-deps"), 0, "{log}");
    let names = images(&site).1;
    assert!(!names.iter().any(|name| name.contains("<none>") || name.starts_with("-test:")), "{names:?}");
    assert_eq!(names.iter().filter(|name| name.starts_with("-cache:")).count(), 4, "{names:?}");
}
