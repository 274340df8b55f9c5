use std::{collections::BTreeMap, io::Read, process::Command};

use futures_util::{Stream, TryStreamExt};

use super::*;
use crate::{log::DeploymentLog, model::Stage, redact::Redactor};

/// A repository made with the git program.
struct Repo {
    dir: tempfile::TempDir,
}

impl Repo {
    fn new() -> Self {
        let repo = Self { dir: tempfile::tempdir().expect("tempdir") };
        repo.git(&["init", "-q", "-b", "main", "."]);
        repo
    }

    fn git(&self, args: &[&str]) -> String {
        let out = Command::new("git")
            .current_dir(self.dir.path())
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"])
            .args(args)
            .output()
            .expect("git");
        assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        std::fs::write(path, text).expect("write");
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        std::os::unix::fs::symlink(target, path).expect("symlink");
    }

    fn commit(&self, message: &str) -> CommitId {
        self.git(&["add", "-A", "."]);
        self.git(&["commit", "-q", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"]).parse().expect("commit id")
    }

    fn mirror(&self) -> Mirror {
        Mirror::new(self.dir.path().join(".git"), "")
    }
}

fn log() -> StageLog {
    DeploymentLog::discard(Redactor::default()).stage(Stage::Build)
}

/// Name → (type, mode, contents or link target), and the names in their order.
type Unpacked = (BTreeMap<String, (u8, u32, String)>, Vec<String>);

async fn unpack(stream: impl Stream<Item = Chunk>) -> Unpacked {
    let bytes = stream.try_fold(Vec::new(), |mut all, chunk| async move {
        all.extend_from_slice(&chunk);
        Ok(all)
    });
    let bytes = bytes.await.expect("stream");
    let mut entries = BTreeMap::new();
    let mut order = Vec::new();
    for entry in tar::Archive::new(bytes.as_slice()).entries().expect("entries") {
        let mut entry = entry.expect("entry");
        let name = entry.path().expect("path").to_string_lossy().into_owned();
        assert_eq!((entry.header().uid().expect("uid"), entry.header().gid().expect("gid")), (0, 0));
        let link = entry.link_name().expect("link").map(|l| l.to_string_lossy().into_owned());
        let mut text = String::new();
        if link.is_none() {
            entry.read_to_string(&mut text).expect("text");
        }
        let header = entry.header();
        let kind = header.entry_type().as_byte();
        entries.insert(name.clone(), (kind, header.mode().expect("mode"), link.unwrap_or(text)));
        order.push(name.trim_end_matches('/').to_owned());
    }
    (entries, order)
}

async fn names(repo: &Repo, commit: &CommitId, context: &str, dockerfile: &str) -> Vec<String> {
    let context = BuildContext::read(&repo.mirror(), commit, context, dockerfile).await.expect("context");
    unpack(context.stream(log())).await.1
}

async fn error(repo: &Repo, commit: &CommitId, context: &str, dockerfile: &str) -> String {
    BuildContext::read(&repo.mirror(), commit, context, dockerfile).await.expect_err("refused").to_string()
}

#[tokio::test]
async fn the_archive_is_the_tree() {
    let repo = Repo::new();
    let long = format!("deep/{}/{}.txt", "d".repeat(90), "f".repeat(120));
    repo.write("Dockerfile", "FROM scratch\n");
    repo.write(&long, "long");
    repo.write("run.sh", "#!/bin/sh\n");
    repo.write("big", &"x".repeat(3 * CHUNK + 17));
    repo.link("deep/link", "../run.sh");
    repo.git(&["add", "-A"]);
    repo.git(&["update-index", "--chmod=+x", "run.sh"]);
    repo.git(&["commit", "-q", "-m", "one"]);
    let commit = repo.git(&["rev-parse", "HEAD"]).parse().expect("id");
    let context = BuildContext::read(&repo.mirror(), &commit, ".", "Dockerfile").await.expect("context");
    let (entries, _) = unpack(context.stream(log())).await;
    assert_eq!(entries["run.sh"], (b'0', 0o755, "#!/bin/sh\n".to_owned()));
    assert_eq!(entries["Dockerfile"], (b'0', 0o644, "FROM scratch\n".to_owned()));
    assert_eq!(entries["deep/link"], (b'2', 0o777, "../run.sh".to_owned()));
    assert_eq!(entries[&long].2, "long");
    assert_eq!(entries["big"].2.len(), 3 * CHUNK + 17);
    let (whole, order) = unpack(tree_tar(&repo.mirror(), &commit, "src/")).await;
    assert_eq!(order.first().map(String::as_str), Some("src"));
    assert_eq!(whole["src/run.sh"].1, 0o755);
    assert_eq!(whole.len(), entries.len() + 1);
}

#[tokio::test]
async fn the_same_tree_has_the_same_digest_and_order() {
    let repo = Repo::new();
    for path in ["Dockerfile", "b/2", "b/1", "b.txt", "a", "b-c"] {
        repo.write(path, path);
    }
    let one = repo.commit("one");
    repo.write("a", "changed");
    let other = repo.commit("other");
    repo.write("a", "a");
    let again = repo.commit("one again");
    let read = async |commit| BuildContext::read(&repo.mirror(), commit, ".", "Dockerfile").await.expect("context");
    let (first, second, third) = (read(&one).await, read(&other).await, read(&again).await);
    assert_ne!(one, again);
    assert_eq!(first.digest(), third.digest());
    assert_ne!(first.digest(), second.digest());
    let order = unpack(first.stream(log())).await.1;
    assert_eq!(order, unpack(third.stream(log())).await.1);
    assert_eq!(order, ["Dockerfile", "a", "b-c", "b.txt", "b", "b/1", "b/2"]);

    repo.git(&["update-index", "--chmod=+x", "a"]);
    repo.git(&["commit", "-q", "-m", "mode"]);
    let mode = repo.git(&["rev-parse", "HEAD"]).parse().expect("id");
    assert_ne!(read(&mode).await.digest(), first.digest(), "a mode counts");
}

#[tokio::test]
async fn dockerignore_is_honoured_and_the_dockerfile_always_sent() {
    let repo = Repo::new();
    repo.write(".dockerignore", "*\n!src\nsrc/*.log\n");
    repo.write("docker/Dockerfile", "FROM scratch\n");
    for path in ["README.md", "src/main.c", "src/x.log", "src/sub/y.log", "secret/key", "docker/notes"] {
        repo.write(path, path);
    }
    let commit = repo.commit("one");
    assert_eq!(
        names(&repo, &commit, ".", "docker/Dockerfile").await,
        [".dockerignore", "docker", "docker/Dockerfile", "src", "src/main.c", "src/sub", "src/sub/y.log"]
    );
    // The Dockerfile's own rules take the place of the general ones.
    repo.write("docker/Dockerfile.dockerignore", "src\nsecret\n");
    let commit = repo.commit("two");
    let sent = names(&repo, &commit, ".", "docker/Dockerfile").await;
    assert!(sent.contains(&"README.md".to_owned()) && !sent.iter().any(|p| p.starts_with("s")), "{sent:?}");
    repo.write("docker/Dockerfile.dockerignore", "[");
    let commit = repo.commit("three");
    let message = error(&repo, &commit, ".", "docker/Dockerfile").await;
    assert!(message.contains("docker/Dockerfile.dockerignore") && message.contains("`[`"), "{message}");
}

#[tokio::test]
async fn a_context_below_the_root_sees_only_itself() {
    let repo = Repo::new();
    repo.write("other/secret", "x");
    repo.write("app/Dockerfile", "FROM scratch\n");
    repo.write("app/main", "x");
    repo.link("alias", "app");
    let commit = repo.commit("one");
    for context in ["app", "./app/", "alias"] {
        assert_eq!(names(&repo, &commit, context, "Dockerfile").await, ["Dockerfile", "main"], "{context}");
    }
    for (context, dockerfile) in [("../x", "Dockerfile"), ("/etc", "Dockerfile"), ("app", "../other/secret")] {
        let message = error(&repo, &commit, context, dockerfile).await;
        assert!(message.contains("leads out of"), "{context} {dockerfile}: {message}");
    }
    assert!(error(&repo, &commit, "nope", "Dockerfile").await.contains("`nope`"));
    assert!(error(&repo, &commit, "app", "Nope").await.contains("`Nope`"));
}

#[tokio::test]
async fn links_that_leave_the_context_are_refused_by_name() {
    for (path, target) in [
        ("passwd", "/etc/passwd"),
        ("a/up", "../../../etc/passwd"),
        // By its text this one stays inside; followed, it does not.
        ("a/b/sly", "root/../../etc"),
        ("a/b/missing", "../../gone/../../etc"),
        ("self", "self"),
    ] {
        let repo = Repo::new();
        repo.write("Dockerfile", "FROM scratch\n");
        repo.write("a/b/file", "x");
        repo.link("a/b/root", "../..");
        repo.link(path, target);
        let commit = repo.commit("one");
        let message = error(&repo, &commit, ".", "Dockerfile").await;
        assert!(message.contains(&format!("`{path}`")) && message.contains(target), "{message}");
        // Excluded, it is simply absent.
        repo.write(".dockerignore", path);
        let commit = repo.commit("two");
        let sent = names(&repo, &commit, ".", "Dockerfile").await;
        assert!(!sent.contains(&path.to_owned()) && sent.contains(&"a/b/root".to_owned()), "{sent:?}");
    }
}

#[tokio::test]
async fn a_dockerfile_that_is_a_link_is_followed_only_inside() {
    let repo = Repo::new();
    repo.write("docker/prod", "FROM scratch\n");
    repo.write(".dockerignore", "docker\n");
    repo.link("Dockerfile", "docker/prod");
    let commit = repo.commit("one");
    let context = BuildContext::read(&repo.mirror(), &commit, ".", "Dockerfile").await.expect("context");
    assert_eq!((context.dockerfile(), context.dockerfile_text()), ("docker/prod", "FROM scratch\n"));
    let sent = unpack(context.stream(log())).await.1;
    assert_eq!(sent, [".dockerignore", "Dockerfile", "docker", "docker/prod"]);

    std::fs::remove_file(repo.dir.path().join("Dockerfile")).expect("rm");
    repo.link("Dockerfile", "/etc/passwd");
    let commit = repo.commit("two");
    let message = error(&repo, &commit, ".", "Dockerfile").await;
    assert!(message.contains("`Dockerfile`") && message.contains("leads out of the build context"), "{message}");
}

#[tokio::test]
async fn submodules_are_left_out_and_lfs_pointers_told() {
    let repo = Repo::new();
    repo.write("Dockerfile", "FROM scratch\n");
    repo.write("model.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
    let commit = repo.commit("one");
    repo.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},vendor/lib")]);
    repo.git(&["commit", "-q", "-m", "two"]);
    let commit = repo.git(&["rev-parse", "HEAD"]).parse().expect("id");
    let context = BuildContext::read(&repo.mirror(), &commit, ".", "Dockerfile").await.expect("context");
    let log = log();
    let (entries, _) = unpack(context.stream(log.clone())).await;
    assert!(!entries.contains_key("vendor/lib"));
    let said = log.tail().join("\n");
    assert!(said.contains("`vendor/lib`") && said.contains("`model.bin` is a Git LFS pointer"), "{said}");
}

#[tokio::test]
async fn a_tree_with_hostile_names_is_refused() {
    let repo = Repo::new();
    repo.write("Dockerfile", "FROM scratch\n");
    repo.commit("one");
    let blob = repo.git(&["hash-object", "-w", "Dockerfile"]);
    // `mktree` would refuse some of these: the object is written as it is.
    for name in ["..", ".git", ".GIT", "a/b"] {
        let mut tree = format!("100644 {name}\0").into_bytes();
        tree.extend(hex::decode(&blob).expect("hex"));
        std::fs::write(repo.dir.path().join("raw"), tree).expect("write");
        let tree = repo.git(&["hash-object", "-w", "-t", "tree", "--literally", "raw"]);
        let commit = repo.git(&["commit-tree", "-m", "x", &tree]).parse().expect("id");
        let chunks: Result<Vec<_>, _> = tree_tar(&repo.mirror(), &commit, "src").try_collect().await;
        assert!(chunks.is_err_and(|e| e.to_string().contains("cannot be used")), "{name}");
    }
}
