//! Threat 18: peers that take, hold or send too much. The clocks are short here; nothing is asserted about time but that it ends.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::fixture::*;
use crate::server::Limits;

const SHORT: Duration = Duration::from_millis(300);

fn short() -> Limits {
    Limits { header: SHORT, body: SHORT, drain: SHORT, ..limits() }
}

/// Reads until the peer closes or resets.
async fn closed(stream: &mut TcpStream) {
    let mut waste = [0; 1024];
    while stream.read(&mut waste).await.is_ok_and(|n| n > 0) {}
}

/// With clocks this short a machine that is busy may cut off anybody, who then tries again.
async fn an_honest_peer_is_served(server: &Running) {
    eventually("an honest peer is served", || async {
        let stream = server.connect().await;
        try_send(stream, request(hyper::Method::GET, "/_deploy/health")).await.is_ok_and(|r| r.status() == 200)
    })
    .await;
}

#[tokio::test]
async fn idle_connections_are_bounded_and_others_are_served() {
    let server = Running::start_with(two_apps(), Limits { max_connections: 100, ..short() }, |_, _| {}).await;
    let mut idle = Vec::new();
    for _ in 0..500 {
        idle.push(server.connect().await);
    }
    // A connection that finds no slot is closed unanswered, so an honest peer tries again.
    an_honest_peer_is_served(&server).await;
    for stream in &mut idle {
        closed(stream).await;
    }
}

#[tokio::test]
async fn headers_and_bodies_a_byte_at_a_time_are_cut_off() {
    let server = Running::start_with(two_apps(), short(), |_, _| {}).await;
    let starts: [&[u8]; 3] = [
        b"",
        b"POST /hooks/github HTTP/1.1\r\nHost: x\r\nX-A: ",
        b"POST /hooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{",
    ];
    let drips = starts.map(|start| async {
        let mut stream = server.connect().await;
        stream.write_all(start).await.unwrap();
        // Goes on until the server has had enough.
        while stream.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    tokio::time::timeout(Duration::from_secs(60), futures_util::future::join_all(drips)).await.unwrap();
    an_honest_peer_is_served(&server).await;
}

#[tokio::test]
async fn a_slow_body_is_told_why() {
    let server = Running::start_with(two_apps(), short(), |_, _| {}).await;
    let head = b"POST /hooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nConnection: close\r\n\r\n{";
    let answer = raw(server.connect().await, head).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_with_and_without_a_length() {
    let server = Running::start_with(two_apps(), limits(), |config, _| config.server.max_body = 100_000).await;
    let head = "POST /hooks/github HTTP/1.1\r\nHost: x\r\n";
    let declared = format!("{head}Content-Length: 26000000\r\n\r\n").into_bytes();
    let sent = [declared.clone(), vec![b'x'; 26_000_000]].concat();
    let chunk = [b"8000\r\n", vec![b'x'; 0x8000].as_slice(), b"\r\n"].concat();
    let chunked = [format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes(), chunk.repeat(200)].concat();
    for request in [declared, sent, chunked] {
        let answer = raw(server.connect().await, &request).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("\"error\""), "{answer}");
    }
    let fits =
        Hook::new(SECRET, format!("{}{}", payload("acme/guestbook", "refs/heads/main", COMMIT), " ".repeat(90_000)));
    assert_eq!(server.send(fits.request()).await.0, 202);
    assert_eq!(server.rows().await.len(), 1);
}

#[tokio::test]
async fn large_and_chunked_bodies_within_the_limit_are_fine() {
    let server = Running::start(two_apps()).await;
    let body = format!("{}{}", payload("acme/guestbook", "refs/heads/main", COMMIT), " ".repeat(5_000_000));
    let large = Hook::new(SECRET, &body);
    assert_eq!(server.send(large.clone().delivery("large").request()).await.0, 202);
    let head = format!(
        "POST /hooks/github HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json; charset=utf-8\r\n\
         X-GitHub-Event: push\r\nX-GitHub-Delivery: chunked\r\nX-Hub-Signature-256: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        large.signature.unwrap()
    );
    let mut request = head.into_bytes();
    for chunk in body.as_bytes().chunks(10_007) {
        request.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    let answer = raw(server.connect().await, &request).await;
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    assert_eq!(server.rows().await.len(), 2);
}

#[tokio::test]
async fn a_peer_that_never_reads_its_answers_is_dropped() {
    let server = Running::start_with(two_apps(), Limits { write: SHORT, ..limits() }, |_, _| {}).await;
    let mut stream = server.connect().await;
    let requests = b"GET /_deploy/status HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    let flood = async { while stream.write_all(&requests).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(60), flood).await.expect("the server gives up on it");
    assert_eq!(server.get("/_deploy/health").await.0, 200);
}

#[tokio::test]
async fn stopping_does_not_wait_for_those_who_dawdle() {
    let server = Running::start_with(two_apps(), Limits { drain: SHORT, ..limits() }, |_, _| {}).await;
    let mut idle = server.connect().await;
    let mut half = server.connect().await;
    half.write_all(b"POST /hooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{").await.unwrap();
    // Answered, so both connections before it have been accepted.
    assert_eq!(server.get("/_deploy/health").await.0, 200);
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(60), server.ended).await.unwrap().unwrap();
    closed(&mut idle).await;
    closed(&mut half).await;
    assert!(TcpStream::connect(server.address).await.is_err(), "the port is free");
}
