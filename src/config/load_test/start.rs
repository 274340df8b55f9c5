//! `[start]` and `[smoke]`: strategies, the gate, checks, runtimes.

use super::{Strategy, *};

#[test]
fn a_strategy_is_chosen_where_none_is_asked_for() {
    let start = |tables: &str| House::new(&format!("{SMALL}{tables}")).config().apps[0].environments[0].start.clone();
    let words = |tables: &str| start(tables).strategy_words();
    assert_eq!(words(""), "blue-green (has a port, no volumes, and no database file)");
    assert_eq!(words("[start]\nstrategy = 'auto'\n"), words(""));
    assert_eq!(words("[start]\nstrategy = 'blue-green'\nvolumes = ['d:/d']\n"), "blue-green (as configured)");
    assert_eq!(words("[start]\nstrategy = 'recreate'\n"), "recreate (as configured)");
    assert_eq!(
        words("[start]\nvolumes = ['./d:/d']\ngate = true\n").split(" (").next(),
        Some("recreate behind the gate")
    );
    assert_eq!(words("[start]\ngate = false\n"), "recreate (`gate = false`)");
    let sqlite = "[[backup]]\nkind = 'sqlite'\npath = 'a.db'\n";
    assert_eq!(words(sqlite), "recreate (the SQLite database a is for one version at a time)");
    let process = start("[start]\nruntime = 'process'\ncommand = 'x'\n");
    assert!(process.gate.is_none() && process.strategy == Strategy::Recreate, "{}", process.strategy_words());

    // What a release of an earlier version kept of its settings is what it was.
    let mut kept = serde_json::to_value(start("[start]\nstrategy = 'recreate'\n")).unwrap();
    for new in ["strategy_reason", "gate"] {
        kept.as_object_mut().unwrap().remove(new).unwrap();
    }
    let kept: Start = serde_json::from_value(kept).unwrap();
    assert_eq!((kept.strategy, kept.gate, kept.strategy_reason), (Strategy::Recreate, None, None));
}

#[test]
fn checks_that_need_a_port_say_so() {
    let house = House::new(
        "[app]\nname = 'bot'\nrepository = '../bot'\n[environments.production]\nbranch = 'main'\n[start.health]\npath = '/health'\n\
         [[smoke.check]]\nhttp = '/health'\n[[smoke.check]]\nhttp = 'https://example.org/'\ntcp = 80\n[[smoke.check]]\nname = 'nothing'\n\
         [[smoke.check]]\ntcp = 'db:5432'\nstatus = 200\n[[smoke.check]]\nexec = []\n",
    );
    assert_snapshot!(house.errors(), @r#"
    pipeline.toml:7:8: `start.health.path`: this probe needs a port, and the app has none; add `port` to the environment, or `container_port` to `[start]`, or probe with `exec`
    pipeline.toml:9:8: `smoke.check[0].http`: a path needs a port, and the environment has none; add `port` to the environment, or write a whole URL
    pipeline.toml:12:7: `smoke.check[1].tcp`: a check has exactly one of `http`, `tcp`, `exec`; make each a `[[smoke.check]]` of its own
    pipeline.toml:13:1: `smoke.check[2]`: this check checks nothing; add `http = "/…"`, `tcp = "host:port"` or `exec = ["…"]`
    pipeline.toml:17:10: `smoke.check[3].status`: this is for `http` checks only; remove the key
    pipeline.toml:19:8: `smoke.check[4].exec`: has no program to run
    "#);
}

#[test]
fn error_rates_are_shares_and_need_the_gate_and_a_bake() {
    let with = |start: &str, smoke: &str| {
        House::new(&format!(
            "[app]\nname = 'bot'\nrepository = '../bot'\n[environments.production]\nbranch = 'main'\nport = 8000\n{start}[smoke]\n{smoke}\n"
        ))
    };
    let gate = "[start]\nstrategy = 'blue-green'\n";
    for (text, expected) in [("'2%'", 0.02), ("0.02", 0.02), ("' 0.5 %'", 0.005), ("0", 0.0), ("1", 1.0)] {
        let config = with(gate, &format!("max_error_rate = {text}")).config();
        let rate = config.apps[0].environments[0].smoke.max_error_rate.unwrap();
        assert!((rate - expected).abs() < 1e-9, "{text}: {rate}");
    }
    let errors = with("[start]\nstrategy = 'recreate'\n", "max_error_rate = 0.1").errors();
    assert!(errors.contains("only the gate counts errors"), "{errors}");
    let errors = with(gate, "max_error_rate = 0.1\nbake = '0s'").errors();
    assert!(errors.contains("errors are compared during the bake, and there is none"), "{errors}");
    for wrong in ["2", "'2'", "'101%'", "'NaN%'", "-0.1"] {
        let errors = with(gate, &format!("max_error_rate = {wrong}")).errors();
        assert!(
            errors.contains("smoke.max_error_rate") && errors.contains("write a share such as"),
            "{wrong}: {errors}"
        );
    }
}

#[test]
fn only_versions_that_run_side_by_side_are_kept_warm() {
    let with = |tables: &str| House::new(&format!("{SMALL}{tables}"));
    let warm = |start: &str| {
        let config = with(&format!("[start]\n{start}\n")).config();
        config.apps[0].environments[0].start.gate.map(|gate| gate.keep_warm)
    };
    assert_eq!(warm(""), Some(Duration::ZERO));
    assert_eq!(warm("keep_warm = '10m'"), Some(Duration::from_secs(600)));
    assert_eq!(warm("keep_warm = '24h'\nstrategy = 'blue-green'"), Some(Duration::from_secs(86_400)));
    assert_eq!(warm("keep_warm = '0s'\nstrategy = 'recreate'"), None);
    let errors = with("[start]\nkeep_warm = '25h'\n").errors();
    assert!(errors.contains("`start.keep_warm`: is longer than 24 hours"), "{errors}");
    let errors = with("[start]\nkeep_warm = '10m'\nstrategy = 'recreate'\ngate = true\n").errors();
    assert!(errors.contains("with the strategy `recreate` the old version stops before"), "{errors}");
    let errors = with("[start]\nkeep_warm = '10m'\nvolumes = ['./d:/d']\n").errors();
    assert!(
        errors.contains("`recreate` (writes to the volume ") && errors.contains("leave `keep_warm` out"),
        "{errors}"
    );
    // One environment of several may have its own word.
    let both = "[start]\nkeep_warm = '10m'\n[environments.dev]\nbranch = 'dev'\n[environments.dev.start]\nkeep_warm = '0s'\nstrategy = 'recreate'\n";
    assert_eq!(with(both).config().apps[0].environments.len(), 2);
}

#[test]
fn a_bot_without_a_port_is_watched_for_a_while() {
    let config =
        House::new("[app]\nname = 'bot'\nrepository = '../bot'\n[environments.production]\nbranch = 'main'\n").config();
    assert_eq!(config.apps[0].environments[0].start.health.probe, Probe::Running);
    assert!(config.apps[0].full_name.is_none());
    assert!(config.apps[0].repository.starts_with('/'));
}

#[test]
fn the_process_runtime_has_its_own_rules() {
    let process = |rest: &str| House::new(&format!("{SMALL}[start]\nruntime = 'process'\n{rest}"));
    let config = process("command = 'python3 app.py'\n[build]\nrun = 'make'\n[[test]]\nrun = 'make test'\n").config();
    let environment = &config.apps[0].environments[0];
    assert_eq!(environment.start.command.as_deref(), Some(&["python3 app.py".to_owned()][..]));
    assert!(matches!(environment.tests[0].place, TestPlace::Tree));
    let config = process("command = ['echo', 'a b']\n").config();
    assert_eq!(config.apps[0].environments[0].start.command.as_deref(), Some(&["echo 'a b'".to_owned()][..]));
    assert_snapshot!(process("memory = '1g'\n[build]\ndockerfile = 'X'\n[[test]]\nimage = 'x'\nrun = 'x'\n").errors(), @r#"
    pipeline.toml:7:1: `start.command`: is missing; the process runtime needs the app's command: add `command = "…"`
    pipeline.toml:9:10: `start.memory`: the process runtime has no containers; remove the key, or use `runtime = "docker"`
    pipeline.toml:11:14: `build.dockerfile`: the process runtime builds no image; remove the key; `run` is its build command
    pipeline.toml:13:9: `test[0].image`: the process runtime has no containers: its tests run in the commit's tree on this host; remove the key
    "#);

    let docker = House::new(&format!("{SMALL}[start]\ncommand = 'a | b'\n")).config();
    assert_eq!(docker.apps[0].environments[0].start.command.as_deref().unwrap(), ["sh", "-c", "a | b"]);
    let errors = House::new(&format!("{SMALL}[build]\nrun = 'make'\n[[test]]\nrun = 'x'\n")).errors();
    assert!(errors.contains("build of the process runtime") && errors.contains("needs a place to run in"), "{errors}");
}
