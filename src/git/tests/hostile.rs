//! Repositories that mean harm: nothing of theirs runs, and nothing is written outside.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use git2::{ObjectType, Oid, Repository};

use super::{
    super::{GitErrorKind, Mirror},
    LONG, World, branch, job,
};
use crate::model::CommitId;

const HOOKS: [&str; 9] = [
    "applypatch-msg",
    "post-checkout",
    "post-update",
    "pre-auto-gc",
    "pre-receive",
    "proc-receive",
    "reference-transaction",
    "update",
    "fsmonitor-watchman",
];

fn plant_hooks(dir: &Path, marker: &Path) {
    fs::create_dir_all(dir).unwrap();
    for hook in HOOKS {
        fs::write(dir.join(hook), format!("#!/bin/sh\ntouch {}\n", marker.display())).unwrap();
        fs::set_permissions(dir.join(hook), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[tokio::test]
async fn hooks_settings_and_filters_of_a_repository_never_run() {
    let (world, job) = (World::new(), job());
    let marker = world.path("owned");
    let touch = format!("touch {}", marker.display());
    world.write(".gitattributes", "* filter=evil diff=evil text eol=crlf\n");
    world.write(
        ".gitmodules",
        format!("[submodule \"x\"]\n\tpath = x\n\turl = ext::sh -c '{touch}'\n\tupdate = !{touch}\n"),
    );
    world.write(".gitconfig", format!("[core]\n\tfsmonitor = {touch}\n"));
    let first = world.push("main", "a", "one\ntwo\n");
    let remote = world.path("remote.git");
    plant_hooks(&remote.join("hooks"), &marker);
    for (key, value) in [
        ("core.fsmonitor", touch.as_str()),
        ("core.sshCommand", &touch),
        ("core.gitProxy", &touch),
        ("core.alternateRefsCommand", &touch),
        ("uploadpack.packObjectsHook", &touch),
        ("filter.evil.smudge", &touch),
        ("filter.evil.process", &touch),
        ("filter.evil.required", "true"),
        ("diff.evil.textconv", &touch),
        ("gc.recentObjectsHook", &touch),
    ] {
        world.git_in(&remote, &["config", key, value]);
    }
    let mirror = world.mirror();
    mirror.fetch_branch(&branch("main"), LONG, &job).await.unwrap();
    // Even in the mirror itself, should something have put them there.
    plant_hooks(&mirror.dir.join("hooks"), &marker);
    assert!(!marker.exists(), "something of the repository was run");
    let second = world.push("main", "a", "three\n");
    // The pusher's own `git` ran the remote's hooks, as it should.
    fs::remove_file(&marker).unwrap();
    mirror.fetch_branch(&branch("main"), LONG, &job).await.unwrap();
    mirror.fetch_all(LONG, &job).await.unwrap();
    mirror.remote_tip(&branch("main"), LONG).await.unwrap();
    mirror.changed_paths(&first, &second).unwrap();
    mirror.export(&first, &world.path("out")).unwrap();
    assert_eq!(fs::read(world.path("out/a")).unwrap(), b"one\ntwo\n", "a filter or a line ending rule was used");
    assert!(!marker.exists(), "something of the repository was run");
}

#[tokio::test]
async fn addresses_that_run_programs_are_refused() {
    let world = World::new();
    let marker = world.path("owned");
    for remote in [
        format!("ext::touch {}", marker.display()),
        format!("ext::sh -c touch% {}", marker.display()),
        format!("-oProxyCommand=touch {}", marker.display()),
        format!("--upload-pack=touch {}", marker.display()),
        format!("ssh://-oProxyCommand=touch%20{}/x", marker.display()),
    ] {
        let mirror = Mirror::new(world.path("mirrors/app.git"), &remote);
        let error = mirror.fetch_branch(&branch("main"), LONG, &job()).await.unwrap_err();
        assert_eq!(error.kind, GitErrorKind::Invalid, "{remote}: {error}");
        assert_eq!(mirror.remote_tip(&branch("main"), LONG).await.unwrap_err().kind, GitErrorKind::Invalid);
    }
    // Git itself is told so too, for addresses that its configuration rewrites.
    let program =
        super::super::command::git(None).arg("ls-remote").arg("--").arg(format!("ext::touch {}", marker.display()));
    let done = program.output(LONG, &tokio_util::sync::CancellationToken::new()).await.unwrap();
    assert!(!done.success() && done.stderr.iter().any(|line| line.contains("not allowed")), "{done:?}");
    assert!(!marker.exists());
}

#[tokio::test]
async fn a_password_in_the_address_is_not_repeated() {
    let world = World::new();
    let mirror = Mirror::new(world.path("mirrors/app.git"), "https://bob:hunter22@git.example/x");
    let error = mirror.fetch_branch(&branch("main"), LONG, &job()).await.unwrap_err();
    assert!(error.why.contains("password") && !error.to_string().contains("hunter22"), "{error}");
    assert!(!mirror.resolve("x").unwrap_err().to_string().contains("hunter22"));
}

/// A tree object byte by byte, which no proper tool would write.
fn raw_tree(repository: &Repository, entries: &[(&str, &str, Oid)]) -> Oid {
    let mut bytes = Vec::new();
    for (mode, name, id) in entries {
        bytes.extend_from_slice(format!("{mode} {name}\0").as_bytes());
        bytes.extend_from_slice(id.as_bytes());
    }
    repository.odb().unwrap().write(ObjectType::Tree, &bytes).unwrap()
}

fn raw_commit(repository: &Repository, tree: Oid, name: &str) -> CommitId {
    let text = format!("tree {tree}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\n{name}\n");
    let id = repository.odb().unwrap().write(ObjectType::Commit, text.as_bytes()).unwrap();
    repository.reference(&format!("refs/heads/{name}"), id, true, "").unwrap();
    id.to_string().parse().unwrap()
}

#[tokio::test]
async fn trees_that_would_write_elsewhere_are_refused_whole() {
    let world = World::new();
    world.push("main", "a", "1");
    let repository = Repository::open_bare(world.path("remote.git")).unwrap();
    let blob = |text: &str| repository.blob(text.as_bytes()).unwrap();
    let tree = |entries: &[(&str, &str, Oid)]| raw_tree(&repository, entries);
    let (file, up, etc) = (blob("x"), blob(".."), blob("/etc"));
    let inner = tree(&[("100644", "file", file)]);
    let up_and_out = tree(&[("120000", "up", up)]);
    let cases = [
        ("dot-git", tree(&[("40000", ".git", inner)])),
        ("dot-git-case", tree(&[("40000", ".GiT", inner)])),
        ("nested-dot-git", tree(&[("40000", "d", tree(&[("100644", ".git", file)]))])),
        ("parent", tree(&[("40000", "..", inner)])),
        ("parent-file", tree(&[("100644", "..", file)])),
        ("slash", tree(&[("100644", "../escape", file)])),
        ("absolute", tree(&[("100644", "/escape", file)])),
        ("link-absolute", tree(&[("120000", "l", etc)])),
        ("link-parent", tree(&[("120000", "l", blob("../escape"))])),
        ("link-through-link", tree(&[("40000", "d", up_and_out), ("120000", "l", blob("d/up/../escape"))])),
        ("link-then-dir", tree(&[("120000", "d", blob("e")), ("40000", "d", inner), ("40000", "e", inner)])),
        ("dir-then-link", tree(&[("40000", "d", inner), ("120000", "d", blob("e"))])),
        ("file-twice", tree(&[("100644", "f", file), ("100755", "f", file)])),
    ];
    let commits: Vec<_> = cases.iter().map(|(name, tree)| (*name, raw_commit(&repository, *tree, name))).collect();
    let mirror = world.mirror();
    mirror.fetch_all(LONG, &job()).await.unwrap();
    for (name, commit) in &commits {
        let to = world.path("exports").join(name);
        let error = mirror.export(commit, &to).expect_err(name);
        assert_eq!(error.kind, GitErrorKind::Invalid, "{name}: {error}");
        assert_eq!(fs::read_dir(world.path("exports")).unwrap().count(), 0, "{name} left something");
    }
    for outside in [world.path("escape"), world.path("exports/escape"), "/escape".into()] {
        assert!(!outside.exists(), "{} was written", outside.display());
    }
    // The mirror is not blamed for what the repository contains.
    assert!(!mirror.dir.join("refit-damaged").exists());
}

#[tokio::test]
async fn deep_trees_end_in_an_error() {
    let world = World::new();
    let repository = Repository::init_bare(world.path("remote.git")).unwrap();
    let mut tree = raw_tree(&repository, &[("100644", "f", repository.blob(b"x").unwrap())]);
    for _ in 0..1500 {
        tree = raw_tree(&repository, &[("40000", "d", tree)]);
    }
    let commit = raw_commit(&repository, tree, "deep");
    let mirror = world.mirror();
    mirror.fetch_branch(&branch("deep"), LONG, &job()).await.unwrap();
    let error = mirror.export(&commit, &world.path("out")).unwrap_err();
    assert!(error.why.contains("not allowed") && error.why.len() < 600, "{error}");
    assert!(!world.path("out").exists() && !world.path("out.partial").exists());
}
