use super::*;
use bollard::models::NetworkCreateRequest;

#[tokio::test]
async fn output_code_and_surroundings_are_as_asked() {
    let mut fixture = Fixture::new().await;
    fixture.env = BTreeMap::from([("PLAIN".to_owned(), "one".to_owned())]);
    fixture.secrets = BTreeMap::from([("TOKEN".to_owned(), Secret::new("s3cret-value"))]);
    let script = "echo first; echo $PLAIN $TOKEN; echo to stderr >&2; printf 'no end'; exit 3";
    let done = fixture.run(fixture.one_off(script)).await.expect("run");
    assert_eq!(done.code, 3);
    assert_eq!(done.stdout_tail, ["first", "one s3cret-value", "no end"]);
    let said = fixture.said();
    for line in ["first", "one [masked]", "to stderr", "no end"] {
        assert!(said.lines().any(|l| l == line), "{line} in {said}");
    }
    assert_eq!(fixture.containers().await, Vec::<String>::new());
    // Every line arrives, also of one that is over at once.
    let many = fixture.run(fixture.one_off("seq 1 5000")).await.expect("run");
    assert_eq!(many.stdout_tail.last().map(String::as_str), Some("5000"));
    assert_eq!(many.stdout_tail.len(), crate::log::TAIL_LINES);
}

#[tokio::test]
async fn the_tree_goes_in_and_a_report_comes_out() {
    let fixture = Fixture::new().await;
    fixture.write("data/input", "from the commit");
    let commit = fixture.commit("");
    let mirror = fixture.mirror();
    let one_off = fixture.one_off("pwd; mkdir -p out; cat data/input > out/report; exit 1");
    let done = fixture.run(OneOff { tree: Some((&mirror, &commit)), collect: Some("out/report"), ..one_off }).await;
    let done = done.expect("run");
    assert_eq!((done.code, done.stdout_tail), (1, vec!["/src".to_owned()]));
    assert_eq!(done.collected.as_deref(), Some(b"from the commit".as_slice()));

    // Relative to the image's own directory; absent is no error; a directory is not a file.
    let built = fixture.build(&fixture.commit("WORKDIR /work"), None).await.expect("build");
    let image = OneOff { artefact: &built.id, ..fixture.one_off("echo x > r; mkdir d") };
    let done = fixture.run(OneOff { collect: Some("r"), ..image }).await.expect("run");
    assert_eq!(done.collected.as_deref(), Some(b"x\n".as_slice()));
    for nothing in ["nope", "d"] {
        let image = OneOff { artefact: &built.id, ..fixture.one_off("mkdir d") };
        assert_eq!(fixture.run(OneOff { collect: Some(nothing), ..image }).await.expect("run").collected, None);
    }
    for bad in ["../etc/passwd", "/etc/passwd", "a/../../b"] {
        assert!(fixture.run(OneOff { collect: Some(bad), ..fixture.one_off("true") }).await.is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_report_without_end_is_refused() {
    let fixture = Fixture::new().await;
    let script = "cat /dev/zero | /bin/busybox head -c 34000000 > big";
    let result = fixture.run(OneOff { collect: Some("big"), ..fixture.one_off(script) }).await;
    assert!(result.is_err_and(|e| e.to_string().contains("larger than 32 MiB")));
    assert_eq!(fixture.containers().await, Vec::<String>::new());
}

#[tokio::test]
async fn cancelled_or_dropped_it_leaves_no_container() {
    let fixture = Fixture::new().await;
    let marker = marker();
    let cancel = fixture.job.cancel.clone();
    let started = async {
        while !runs(&marker) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let stop = async {
        started.await;
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(fixture.run(fixture.one_off(&marker)), stop);
    assert!(matches!(result, Err(RuntimeError::Cancelled)), "{result:?}");
    assert_eq!(fixture.containers().await, Vec::<String>::new());
    assert!(!runs(&marker));
    assert!(matches!(fixture.run(fixture.one_off("true")).await, Err(RuntimeError::Cancelled)));

    let job = Job { cancel: CancellationToken::new(), ..fixture.job.clone() };
    let one_off = fixture.one_off(&marker);
    tokio::select! {
        _ = fixture.runtime.run_once(&one_off, &job) => panic!("it cannot end"),
        () = async { while !runs(&marker) { tokio::time::sleep(Duration::from_millis(20)).await } } => {}
    }
    until_gone(&marker).await;
    while !fixture.containers().await.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_leftover_gives_way_and_is_swept() {
    let mut fixture = Fixture::new().await;
    let name = format!("refit-{}-production-7-test-unit", fixture.app());
    let body = spec::one_off(&fixture.one_off("sleep 1000")).expect("spec");
    let leave = async || instances::create(&fixture.runtime.docker, &name, &body).await.expect("create");
    assert!(leave().await.is_some() && leave().await.is_none());
    assert_eq!(fixture.run(fixture.one_off("true")).await.expect("run").code, 0);
    assert!(leave().await.is_some());
    fixture.environment.start.command = None;
    fixture.app_runs("sleep 1000");
    let instance = fixture.prepare(7).await.expect("prepare");
    let key = &fixture.environment.key;
    assert_eq!(fixture.runtime.sweep(key, DeploymentId(8)).await.expect("other"), Vec::<String>::new());
    assert_eq!(fixture.runtime.sweep(key, DeploymentId(7)).await.expect("sweep"), [name]);
    assert_eq!(fixture.runtime.sweep(key, DeploymentId(7)).await.expect("twice"), Vec::<String>::new());
    assert_eq!(fixture.containers().await, [instance.name]);
}

#[tokio::test]
async fn it_joins_networks_and_mounts_volumes_only_if_asked() {
    let mut fixture = Fixture::new().await;
    let networks = [format!("{}-a", fixture.app()), format!("{}-b", fixture.app())];
    for name in &networks {
        let labels = [("refit.app".to_owned(), fixture.app().to_owned())].into();
        let request = NetworkCreateRequest { name: name.clone(), labels: Some(labels), ..Default::default() };
        fixture.runtime.docker.create_network(request).await.expect("network");
    }
    fixture.environment.start.volumes = vec![format!("{}-data:/data", fixture.app())];
    let one_off =
        OneOff { networks: &networks, with_volumes: true, ..fixture.one_off("echo kept > /data/x; ls /sys/class/net") };
    let done = fixture.run(one_off).await.expect("run");
    assert_eq!(done.stdout_tail.iter().filter(|line| line.starts_with("eth")).count(), 2, "{:?}", done.stdout_tail);
    let again = OneOff { with_volumes: true, ..fixture.one_off("cat /data/x") };
    assert_eq!(fixture.run(again).await.expect("run").stdout_tail, ["kept"]);
    assert_ne!(fixture.run(fixture.one_off("cat /data/x")).await.expect("run").code, 0);
    let nowhere = ["no-such-network-anywhere".to_owned()];
    let error = fixture.run(OneOff { networks: &nowhere, ..fixture.one_off("true") }).await.expect_err("no network");
    assert!(matches!(error, RuntimeError::Missing { what: "network", .. }), "{error:?}");
    assert_eq!(error.hint().as_deref(), Some("make it with `docker network create no-such-network-anywhere`"));
    let error =
        fixture.run(OneOff { artefact: "no-such-image", ..fixture.one_off("true") }).await.expect_err("no image");
    assert!(matches!(error, RuntimeError::Missing { what: "image", .. }), "{error:?}");
}
