//! Names to commits, ancestry, changes, files, and the export of honest trees.

use std::{fs, os::unix::fs::PermissionsExt};

use super::{
    super::{GitErrorKind, Mirror},
    LONG, World, branch, job,
};
use crate::model::CommitId;

#[tokio::test]
async fn names_lead_to_commits() {
    let world = World::new();
    let mirror = world.mirror();
    assert_eq!(mirror.resolve("main").unwrap_err().kind, GitErrorKind::Missing, "not fetched yet");
    let one = world.push("main", "a", "1");
    world.git(&["tag", "light"]);
    world.git(&["tag", "-a", "-m", "release", "v1"]);
    let two = world.push("main", "a", "2");
    world.git(&["tag", "both", one.as_str()]);
    world.git(&["push", "-q", "origin", "HEAD:refs/heads/both"]);
    world.git(&["tag", "tree-tag", "HEAD^{tree}"]);
    world.git(&["push", "-q", "--tags"]);
    mirror.fetch_all(LONG, &job()).await.unwrap();
    let abbreviated = &one.as_str()[..12];
    for (name, commit) in [
        ("main", &two),
        ("refs/heads/main", &two),
        ("light", &one),
        ("v1", &one),
        ("refs/tags/v1", &one),
        ("both", &two),
        ("refs/tags/both", &one),
        (one.as_str(), &one),
        (abbreviated, &one),
        (&abbreviated.to_uppercase(), &one),
    ] {
        assert_eq!(mirror.resolve(name).as_ref(), Ok(commit), "{name}");
    }
    let tree = world.git(&["rev-parse", "HEAD^{tree}"]);
    for bad in [
        "",
        "-main",
        "--upload-pack=x",
        "main~1",
        "main^",
        "HEAD",
        "a..b",
        "main:a",
        "@{u}",
        "abc",
        "nope",
        "ffff",
        "x y",
        "../main",
        "tree-tag",
        "\n",
        &tree,
        &tree[..12],
        &"f".repeat(40),
        "refs/remotes/origin/main",
    ] {
        let error = mirror.resolve(bad).expect_err(bad);
        assert!(matches!(error.kind, GitErrorKind::Invalid | GitErrorKind::Missing), "{bad}: {error}");
    }
}

#[tokio::test]
async fn an_ambiguous_abbreviation_lists_what_it_may_mean() {
    let world = World::new();
    world.push("main", "a", "1");
    // Commits until two begin alike: some three hundred, by the birthday paradox.
    let remote = git2::Repository::open_bare(world.path("remote.git")).unwrap();
    let head = remote.find_reference("refs/heads/main").unwrap().peel_to_commit().unwrap();
    let mut seen = std::collections::BTreeMap::new();
    let mut last = head.clone();
    let mut twins = None;
    for n in 0_i64.. {
        let who = git2::Signature::new("Ada", "ada@example.org", &git2::Time::new(1_700_000_000 + n, 0)).unwrap();
        let id = remote.commit(None, &who, &who, "twin", &head.tree().unwrap(), &[&last]).unwrap();
        last = remote.find_commit(id).unwrap();
        if let Some(other) = seen.insert(id.to_string()[..4].to_owned(), id) {
            twins = Some((other, id));
            break;
        }
    }
    let (other, id) = twins.unwrap();
    remote.reference("refs/heads/twins", id, true, "").unwrap();
    let mirror = world.mirror();
    mirror.fetch_branch(&branch("twins"), LONG, &job()).await.unwrap();
    let error = mirror.resolve(&id.to_string()[..4]).unwrap_err();
    assert_eq!(error.kind, GitErrorKind::Invalid);
    for twin in [id, other] {
        assert!(error.why.contains(&twin.to_string()[..16]), "{error}");
    }
    assert_eq!(mirror.resolve(&id.to_string()[..16]).map(String::from), Ok(id.to_string()));
}

async fn fetched(world: &World) -> Mirror {
    let mirror = world.mirror();
    mirror.fetch_all(LONG, &job()).await.unwrap();
    mirror
}

#[tokio::test]
async fn ancestry_and_changes() {
    let world = World::new();
    world.write("src/old.rs", "the same text in both places, so that it would count as renamed\n");
    world.write("same", "same");
    let base = world.push("main", "a", "1");
    fs::rename(world.path("work/src/old.rs"), world.path("work/src/new.rs")).unwrap();
    let left = world.push("main", "b", "1");
    world.git(&["reset", "-q", "--hard", base.as_str()]);
    let right = world.push("side", "c", "1");
    let mirror = fetched(&world).await;
    let is = |a: &CommitId, b: &CommitId| mirror.is_ancestor(a, b).unwrap();
    assert!(is(&base, &left) && is(&base, &right) && is(&left, &left));
    assert!(!is(&left, &base) && !is(&left, &right));
    assert_eq!(mirror.changed_paths(&base, &left).unwrap(), ["b", "src/new.rs", "src/old.rs"]);
    assert_eq!(mirror.changed_paths(&left, &right).unwrap(), ["b", "c", "src/new.rs", "src/old.rs"]);
    assert!(mirror.changed_paths(&left, &left).unwrap().is_empty());
    let unknown: CommitId = "0123456789012345678901234567890123456789".parse().unwrap();
    assert_eq!(mirror.is_ancestor(&unknown, &left).unwrap_err().kind, GitErrorKind::Missing);
    assert!(!mirror.has_commit(&unknown));
}

#[tokio::test]
async fn a_commit_is_shown_without_what_it_could_do_to_a_terminal() {
    let world = World::new();
    world.write("a", "1");
    world.git(&["add", "--all"]);
    let message = "\u{1b}[31mred\u{1b}[0m $(touch owned) `id` <b>\n\nbody\n[skip ci]\n";
    world.git(&["-c", "user.name=x", "commit", "-q", "-m", message, "--author", "E\u{7}ve\u{202e} <e@example.org>"]);
    world.git(&["push", "-q", "origin", "HEAD:main"]);
    let mirror = fetched(&world).await;
    let info = mirror.commit(&mirror.resolve("main").unwrap()).unwrap();
    assert_eq!(info.subject, "red $(touch owned) `id` <b>");
    assert!(info.message.contains("[skip ci]"));
    assert!(!info.author.contains(['\u{7}', '\u{202e}']) && info.author.starts_with('E'), "{:?}", info.author);
    assert!(info.time > jiff::Timestamp::UNIX_EPOCH);
}

#[tokio::test]
async fn single_files() {
    let world = World::new();
    world.write("dir/Dockerfile", "FROM scratch\n");
    world.write("big", vec![b'x'; 4 * 1024 * 1024 + 1]);
    std::os::unix::fs::symlink("dir/Dockerfile", world.path("work/link")).unwrap();
    let tip = world.push("main", "a", "1");
    let mirror = fetched(&world).await;
    for path in ["dir/Dockerfile", "./dir/Dockerfile", "dir//Dockerfile"] {
        assert_eq!(mirror.read_file(&tip, path), Ok(Some(b"FROM scratch\n".to_vec())), "{path}");
    }
    assert_eq!(mirror.read_file(&tip, "dir/nope"), Ok(None));
    assert_eq!(mirror.read_file(&tip, "a/nope"), Ok(None));
    for bad in ["", "/", ".", "dir", "link", "big", "../a", "dir/../a", "/etc/passwd", "a\0b"] {
        assert_eq!(mirror.read_file(&tip, bad).expect_err(bad).kind, GitErrorKind::Invalid, "{bad}");
    }
}

#[tokio::test]
async fn a_tree_is_exported_as_it_is() {
    let world = World::new();
    world.write("run.sh", "#!/bin/sh\r\n");
    fs::set_permissions(world.path("work/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    world.write("a/b/c/deep", "deep");
    world.write(".gitignore", "x\n");
    world.write("sp ace\n;$(x)", "odd name");
    world.write("empty", "");
    std::os::unix::fs::symlink("../a/b", world.path("work/a/link")).unwrap();
    std::os::unix::fs::symlink("nowhere", world.path("work/dangling")).unwrap();
    world.commit("tree");
    // A submodule is an entry without anything behind it.
    world.git(&["update-index", "--add", "--cacheinfo", "160000,0123456789012345678901234567890123456789,sub"]);
    world.git(&["commit", "-q", "-m", "submodule"]);
    world.git(&["push", "-q", "origin", "HEAD:main"]);
    let mirror = fetched(&world).await;
    let tip = mirror.resolve("main").unwrap();
    let out = world.path("deep/er/out");
    mirror.export(&tip, &out).unwrap();
    let mode = |name: &str| out.join(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("run.sh"), mode("empty"), mode("a"), mode("")), (0o755, 0o644, 0o755, 0o755));
    assert_eq!(fs::read(out.join("run.sh")).unwrap(), b"#!/bin/sh\r\n");
    assert_eq!(fs::read(out.join("sp ace\n;$(x)")).unwrap(), b"odd name");
    assert_eq!(fs::read_link(out.join("a/link")).unwrap().to_str(), Some("../a/b"));
    assert_eq!(fs::read_link(out.join("dangling")).unwrap().to_str(), Some("nowhere"));
    assert!(!out.join("sub").exists() && !out.join(".git").exists());

    let error = mirror.export(&tip, &out).unwrap_err();
    assert!(error.why.contains("not empty"), "{error}");
    let empty = world.path("empty");
    fs::create_dir(&empty).unwrap();
    fs::create_dir_all(world.path("empty.partial/left/behind")).unwrap();
    mirror.export(&tip, &empty).unwrap();
    assert!(empty.join("a/b/c/deep").exists() && !empty.join("left").exists());
    assert!(!world.path("empty.partial").exists());
}
