//! Clients that are slow, many, or hostile.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};

use crate::{
    backend::{Backend, Seen},
    support::{Gates, PATIENCE, eventually},
};

/// What comes until the server closes.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let read = time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("closed in time");
    // A reset is a way of closing as well.
    let _ = read;
    all
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off_by_size_and_by_time() {
    let seen = Arc::new(Seen::default());
    let (gates, backend) = tokio::join!(Gates::start(), Backend::start("1", &seen));
    gates.route(backend.side()).await;

    let mut large = TcpStream::connect(gates.public).await.unwrap();
    large.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
    let line = format!("x: {}\r\n", "y".repeat(1000));
    let mut sent = 0;
    // The kernel takes some megabytes before anybody reads them.
    while sent < 64 << 20 && large.write_all(line.as_bytes()).await.is_ok() {
        sent += line.len();
    }
    rest(&mut large).await;
    assert!(sent < 64 << 20, "64 megabytes of head were taken");

    // A byte now and then keeps no connection open.
    let mut slow = TcpStream::connect(gates.public).await.unwrap();
    let mut silent = TcpStream::connect(gates.public).await.unwrap();
    let began = Instant::now();
    let dripping = async {
        while slow.write_all(b"G").await.is_ok() && began.elapsed() < Duration::from_secs(60) {
            time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(dripping, rest(&mut silent));
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(gates.get("/").await.status, 200, "others are served");
}

#[tokio::test]
async fn connections_are_bounded_and_those_beyond_are_closed_at_once() {
    let seen = Arc::new(Seen::default());
    let (gates, backend) = tokio::join!(Gates::start_with(&["--max-connections", "20"]), Backend::start("1", &seen));
    gates.route(backend.side()).await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(TcpStream::connect(gates.public).await.unwrap());
    }
    let client = gates.client();
    eventually("all are taken", async || client.status(None).await.unwrap().connections == 20).await;
    let mut one_more = TcpStream::connect(gates.public).await.unwrap();
    assert!(rest(&mut one_more).await.is_empty());
    assert_eq!(client.status(None).await.unwrap().refused, 1);
    drop(idle.pop());
    eventually("one is free", async || client.status(None).await.unwrap().connections == 19).await;
    assert_eq!(gates.get("/").await.status, 200);
}

#[tokio::test]
async fn silence_of_the_app_and_of_the_client_is_bounded() {
    let seen = Arc::new(Seen::default());
    let (gates, backend) = tokio::join!(Gates::start(), Backend::start("1", &seen));
    let mut spec = gates.spec(Some(backend.side()));
    (spec.limits.app_silence_ms, spec.limits.client_silence_ms) = (1_500, 300);
    gates.client().route(spec).await.unwrap();
    assert_eq!(gates.get("/silent").await.status, 504);
    assert_eq!(gates.get("/slow/40").await.status, 200, "slow is not silent");

    let mut stream = TcpStream::connect(gates.public).await.unwrap();
    let head = "POST /post HTTP/1.1\r\nHost: a\r\nName: half\r\nContent-Length: 100\r\n\r\nhalf";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with(b"HTTP/1.1 408"), "{:?}", String::from_utf8_lossy(&answer));
}
