//! `refit gate …` for people.

use std::{process::Output, sync::Arc};

use crate::{
    backend::{Backend, Seen},
    support::Gates,
};

async fn gate(gates: &Gates, args: &[&str]) -> Output {
    let mut command = gates.command(args);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn ok(gates: &Gates, args: &[&str]) -> String {
    let output = gate(gates, args).await;
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn every_command_says_what_it_did() {
    let seen = Arc::new(Seen::default());
    let (gates, one, two) = tokio::join!(Gates::start(), Backend::start("1", &seen), Backend::start("2", &seen));
    let name = "shop/production";
    let (public, to) = (gates.public.to_string(), format!("1={}", one.address));
    let made = ok(&gates, &["route", name, "--listen", &public, "--to", &to]).await;
    assert_eq!(made, format!("{name}: made; side 1 ({}) is live\n", one.address));
    assert_eq!(gates.get("/").await.side(), "1");
    let to = format!("2={}", two.address);
    let switched = ok(&gates, &["switch", name, &to, "--expect", "1"]).await;
    assert!(switched.contains("side 2") && switched.contains("has 0 requests in flight"), "{switched}");
    assert!(ok(&gates, &["drain", name, "1"]).await.contains("nothing in flight"));
    assert_eq!(ok(&gates, &["pause", name]).await, format!("{name}: new requests wait\n"));
    assert!(ok(&gates, &["status"]).await.contains("held"));
    assert_eq!(ok(&gates, &["resume", name]).await, format!("{name}: 0 requests went on\n"));
    ok(&gates, &["maintenance", name, "on", "--message", "soon"]).await;
    assert!(ok(&gates, &["status"]).await.contains("the maintenance page says \"soon\""));
    ok(&gates, &["maintenance", name, "off"]).await;
    let table = ok(&gates, &["status", name]).await;
    assert!(table.contains(name) && table.contains(&public) && table.contains("serving"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&ok(&gates, &["status", "--format", "json"]).await).unwrap();
    assert_eq!(json["routes"][0]["live"]["id"], "2");
    assert_eq!(json["routes"][0]["retired"][0]["counters"]["requests"], 1);
    assert_eq!(ok(&gates, &["remove", name]).await, format!("{name}: removed\n"));
}

#[tokio::test]
async fn what_goes_wrong_has_an_exit_code_and_a_next_step() {
    let gates = Gates::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (args, code, told) in [
        (vec!["switch", "none", "1=127.0.0.1:9"], 64, "`refit gate status` lists them"),
        (vec!["status", "none"], 64, "`refit gate status` lists them"),
        (vec!["route", "a", "--listen", &taken], 64, "shows who has the port"),
        (vec!["route", "a b", "--listen", "127.0.0.1:1"], 64, "<app>/<environment>"),
        (vec!["switch", "a", "1"], 64, "ID=ADDRESS"),
        (vec!["pause", "a", "--at-most", "5"], 64, "500ms, 30s"),
        (vec!["status", "--socket", "/nowhere/gate.sock"], 69, "start it with `refit gate`"),
    ] {
        let output = gate(&gates, &args).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(told), "{args:?}: {error}");
    }
}
