//! The gate's whole state and the verbs that change it.
//!
//! Changes come one at a time. Each is checked first, then written to disk, then takes effect, then is told to gates that are leaving and still serve connections; only then is
//! it answered. Requests take no part in this: they read a route's [`Table`] and [`Traffic`], each of which changes at one instant.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    sync::{self, watch},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{
    build::Build,
    front::{self, Door, Floor},
    predecessors::{Load, Predecessors},
    state::{self, KeptRoute, State},
    table::{Route, Table, check_side},
    traffic::{Page, Paused, Traffic},
    wire::{
        Done, DrainBounds, DrainRequest, Drained, ErrorCode, GateStatus, InFlight, MaintenanceRequest, PauseRequest,
        Resumed, RouteSpec, RouteStatus, Routed, SwitchRequest, Switched, WireError,
    },
};

/// Public sockets; what one message may carry to a successor, and a few more.
const MAX_DOORS: usize = 200;
const MAX_ROUTES: usize = 1_000;

/// How often a drain looks at gates that are leaving, and what could not be written or bound is tried again.
const LOOK: Duration = Duration::from_millis(20);
const AGAIN: Duration = Duration::from_secs(1);

type Answer<T> = Result<T, WireError>;

#[derive(Debug)]
pub(super) struct Gate {
    pub(super) floor: Arc<Floor>,
    leave: watch::Sender<bool>,
    doors: Mutex<BTreeMap<SocketAddr, Arc<Door>>>,
    routes: RwLock<BTreeMap<String, Arc<Route>>>,
    changing: sync::Mutex<()>,
    /// Whether this gate gives, or has given, its sockets to another one, which then answers for both.
    handing_over: AtomicBool,
    state_file: PathBuf,
    kept: AtomicBool,
    started: Timestamp,
    build: Option<Build>,
    by_daemon: bool,
    pub(super) predecessors: Predecessors,
}

impl Gate {
    /// A gate that serves nothing yet. `leave` is the sender behind the floor's `leaving`; the last is what it says of itself.
    pub(super) fn new(
        floor: Arc<Floor>,
        leave: watch::Sender<bool>,
        state_file: PathBuf,
        (build, by_daemon): (Option<Build>, bool),
    ) -> Self {
        Self {
            floor,
            leave,
            doors: Mutex::default(),
            routes: RwLock::default(),
            changing: sync::Mutex::default(),
            handing_over: AtomicBool::new(false),
            state_file,
            kept: AtomicBool::new(true),
            started: Timestamp::now(),
            build,
            by_daemon,
            predecessors: Predecessors::default(),
        }
    }

    fn doors(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Arc<Door>>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn routes(&self) -> BTreeMap<String, Arc<Route>> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn route_named(&self, name: &str) -> Answer<Arc<Route>> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.get(name).cloned().ok_or_else(|| WireError {
            code: ErrorCode::UnknownRoute,
            message: format!("the gate has no route {name:?}"),
            hint: "`refit gate status` lists them".into(),
        })
    }

    /// Serves what was kept, on sockets that were handed over or on its own. An address that is taken is tried again until it is free.
    pub(super) fn restore(self: &Arc<Self>, state: &State, mut handed: BTreeMap<SocketAddr, TcpListener>) {
        let mut routes = BTreeMap::new();
        for kept in &state.routes {
            let traffic = Arc::new(Traffic::default());
            match Route::new(&kept.spec(), traffic.clone()) {
                Ok(route) => {
                    traffic.become_kept(&kept.kept);
                    if let Some(paused) = traffic.paused() {
                        self.resume_later(&route.name, &traffic, paused);
                    }
                    routes.insert(route.name.clone(), Arc::new(route));
                }
                Err(error) => tracing::error!("the route {:?} that was kept is wrong: {error}", kept.name),
            }
        }
        let listens: BTreeSet<SocketAddr> = routes.values().map(|route| route.listen).collect();
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
        for address in listens {
            let listener = handed.remove(&address).map_or_else(|| front::listen(address), Ok);
            match listener {
                Ok(listener) => self.open(address, listener),
                Err(error) => tracing::error!("cannot listen on {address}: {error}; it is tried again"),
            }
        }
    }

    /// Serves the routes of an address.
    fn open(self: &Arc<Self>, listen: SocketAddr, listener: TcpListener) {
        let door = Arc::new(Door {
            listen,
            listener: Arc::new(listener),
            table: Arc::new(Table::default()),
            closed: CancellationToken::new(),
        });
        self.doors().insert(listen, door.clone());
        self.refresh(listen);
        tokio::spawn(front::serve(door, self.floor.clone()));
    }

    /// Makes an address's table new; without routes its socket is closed.
    fn refresh(&self, listen: SocketAddr) {
        let here: Vec<_> = self.routes().into_values().filter(|route| route.listen == listen).collect();
        let mut doors = self.doors();
        let Some(door) = doors.get(&listen) else { return };
        let unused = here.is_empty();
        door.table.set(here);
        if unused && let Some(door) = doors.remove(&listen) {
            door.closed.cancel();
        }
    }

    /// Sockets, for a successor.
    pub(super) fn listeners(&self) -> Vec<(SocketAddr, Arc<TcpListener>)> {
        self.doors().values().map(|door| (door.listen, door.listener.clone())).collect()
    }

    pub(super) fn state(&self) -> State {
        let routes = self.routes();
        State::new(routes.values().map(|route| KeptRoute::new(route.spec(), route.traffic.kept())).collect())
    }

    /// The state with one route's part changed.
    fn state_with(&self, name: &str, change: impl FnOnce(&mut KeptRoute)) -> State {
        let mut state = self.state();
        if let Some(route) = state.routes.iter_mut().find(|route| route.name == name) {
            change(route);
        }
        state
    }

    /// The right to change something.
    async fn turn(&self) -> Answer<sync::MutexGuard<'_, ()>> {
        if self.handing_over.load(SeqCst) {
            return Err(leaving());
        }
        let turn = self.changing.lock().await;
        if self.handing_over.load(SeqCst) { Err(leaving()) } else { Ok(turn) }
    }

    /// Takes the right to change for a handover, and keeps everybody else from waiting for it.
    pub(super) async fn begin_handover(&self) -> Answer<Handing<'_>> {
        drop(self.turn().await?);
        if self.handing_over.swap(true, SeqCst) {
            return Err(leaving());
        }
        Ok(Handing { gate: self, _turn: self.changing.lock().await, done: false })
    }

    async fn store(&self, state: &State) -> bool {
        let (file, state) = (self.state_file.clone(), state.clone());
        let stored = tokio::task::spawn_blocking(move || state::store(&file, &state)).await;
        let stored = stored.map_err(std::io::Error::other).and_then(|result| result);
        if let Err(error) = &stored
            && self.kept.load(Relaxed)
        {
            tracing::error!(
                "the gate's state {} cannot be written: {error}; it is tried again",
                self.state_file.display()
            );
        }
        self.kept.store(stored.is_ok(), Relaxed);
        stored.is_ok()
    }

    /// Tries again, until the gate ends, to write and to listen where that failed.
    pub(super) async fn keep(self: Arc<Self>) {
        loop {
            time::sleep(AGAIN).await;
            let Ok(turn) = self.turn().await else { continue };
            if !self.kept.load(Relaxed) {
                self.store(&self.state()).await;
            }
            let open: BTreeSet<SocketAddr> = self.doors().keys().copied().collect();
            let wanted: BTreeSet<SocketAddr> = self.routes().values().map(|route| route.listen).collect();
            for address in wanted.difference(&open) {
                if let Ok(listener) = front::listen(*address) {
                    tracing::info!("listening on {address} after all");
                    self.open(*address, listener);
                }
            }
            drop(turn);
        }
    }

    pub(super) async fn route(self: &Arc<Self>, spec: RouteSpec) -> Answer<Routed> {
        let _turn = self.turn().await?;
        let before = self.routes().get(&spec.name).cloned();
        let traffic = before.as_ref().map(|route| route.traffic.clone()).unwrap_or_default();
        let route = Arc::new(Route::new(&spec, traffic.clone())?);
        self.check_room(&route)?;
        let opened = self.open_for(&route)?;
        let since = Timestamp::now();
        let mut state = self.state();
        state.routes.retain(|other| other.name != route.name);
        let mut kept = traffic.kept();
        if let Some(side) = &spec.side {
            kept.switch(side, since);
        }
        state.routes.push(KeptRoute::new(route.spec(), kept));
        let kept = self.store(&state).await;
        // The side first: the new route must not be seen empty.
        if let Some(side) = &spec.side {
            traffic.switch(side, since, DrainBounds::default());
        }
        self.routes.write().unwrap_or_else(PoisonError::into_inner).insert(route.name.clone(), route.clone());
        match opened {
            Some(listener) => self.open(route.listen, listener),
            None => self.refresh(route.listen),
        }
        if let Some(before) = before.as_ref().filter(|before| before.listen != route.listen) {
            self.refresh(before.listen);
        }
        self.tell_leaving().await;
        Ok(Routed { made: before.is_none(), live: traffic.live().map(|side| side.named()), kept })
    }

    fn check_room(&self, route: &Route) -> Answer<()> {
        let routes = self.routes();
        let twin = routes.values().find(|other| {
            other.name != route.name
                && (other.listen, &other.host, &other.prefix) == (route.listen, &route.host, &route.prefix)
        });
        if let Some(twin) = twin {
            return Err(WireError {
                code: ErrorCode::Conflict,
                message: format!("route {} has the requests of {} already", twin.name, route.listen),
                hint: format!("give {} a host name or a prefix of its own, or remove {}", route.name, twin.name),
            });
        }
        let too_many = |what: &str, most: usize| WireError {
            code: ErrorCode::TooMany,
            message: format!("the gate has {most} {what} already"),
            hint: "remove those that are not used any more".into(),
        };
        if routes.len() >= MAX_ROUTES && !routes.contains_key(&route.name) {
            return Err(too_many("routes", MAX_ROUTES));
        }
        let doors = self.doors();
        if doors.len() >= MAX_DOORS && !doors.contains_key(&route.listen) {
            return Err(too_many("public addresses", MAX_DOORS));
        }
        Ok(())
    }

    /// A new socket, if the route needs one.
    fn open_for(&self, route: &Route) -> Answer<Option<TcpListener>> {
        if self.doors().contains_key(&route.listen) {
            return Ok(None);
        }
        front::listen(route.listen).map(Some).map_err(|error| WireError {
            code: ErrorCode::Listen,
            message: format!("the gate cannot listen on {}: {error}", route.listen),
            hint: match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    format!("`ss -ltnp 'sport = :{}'` shows who has the port", route.listen.port())
                }
                std::io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need CAP_NET_BIND_SERVICE: setcap cap_net_bind_service=+ep on the program".into()
                }
                _ => "name an address of this machine".into(),
            },
        })
    }

    pub(super) async fn switch(&self, request: SwitchRequest, arrived: Instant) -> Answer<Switched> {
        check_side(&request.side)?;
        let _turn = self.turn().await?;
        let route = self.route_named(&request.name)?;
        let live = route.traffic.live();
        if let Some(expected) = &request.expect
            && live.as_ref().is_none_or(|side| side.id != *expected)
        {
            let is = live.as_ref().map_or_else(|| "nothing".to_owned(), |side| format!("side {}", side.id));
            return Err(WireError {
                code: ErrorCode::NotAsExpected,
                message: format!("{}: {is} is live, and not side {expected}", route.name),
                hint: "look with `refit gate status` and decide anew".into(),
            });
        }
        let since = Timestamp::now();
        let state = self.state_with(&route.name, |kept| kept.kept.switch(&request.side, since));
        let kept = self.store(&state).await;
        let replaced = route.traffic.switch(&request.side, since, request.drain);
        self.tell_leaving().await;
        let moved_us = u64::try_from(arrived.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut in_flight = replaced.in_flight;
        if let Some(side) = &replaced.side {
            in_flight = add(in_flight, self.predecessors.load(&route.name, &side.id));
        }
        let previous = replaced.side.map(|side| side.named());
        Ok(Switched { previous, live: request.side, moved_us, in_flight, kept })
    }

    pub(super) async fn pause(self: &Arc<Self>, request: PauseRequest) -> Answer<Done> {
        let _turn = self.turn().await?;
        let route = self.route_named(&request.name)?;
        let paused = Paused::from_now(request.bounds);
        let kept = self.store(&self.state_with(&route.name, |kept| kept.kept.paused = Some(paused))).await;
        route.traffic.pause(paused);
        self.resume_later(&route.name, &route.traffic, paused);
        self.tell_leaving().await;
        Ok(Done { kept })
    }

    /// Ends a pause that nobody ended.
    fn resume_later(self: &Arc<Self>, name: &str, traffic: &Arc<Traffic>, paused: Paused) {
        let (gate, name, traffic) = (Arc::downgrade(self), name.to_owned(), Arc::downgrade(traffic));
        tokio::spawn(async move {
            time::sleep(paused.left()).await;
            let (Some(gate), Some(traffic)) = (gate.upgrade(), traffic.upgrade()) else { return };
            if traffic.paused() != Some(paused) {
                return;
            }
            tracing::warn!("{name}: the pause lasted as long as it may; requests go on");
            traffic.resume(Some(paused));
            if let Ok(_turn) = gate.turn().await {
                gate.store(&gate.state()).await;
                gate.tell_leaving().await;
            }
        });
    }

    pub(super) async fn resume(&self, name: &str) -> Answer<Resumed> {
        let _turn = self.turn().await?;
        let route = self.route_named(name)?;
        let kept = self.store(&self.state_with(name, |kept| kept.kept.paused = None)).await;
        let released = route.traffic.resume(None);
        self.tell_leaving().await;
        Ok(Resumed { released, kept })
    }

    pub(super) async fn maintenance(&self, request: MaintenanceRequest) -> Answer<Done> {
        let _turn = self.turn().await?;
        let route = self.route_named(&request.name)?;
        let MaintenanceRequest { message, retry_after, .. } = request;
        let page = request.on.then_some(Page { message, retry_after });
        let state = self.state_with(&route.name, |kept| kept.kept.maintenance.clone_from(&page));
        let kept = self.store(&state).await;
        route.traffic.maintain(page);
        self.tell_leaving().await;
        Ok(Done { kept })
    }

    pub(super) async fn remove(&self, name: &str) -> Answer<Done> {
        let _turn = self.turn().await?;
        let route = self.route_named(name)?;
        let mut state = self.state();
        state.routes.retain(|route| route.name != name);
        let kept = self.store(&state).await;
        self.routes.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.refresh(route.listen);
        // Those that wait find no route any more, and are told so by what is left: nothing.
        route.traffic.maintain(Some(Page { message: None, retry_after: 60 }));
        self.tell_leaving().await;
        Ok(Done { kept })
    }

    pub(super) async fn drain(&self, request: DrainRequest) -> Answer<Drained> {
        let began = Instant::now();
        let route = self.route_named(&request.name)?;
        let sides = route.traffic.sides(&request.side);
        let Some(first) = sides.first() else {
            return Err(WireError {
                code: ErrorCode::UnknownSide,
                message: format!("{}: no side {:?} is live or was lately", route.name, request.side),
                hint: "`refit gate status` lists them".into(),
            });
        };
        let retirement = route.traffic.retirement(&request.side);
        let (from, bounds) = match (request.bounds, retirement) {
            (Some(bounds), _) => (began, bounds),
            (None, Some((at, bounds))) => (at, bounds),
            (None, None) => (began, DrainBounds::default()),
        };
        loop {
            let here = sides.iter().fold(InFlight::default(), |sum, side| add(sum, side.in_flight()));
            let left = add(here, self.predecessors.load(&route.name, &request.side));
            if self.floor.is_leaving() && self.handing_over.load(SeqCst) {
                // The successor counts what is here and what is there.
                return Err(leaving());
            }
            let over = |ms: u64| from.elapsed() >= Duration::from_millis(ms);
            let wait =
                left.requests > 0 && !over(bounds.requests_ms) || left.websockets > 0 && !over(bounds.websockets_ms);
            if !wait {
                let waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Ok(Drained { left, waited_ms });
            }
            // Either way it looks again.
            let _ = time::timeout(LOOK, first.emptied()).await;
        }
    }

    pub(super) fn status(&self, name: Option<&str>) -> GateStatus {
        let routes = self.routes();
        let wanted = routes.values().filter(|route| name.is_none_or(|name| route.name == name));
        GateStatus {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            build: self.build.clone(),
            by_daemon: self.by_daemon,
            pid: std::process::id(),
            started_at: self.started.to_string(),
            connections: self.floor.connections.now(),
            max_connections: self.floor.connections.most,
            refused: self.floor.connections.refused(),
            unmatched: self.floor.unmatched.load(Relaxed),
            predecessors: self.predecessors.pids(),
            kept: self.kept.load(Relaxed),
            routes: wanted.map(|route| self.route_status(route)).collect(),
        }
    }

    fn route_status(&self, route: &Route) -> RouteStatus {
        let (state, maintenance) = route.traffic.state();
        let (live, retired) = route.traffic.statuses(|side| self.predecessors.load(&route.name, side));
        RouteStatus {
            name: route.name.clone(),
            listen: route.listen,
            host: route.host.clone(),
            prefix: route.prefix.clone(),
            protocol: route.protocol,
            state,
            limits: route.limits.clone(),
            live,
            retired,
            held: route.traffic.hold.read(),
            maintenance,
            turned_away: route.traffic.turned_away.load(Relaxed),
        }
    }

    /// What every side has in flight, here and in gates before this one.
    pub(super) fn loads(&self) -> Vec<Load> {
        let mut loads = Vec::new();
        for route in self.routes().values() {
            let (live, retired) = route.traffic.statuses(|side| self.predecessors.load(&route.name, side));
            let busy = live.into_iter().chain(retired).filter(|side| !side.in_flight.is_empty());
            loads.extend(busy.map(|side| Load { route: route.name.clone(), side: side.id, in_flight: side.in_flight }));
        }
        loads
    }

    /// For a gate that is leaving: becomes what its successor is.
    pub(super) async fn follow(&self, state: &State) {
        let routes = self.routes();
        for (name, route) in &routes {
            match state.routes.iter().find(|kept| kept.name == *name) {
                Some(kept) => route.traffic.become_kept(&kept.kept),
                None => route.traffic.maintain(Some(Page { message: None, retry_after: 60 })),
            }
        }
        self.predecessors.tell(state.clone()).await;
    }

    async fn tell_leaving(&self) {
        if !self.predecessors.is_empty() {
            self.predecessors.tell(self.state()).await;
        }
    }

    /// No new connections; those that are there end after their request.
    pub(super) fn leave(&self) {
        self.leave.send_replace(true);
        for (_, door) in std::mem::take(&mut *self.doors()) {
            door.closed.cancel();
        }
    }

    /// Connects once to everything that is live, to know whether it is there.
    pub(super) async fn probe(self: Arc<Self>) {
        for route in self.routes().values() {
            let Some(side) = route.traffic.live() else { continue };
            let name = route.name.clone();
            tokio::spawn(async move {
                let tried = time::timeout(AGAIN, tokio::net::TcpStream::connect(side.upstream)).await;
                let reached = matches!(tried, Ok(Ok(_)));
                side.saw(reached);
                if !reached {
                    tracing::warn!("{name}: side {} does not answer on {}", side.id, side.upstream);
                }
            });
        }
    }
}

fn leaving() -> WireError {
    WireError {
        code: ErrorCode::Leaving,
        message: "this gate hands over to another one".into(),
        hint: "ask again".into(),
    }
}

fn add(a: InFlight, b: InFlight) -> InFlight {
    InFlight { requests: a.requests + b.requests, websockets: a.websockets + b.websockets }
}

/// The right to hand over. Dropped before [`Handing::done`]: the gate goes on as if nothing had been.
#[derive(Debug)]
pub(super) struct Handing<'a> {
    gate: &'a Gate,
    _turn: sync::MutexGuard<'a, ()>,
    done: bool,
}

impl Handing<'_> {
    /// Nothing is changed here any more.
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Handing<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.gate.handing_over.store(false, SeqCst);
        }
    }
}
