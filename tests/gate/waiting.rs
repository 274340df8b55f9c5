//! Requests that wait: in a pause, for an app that does not accept connections yet; and the pages for those that waited in vain.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use refit::gate::wire::{DrainBounds, ErrorCode, HoldBounds, MaintenanceRequest, RouteState};

use crate::{
    backend::{Backend, Seen},
    support::{Connection, Gates, Reply, eventually, get, post},
};

async fn one() -> (Gates, Backend, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let (gates, backend) = tokio::join!(Gates::start(), Backend::start("1", &seen));
    gates.route(backend.side()).await;
    (gates, backend, seen)
}

const NAME: &str = "shop/production";

/// A request on a connection of its own, under way.
fn send(gates: &Gates, n: usize) -> tokio::task::JoinHandle<Result<Reply, String>> {
    let public = gates.public;
    tokio::spawn(async move {
        let name = format!("held-{n}");
        Connection::open(public).await?.send(post("/post", &name, Bytes::from(vec![7; 100_000]))).await
    })
}

async fn held(gates: &Gates, n: u64) {
    let client = gates.client();
    eventually(&format!("{n} wait"), async || client.status(None).await.unwrap().routes[0].held.now == n).await;
}

#[tokio::test]
async fn requests_wait_while_the_app_is_replaced_and_then_all_arrive_once() {
    let (gates, backend, seen) = one().await;
    let client = gates.client();
    client.pause(NAME, HoldBounds::default()).await.unwrap();
    assert_eq!(client.status(None).await.unwrap().routes[0].state, RouteState::Held);
    let waiting: Vec<_> = (0..50).map(|n| send(&gates, n)).collect();
    held(&gates, 50).await;
    let drained = client.drain(NAME, "1", None).await.unwrap();
    assert!(drained.is_empty());
    let address = backend.address;
    backend.stop().await;
    let again = Backend::start_on("2", address, &seen).await;
    gates.switch(again.side()).await;
    assert_eq!(client.status(None).await.unwrap().routes[0].held.now, 50, "a switch alone lets nobody go");
    assert_eq!(client.resume(NAME).await.unwrap().released, 50);
    for reply in waiting {
        let reply = reply.await.unwrap().unwrap();
        assert_eq!((reply.status, reply.side()), (200, "2"));
    }
    let posts = seen.posts.lock().unwrap();
    assert!(posts.len() == 50 && posts.values().all(|n| *n == 1), "{posts:?}");
}

#[tokio::test]
async fn the_oldest_leave_when_too_many_wait_and_nobody_waits_too_long() {
    let (gates, _backend, seen) = one().await;
    let client = gates.client();
    let bounds = HoldBounds { max_requests: 2, max_wait_ms: 60_000, ..HoldBounds::default() };
    client.pause(NAME, bounds).await.unwrap();
    let first = send(&gates, 1);
    held(&gates, 1).await;
    let _second = send(&gates, 2);
    held(&gates, 2).await;
    let _third = send(&gates, 3);
    let refused = first.await.unwrap().unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, "5"));
    client.pause(NAME, HoldBounds { max_wait_ms: 50, ..bounds }).await.unwrap();
    let late = send(&gates, 4).await.unwrap().unwrap();
    assert_eq!(late.status, 503);
    let status = client.status(None).await.unwrap();
    assert_eq!((status.routes[0].held.total, status.routes[0].held.refused), (4, 3));
    assert!(seen.posts.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_pause_that_nobody_ends_ends_by_itself() {
    let (gates, _backend, _) = one().await;
    gates.client().pause(NAME, HoldBounds { at_most_ms: 200, ..HoldBounds::default() }).await.unwrap();
    assert_eq!(gates.get("/").await.status, 200);
    assert_eq!(gates.client().status(None).await.unwrap().routes[0].state, RouteState::Serving);
}

#[tokio::test]
async fn a_request_whose_client_left_while_it_waited_never_reaches_the_app() {
    let (gates, _backend, seen) = one().await;
    let client = gates.client();
    client.pause(NAME, HoldBounds::default()).await.unwrap();
    let waiting = send(&gates, 1);
    held(&gates, 1).await;
    waiting.abort();
    held(&gates, 0).await;
    client.resume(NAME).await.unwrap();
    assert_eq!(client.status(None).await.unwrap().routes[0].held.abandoned, 1);
    assert_eq!(gates.get("/").await.status, 200);
    assert!(seen.posts.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_app_that_does_not_listen_yet_gets_its_requests_when_it_does() {
    let (gates, backend, seen) = one().await;
    let address = backend.address;
    backend.stop().await;
    let waiting: Vec<_> = (0..20).map(|n| send(&gates, n)).collect();
    let client = gates.client();
    eventually("it was tried", async || {
        client.status(None).await.unwrap().routes[0].live.as_ref().unwrap().counters.retries > 20
    })
    .await;
    assert_eq!(client.status(None).await.unwrap().routes[0].live.as_ref().unwrap().reachable, Some(false));
    let _again = Backend::start_on("1", address, &seen).await;
    for reply in waiting {
        assert_eq!(reply.await.unwrap().unwrap().status, 200);
    }
    assert!(seen.posts.lock().unwrap().values().all(|n| *n == 1));
}

#[tokio::test]
async fn a_request_that_could_not_connect_moves_to_the_side_that_is_live_by_then() {
    let (gates, backend, seen) = one().await;
    backend.stop().await;
    let waiting = send(&gates, 1);
    let client = gates.client();
    eventually("it was tried", async || {
        client.status(None).await.unwrap().routes[0].live.as_ref().unwrap().counters.retries > 0
    })
    .await;
    let other = Backend::start("2", &seen).await;
    gates.switch(other.side()).await;
    assert_eq!(waiting.await.unwrap().unwrap().side(), "2");
}

#[tokio::test]
async fn an_app_that_is_away_for_good_ends_in_502() {
    let (gates, backend, _) = one().await;
    let mut spec = gates.spec(None);
    spec.limits.connect_ms = 100;
    gates.client().route(spec).await.unwrap();
    backend.stop().await;
    let reply = gates.get("/").await;
    assert_eq!((reply.status, reply.text()), (502, "502 the app does not accept connections\n"));
    let live = gates.client().status(None).await.unwrap().routes[0].live.clone().unwrap();
    assert_eq!((live.counters.requests, live.counters.failed), (0, 1));
    assert!(gates.logs().contains("shop/production: GET / failed: the app does not accept connections"));
}

#[tokio::test]
async fn maintenance_is_a_page_and_a_route_without_a_side_says_so() {
    let (gates, backend, _) = one().await;
    let client = gates.client();
    let on = |on| MaintenanceRequest { name: NAME.into(), on, message: Some("back at <2>".into()), retry_after: 90 };
    client.maintenance(on(true)).await.unwrap();
    let reply = gates.get("/x").await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, "90"));
    assert!(reply.text().contains("back at &lt;2&gt;"));
    let mut connection = Connection::open(gates.public).await.unwrap();
    assert_eq!(connection.send(get("/")).await.unwrap().status, 503);
    client.maintenance(on(false)).await.unwrap();
    assert_eq!(connection.send(get("/")).await.unwrap().status, 200, "the connection was kept");

    client.remove(NAME).await.unwrap();
    client.route(gates.spec(None)).await.unwrap();
    assert_eq!(connection.send(get("/")).await.map(|r| r.status).unwrap_or(404), 404, "of the socket that was closed");
    let reply = gates.get("/").await;
    assert_eq!((reply.status, reply.text()), (503, "503 nothing is live here yet\n"));
    gates.switch(backend.side()).await;
    assert_eq!(gates.get("/").await.status, 200);
}

#[tokio::test]
async fn a_drain_waits_for_what_is_in_flight_and_no_longer_than_it_may() {
    let (gates, _backend, seen) = one().await;
    let other = Backend::start("2", &seen).await;
    let client = gates.client();
    let slow = tokio::spawn({
        let public = gates.public;
        async move { Connection::open(public).await.unwrap().send(get("/slow/30")).await }
    });
    eventually("it is in flight", async || {
        client.status(None).await.unwrap().routes[0].live.as_ref().unwrap().in_flight.requests == 1
    })
    .await;
    let switched = gates.switch(other.side()).await;
    assert_eq!((switched.previous.unwrap().id.as_str(), switched.in_flight.requests), ("1", 1));
    let short = DrainBounds { requests_ms: 1, websockets_ms: 1 };
    assert_eq!(client.drain(NAME, "1", Some(short)).await.unwrap().left.requests, 1);
    assert!(client.drain(NAME, "1", None).await.unwrap().is_empty());
    let reply = tokio::time::timeout(Duration::from_secs(5), slow).await.unwrap().unwrap().unwrap();
    assert_eq!((reply.side(), reply.text()), ("1", "1\n".repeat(30).as_str()), "it ended where it began");
    assert_eq!(gates.get("/").await.side(), "2");
    assert_eq!(client.drain(NAME, "3", None).await.unwrap_err().code(), Some(ErrorCode::UnknownSide));
}
