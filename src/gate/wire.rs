//! What goes over the gate's control socket: one line of JSON there, one line back.
//!
//! ```text
//! → {"v":1,"do":"switch","name":"shop/production","side":{"id":"43","upstream":"127.0.0.1:49160"}}
//! ← {"v":1,"ok":true,"previous":{"id":"42","upstream":"127.0.0.1:49152"},"live":{…},"moved_us":310,"kept":true,…}
//! ← {"v":1,"ok":false,"error":{"code":"unknown_route","message":"…","hint":"…"}}
//! ```
//!
//! The daemon and the gate may be of different releases, since the gate outlives the daemon. So fields are only ever added, each with a default;
//! unknown fields are skipped; and a change that an old gate would get wrong raises [`VERSION`]. Times are whole milliseconds (`…_ms`) or
//! microseconds (`…_us`).

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::build::Build;

/// The version of this protocol.
pub const VERSION: u32 = 1;

/// No request or answer line is longer. A status of a thousand routes has less than half of it.
pub const MAX_LINE: usize = 8 * 1024 * 1024;

/// One line to the gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub v: u32,
    #[serde(flatten)]
    pub verb: Verb,
}

/// What the gate is asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Verb {
    /// Make a route or change it. Answer: [`Routed`].
    Route(RouteSpec),
    /// Send new requests to another side. Answer: [`Switched`].
    Switch(SwitchRequest),
    /// Let new requests wait. Answer: [`Done`].
    Pause(PauseRequest),
    /// Let them go on. Answer: [`Resumed`].
    Resume(Named),
    /// Wait until a side has nothing in flight, or a bound is over. Answer: [`Drained`].
    Drain(DrainRequest),
    /// Answer everything with a page that says so, or stop doing that. Answer: [`Done`].
    Maintenance(MaintenanceRequest),
    /// Forget a route; its listening socket is closed if no other route uses it. Answer: [`Done`].
    Remove(Named),
    /// Answer: [`GateStatus`].
    Status(StatusRequest),
    /// From a newer gate: give me the sockets. What follows is no longer a line a request; see `handover`.
    Handover(HandoverRequest),
}

impl Verb {
    /// The verb as it is written.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Route(_) => "route",
            Self::Switch(_) => "switch",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Drain(_) => "drain",
            Self::Maintenance(_) => "maintenance",
            Self::Remove(_) => "remove",
            Self::Status(_) => "status",
            Self::Handover(_) => "handover",
        }
    }
}

/// One instance of the app: a container, a process. Its requests and its counters are told apart by `id`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Side {
    /// Chosen by the caller, for example the deployment's number. At most 100 letters, digits, `.`, `_`, `-`.
    pub id: String,
    /// Where it listens, as seen from the gate.
    pub upstream: SocketAddr,
}

/// How the gate speaks to the app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1, with WebSockets and other upgrades.
    #[default]
    Http1,
    /// HTTP/2 without TLS, by prior knowledge; what gRPC servers speak.
    H2c,
}

/// Where requests come in, and where they go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteSpec {
    /// `<app>/<environment>`. At most 200 letters, digits, `.`, `_`, `-`, `/`.
    pub name: String,
    /// The public address; several routes may share it. Port 0 is refused.
    pub listen: SocketAddr,
    /// Only requests for this host name (without a port, in any case); else for every one that no other route of this address names.
    #[serde(default)]
    pub host: Option<String>,
    /// Only paths below this one: `/api` has `/api` and `/api/x`, not `/apix`. The longest one wins. The app sees the whole path.
    #[serde(default = "root")]
    pub prefix: String,
    #[serde(default)]
    pub protocol: Protocol,
    /// The side that is live. None: whatever is live stays so. Another than what is live: a switch.
    #[serde(default)]
    pub side: Option<Side>,
    #[serde(default)]
    pub limits: Limits,
}

impl RouteSpec {
    /// All requests to `listen`, over HTTP/1.1, with the usual limits.
    pub fn new(name: impl Into<String>, listen: SocketAddr, side: Option<Side>) -> Self {
        Self {
            name: name.into(),
            listen,
            host: None,
            prefix: root(),
            protocol: Protocol::default(),
            side,
            limits: Limits::default(),
        }
    }
}

fn root() -> String {
    "/".to_owned()
}

/// What one route bears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// How long a request that was not sent yet is tried again while the app does not accept connections.
    pub connect_ms: u64,
    /// Silence of the app, before its answer or within it, after which the request fails with 504. 0: none.
    pub app_silence_ms: u64,
    /// Silence of the client within its body, or while it does not take the answer. 0: none.
    pub client_silence_ms: u64,
    /// The largest request body in bytes; more is answered with 413. 0: none.
    pub max_body: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect_ms: 5_000, app_silence_ms: 300_000, client_silence_ms: 60_000, max_body: 0 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwitchRequest {
    pub name: String,
    pub side: Side,
    /// Refuse ([`ErrorCode::NotAsExpected`]) if another side than this is live.
    #[serde(default)]
    pub expect: Option<String>,
    /// What a later [`Verb::Drain`] of the replaced side waits for, where it does not say itself.
    #[serde(default)]
    pub drain: DrainBounds,
}

/// How long the requests of a side that was replaced may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainBounds {
    pub requests_ms: u64,
    /// WebSockets and other upgraded connections, counted from the same moment.
    pub websockets_ms: u64,
}

impl Default for DrainBounds {
    fn default() -> Self {
        Self { requests_ms: 30_000, websockets_ms: 60_000 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PauseRequest {
    pub name: String,
    #[serde(flatten, default)]
    pub bounds: HoldBounds,
}

/// How much may wait. Beyond it the oldest are answered with 503 and `Retry-After`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HoldBounds {
    pub max_requests: u32,
    /// What the waiting requests keep in memory. A body stays with its client until it can be sent on, so a request counts little.
    pub max_bytes: u64,
    /// How long one request waits.
    pub max_wait_ms: u64,
    /// After this the gate resumes by itself, in case whoever paused it is gone.
    pub at_most_ms: u64,
}

impl Default for HoldBounds {
    fn default() -> Self {
        Self { max_requests: 1_000, max_bytes: 32 * 1024 * 1024, max_wait_ms: 30_000, at_most_ms: 120_000 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrainRequest {
    pub name: String,
    /// The side's id; any that [`RouteStatus`] shows, the live one too.
    pub side: String,
    /// None: those of the switch, counted from the switch.
    #[serde(default)]
    pub bounds: Option<DrainBounds>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceRequest {
    pub name: String,
    pub on: bool,
    /// A sentence for the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Seconds, for `Retry-After`.
    #[serde(default = "a_minute")]
    pub retry_after: u32,
}

fn a_minute() -> u32 {
    60
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRequest {
    /// Only this route.
    #[serde(default)]
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverRequest {
    pub pid: u32,
    /// The program's version.
    pub program: String,
}

/// One line back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply<T> {
    pub v: u32,
    pub ok: bool,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub answer: Option<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<WireError>,
}

/// Why the gate did not do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    pub code: ErrorCode,
    pub message: String,
    /// What to do.
    pub hint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Not a request of this protocol, or a value that cannot be.
    BadRequest,
    /// A version that this gate does not speak.
    UnknownVersion,
    UnknownRoute,
    UnknownSide,
    /// Another route has the same address, host and prefix.
    Conflict,
    /// The public address cannot be listened on.
    Listen,
    /// `expect` named another side than the live one.
    NotAsExpected,
    /// The gate is handing over to its successor: ask again.
    Leaving,
    /// The gate serves as many routes as it may.
    TooMany,
    /// A code of a newer gate.
    #[serde(other)]
    Other,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Whether the change is on disk already. If not (a full disk), it is tried again each second; a gate that starts again before that would not
    /// know it.
    #[serde(default)]
    pub kept: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routed {
    /// Whether the route is new.
    pub made: bool,
    /// What is live now.
    pub live: Option<Side>,
    /// As in [`Done`].
    pub kept: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switched {
    /// What was live. None: nothing, or it was this side already.
    pub previous: Option<Side>,
    pub live: Side,
    /// From the arrival of the request until every new request went to the new side.
    pub moved_us: u64,
    /// What the previous side still had in flight at that moment.
    pub in_flight: InFlight,
    /// As in [`Done`].
    pub kept: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    pub requests: u64,
    /// WebSockets and other upgraded connections.
    pub websockets: u64,
}

impl InFlight {
    pub fn is_empty(self) -> bool {
        self.requests == 0 && self.websockets == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// How many waited and went on.
    pub released: u64,
    /// As in [`Done`].
    pub kept: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// What is left; nothing, unless a bound was over.
    pub left: InFlight,
    pub waited_ms: u64,
}

impl Drained {
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateStatus {
    /// The program's version.
    pub program: String,
    /// The program's file, as it was when the gate started. None: of a gate that does not tell.
    #[serde(default)]
    pub build: Option<Build>,
    /// Whether the daemon started it, and replaces it when refit was updated.
    #[serde(default)]
    pub by_daemon: bool,
    pub pid: u32,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// Client connections now, and how many there may be.
    pub connections: u64,
    pub max_connections: u64,
    /// Connections that were closed at once because there were too many.
    pub refused: u64,
    /// Requests that no route was made for: answered with 404.
    pub unmatched: u64,
    /// Gates that handed over to this one and still finish what they had begun: their process ids.
    #[serde(default)]
    pub predecessors: Vec<u32>,
    /// Whether everything is on disk.
    pub kept: bool,
    pub routes: Vec<RouteStatus>,
}

impl GateStatus {
    pub fn route(&self, name: &str) -> Option<&RouteStatus> {
        self.routes.iter().find(|route| route.name == name)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteStatus {
    pub name: String,
    pub listen: SocketAddr,
    pub host: Option<String>,
    pub prefix: String,
    pub protocol: Protocol,
    pub state: RouteState,
    pub limits: Limits,
    pub live: Option<SideStatus>,
    /// Sides that were live before, the newest first; a few of them.
    pub retired: Vec<SideStatus>,
    pub held: HeldStatus,
    /// The page's sentence while in maintenance.
    #[serde(default)]
    pub maintenance: Option<String>,
    /// Requests answered by the gate itself for want of a live side, or in maintenance.
    pub turned_away: u64,
}

impl RouteStatus {
    /// The live side or a retired one.
    pub fn side(&self, id: &str) -> Option<&SideStatus> {
        self.live.iter().chain(&self.retired).find(|side| side.id == id)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteState {
    Serving,
    /// New requests wait.
    Held,
    Maintenance,
    /// Nothing is live: 503.
    Empty,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SideStatus {
    pub id: String,
    pub upstream: SocketAddr,
    /// When it became live, RFC 3339, UTC.
    pub since: String,
    /// Here and in gates that handed over to this one.
    pub in_flight: InFlight,
    /// Whether it accepted the newest connection that was tried. None: none was.
    pub reachable: Option<bool>,
    pub counters: Counters,
}

/// Since the side became live in this gate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Requests that were sent to it.
    pub requests: u64,
    /// Its answers with status 500 and above.
    pub errors: u64,
    /// Requests that ended without a whole answer because of it: no connection, broken off, silent.
    pub failed: u64,
    /// Requests whose client went away first.
    pub abandoned: u64,
    /// Connections to it that failed and were tried again.
    pub retries: u64,
    /// From sending a request to its answer's head.
    pub latency: Latency,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Answers that were measured.
    pub count: u64,
    /// Their sum; with `count`, the mean.
    pub sum_us: u64,
    /// Upper bounds of the buckets that the quantiles fall in; 0 with no answers.
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
    /// Buckets that are not empty: upper bound, and how many answers took at most that and more than the bucket before.
    pub buckets: Vec<Bucket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    pub le_us: u64,
    pub count: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldStatus {
    /// Waiting now.
    pub now: u64,
    pub bytes: u64,
    /// Ever.
    pub total: u64,
    /// Of those, answered with 503 because a bound was over.
    pub refused: u64,
    /// Of those, gone before it was their turn.
    pub abandoned: u64,
    /// The longest wait of one that went on.
    pub longest_ms: u64,
}
