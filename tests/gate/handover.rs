//! Gates that die, and gates that are replaced.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use refit::gate::wire::{HoldBounds, MaintenanceRequest, RouteState};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use crate::{
    backend::{Backend, Seen},
    support::{Connection, Gates, eventually, get, post},
};

const NAME: &str = "shop/production";

async fn two() -> (Gates, Backend, Backend, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let (gates, one, two) =
        tokio::join!(Gates::start_with(&["--linger", "20s"]), Backend::start("1", &seen), Backend::start("2", &seen));
    gates.route(one.side()).await;
    (gates, one, two, seen)
}

#[tokio::test]
async fn a_gate_that_was_killed_serves_what_was_live_without_being_told() {
    let (mut gates, _one, two, _) = two().await;
    gates.switch(two.side()).await;
    let mut empty = gates.spec(None);
    (empty.name, empty.host) = ("shop/closed".into(), Some("closed.example".into()));
    gates.client().route(empty).await.unwrap();
    let page = MaintenanceRequest { name: "shop/closed".into(), on: true, message: None, retry_after: 1 };
    gates.client().maintenance(page).await.unwrap();
    let before = gates.client().status(None).await.unwrap();
    for _ in 0..3 {
        gates.kill();
        assert!(gates.client().status(None).await.unwrap_err().is_absent());
        gates.spawn(&[]).await;
        assert_eq!(gates.get("/").await.side(), "2");
    }
    let after = gates.client().status(None).await.unwrap();
    assert_eq!(after.routes.len(), 2);
    assert_eq!(after.routes[0].state, RouteState::Maintenance);
    assert_eq!(after.routes[1].live.as_ref().unwrap().since, before.routes[1].live.as_ref().unwrap().since);
    assert_eq!(after.routes[1].live.as_ref().unwrap().reachable, Some(true));
}

#[tokio::test]
async fn a_pause_outlives_the_gate_and_still_ends() {
    let (mut gates, ..) = two().await;
    gates.client().pause(NAME, HoldBounds { at_most_ms: 1_500, ..HoldBounds::default() }).await.unwrap();
    gates.kill();
    gates.spawn(&[]).await;
    assert_eq!(gates.get("/").await.status, 200);
    assert_eq!(gates.client().status(None).await.unwrap().routes[0].held.total, 1, "it waited");
}

#[tokio::test]
async fn a_second_gate_is_refused_unless_it_takes_over() {
    let (gates, ..) = two().await;
    let output = gates.command(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(75));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("another gate serves") && told.contains("refit gate --take-over"), "{told}");
    assert_eq!(gates.get("/").await.side(), "1");
}

#[tokio::test]
async fn connections_stay_with_the_old_gate_and_follow_the_new_one() {
    let (mut gates, _one, two, _) = two().await;
    let mut kept = Connection::open(gates.public).await.unwrap();
    assert_eq!(kept.send(get("/")).await.unwrap().side(), "1");
    let mut slow = Connection::open(gates.public).await.unwrap();
    let slow = tokio::spawn(async move { slow.send(get("/slow/40")).await });
    let client = gates.client();
    let in_flight = async || {
        let status = client.status(None).await.unwrap();
        status.routes[0].side("1").unwrap().in_flight.requests
    };
    eventually("the slow one is in flight", async || in_flight().await == 1).await;

    gates.spawn(&["--take-over"]).await;
    eventually("the new gate knows what the old one does", async || in_flight().await == 1).await;
    assert_eq!(client.status(None).await.unwrap().predecessors.len(), 1);
    let switched = gates.switch(two.side()).await;
    assert_eq!(switched.in_flight.requests, 1, "of the old gate");

    let reply = kept.send(get("/")).await.unwrap();
    assert_eq!((reply.side(), reply.header("connection")), ("2", "close"), "the old gate follows");
    assert!(!kept.is_open().await);
    assert_eq!(gates.get("/").await.side(), "2");
    assert!(client.drain(NAME, "1", None).await.unwrap().is_empty());
    assert_eq!(slow.await.unwrap().unwrap().text(), "1\n".repeat(40));
    eventually("the old gate has ended", async || gates.has_ended(0)).await;
    eventually("and is forgotten", async || client.status(None).await.unwrap().predecessors.is_empty()).await;
}

#[tokio::test]
async fn a_websocket_outlives_two_handovers_and_its_pauses_reach_it() {
    let (mut gates, one, _two, seen) = two().await;
    let request = format!("ws://{}/ws", gates.public).into_client_request().unwrap();
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    let mut kept = Connection::open(gates.public).await.unwrap();
    kept.send(get("/")).await.unwrap();
    gates.spawn(&["--take-over"]).await;
    gates.spawn(&["--take-over"]).await;
    let client = gates.client();
    eventually("the last gate knows of it", async || {
        client.status(None).await.unwrap().routes[0].live.as_ref().unwrap().in_flight.websockets == 1
    })
    .await;
    socket.send(Message::text("still there?")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap().as_str(), "still there?");

    // A request on a connection of the first gate waits in a pause that the third one was told of.
    client.pause(NAME, HoldBounds::default()).await.unwrap();
    let waiting = tokio::spawn(async move { kept.send(post("/post", "a", Bytes::from_static(b"x"))).await });
    let early = tokio::time::timeout(std::time::Duration::from_millis(200), async {
        while seen.posts.lock().unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    assert!(early.await.is_err(), "it did not wait");
    client.resume(NAME).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().side(), one.id);
    drop(socket);
    eventually("both have ended", async || gates.has_ended(0) && gates.has_ended(1)).await;
}

#[tokio::test]
async fn a_gate_that_is_told_to_end_finishes_its_requests() {
    let (mut gates, ..) = two().await;
    let mut idle = Connection::open(gates.public).await.unwrap();
    idle.send(get("/")).await.unwrap();
    let mut slow = Connection::open(gates.public).await.unwrap();
    let mut body = slow.begin(get("/slow/20")).await.unwrap().into_body();
    assert_eq!(gates.terminate().await, Some(0));
    let mut pieces = 0;
    while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
        pieces += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(pieces, 40, "two bytes each");
    assert!(Connection::open(gates.public).await.is_err());
}
