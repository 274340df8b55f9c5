//! The proof: constant load, and everything that may happen to a route while it lasts.

use std::{sync::Arc, time::Duration};

use refit::gate::wire::{DrainBounds, ErrorCode, HoldBounds};
use tokio::task::JoinSet;

use crate::{
    backend::{Backend, Seen},
    support::Gates,
    visitors::{Done, Load},
};

const NAME: &str = "shop/production";

async fn switch(load: &Load, gates: &Gates, to: &Backend) {
    load.history.begins(&to.id);
    let switched = gates.switch(to.side()).await;
    load.history.is_alone(&to.id);
    assert!(switched.kept);
}

/// A side is stopped only once it is drained, as a deployment does it.
async fn retire(gates: &Gates, old: Backend) {
    let bounds = DrainBounds { requests_ms: 15_000, websockets_ms: 15_000 };
    let drained = gates.client().drain(NAME, &old.id, Some(bounds)).await.unwrap();
    assert!(drained.is_empty(), "{drained:?}");
    old.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_through_switches_holds_and_new_gates() {
    let seen = Arc::new(Seen::default());
    let mut gates = Gates::start_with(&["--linger", "30s"]).await;
    let mut live = Backend::start("0", &seen).await;
    gates.route(live.side()).await;
    let load = Load::on(gates.public, "0", Duration::ZERO);
    let clients = load.begin(true);
    load.pass(50).await;
    let mut retiring = JoinSet::new();

    for n in 1..=60 {
        let next = Backend::start(&n.to_string(), &seen).await;
        switch(&load, &gates, &next).await;
        let old = std::mem::replace(&mut live, next);
        if n % 3 == 0 {
            // There and back again, as a failed bake does.
            switch(&load, &gates, &old).await;
            load.pass(10).await;
            switch(&load, &gates, &live).await;
        }
        let client = gates.client();
        retiring.spawn(async move {
            let bounds = DrainBounds { requests_ms: 15_000, websockets_ms: 15_000 };
            match client.drain(NAME, &old.id, Some(bounds)).await {
                Ok(drained) => assert!(drained.is_empty(), "{drained:?}"),
                // So many switches later, one that has nothing in flight is forgotten.
                Err(error) => assert_eq!(error.code(), Some(ErrorCode::UnknownSide), "{error}"),
            }
            old.stop().await;
        });
        load.pass(20).await;
        if n == 20 || n == 40 {
            gates.spawn(&["--take-over"]).await;
            load.pass(50).await;
        }
    }
    while let Some(retired) = retiring.join_next().await {
        retired.unwrap();
    }

    for n in 100..110 {
        let client = gates.client();
        client.pause(NAME, HoldBounds::default()).await.unwrap();
        let address = live.address;
        retire(&gates, live).await;
        live = Backend::start_on(&n.to_string(), address, &seen).await;
        switch(&load, &gates, &live).await;
        client.resume(NAME).await.unwrap();
        load.pass(30).await;
    }

    let Done { requests, sockets, posted } = load.end(clients).await;
    println!(
        "{requests} requests ({posted} of them POST) and {sockets} WebSockets through 100 switches, 10 holds and 2 new gates"
    );
    assert!(requests > 2_000 && sockets > 20, "{requests} {sockets}");
    let posts = seen.posts.lock().unwrap();
    assert_eq!(posts.len() as u64, posted);
    let twice: Vec<_> = posts.iter().filter(|(_, n)| **n != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}
