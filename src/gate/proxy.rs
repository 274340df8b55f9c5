//! One request's way through the gate, as pingora calls for it.
//!
//! 1. `request_filter`: find the route, and get in: a [`Ticket`] of the live side, after waiting if the route is paused.
//! 2. `upstream_peer`: say where that side listens. If connecting fails, nothing was sent, so the request gets in again, with whatever is live by
//!    then, until the route's time for that is over.
//! 3. `upstream_request_filter`: tell the app about the client.
//! 4. `upstream_response_filter`: count the answer; an upgrade counts as a WebSocket from then on.
//! 5. `fail_to_proxy`: a page for whatever went wrong.
//!
//! The ticket is dropped when the answer has been sent, and not before. A request whose sending has begun is repeated only where HTTP allows it
//! (idempotent, on a connection that the app had closed), so no POST reaches an app twice. Idle connections to the app are closed after
//! [`POOLED`], before any server closes them by itself, so none breaks under a request.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use hyper::http::{HeaderValue, Version, header};
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_core::{
    modules::http::HttpModules,
    protocols::Digest,
    upstreams::peer::{ALPN, H1UpgradePolicy, HttpPeer, Peer},
};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use tokio::time;

use super::{
    counters::add_one,
    forward,
    front::Floor,
    hold::{Place, Verdict},
    pages::{self, Trouble},
    side::Ticket,
    stream::{ClientStream, REST},
    table::{Route, Table},
    traffic::Entry,
    upgrade,
    wire::{Limits, Protocol},
};

/// How long a connection to the app is kept for the next request. Shorter than any server's own time (gunicorn: 2 s, uvicorn and Node: 5 s).
const POOLED: Duration = Duration::from_secs(1);

/// One try to connect.
pub(super) const CONNECT: Duration = Duration::from_secs(3);

/// A body of at most this size is there at once.
const SMALL_BODY: u64 = 64 * 1024;

/// How long an app may be silent to a request with a larger one, at least; pingora's clock runs while the body arrives.
const UPLOAD: Duration = Duration::from_secs(3600);

/// The bit of a connection's group that keeps upgraded ones apart.
const APART: u64 = 1 << 63;

/// Pauses between tries to connect: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How often a waiting request's client is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What a waiting request takes besides its head: buffers and tasks.
const WAITING_BYTES: u64 = 8 * 1024;

/// States of a TCP connection in which the other end still listens (`include/net/tcp_states.h`).
const ESTABLISHED: u8 = 1;

/// The proxy's part of one public socket.
#[derive(Debug)]
pub(super) struct Handler {
    table: Arc<Table>,
    floor: Arc<Floor>,
}

/// What is known of one request.
#[derive(Debug)]
pub(super) struct Passage {
    route: Option<Arc<Route>>,
    ticket: Option<Ticket>,
    /// Why the gate answers by itself.
    trouble: Option<Trouble>,
    /// Since when connecting fails, and how often it did.
    failing: Option<(Instant, u32)>,
    sent: Option<Instant>,
    counted: bool,
    body: u64,
}

impl Handler {
    pub(super) fn new(table: Arc<Table>, floor: Arc<Floor>) -> Self {
        Self { table, floor }
    }

    /// Finds the route and checks what can be checked by the head.
    fn route(&self, session: &Session) -> std::result::Result<Arc<Route>, Trouble> {
        let request = session.req_header();
        let host = forward::host(request);
        let host = host.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("");
        let Some(route) = self.table.find(host, request.raw_path()) else {
            add_one(&self.floor.unmatched);
            return Err(Trouble::NoRoute);
        };
        let length = request.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let most = route.limits.max_body;
        if most > 0 && length.is_some_and(|length| length > most) {
            return Err(Trouble::TooLarge);
        }
        Ok(route)
    }

    /// Gets a ticket, after waiting where it must.
    async fn enter(&self, route: &Route, session: &mut Session) -> std::result::Result<Ticket, Trouble> {
        loop {
            let bytes = || WAITING_BYTES + head_bytes(session.req_header());
            match route.traffic.enter(bytes) {
                Entry::Go(ticket) => return Ok(ticket),
                Entry::Wait(place) => wait(place, session).await?,
                Entry::Maintenance(page) => {
                    route.traffic.turn_away();
                    return Err(Trouble::Maintenance(page));
                }
                Entry::Empty => {
                    route.traffic.turn_away();
                    return Err(Trouble::Empty);
                }
            }
        }
    }
}

/// Waits for the end of a pause, as long as the client does.
async fn wait(place: Place, session: &mut Session) -> std::result::Result<(), Trouble> {
    let mut turn = std::pin::pin!(place.turn());
    loop {
        match time::timeout(LOOK, turn.as_mut()).await {
            Ok(Verdict::Refused) => return Err(Trouble::Overdue),
            Ok(Verdict::Go) if client_left(session) => return Err(Trouble::ClientLeft),
            Ok(Verdict::Go) => return Ok(()),
            Err(_) if client_left(session) => return Err(Trouble::ClientLeft),
            Err(_) => {}
        }
    }
}

/// Whether the client has closed the connection. Nothing is read from it, so only the kernel knows.
fn client_left(session: &Session) -> bool {
    let socket = session.digest().and_then(|digest| digest.socket_digest.as_ref());
    socket.and_then(|socket| socket.tcp_info()).is_some_and(|info| info.tcpi_state != ESTABLISHED)
}

fn head_bytes(request: &RequestHeader) -> u64 {
    let fields: usize = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    (fields + request.raw_path().len()) as u64
}

fn client_ip(session: &Session) -> Option<IpAddr> {
    session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip())
}

/// Asks for another protocol than HTTP.
fn wants_upgrade(request: &RequestHeader) -> bool {
    request.version == Version::HTTP_11 && request.headers.contains_key(header::UPGRADE)
}

fn silence(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}

/// Limits on the client from here on. An upgraded connection may be silent as long as its ends like.
fn limit_client(session: &mut Session, limits: &Limits) {
    let patience = if wants_upgrade(session.req_header()) { None } else { silence(limits.client_silence_ms) };
    session.set_read_timeout(patience);
    session.set_write_timeout(patience);
}

/// Whether the request has a body that may take long to arrive. The app is silent all that time, and rightly so.
fn uploads(request: &RequestHeader) -> bool {
    let length = request.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    match length {
        Some(length) => length > SMALL_BODY,
        // Over HTTP/2 a body needs neither; those without one are small anyway.
        None => request.headers.contains_key(header::TRANSFER_ENCODING) || request.version == Version::HTTP_2,
    }
}

fn peer(route: &Route, ticket: &Ticket, request: &RequestHeader) -> HttpPeer {
    let side = ticket.side();
    let mut peer = HttpPeer::new(side.upstream, false, String::new());
    peer.group_key = side.key;
    let upgrade = wants_upgrade(request);
    let options = &mut peer.options;
    options.connection_timeout = Some(CONNECT);
    options.idle_timeout = Some(POOLED);
    let patience = if upgrade { None } else { silence(route.limits.app_silence_ms) };
    options.write_timeout = patience;
    options.read_timeout = if uploads(request) { patience.map(|p| p.max(UPLOAD)) } else { patience };
    if upgrade && route.protocol == Protocol::Http1 {
        options.custom_l4 = Some(upgrade::Connector::shared());
        // Apart from other requests' connections, of which none may be used for this.
        peer.group_key = side.key | APART;
    }
    let options = &mut peer.options;
    match route.protocol {
        Protocol::H2c => {
            options.alpn = ALPN::H2;
            options.max_h2_streams = 100;
        }
        Protocol::Http1 if upgrade && is_other_upgrade(request) => {
            // Its handshake may need any of the fields that belong to the connection.
            options.http_upstream_request_policy.h1_upgrade = H1UpgradePolicy::Preserve;
        }
        Protocol::Http1 => {}
    }
    peer
}

/// Neither a WebSocket, which pingora forwards in its normal form, nor HTTP/2, which would be another protocol than the gate speaks with the app.
fn is_other_upgrade(request: &RequestHeader) -> bool {
    let asked = request.headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let of = |protocol: &str| asked.split(',').any(|one| one.trim().to_ascii_lowercase().starts_with(protocol));
    !of("websocket") && !of("h2") && !of("http")
}

#[async_trait]
impl ProxyHttp for Handler {
    type CTX = Passage;

    fn new_ctx(&self) -> Passage {
        Passage { route: None, ticket: None, trouble: None, failing: None, sent: None, counted: false, body: 0 }
    }

    /// None: the gate passes on what the app sends.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, ctx: &mut Passage) -> Result<bool> {
        if let Some(client) = session.stream().and_then(ClientStream::of) {
            client.head_is_whole();
        }
        if session.get_keepalive().is_some() {
            let rest = if self.floor.is_leaving() { None } else { Some(REST.as_secs()) };
            session.set_keepalive(rest);
        }
        let entered = async {
            let route = self.route(session)?;
            limit_client(session, &route.limits);
            ctx.route = Some(route.clone());
            self.enter(&route, session).await
        };
        match entered.await {
            Ok(ticket) => {
                ctx.ticket = Some(ticket);
                Ok(false)
            }
            Err(trouble) => Err(ctx.stop(trouble)),
        }
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        _: bool,
        ctx: &mut Passage,
    ) -> Result<()> {
        let most = ctx.route.as_ref().map_or(0, |route| route.limits.max_body);
        ctx.body += body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if most > 0 && ctx.body > most {
            return Err(ctx.stop(Trouble::TooLarge));
        }
        Ok(())
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Passage) -> Result<Box<HttpPeer>> {
        let Some(route) = ctx.route.clone() else { return Err(ctx.stop(Trouble::NoRoute)) };
        if let Some((_, tries)) = ctx.failing {
            ctx.ticket = None;
            time::sleep(FIRST_PAUSE.saturating_mul(1 << tries.min(10)).min(LONGEST_PAUSE)).await;
            if client_left(session) {
                return Err(ctx.stop(Trouble::ClientLeft));
            }
            match self.enter(&route, session).await {
                Ok(ticket) => ctx.ticket = Some(ticket),
                Err(trouble) => return Err(ctx.stop(trouble)),
            }
        }
        let Some(ticket) = &ctx.ticket else { return Err(ctx.stop(Trouble::Empty)) };
        ctx.body = 0;
        Ok(Box::new(peer(&route, ticket, session.req_header())))
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        peer: &HttpPeer,
        ctx: &mut Passage,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let (since, tries) = ctx.failing.unwrap_or_else(|| (Instant::now(), 0));
        ctx.failing = Some((since, tries.saturating_add(1)));
        if let Some(ticket) = &ctx.ticket {
            ticket.side().saw(false);
            add_one(&ticket.side().counters.retries);
        }
        let patience = ctx.route.as_ref().map_or(0, |route| route.limits.connect_ms);
        let again = since.elapsed() < Duration::from_millis(patience);
        error.set_retry(again);
        if !again {
            tracing::debug!("{} does not accept connections: {error}", peer.address());
            ctx.trouble = Some(Trouble::Unreachable);
        }
        error
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        _reused: bool,
        _: &HttpPeer,
        _: std::os::fd::RawFd,
        _: Option<&Digest>,
        ctx: &mut Passage,
    ) -> Result<()> {
        ctx.failing = None;
        ctx.sent = Some(Instant::now());
        if let Some(ticket) = &ctx.ticket {
            ticket.side().saw(true);
            if !ctx.counted {
                add_one(&ticket.side().counters.requests);
                ctx.counted = true;
            }
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Passage,
    ) -> Result<()> {
        let host = forward::host(session.req_header());
        forward::set(request, client_ip(session), host.as_ref(), &self.floor.trusted);
        if ctx.route.as_ref().is_some_and(|route| route.protocol == Protocol::H2c) && wants_trailers(session) {
            // The one `TE` that HTTP/2 has, and gRPC servers insist on it.
            request.insert_header(header::TE, "trailers")?;
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        ctx: &mut Passage,
    ) -> Result<()> {
        if let Some(ticket) = &mut ctx.ticket {
            let status = answer.status.as_u16();
            let upgraded = status == 101;
            if upgraded {
                ticket.upgraded();
            }
            if upgraded || !answer.status.is_informational() {
                let counters = &ticket.side().counters;
                if let Some(sent) = ctx.sent {
                    counters.latency.record(sent.elapsed());
                }
                if status >= 500 {
                    add_one(&counters.errors);
                }
            }
        }
        if self.floor.is_leaving() {
            session.set_keepalive(None);
        }
        // They speak of the connection to the app.
        answer.remove_header("keep-alive");
        answer.remove_header("proxy-connection");
        Ok(())
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Passage) -> FailToProxy {
        let trouble = match ctx.trouble.take() {
            Some(trouble) => trouble,
            None => Trouble::of(error),
        };
        if let Some(ticket) = &ctx.ticket {
            match &trouble {
                Trouble::ClientLeft | Trouble::BadRequest | Trouble::SlowClient => {
                    add_one(&ticket.side().counters.abandoned);
                }
                Trouble::Unreachable | Trouble::BrokenOff | Trouble::Silent => {
                    add_one(&ticket.side().counters.failed);
                }
                _ => {}
            }
        }
        self.log(session, &trouble, error, ctx);
        let reusable = session.is_body_empty();
        let begun = session.response_written().is_some_and(|head| !head.status.is_informational());
        let code = trouble.status();
        if begun || code == 0 {
            return FailToProxy { error_code: code, can_reuse_downstream: false };
        }
        if !reusable || self.floor.is_leaving() {
            session.set_keepalive(None);
        }
        let sent = pages::send(session, &trouble).await;
        FailToProxy { error_code: code, can_reuse_downstream: reusable && sent.is_ok() }
    }

    /// The request is over.
    async fn logging(&self, _: &mut Session, _: Option<&Error>, ctx: &mut Passage) {
        ctx.ticket = None;
    }

    /// The gate has its own words for it.
    fn suppress_error_log(&self, _: &Session, _: &Passage, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Passage,
        _: &Error,
        _: pingora_proxy::ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

fn wants_trailers(session: &Session) -> bool {
    let values = session.req_header().headers.get_all(header::TE);
    values.iter().any(|value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"trailers"))
}

impl Handler {
    fn log(&self, session: &Session, trouble: &Trouble, error: &Error, ctx: &Passage) {
        let Some(route) = &ctx.route else { return };
        let what = || {
            let request = session.req_header();
            let path = request.uri.path();
            format!("{}: {} {path} failed: {trouble}", route.name, request.method)
        };
        match trouble {
            Trouble::Unreachable | Trouble::BrokenOff | Trouble::Silent | Trouble::Bug => {
                self.floor.throttle.warn(|| format!("{} ({error})", what()));
            }
            _ => tracing::debug!("{}", what()),
        }
    }
}

impl Passage {
    /// Ends the request; the page for it is made in `fail_to_proxy`.
    fn stop(&mut self, trouble: Trouble) -> Box<Error> {
        let status = trouble.status();
        self.trouble = Some(trouble);
        Error::new(ErrorType::HTTPStatus(status))
    }
}

impl Trouble {
    /// What pingora met with.
    fn of(error: &Error) -> Self {
        use ErrorType::{
            ConnectionClosed, HTTPStatus, InvalidHTTPHeader, ReadError, ReadTimedout, WriteError, WriteTimedout,
        };
        match (error.esource(), error.etype()) {
            (ErrorSource::Upstream, ReadTimedout | WriteTimedout) => Self::Silent,
            (ErrorSource::Upstream, _) => Self::BrokenOff,
            (ErrorSource::Downstream, ReadTimedout | WriteTimedout) => Self::SlowClient,
            (ErrorSource::Downstream, ReadError | WriteError | ConnectionClosed) => Self::ClientLeft,
            (ErrorSource::Downstream, _) | (_, InvalidHTTPHeader | HTTPStatus(400)) => Self::BadRequest,
            _ => Self::Bug,
        }
    }
}
