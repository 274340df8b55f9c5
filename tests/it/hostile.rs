//! Threats 7, 8 and 9 through a whole deployment: repositories that try to run something on the host, or to reach out of
//! their tree. The parts are tested where they live (`git`); here nothing may slip in between them.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::support::{Site, docker};

/// What appears if anything of the repository's is run on the host.
fn marker(site: &Site) -> PathBuf {
    site.path().join("owned")
}

fn plant_hooks(dir: &Path, marker: &Path) {
    fs::create_dir_all(dir).unwrap();
    for hook in [
        "post-checkout",
        "post-merge",
        "pre-auto-gc",
        "reference-transaction",
        "fsmonitor-watchman",
        "post-index-change",
    ] {
        fs::write(dir.join(hook), format!("#!/bin/sh\ntouch {}\n", marker.display())).unwrap();
        fs::set_permissions(dir.join(hook), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Hooks in the tree under every name they go by, attributes that ask for filters which the owner's own Git knows, and
/// a submodule that would run its address, its update command, and write beside the repository.
fn make_hostile(site: &Site) {
    let marker = marker(site);
    let touch = format!("touch {}", marker.display());
    for dir in ["hooks", ".githooks", ".husky"] {
        plant_hooks(&site.work().join(dir), &marker);
    }
    site.write(".gitattributes", "* filter=evil diff=evil merge=evil ident text eol=crlf\n");
    site.write(".gitconfig", &format!("[core]\n\tfsmonitor = {touch}\n\thooksPath = hooks\n"));
    site.write(".lfsconfig", &format!("[lfs]\n\turl = ext::{touch}\n"));
    site.write(
        ".gitmodules",
        &format!(
            "[submodule \"../../escape\"]\n\tpath = vendor/lib\n\turl = \"ext::sh -c '{touch}'\"\n\tupdate = \"!{touch}\"\n\
             [submodule \"option\"]\n\tpath = -oProxyCommand\n\turl = \"-u./{touch}\"\n"
        ),
    );
    let commit = site.commit("before the submodule");
    site.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},vendor/lib")]);
    // Git takes an absent directory for a submodule that was removed.
    fs::create_dir_all(site.work().join("vendor/lib")).unwrap();
    fs::write(
        site.home().join(".gitconfig"),
        format!("[filter \"evil\"]\n\tsmudge = {touch} && cat\n[diff \"evil\"]\n\ttextconv = {touch}\n[submodule]\n\trecurse = true\n"),
    )
    .unwrap();
}

/// Settings and hooks of the repository that is fetched from.
fn make_origin_hostile(site: &Site) {
    let touch = format!("touch {}", marker(site).display());
    plant_hooks(&site.origin().join("hooks"), &marker(site));
    let origin = site.origin().display().to_string();
    for key in [
        "core.fsmonitor",
        "core.sshCommand",
        "uploadpack.packObjectsHook",
        "filter.evil.smudge",
        "core.alternateRefsCommand",
    ] {
        site.git(&["--git-dir", &origin, "config", key, &touch]);
    }
}

#[track_caller]
fn expect_unharmed(site: &Site) {
    assert!(!marker(site).exists(), "something of the repository was run");
    for escaped in ["escape", ".refit/escape", ".refit/git/escape"] {
        assert!(!site.path().join(escaped).exists(), "{escaped} was written");
    }
}

#[track_caller]
fn error_of(deployment: &Value) -> &str {
    deployment["error"].as_str().unwrap_or_else(|| panic!("no error: {deployment:#}"))
}

#[test]
fn docker_nothing_of_a_hostile_repository_is_run() {
    let site = Site::docker();
    make_hostile(&site);
    site.push("harmless");
    make_origin_hostile(&site);
    let tree = site.git(&["ls-tree", "-r", "HEAD"]);
    assert!(tree.contains("160000 commit") && tree.contains("hooks/post-checkout"), "the threat is there: {tree}");
    let deployment = site.deploy(0);
    assert!(site.log_of(&deployment).contains("submodule `vendor/lib` is not part of"), "{}", site.log_of(&deployment));
    // Byte by byte what was committed: no filter, no line ending rule.
    assert_eq!(site.page().as_deref(), Some("version one\n"));
    let image = deployment["image"].as_str().unwrap();
    let inside = docker(&["run", "--rm", image, "sh", "-c", "ls -d /app/vendor/lib /app/hooks/post-merge 2>&1; true"]);
    assert!(inside.contains("/app/hooks/post-merge\n") && inside.contains("vendor/lib: No such file"), "{inside}");
    expect_unharmed(&site);
}

#[test]
fn nothing_of_a_hostile_repository_is_run_as_a_process() {
    let mut site = Site::process();
    make_hostile(&site);
    let commit = site.push("harmless");
    make_origin_hostile(&site);
    site.serve();
    site.webhook("d-1", &site.push_body("main", &commit));
    assert_eq!(site.settled()["status"], "succeeded");
    assert_eq!(site.page().as_deref(), Some("version one\n"));
    expect_unharmed(&site);
}

#[test]
fn docker_links_out_of_the_tree_reach_no_image() {
    let site = Site::docker();
    site.push("good");
    site.deploy(0);
    let outside = site.path().join("host");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("Dockerfile"), "FROM refit-test/busybox:1\nRUN echo the host's own file was read\n")
        .unwrap();
    let dockerfile = site.work().join("Dockerfile");
    let good = fs::read_to_string(&dockerfile).unwrap();
    for target in [outside.join("Dockerfile").display().to_string(), "../host/Dockerfile".to_owned()] {
        fs::remove_file(&dockerfile).unwrap();
        symlink(&target, &dockerfile).unwrap();
        site.push("a Dockerfile from elsewhere");
        let refused = site.deploy(2);
        assert!(
            error_of(&refused).contains("`Dockerfile`") && error_of(&refused).contains("leads out of"),
            "{refused:#}"
        );
        assert!(!site.log_of(&refused).contains("the host's own file"));
    }
    fs::remove_file(&dockerfile).unwrap();
    site.write("Dockerfile", &good);

    // Not by its text, but followed through another link it leaves.
    symlink("..", site.work().join("www/up")).unwrap();
    symlink("up/../../../etc/passwd", site.work().join("www/passwd")).unwrap();
    site.push("a link to the host's users");
    let refused = site.deploy(2);
    assert!(error_of(&refused).contains("`www/passwd`") && error_of(&refused).contains(".dockerignore"), "{refused:#}");
    site.expect_page("one");

    site.write(".dockerignore", "www/passwd\n");
    site.version("two");
    site.push("without the link");
    let deployment = site.deploy(0);
    site.expect_page("two");
    let image = deployment["image"].as_str().unwrap();
    let inside = docker(&["run", "--rm", image, "sh", "-c", "ls /app/www"]);
    assert!(inside.contains("up") && !inside.contains("passwd"), "{inside}");
}

#[test]
fn links_out_of_the_tree_are_refused_as_a_process() {
    let site = Site::process();
    site.push("good");
    site.deploy(0);
    for (name, target) in
        [("passwd", "/etc/passwd"), ("origin", "../../../../../origin.git"), ("sly", "up/../../../..")]
    {
        symlink("..", site.work().join("www/up")).unwrap();
        symlink(target, site.work().join("www").join(name)).unwrap();
        site.push(name);
        let refused = site.deploy(2);
        assert!(error_of(&refused).contains(&format!("www/{name}")), "{refused:#}");
        site.expect_page("one");
        site.git(&["reset", "-q", "--hard", "HEAD~1"]);
    }
}
