//! `[smoke]` and its checks.

use std::time::Duration;

use super::{
    read::Reader,
    tree::{Kind, Value},
    types::{Smoke, SmokeCheck, SmokeKind},
    values::{self, Complaint, Parsed, duration, duration_or_zero, integer, one_or_many, printable, quoted},
};

pub(super) fn smoke(table: &Reader<'_>, port: Option<u16>, gated: bool) -> Smoke {
    let checks = table.children("check", "smoke.check");
    let bake = table.get("bake", duration_or_zero);
    let max_error_rate = table.read("max_error_rate", values::share);
    if max_error_rate.is_some() {
        if !gated {
            let help = "use `strategy = \"blue-green\"` or `gate = true` in `[start]`, or remove the key";
            let complaint = Complaint::new("only the gate counts errors, and this app is not behind it");
            table.complain("max_error_rate", complaint.help(help));
        }
        if bake.is_zero() {
            let complaint = Complaint::new("errors are compared during the bake, and there is none");
            table.complain("max_error_rate", complaint.help("give `bake` some time, or remove the key"));
        }
    }
    Smoke {
        checks: checks.iter().filter_map(|entry| check(entry, port)).collect(),
        bake,
        interval: table.get("interval", duration),
        timeout: table.get("timeout", duration),
        max_error_rate,
    }
}

/// Keys that mean something for an HTTP check only.
const HTTP_ONLY: [&str; 5] = ["status", "contains", "absent", "json", "max_latency"];

fn check(table: &Reader<'_>, port: Option<u16>) -> Option<SmokeCheck> {
    let kinds: Vec<&str> = ["http", "tcp", "exec"].into_iter().filter(|key| table.has(key)).collect();
    match kinds[..] {
        [] => {
            let help = "add `http = \"/…\"`, `tcp = \"host:port\"` or `exec = [\"…\"]`";
            table.cx.problem(&table.at, Complaint::new("this check checks nothing").help(help));
        }
        [_] => {}
        [_, second, ..] => {
            let complaint = Complaint::new(format!("a check has exactly one of {}", quoted(&["http", "tcp", "exec"])));
            table.complain(second, complaint.help("make each a `[[smoke.check]]` of its own"));
        }
    }
    if !kinds.contains(&"http") {
        table.refuse(&HTTP_ONLY, "this is for `http` checks only", "remove the key");
    }
    let timeout = table.get("timeout", duration);
    let retries = table.get("retries", integer(0..=1000));
    let name = table.read("name", values::filled);
    let (kind, about) = match kinds.first().copied()? {
        "http" => http(table, port, timeout)?,
        "tcp" => {
            let address = table.read("tcp", tcp_address)?;
            (SmokeKind::Tcp { address: address.clone() }, format!("TCP {address}"))
        }
        _ => {
            let command = table.read("exec", values::command)?;
            let shown: String = printable(&command.join(" "));
            (SmokeKind::Exec { command }, format!("exec {shown}"))
        }
    };
    Some(SmokeCheck { name: name.unwrap_or(about), kind, timeout, retries })
}

fn http(table: &Reader<'_>, port: Option<u16>, timeout: Duration) -> Option<(SmokeKind, String)> {
    let url = table.read("http", address);
    if url.as_deref().is_some_and(|url| url.starts_with('/')) && port.is_none() {
        let help = "add `port` to the environment, or write a whole URL";
        table.complain("http", Complaint::new("a path needs a port, and the environment has none").help(help));
    }
    let max_latency = table.read("max_latency", duration);
    if max_latency.is_some_and(|latency| latency > timeout) {
        let complaint = Complaint::new("is longer than the check's `timeout`, so it would never be reached");
        table.complain("max_latency", complaint);
    }
    let status = table.get("status", integer(100..=599));
    let contains = table.get("contains", one_or_many);
    let absent = table.get("absent", one_or_many);
    let json = table.get("json", values::json_rules);
    let url = url?;
    let about = format!("GET {url}");
    Some((SmokeKind::Http { url, status, contains, absent, json, max_latency }, about))
}

/// A path on the public port, or a whole address.
fn address(value: &Value) -> Parsed<String> {
    match &value.kind {
        Kind::String(text) if text.starts_with('/') => values::url_path(value),
        Kind::String(text) if text.contains("://") => values::web_address(value).map(|_| text.clone()),
        Kind::String(text) => Err(Complaint::new(format!(
            "expected a path such as `/health`, or a whole URL, found `{}`",
            printable(text)
        ))),
        _ => Err(values::wrong_type("a path such as \"/health\", or a whole URL", value)),
    }
}

/// `host:port`, or a port alone as number or text.
fn tcp_address(value: &Value) -> Parsed<String> {
    match &value.kind {
        Kind::Integer(_) => integer::<u16>(1..=65_535)(value).map(|port| port.to_string()),
        Kind::String(text) if text.parse::<u16>().is_ok_and(|port| port > 0) => Ok(text.clone()),
        _ => values::host_port(value),
    }
}
