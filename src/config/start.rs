//! `[start]`: how an instance is made, and when it counts as healthy.

use std::time::Duration;

use super::{
    read::Reader,
    stages::environment_and_secrets,
    strategy::{Ground, choose},
    tree::{Kind, Value},
    types::{Backup, BehindGate, Health, LogRotation, Probe, RuntimeKind, Start, Strategy},
    values::{self, Complaint, Parsed, boolean, choice, docker_name, duration, duration_or_zero, integer, quoted},
};

/// Docker refuses less, in bytes.
const LEAST_MEMORY: u64 = 6 * 1024 * 1024;

/// A version that was replaced does not run on for longer than this.
const LONGEST_WARM: Duration = Duration::from_secs(24 * 60 * 60);

/// `backups`: what the environment backs up says something of what two versions would share.
pub(super) fn start(table: &Reader<'_>, port: Option<u16>, backups: &[Backup]) -> Start {
    let runtime = table.read("runtime", runtime).unwrap_or(RuntimeKind::Docker);
    let container_port = table.read("container_port", integer(1..=65_535));
    if runtime == RuntimeKind::Process {
        let foreign = ["networks", "volumes", "user", "memory", "cpus", "init"];
        table.refuse(
            &foreign,
            "the process runtime has no containers",
            "remove the key, or use `runtime = \"docker\"`",
        );
        if !table.has("command") {
            table.missing("command", "the process runtime needs the app's command: add `command = \"…\"`".to_owned());
        }
    }
    let (env, secrets) = environment_and_secrets(table);
    let (networks, volumes) = (table.list("networks", docker_name), table.list("volumes", values::volume(table.dir)));
    let wanted = table.read("gate", boolean);
    let asked = table.read("strategy", strategy).flatten();
    let ground = Ground { runtime, port, gate: wanted, networks: &networks, volumes: &volumes, backups };
    let (strategy, strategy_reason) = match asked {
        Some(strategy) => (strategy, None),
        None => {
            let (strategy, why) = choose(ground);
            (strategy, Some(why))
        }
    };
    let gate = behind_gate(table, (strategy, strategy_reason.as_deref()), ground);
    let log = table.child("log", "start.log");
    Start {
        runtime,
        strategy,
        strategy_reason,
        container_port,
        networks,
        volumes,
        command: table.read("command", |value| command(value, runtime)),
        env,
        secrets,
        user: table.read("user", values::user),
        memory: table.read("memory", memory),
        cpus: table.read("cpus", values::number(0.01..=1024.0)),
        init: table.get("init", boolean),
        stop_timeout: table.get("stop_timeout", duration),
        log: LogRotation {
            max_size: log.get("max_size", |value| match values::size(value)? {
                0..1024 => Err(Complaint::new("is less than 1 KiB")),
                bytes => Ok(bytes),
            }),
            max_file: log.get("max_file", integer(1..=1000)),
        },
        health: health(&table.child("health", "start.health"), runtime, port, container_port),
        gate,
    }
}

/// Two versions at once need the gate, and what is not the same place for both.
fn behind_gate(
    table: &Reader<'_>,
    (strategy, why): (Strategy, Option<&str>),
    ground: Ground<'_>,
) -> Option<BehindGate> {
    let runtime = ground.runtime;
    let wanted = ground.gate.unwrap_or(strategy == Strategy::BlueGreen);
    let settings = BehindGate {
        drain: table.get("drain", duration_or_zero),
        drain_websockets: table.get("drain_websockets", duration_or_zero),
        keep_warm: table.get("keep_warm", keep_warm),
        hold: table.get("hold", duration),
    };
    let key = if table.has("gate") { "gate" } else { "strategy" };
    let complain = |what: &str, help: &str| table.complain(key, Complaint::new(what).help(help));
    if strategy != Strategy::BlueGreen && !settings.keep_warm.is_zero() {
        table.complain("keep_warm", never_warm(why));
    }
    if !wanted {
        if strategy == Strategy::BlueGreen {
            complain("two versions side by side need the gate", "leave `gate` out, or use `strategy = \"recreate\"`");
        }
        return None;
    }
    if ground.port.is_none() {
        complain("the gate serves a port, and the app has none", "add `port` to the environment, or leave this out");
    }
    if runtime == RuntimeKind::Docker && ground.networks.iter().any(|name| name == "host") {
        complain(
            "in the network `host` two versions would use the same port, and so would the gate",
            "use another network, or `strategy = \"recreate\"` without `gate`",
        );
    }
    if runtime == RuntimeKind::Process && table.has("container_port") {
        let help = "remove `container_port`; the app is told its port in the variable PORT";
        complain("behind the gate each version of a process has a port of its own", help);
    }
    Some(settings)
}

/// `why`: why the old version stops first, where that was chosen and not asked for.
fn never_warm(why: Option<&str>) -> Complaint {
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    Complaint::new(format!("with the strategy `recreate`{why} the old version stops before the new one starts"))
        .help("use `strategy = \"blue-green\"` if two versions may run side by side, or leave `keep_warm` out")
}

fn keep_warm(value: &Value) -> Parsed<Duration> {
    match duration_or_zero(value)? {
        warm if warm > LONGEST_WARM => {
            let help = "an old version that nobody went back to in a day may well start again: at most \"24h\"";
            Err(Complaint::new("is longer than 24 hours").help(help))
        }
        warm => Ok(warm),
    }
}

fn runtime(value: &Value) -> Parsed<RuntimeKind> {
    let kinds = &[
        ("docker", Some(RuntimeKind::Docker)),
        ("process", Some(RuntimeKind::Process)),
        ("compose", None),
        ("swarm", None),
        ("systemd", None),
        ("kubernetes", None),
        ("sftp", None),
    ];
    choice(kinds)(value)?.ok_or_else(|| {
        Complaint::new("this version does not have this runtime yet").help("use \"docker\" or \"process\"")
    })
}

/// `None`: to be chosen.
fn strategy(value: &Value) -> Parsed<Option<Strategy>> {
    choice(&[("auto", None), ("recreate", Some(Strategy::Recreate)), ("blue-green", Some(Strategy::BlueGreen))])(value)
}

fn memory(value: &Value) -> Parsed<u64> {
    match values::size(value)? {
        0..LEAST_MEMORY => Err(Complaint::new("is less than 6 MiB, the least that Docker takes")),
        bytes => Ok(bytes),
    }
}

/// A shell line, or a program with its arguments. In a container they become `sh -c LINE` and the words as they are; for a
/// process both become one shell line.
fn command(value: &Value, runtime: RuntimeKind) -> Parsed<Vec<String>> {
    let line = match value.kind {
        Kind::String(_) => Some(values::filled(value)?),
        _ => None,
    };
    Ok(match (line, runtime) {
        (Some(line), RuntimeKind::Docker) => vec!["sh".to_owned(), "-c".to_owned(), line],
        (Some(line), RuntimeKind::Process) => vec![line],
        (None, RuntimeKind::Docker) => values::command(value)?,
        (None, RuntimeKind::Process) => {
            vec![values::command(value)?.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ")]
        }
    })
}

/// A word that a POSIX shell reads back as it is.
fn shell_word(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_@%+:,./-".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn health(table: &Reader<'_>, runtime: RuntimeKind, port: Option<u16>, container_port: Option<u16>) -> Health {
    Health {
        probe: probe(table, runtime, port, container_port).unwrap_or(Probe::Running),
        interval: table.get("interval", duration),
        timeout: table.get("timeout", duration),
        successes: table.get("successes", integer(1..=100)),
        deadline: table.get("deadline", duration),
        settle: table.get("settle", duration_or_zero),
    }
}

fn probe(table: &Reader<'_>, runtime: RuntimeKind, port: Option<u16>, inner_port: Option<u16>) -> Option<Probe> {
    let path = table.read("path", values::url_path);
    let tcp = table.read("tcp", boolean);
    let exec = table.read("exec", values::command);
    let image = table.read("image", boolean);
    let on = |key: &&str| match *key {
        "tcp" => tcp != Some(false) && table.has(key),
        "image" => image != Some(false) && table.has(key),
        _ => table.has(key),
    };
    let named: Vec<&str> = ["path", "tcp", "exec", "image"].into_iter().filter(on).collect();
    if named.len() > 1 {
        table.complain(
            named[1],
            Complaint::new(format!("there is more than one probe: {}", quoted(&named))).help("keep one"),
        );
    }
    let needs_port = path.is_some() || tcp == Some(true);
    if needs_port && port.or(inner_port).is_none() {
        let key = if path.is_some() { "path" } else { "tcp" };
        let help = "add `port` to the environment, or `container_port` to `[start]`, or probe with `exec`";
        table.complain(key, Complaint::new("this probe needs a port, and the app has none").help(help));
    }
    if image == Some(true) && runtime == RuntimeKind::Process {
        table.refuse(&["image"], "the process runtime has no image", "probe with `path`, `tcp` or `exec`");
    }
    match (path, tcp, exec, image) {
        (Some(path), ..) => Some(Probe::Http { path }),
        (_, Some(true), ..) => Some(Probe::Tcp),
        (_, _, Some(command), _) => Some(Probe::Exec { command }),
        (.., Some(true)) => Some(Probe::Image),
        // Asked not to connect, or nothing to connect to.
        (_, Some(false), ..) => Some(Probe::Running),
        _ => Some(if port.is_some() { Probe::Tcp } else { Probe::Running }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_words_come_back_whole() {
        assert_eq!(shell_word("python3"), "python3");
        assert_eq!(shell_word("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(shell_word(""), "''");
    }
}
