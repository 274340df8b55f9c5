use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn labels(fixture: &Fixture, image: &str) -> std::collections::HashMap<String, String> {
    let image = fixture.runtime.docker.inspect_image(image).await.expect("image");
    image.config.and_then(|c| c.labels).unwrap_or_default()
}

#[tokio::test]
async fn a_tree_becomes_a_labelled_image_once() {
    let mut fixture = Fixture::new().await;
    fixture.environment.build.args = BTreeMap::from([("EDITION".to_owned(), "full".to_owned())]);
    let file = "ARG EDITION\nARG BUILD_DATE\nARG VCS_REF\nRUN echo \"$EDITION $VCS_REF $BUILD_DATE\" > /info";
    let commit = fixture.commit(file);
    let built = fixture.build(&commit, None).await.expect("build");
    assert!(built.id.starts_with("sha256:") && !built.reused);
    assert_eq!(built.name, format!("{}:{}", fixture.app(), commit.short()));
    let labels = labels(&fixture, &built.id).await;
    assert_eq!(labels["org.opencontainers.image.revision"], commit.as_str());
    assert_eq!(labels["org.opencontainers.image.source"], "https://git.example/acme/app.git");
    assert_eq!((labels["refit.app"].as_str(), labels["refit.deployment"].as_str()), (fixture.app(), "7"));
    let info = fixture.run(OneOff { artefact: &built.id, ..fixture.one_off("cat /info") }).await.expect("run");
    let date = &labels["org.opencontainers.image.created"];
    assert_eq!(info.stdout_tail, [format!("full {commit} {date}")]);
    assert!(date.parse::<jiff::Timestamp>().is_ok(), "{date}");

    // Another commit of the same tree: another name, the same image.
    let again = fixture.commit(file);
    assert_ne!(again, commit);
    let reused = fixture.build(&again, None).await.expect("reuse");
    assert_eq!((reused.id.as_str(), reused.reused), (built.id.as_str(), true));
    assert_eq!(images::id(&fixture.runtime.docker, &reused.name).await.expect("id"), Some(built.id.clone()));

    // Other arguments, or a wish for no cache: another image.
    fixture.environment.build.args = BTreeMap::from([("EDITION".to_owned(), "small".to_owned())]);
    let other = fixture.build(&again, None).await.expect("other");
    assert!(other.id != built.id && !other.reused);
    fixture.environment.build.no_cache = true;
    assert!(!fixture.build(&again, None).await.expect("no cache").reused);
    fixture.environment.repository = "https://user:token@git.example/acme/app.git".to_owned();
    let plain = fixture.build(&again, None).await.expect("plain");
    let shown = format!("{:?}", building::labels(&fixture, &plain.id).await);
    assert!(shown.contains("refit.app") && !shown.contains("token"), "{shown}");
    // A URL that cannot stand in a Dockerfile goes with the request.
    fixture.environment.repository = "https://git.example/$acme/app.git".to_owned();
    let odd = fixture.build(&again, None).await.expect("odd");
    let labels = building::labels(&fixture, &odd.id).await;
    assert_eq!(labels["org.opencontainers.image.source"], "https://git.example/$acme/app.git");
}

#[tokio::test]
async fn both_builders_explain_a_failure() {
    for builder in [Builder::Classic, Builder::BuildKit] {
        let mut fixture = Fixture::new().await;
        fixture.environment.build.builder = builder;
        let commit = fixture.commit("RUN echo fine\nRUN echo about to fail with s3cret-value && exit 3");
        let error = fixture.build(&commit, None).await.expect_err("fails").to_string();
        assert!(error.starts_with(&format!("build {}:{}", fixture.app(), commit.short())), "{error}");
        assert!(error.contains("exit 3`") && error.contains("\n  about to fail with [masked]"), "{error}");
        assert!(!error.contains("\n  fine"), "only the failing step's output: {error}");
        let missing = fixture.runtime.tagged(&fixture.environment, commit.short()).await.expect("tagged");
        assert_eq!(missing, None);

        fixture.write("Other", "FROM localhost:1/no/such:image\n");
        fixture.environment.build.dockerfile = "Other".to_owned();
        let commit = fixture.commit("");
        let error = fixture.build(&commit, None).await.expect_err("no base").to_string();
        assert!(error.contains("the base image `localhost:1/no/such:image` is not on this host"), "{error}");
        assert_eq!(fixture.containers().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn buildkit_builds_on_an_old_engine_and_caches() {
    let mut fixture = Fixture::new().await;
    fixture.environment.build.builder = Builder::BuildKit;
    // BuildKit's cache outlives the test's images, so the step is one that no earlier run had.
    let ran = format!("ran-{}", fixture.repo.path().display());
    let file = format!("COPY one /one\nRUN cat /one > /two && echo {ran}");
    fixture.write("one", "1");
    let commit = fixture.commit(&file);
    let built = fixture.build(&commit, None).await.expect("build");
    let times = || fixture.said().lines().filter(|line| *line == ran).count();
    assert_eq!(times(), 1, "{}", fixture.said());
    let shown = fixture.run(OneOff { artefact: &built.id, ..fixture.one_off("cat /two") }).await.expect("run");
    assert_eq!(shown.stdout_tail, ["1"]);
    assert_eq!(labels(&fixture, &built.id).await["refit.app"], fixture.app());
    assert!(fixture.build(&commit, None).await.expect("again").reused);

    // Another file, which no step uses: the steps come from the cache though every time in the archive is new.
    fixture.write("unused", "2");
    let commit = fixture.commit(&file);
    let next = fixture.build(&commit, None).await.expect("next");
    assert!(!next.reused);
    assert_eq!(times(), 1, "{}", fixture.said());
}

#[tokio::test]
async fn the_classic_builder_finds_its_cache_in_a_new_commit() {
    let mut fixture = Fixture::new().await;
    fixture.environment.build.builder = Builder::Classic;
    fixture.write("one", "1");
    let first = fixture.commit("COPY one /one\nRUN echo step-has-run");
    fixture.build(&first, None).await.expect("first");
    fixture.write("unused", "2");
    let second = fixture.commit("COPY one /one\nRUN echo step-has-run");
    assert!(!fixture.build(&second, None).await.expect("second").reused);
    assert_eq!(fixture.said().lines().filter(|l| *l == "step-has-run").count(), 1, "{}", fixture.said());
}

#[tokio::test]
async fn a_target_is_an_image_of_its_own() {
    let fixture = Fixture::new().await;
    let base = fixture.base.clone();
    let commit =
        fixture.commit(&format!("RUN echo built > /app\nFROM {base} AS unit\nRUN echo tested > /app\nFROM {base}"));
    let test = fixture.build(&commit, Some("unit")).await.expect("target");
    assert_eq!(test.name, format!("{}-test:unit-{}", fixture.app(), commit.short()));
    let shown = fixture.run(OneOff { artefact: &test.id, ..fixture.one_off("cat /app") }).await.expect("run");
    assert_eq!(shown.stdout_tail, ["tested"]);
    assert_eq!(labels(&fixture, &test.id).await["refit.app"], fixture.app());
    let whole = fixture.build(&commit, None).await.expect("whole");
    assert!(whole.id != test.id && !whole.reused);
    assert!(fixture.build(&commit, Some("unit")).await.expect("again").reused);
    let error = fixture.build(&commit, Some("nope")).await.expect_err("no target").to_string();
    assert!(error.contains("nope"), "{error}");
}

#[tokio::test]
async fn what_is_ignored_or_leaves_the_tree_is_not_in_the_image() {
    let fixture = Fixture::new().await;
    fixture.write(".dockerignore", "secrets\n*.md\n!KEEP.md\n");
    for path in ["secrets/key", "README.md", "KEEP.md", "main"] {
        fixture.write(path, "x");
    }
    let commit = fixture.commit("COPY . /app");
    let built = fixture.build(&commit, None).await.expect("build");
    let shown = fixture.run(OneOff { artefact: &built.id, ..fixture.one_off("ls /app") }).await.expect("run");
    assert_eq!(shown.stdout_tail, ["Dockerfile", "KEEP.md", "main"]);

    std::os::unix::fs::symlink("/etc/passwd", fixture.repo.path().join("passwd")).expect("link");
    let commit = fixture.commit("COPY . /app");
    let error = fixture.build(&commit, None).await.expect_err("refused").to_string();
    assert!(error.contains("`passwd`") && error.contains("outside the build context"), "{error}");
}

#[tokio::test]
async fn the_image_sees_only_the_commit_and_the_cache_only_what_counts() {
    for builder in [Builder::Classic, Builder::BuildKit] {
        let mut fixture = Fixture::new().await;
        fixture.environment.build.builder = builder;
        fixture.write("main", "x");
        let commit = fixture.commit("COPY . /app");
        let built = fixture.build(&commit, None).await.expect("build");
        let list = OneOff { artefact: &built.id, ..fixture.one_off("ls -A /app") };
        assert_eq!(fixture.run(list).await.expect("run").stdout_tail, ["Dockerfile", "main"]);
    }
    let mut fixture = Fixture::new().await;
    fixture.environment.build.builder = Builder::Classic;
    fixture.write(".dockerignore", "Dockerfile*\n.dockerignore");
    fixture.write("Dockerfile.dev", "FROM scratch");
    fixture.write("main", "x");
    let first = fixture.commit("COPY . /app\nRUN echo step-has-run; ls -A /app");
    fixture.build(&first, None).await.expect("first");
    // The Dockerfile changes, but it is not among what is copied.
    let second = fixture.commit("COPY . /app\nRUN echo step-has-run; ls -A /app\nENV A=1");
    fixture.build(&second, None).await.expect("second");
    let said = fixture.said();
    let ran: Vec<_> = said.lines().skip_while(|l| *l != "step-has-run").take_while(|l| !l.contains(':')).collect();
    assert_eq!(ran, ["step-has-run", "main"], "{said}");
    assert_eq!(said.lines().filter(|l| *l == "step-has-run").count(), 1, "{said}");
}

#[tokio::test]
async fn a_cancelled_build_stops_its_step() {
    for builder in [Builder::Classic, Builder::BuildKit] {
        let mut fixture = Fixture::new().await;
        fixture.environment.build.builder = builder;
        let marker = marker();
        let commit = fixture.commit(&format!("RUN {marker}"));
        let cancel = fixture.job.cancel.clone();
        let stop = async {
            while !runs(&marker) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            cancel.cancel();
        };
        let (result, ()) = tokio::join!(fixture.build(&commit, None), stop);
        assert!(matches!(result, Err(RuntimeError::Cancelled)), "{result:?}");
        until_gone(&marker).await;
    }
}

#[tokio::test]
async fn buildkits_session_ends_with_its_build() {
    let mut fixture = Fixture::new().await;
    fixture.environment.build.builder = Builder::BuildKit;
    fixture.environment.build.no_cache = true;
    // Only this engine's connections pass here, so that they can be counted.
    let dir = tempfile::tempdir().expect("tempdir");
    let (path, open) = (dir.path().join("docker.sock"), Arc::new(AtomicU32::new(0)));
    let listener = tokio::net::UnixListener::bind(&path).expect("bind");
    let count = Arc::clone(&open);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut far = tokio::net::UnixStream::connect(DEFAULT_SOCKET).await.expect("engine");
                drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    let engine = Engine::connect(Some(&format!("unix://{}", path.display()))).expect("engine");
    fixture.runtime = DockerRuntime::new(engine);
    let commit = fixture.commit("ENV A=1");
    fixture.build(&commit, None).await.expect("build");
    for _ in 0..200 {
        if open.load(Ordering::SeqCst) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} connections are still open", open.load(Ordering::SeqCst));
}

/// An engine's socket that fails the first build as the classic builder does when an image is removed beside it.
fn failing_once(path: &std::path::Path) -> Arc<AtomicU32> {
    const ERROR: &str =
        "unable to find image \\\"sha256:c78fc1d8868d1f0b623674094bf0f76e0904930deda844ca53329e68fe21bf82\\\"";
    let builds = Arc::new(AtomicU32::new(0));
    let listener = tokio::net::UnixListener::bind(path).expect("bind");
    let count = Arc::clone(&builds);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let (mut from, mut to) = near.into_split();
                let far = tokio::net::UnixStream::connect(DEFAULT_SOCKET).await.expect("engine");
                let (mut answers, mut requests) = far.into_split();
                let (mut asked, mut said) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
                loop {
                    tokio::select! {
                        read = answers.read(&mut said) => match read {
                            Ok(n @ 1..) => drop(to.write_all(&said[..n]).await),
                            _ => return,
                        },
                        read = from.read(&mut asked) => {
                            let Ok(n @ 1..) = read else { return };
                            // Requests are not pipelined, so each begins a chunk.
                            let head = String::from_utf8_lossy(&asked[..n.min(200)]).into_owned();
                            let build = head.starts_with("POST ") && head.contains("/build?");
                            if build && count.fetch_add(1, Ordering::SeqCst) == 0 {
                                break;
                            }
                            requests.write_all(&asked[..n]).await.expect("engine");
                        }
                    }
                }
                let body = format!(
                    "{{\"stream\":\"Step 1/2 : FROM x\\nStep 2/2 : LABEL a=b\\n\"}}\r\n{{\"errorDetail\":{{\"message\":\"{ERROR}\"}},\"error\":\"{ERROR}\"}}\r\n"
                );
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length:";
                let answer = format!("{head} {}\r\n\r\n{body}", body.len());
                to.write_all(answer.as_bytes()).await.expect("client");
                drop(tokio::io::copy(&mut from, &mut tokio::io::sink()).await);
            });
        }
    });
    builds
}

#[tokio::test]
async fn a_build_that_met_the_removal_of_anothers_image_is_begun_again() {
    let mut fixture = Fixture::new().await;
    fixture.environment.build.builder = Builder::Classic;
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("docker.sock");
    let builds = failing_once(&path);
    let engine = Engine::connect(Some(&format!("unix://{}", path.display()))).expect("engine");
    fixture.runtime = DockerRuntime::new(engine);
    let commit = fixture.commit("RUN echo it-was-built");
    let artefact = fixture.build(&commit, None).await.expect("build");
    assert!(!artefact.reused);
    assert_eq!(builds.load(Ordering::SeqCst), 2, "{}", fixture.said());
    assert!(fixture.said().contains("it-was-built"), "{}", fixture.said());
}
