use super::*;
use crate::test_ports::free_port;
use bollard::models::{
    ContainerStateStatusEnum, ContainerUpdateBody, NetworkCreateRequest, RestartPolicy, RestartPolicyNameEnum,
};

fn is_running(state: &InstanceState) -> bool {
    matches!(state, InstanceState::Running { .. })
}

#[tokio::test]
async fn each_step_of_a_life_may_be_taken_twice() {
    let mut fixture = Fixture::new().await;
    let port = free_port();
    fixture.environment.port = Some(port);
    fixture.environment.start.container_port = Some(8000);
    fixture.app_runs(
        "echo hello; echo oops >&2; mkdir /www; echo $GREETING > /www/index.html; exec httpd -f -p 8000 -h /www",
    );
    fixture.env = BTreeMap::from([("GREETING".to_owned(), "hi".to_owned())]);
    let runtime = &fixture.runtime;
    let instance = fixture.prepare(1).await.expect("prepare");
    assert_eq!(instance.name, format!("refit-{}-production-1", fixture.app()));
    assert_eq!(fixture.prepare(1).await.expect("again"), instance);
    assert_eq!(runtime.inspect(&instance).await.expect("inspect"), InstanceState::Created);
    for _ in 0..2 {
        runtime.start(&instance).await.expect("start");
    }
    let state = fixture.until(&instance, is_running).await;
    let address = (Ipv4Addr::LOCALHOST, port).into();
    assert_eq!(state, InstanceState::Running { address: Some(address), restarts: 0, health: None });
    let mut answered = false;
    for _ in 0..200 {
        answered = tokio::net::TcpStream::connect(address).await.is_ok();
        if answered {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(answered, "it listens where it says");
    assert!(runtime.is_running(&instance.name).await.expect("running"));
    // The engine listens before the app does, and takes in what that printed a moment later.
    for _ in 0..600 {
        if runtime.tail(&instance, 10).await.expect("tail").len() >= 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(runtime.tail(&instance, 10).await.expect("tail").len(), 2);
    assert_eq!(runtime.tail(&instance, 1).await.expect("tail").len(), 1);
    assert_eq!(runtime.instances(&fixture.environment.key).await.expect("list"), std::slice::from_ref(&instance));
    for _ in 0..2 {
        runtime.stop(&instance, 10 * SECOND).await.expect("stop");
    }
    let state = runtime.inspect(&instance).await.expect("inspect");
    assert!(matches!(state, InstanceState::Exited { out_of_memory: false, .. }), "{state:?}");
    assert!(!runtime.is_running(&instance.name).await.expect("running"));
    assert_eq!(fixture.prepare(1).await.expect("it ran and is the same"), instance);
    runtime.start(&instance).await.expect("start it again, the way back");
    assert!(is_running(&runtime.inspect(&instance).await.expect("inspect")));
    for _ in 0..2 {
        runtime.remove(&instance).await.expect("remove");
    }
    assert_eq!(runtime.inspect(&instance).await.expect("inspect"), InstanceState::Missing);
    runtime.stop(&instance, SECOND).await.expect("stop what is gone");
    assert!(matches!(runtime.start(&instance).await, Err(RuntimeError::Missing { what: "container", .. })));
    assert!(!runtime.is_running(&instance.name).await.expect("gone"));
}

#[tokio::test]
async fn everything_of_an_environment_is_seen_and_nothing_else() {
    let mut fixture = Fixture::new().await;
    fixture.app_runs("sleep 1000");
    let commit = fixture.commit("RUN true");
    let image = fixture.build(&commit, None).await.expect("build");
    let instance = fixture.prepare(1).await.expect("prepare");
    let runtime = &fixture.runtime;
    let key = fixture.environment.key.clone();
    let helper = format!("{}-test-unit", crate::runtime::instance_name(&key, DeploymentId(7)));
    let body = spec::one_off(&fixture.one_off("true")).expect("spec");
    instances::create(&runtime.docker, &helper, &body).await.expect("create");
    // What a person makes from our image inherits its labels.
    let by_hand = bollard::models::ContainerCreateBody {
        image: Some(image.id.clone()),
        cmd: Some(vec!["true".to_owned()]),
        ..Default::default()
    };
    instances::create(&runtime.docker, &format!("{}-by-hand", fixture.app()), &by_hand).await.expect("create");

    let sight = async || runtime.sight(&key).await.expect("sight");
    let all = sight().await;
    let revision = Some("0123456789abcdef0123456789abcdef01234567".to_owned());
    let seen = |runs| SeenInstance { instance: instance.clone(), commit: revision.clone(), runs };
    assert_eq!(all.instances, [seen(false)]);
    assert_eq!(all.helpers, [SeenHelper { name: helper, deployment: DeploymentId(7) }]);
    let artefact = SeenArtefact {
        id: image.id.clone(),
        name: image.name.clone(),
        deployment: DeploymentId(7),
        commit: Some(commit.to_string()),
    };
    assert_eq!(all.artefacts, [artefact]);
    runtime.start(&instance).await.expect("start");
    assert_eq!(sight().await.instances, [seen(true)]);
    runtime.docker.pause_container(&instance.name).await.expect("pause");
    assert_eq!(sight().await.instances, [seen(true)], "it holds its port");
    runtime.stop(&instance, SECOND).await.expect("stop");
    assert_eq!(sight().await.instances, [seen(false)]);
    let other = EnvironmentKey { environment: "dev".parse().expect("name"), ..key.clone() };
    assert_eq!(runtime.sight(&other).await.expect("sight"), Sight::default());
    // An image that only others have a name for is theirs.
    images::tag(&runtime.docker, &image.id, &format!("{}-theirs", fixture.app()), "1").await.expect("tag");
    images::untag(&runtime.docker, &key.app, image.name.rsplit(':').next().expect("tag")).await.expect("untag");
    assert_eq!(sight().await.artefacts, []);
}

#[tokio::test]
async fn one_that_was_removed_by_hand_and_made_again_is_still_the_same_instance() {
    let fixture = Fixture::new().await;
    let first = fixture.prepare(1).await.expect("first");
    fixture.runtime.remove(&first).await.expect("remove");
    let second = fixture.prepare(1).await.expect("made again");
    assert_ne!(first.id, second.id);
    fixture.runtime.start(&second).await.expect("start");
    assert!(is_running(&fixture.runtime.inspect(&first).await.expect("known by what was recorded first")));
    fixture.runtime.stop(&first, 10 * SECOND).await.expect("stop");
    assert!(matches!(fixture.runtime.inspect(&second).await.expect("inspect"), InstanceState::Exited { .. }));
}

#[tokio::test]
async fn one_that_never_ran_is_replaced_if_it_differs_and_one_that_ran_is_not() {
    let mut fixture = Fixture::new().await;
    let first = fixture.prepare(1).await.expect("first");
    fixture.env = BTreeMap::from([("NEW".to_owned(), "1".to_owned())]);
    let second = fixture.prepare(1).await.expect("replaced");
    assert_ne!(first.id, second.id);
    fixture.runtime.start(&second).await.expect("start");
    fixture.env.clear();
    let error = fixture.prepare(1).await.expect_err("it runs").to_string();
    assert!(error.contains("docker rm -f refit-"), "{error}");
    assert!(is_running(&fixture.runtime.inspect(&second).await.expect("inspect")));
}

#[tokio::test]
async fn settings_reach_the_container() {
    let mut fixture = Fixture::new().await;
    let network = format!("{}-net", fixture.app());
    let more = format!("{}-more", fixture.app());
    for name in [&network, &more] {
        let labels = [("refit.app".to_owned(), fixture.app().to_owned())].into();
        let request = NetworkCreateRequest { name: name.clone(), labels: Some(labels), ..Default::default() };
        fixture.runtime.docker.create_network(request).await.expect("network");
    }
    let start = &mut fixture.environment.start;
    start.networks = vec![network.clone(), more.clone()];
    start.user = Some("1234:1234".to_owned());
    start.memory = Some(64 * 1024 * 1024);
    start.cpus = Some(0.5);
    start.container_port = Some(9000);
    start.volumes = vec!["/tmp:/host-tmp:ro".to_owned()];
    let instance = fixture.prepare(1).await.expect("prepare");
    fixture.runtime.start(&instance).await.expect("start");
    let shown = fixture.runtime.docker.inspect_container(&instance.id, None).await.expect("inspect");
    let host = shown.host_config.expect("host");
    assert_eq!((host.memory, host.nano_cpus, host.init), (Some(64 * 1024 * 1024), Some(500_000_000), Some(true)));
    assert_eq!(format!("{:?}", host.restart_policy.and_then(|p| p.name)), "Some(UNLESS_STOPPED)");
    let log = host.log_config.and_then(|l| l.config).expect("log");
    assert_eq!((log["max-size"].as_str(), log["max-file"].as_str()), ("1048576", "2"));
    let networks = shown.network_settings.and_then(|n| n.networks).expect("networks");
    assert!(networks.contains_key(&network) && networks.contains_key(&more), "{networks:?}");
    let state = fixture.runtime.inspect(&instance).await.expect("inspect");
    assert!(
        matches!(state, InstanceState::Running { address: Some(a), .. } if a.port() == 9000 && !a.ip().is_loopback())
    );
    let id = fixture.runtime.exec(&instance, &["id".to_owned(), "-u".to_owned()], 10 * SECOND).await.expect("exec");
    assert_eq!((id.code, id.output), (0, vec!["1234".to_owned()]));
    // Known in its networks by a name that does not change.
    let alias = format!("{}-production", fixture.app());
    let found = fixture
        .run(OneOff { networks: &[network], ..fixture.one_off(&format!("/bin/busybox ping -c 1 {alias}")) })
        .await;
    assert_eq!(found.expect("ping").code, 0, "{}", fixture.said());
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let mut fixture = Fixture::new().await;
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let port = taken.local_addr().expect("address").port();
    fixture.environment.port = Some(port);
    let instance = fixture.prepare(1).await.expect("prepare");
    let error = fixture.runtime.start(&instance).await.expect_err("taken").to_string();
    assert!(error.contains(&format!("port {port} is taken")) && error.contains("ss -ltnp"), "{error}");
    assert_eq!(fixture.runtime.inspect(&instance).await.expect("inspect"), InstanceState::Created);
    drop(taken);
    fixture.runtime.start(&instance).await.expect("free again");
    let second = fixture.prepare(2).await.expect("prepare");
    let error = fixture.runtime.start(&second).await.expect_err("taken by a container").to_string();
    assert!(error.contains(&format!("port {port} is taken")) && error.contains("docker ps"), "{error}");

    fixture.environment.start.networks = vec!["no-such-network-anywhere".to_owned()];
    let error = fixture.prepare(3).await.expect_err("network");
    assert!(matches!(error, RuntimeError::Missing { what: "network", .. }), "{error:?}");
    fixture.environment.start.networks.clear();
    fixture.environment.start.volumes = vec!["/var/run/docker.sock:/s".to_owned()];
    assert!(fixture.prepare(3).await.is_err_and(|e| e.to_string().contains("Docker's socket")));
    fixture.environment.start.volumes.clear();
    fixture.base = "sha256:0000000000000000000000000000000000000000000000000000000000000000".to_owned();
    assert!(matches!(fixture.prepare(3).await, Err(RuntimeError::Missing { what: "image", .. })));
}

#[tokio::test]
async fn a_restart_loop_and_the_code_are_seen() {
    let mut fixture = Fixture::new().await;
    fixture.app_runs("echo dying; exit 5");
    let instance = fixture.prepare(1).await.expect("prepare");
    fixture.runtime.start(&instance).await.expect("start");
    let state = fixture.until(&instance, |s| matches!(s, InstanceState::Restarting { restarts: 2.., .. })).await;
    assert!(matches!(state, InstanceState::Restarting { code: 5, .. }), "{state:?}");
    assert!(fixture.runtime.tail(&instance, 5).await.expect("tail").iter().all(|l| l == "dying"));
    fixture.runtime.stop(&instance, SECOND).await.expect("stop");
    let state = fixture.runtime.inspect(&instance).await.expect("inspect");
    assert!(matches!(state, InstanceState::Exited { .. }), "it stays stopped: {state:?}");
}

/// Starts an instance that the engine will not start again, and waits for its end.
async fn ending(fixture: &Fixture, deployment: i64) -> InstanceState {
    let instance = fixture.prepare(deployment).await.expect("prepare");
    let policy = RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None };
    let update = ContainerUpdateBody { restart_policy: Some(policy), ..Default::default() };
    fixture.runtime.docker.update_container(&instance.id, update).await.expect("update");
    fixture.runtime.start(&instance).await.expect("start");
    fixture.until(&instance, |s| matches!(s, InstanceState::Exited { .. })).await
}

#[tokio::test]
async fn the_end_and_its_cause_are_told_apart() {
    let mut fixture = Fixture::new().await;
    fixture.app_runs("exit 5");
    assert_eq!(ending(&fixture, 1).await, InstanceState::Exited { code: 5, out_of_memory: false });
    fixture.environment.start.memory = Some(16 * 1024 * 1024);
    fixture.app_runs("exec tail /dev/zero");
    assert_eq!(ending(&fixture, 2).await, InstanceState::Exited { code: 137, out_of_memory: true });
}

#[tokio::test]
async fn the_images_own_health_check_is_heard() {
    let mut fixture = Fixture::new().await;
    fixture.environment.start.command = None;
    let commit = fixture.commit(
        "HEALTHCHECK --interval=1s --start-period=1s --retries=1 CMD test -e /tmp/well\nCMD [\"/bin/sleep\", \"1000\"]",
    );
    fixture.base = fixture.build(&commit, None).await.expect("build").id;
    let instance = fixture.prepare(1).await.expect("prepare");
    fixture.runtime.start(&instance).await.expect("start");
    fixture.until(&instance, |s| matches!(s, InstanceState::Running { health: Some(false), .. })).await;
    let command = ["/bin/sh", "-c", "echo > /tmp/well"].map(str::to_owned);
    fixture.runtime.exec(&instance, &command, 10 * SECOND).await.expect("exec");
    fixture.until(&instance, |s| matches!(s, InstanceState::Running { health: Some(true), .. })).await;
}

#[tokio::test]
async fn a_command_inside_tells_its_end_or_is_ended() {
    let fixture = Fixture::new().await;
    let instance = fixture.prepare(1).await.expect("prepare");
    let sh = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned);
    let error = fixture.runtime.exec(&instance, &sh("true"), SECOND).await.expect_err("not running").to_string();
    assert!(error.contains("not running"), "{error}");
    fixture.runtime.start(&instance).await.expect("start");
    let done = fixture.runtime.exec(&instance, &sh("echo a; echo b >&2; exit 4"), 10 * SECOND).await.expect("exec");
    assert_eq!((done.code, done.output.len()), (4, 2));
    let none = fixture.runtime.exec(&instance, &["no-such-program".to_owned()], 10 * SECOND).await;
    assert!(none.is_err() || none.is_ok_and(|o| o.code != 0));
    let marker = marker();
    let slow = fixture.runtime.exec(&instance, &sh(&format!("{marker} & wait")), 2 * SECOND).await;
    assert!(slow.is_err_and(|e| e.to_string().contains("did not end within 2s")));
    until_gone(&marker).await;
    assert!(is_running(&fixture.runtime.inspect(&instance).await.expect("inspect")));
}

#[tokio::test]
async fn names_move_and_images_go_only_when_unused() {
    let fixture = Fixture::new().await;
    let (runtime, environment) = (&fixture.runtime, &fixture.environment);
    let image = fixture.build(&fixture.commit("RUN printf 12345 > /own"), None).await.expect("build");
    assert!(runtime.has_artefact(&image.id).await.expect("has"));
    assert_eq!(runtime.tagged(environment, "rollback").await.expect("tagged"), None);
    for _ in 0..2 {
        runtime.tag(environment, &image.id, "rollback").await.expect("tag");
    }
    assert_eq!(runtime.tagged(environment, "rollback").await.expect("tagged"), Some(image.id.clone()));
    for _ in 0..2 {
        runtime.untag(environment, "rollback").await.expect("untag");
    }
    assert_eq!(runtime.tagged(environment, "rollback").await.expect("tagged"), None);
    // The last name goes, the image stays.
    let short = image.name.rsplit(':').next().expect("tag");
    runtime.untag(environment, short).await.expect("untag");
    assert!(runtime.has_artefact(&image.id).await.expect("has"));

    let body = spec::one_off(&OneOff { artefact: &image.id, ..fixture.one_off("true") }).expect("spec");
    let name = format!("{}-user", fixture.app());
    instances::create(&runtime.docker, &name, &body).await.expect("create");
    let error = runtime.remove_artefact(&image.id).await.expect_err("in use").to_string();
    assert!(error.contains(&name), "{error}");
    assert!(runtime.has_artefact(&image.id).await.expect("has"));
    instances::remove(&runtime.docker, &name).await.expect("remove");
    runtime.tag(environment, &image.id, "rollback").await.expect("tag");
    // Somebody else's name keeps the image.
    let theirs = format!("{}-base", fixture.app());
    images::tag(&runtime.docker, &image.id, &theirs, "mine").await.expect("tag");
    assert_eq!(runtime.remove_artefact(&image.id).await.expect("kept"), 0);
    assert!(runtime.has_artefact(&image.id).await.expect("has"));
    images::tag(&runtime.docker, &image.id, fixture.app(), "again").await.expect("tag");
    let none = None::<bollard::query_parameters::RemoveImageOptions>;
    for name in [format!("{theirs}:mine"), format!("{}-cache:production-app-0", fixture.app())] {
        drop(runtime.docker.remove_image(&name, none.clone(), None).await.expect("untag"));
    }
    // Its own five bytes, once the builder's cache does not need them; the layer of the base image stays, and gives nothing back.
    assert_eq!(runtime.remove_artefact(&image.id).await.expect("remove"), 5);
    assert!(!runtime.has_artefact(&image.id).await.expect("has"));
    assert_eq!(runtime.remove_artefact(&image.id).await.expect("twice"), 0);
}

#[tokio::test]
async fn removal_keeps_named_volumes() {
    let mut fixture = Fixture::new().await;
    let volume = format!("{}-kept", fixture.app());
    fixture.environment.start.volumes = vec![format!("{volume}:/data")];
    let instance = fixture.prepare(1).await.expect("prepare");
    fixture.runtime.start(&instance).await.expect("start");
    let shown = fixture.runtime.docker.inspect_container(&instance.id, None).await.expect("inspect");
    assert_eq!(shown.state.and_then(|s| s.status), Some(ContainerStateStatusEnum::RUNNING));
    fixture.runtime.remove(&instance).await.expect("remove");
    assert!(fixture.runtime.docker.inspect_volume(&volume).await.is_ok());
}
