//! What goes through: methods, bodies, headers, protocols; and what the app is told of its client.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use refit::gate::wire::{ErrorCode, Protocol, RouteSpec};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use crate::{
    backend::{Backend, Seen},
    support::{Body, Connection, Gates, eventually, get, post},
};

async fn one() -> (Gates, Backend, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let (gates, backend) = tokio::join!(Gates::start(), Backend::start("1", &seen));
    gates.route(backend.side()).await;
    (gates, backend, seen)
}

#[tokio::test]
async fn requests_and_answers_pass_whole() {
    let (gates, _backend, _) = one().await;
    let mut connection = Connection::open(gates.public).await.unwrap();
    let reply = connection.send(get("/things?q=%20")).await.unwrap();
    assert_eq!((reply.status, reply.side(), reply.text()), (200, "1", "GET /things"));
    assert_eq!(reply.header("keep-alive"), "", "it speaks of the app's own connection");
    let body = Bytes::from((0..3_000_000_u32).map(|i| i.to_le_bytes()[0]).collect::<Vec<u8>>());
    let sum = body.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let reply = connection.send(post("/post", "a", body)).await.unwrap();
    assert_eq!(reply.text(), format!("3000000 {sum}"));
    let head = Request::head("/things").header("host", "x").body(Body::default()).unwrap();
    let reply = connection.send(head).await.unwrap();
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    assert_eq!(connection.send(get("/status/503")).await.unwrap().status, 503);
    let status = gates.client().status(None).await.unwrap();
    let counters = &status.routes[0].live.as_ref().unwrap().counters;
    assert_eq!((counters.requests, counters.errors, counters.failed), (4, 1, 0));
    assert_eq!((counters.latency.count, status.connections), (4, 1));
}

#[tokio::test]
async fn the_app_is_told_about_the_client_and_strangers_are_not_believed() {
    let seen = Arc::new(Seen::default());
    let (gates, backend) = tokio::join!(Gates::start(), Backend::start("1", &seen));
    gates.route(backend.side()).await;
    let lying = || {
        let request = Request::get("/headers").header("host", "shop.example").header("x-forwarded-for", "10.1.1.1");
        let request = request.header("x-forwarded-proto", "https").header("connection", "keep-alive, x-secret");
        let request = request.header("x-secret", "1").header("te", "gzip").header("proxy-authorization", "x");
        request.body(Body::default()).unwrap()
    };
    // This machine's proxies are believed.
    let mut connection = Connection::open(gates.public).await.unwrap();
    let told = connection.send(lying()).await.unwrap();
    let told = told.text().to_owned();
    let expected = "HTTP/1.1\nhost: shop.example\nx-forwarded-for: 10.1.1.1, 127.0.0.1\nx-forwarded-host: shop.example\nx-forwarded-proto: https";
    assert_eq!(told, expected);
}

#[tokio::test]
async fn host_and_prefix_choose_the_route_and_nothing_else_is_served() {
    let (gates, _backend, seen) = one().await;
    let api = Backend::start("api", &seen).await;
    let other = Backend::start("other", &seen).await;
    let client = gates.client();
    let spec = |name: &str, side| RouteSpec::new(name, gates.public, Some(side));
    client.route(RouteSpec { prefix: "/api".into(), ..spec("shop/api", api.side()) }).await.unwrap();
    let hosted = RouteSpec { host: Some("other.example".into()), ..spec("other/production", other.side()) };
    client.route(hosted).await.unwrap();
    assert_eq!(gates.get("/").await.side(), "1");
    assert_eq!(gates.get("/api/x").await.side(), "api");
    assert_eq!(gates.get("/apix").await.side(), "1");
    let request = Request::get("/api").header("host", "OTHER.example:80").body(Body::default()).unwrap();
    let reply = Connection::open(gates.public).await.unwrap().send(request).await.unwrap();
    assert_eq!(reply.side(), "other");

    let twin = spec("shop/twin", api.side());
    assert_eq!(client.route(twin).await.unwrap_err().code(), Some(ErrorCode::Conflict));
    client.remove("shop/production").await.unwrap();
    let reply = gates.get("/").await;
    assert_eq!((reply.status, reply.text()), (404, "404 nothing is served here\n"));
    client.remove("shop/api").await.unwrap();
    client.remove("other/production").await.unwrap();
    eventually("the socket is closed", async || TcpStream::connect(gates.public).await.is_err()).await;
    gates.route(api.side()).await;
    assert_eq!(gates.get("/").await.side(), "api", "and can be opened again");
}

#[tokio::test]
async fn websockets_pass_and_count_apart() {
    let (gates, _backend, _) = one().await;
    let request = format!("ws://{}/ws", gates.public).into_client_request().unwrap();
    let (mut socket, response) = tokio_tungstenite::connect_async(request).await.unwrap();
    assert_eq!(response.headers()["side"], "1");
    for text in ["one", "two", &"x".repeat(200_000)] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap().as_str(), text);
    }
    let client = gates.client();
    let in_flight = client.status(None).await.unwrap().routes[0].live.as_ref().unwrap().in_flight;
    assert_eq!((in_flight.requests, in_flight.websockets), (0, 1));
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    eventually("nothing is in flight", async || {
        client.status(None).await.unwrap().routes[0].live.as_ref().unwrap().in_flight.is_empty()
    })
    .await;
}

#[tokio::test]
async fn http2_without_tls_passes_on_both_sides() {
    let (gates, backend, _) = one().await;
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let spec = RouteSpec { protocol, ..gates.spec(Some(backend.side())) };
        gates.client().route(spec).await.unwrap();
        let stream = TcpStream::connect(gates.public).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let uri = format!("http://shop.example:{}/headers", gates.public.port());
        let requests = (0..20).map(|_| {
            let request = Request::get(&uri).header("te", "trailers").body(Body::default()).unwrap();
            sender.send_request(request)
        });
        let expected = if protocol == Protocol::H2c { "HTTP/2.0" } else { "HTTP/1.1" };
        for response in futures_util::future::join_all(requests).await {
            let body = response.unwrap().into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(text.starts_with(expected), "{text}");
            assert!(text.contains("x-forwarded-host: shop.example"), "{text}");
            assert_eq!(text.contains("te: trailers"), protocol == Protocol::H2c, "{text}");
        }
    }
}

#[tokio::test]
async fn short_and_odd_requests_are_understood() {
    let (gates, _backend, _) = one().await;
    for (sent, expected) in [
        ("GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 200"),
        ("PRI * HTTP/1.0\r\n\r\n", "HTTP/1.1 "),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "HTTP/1.1 400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", "HTTP/1.1 400"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "HTTP/1.1 405"),
        ("nonsense\r\n\r\n", "HTTP/1.1 400"),
    ] {
        let mut stream = TcpStream::connect(gates.public).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap_or_else(|e| panic!("{sent:?}: {e}"));
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(expected), "{sent:?}: {answer}");
    }
}

#[tokio::test]
async fn a_large_answer_streams_and_a_slow_reader_holds_it_back() {
    let (gates, _backend, _) = one().await;
    let mut connection = Connection::open(gates.public).await.unwrap();
    let mut body = connection.begin(get("/large/300")).await.unwrap().into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame.unwrap().into_data().unwrap().len();
        if read == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert_eq!(read, 300 << 20);
    let pid = gates.client().status(None).await.unwrap().pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kb: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kb < 150_000, "the gate kept {peak_kb} kB of a body of 300 MB");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_never_completes_at_the_app() {
    let (gates, backend, seen) = one().await;
    let mut spec = gates.spec(Some(backend.side()));
    spec.limits.max_body = 1000;
    gates.client().route(spec).await.unwrap();
    let mut connection = Connection::open(gates.public).await.unwrap();
    let reply = connection.send(post("/post", "small", Bytes::from_static(&[0; 1000]))).await.unwrap();
    assert_eq!(reply.status, 200);
    let reply = connection.send(post("/post", "large", Bytes::from_static(&[0; 1001]))).await.unwrap();
    assert_eq!(reply.status, 413);
    // Without a length nobody knows before.
    let mut stream = TcpStream::connect(gates.public).await.unwrap();
    let head = "POST /post HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let _ = stream.write_all(chunk.as_bytes()).await;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer:?}");
    assert!(!seen.posts.lock().unwrap().contains_key("large"));
}

#[tokio::test]
async fn a_client_that_leaves_is_passed_on_to_the_app() {
    let (gates, _backend, seen) = one().await;
    let mut connection = Connection::open(gates.public).await.unwrap();
    let request = connection.begin(get("/silent"));
    let given_up = tokio::time::timeout(Duration::from_millis(300), request).await;
    assert!(given_up.is_err());
    drop(connection);
    eventually("the app hears of it", async || seen.dropped.load(SeqCst) == 1).await;
    let client = gates.client();
    eventually("it is counted", async || {
        let live = client.status(None).await.unwrap().routes[0].live.clone().unwrap();
        live.in_flight.is_empty() && live.counters.abandoned == 1
    })
    .await;
}
