//! Which route a request belongs to: the public address it came in on, then its host name, then the longest prefix of its path.
//!
//! Each public address has a list of its routes in the order in which they are tried, so matching is a walk over a few entries. A change makes a new
//! list; requests hold on to the route they found.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use super::{
    traffic::Traffic,
    wire::{ErrorCode, Limits, Protocol, RouteSpec, Side, WireError},
};

/// One route; a change of its settings is a new `Route` over the same traffic.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) name: String,
    pub(super) listen: SocketAddr,
    /// In small letters, without a port.
    pub(super) host: Option<String>,
    pub(super) prefix: String,
    pub(super) protocol: Protocol,
    pub(super) limits: Limits,
    pub(super) traffic: Arc<Traffic>,
}

impl Route {
    /// A checked route. The side is not live yet.
    pub(super) fn new(spec: &RouteSpec, traffic: Arc<Traffic>) -> Result<Self, WireError> {
        check_name(&spec.name)?;
        if let Some(side) = &spec.side {
            check_side(side)?;
        }
        if spec.listen.port() == 0 {
            return Err(bad(format!("route {}: port 0 is no public port", spec.name), "name the port that users know"));
        }
        if !spec.prefix.starts_with('/') || spec.prefix.contains(['?', '#']) {
            let message = format!("route {}: {:?} is no prefix of a path", spec.name, spec.prefix);
            return Err(bad(message, "begin it with a slash: /api"));
        }
        let host = spec.host.as_deref().map(|host| check_host(&spec.name, host)).transpose()?;
        let prefix = match spec.prefix.trim_end_matches('/') {
            "" => "/".to_owned(),
            prefix => prefix.to_owned(),
        };
        Ok(Self {
            name: spec.name.clone(),
            listen: spec.listen,
            host,
            prefix,
            protocol: spec.protocol,
            limits: spec.limits.clone(),
            traffic,
        })
    }

    /// As it was asked for, without its side.
    pub(super) fn spec(&self) -> RouteSpec {
        RouteSpec {
            name: self.name.clone(),
            listen: self.listen,
            host: self.host.clone(),
            prefix: self.prefix.clone(),
            protocol: self.protocol,
            side: None,
            limits: self.limits.clone(),
        }
    }

    fn has(&self, host: &str, path: &[u8]) -> bool {
        let host_fits = self.host.as_deref().is_none_or(|own| own.eq_ignore_ascii_case(host));
        host_fits && below(path, self.prefix.as_bytes())
    }
}

/// Whether `path` is `prefix` or something below it.
fn below(path: &[u8], prefix: &[u8]) -> bool {
    if prefix == b"/" {
        return true;
    }
    path.strip_prefix(prefix).is_some_and(|rest| matches!(rest.first(), None | Some(b'/' | b'?')))
}

fn bad(message: String, hint: &str) -> WireError {
    WireError { code: ErrorCode::BadRequest, message, hint: hint.to_owned() }
}

fn check_name(name: &str) -> Result<(), WireError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if name.is_empty() || name.len() > 200 || !name.chars().all(fits) {
        let message = format!("{name:?} is no name of a route");
        return Err(bad(message, "use <app>/<environment>: letters, digits, `.`, `_`, `-`"));
    }
    Ok(())
}

pub(super) fn check_side(side: &Side) -> Result<(), WireError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if side.id.is_empty() || side.id.len() > 100 || !side.id.chars().all(fits) {
        return Err(bad(format!("{:?} is no id of a side", side.id), "use letters, digits, `.`, `_`, `-`"));
    }
    if side.upstream.port() == 0 || side.upstream.ip().is_unspecified() {
        let message = format!("side {}: nobody can listen on {}", side.id, side.upstream);
        return Err(bad(message, "give the address at which the gate reaches the app, such as 127.0.0.1:8001"));
    }
    Ok(())
}

fn check_host(route: &str, host: &str) -> Result<String, WireError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.len() > 253 || !(bracketed || host.chars().all(fits)) {
        return Err(bad(format!("route {route}: {host:?} is no host name"), "write it without a port: shop.example"));
    }
    Ok(host.to_ascii_lowercase())
}

/// The routes of one public address, in the order in which they are tried.
#[derive(Debug, Default)]
pub(super) struct Table {
    routes: RwLock<Arc<[Arc<Route>]>>,
}

impl Table {
    /// Replaces all. A host comes before none, a longer prefix before a shorter one.
    pub(super) fn set(&self, mut routes: Vec<Arc<Route>>) {
        routes.sort_by_key(|route| (route.host.is_none(), std::cmp::Reverse(route.prefix.len())));
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes.into();
    }

    /// `host` as the client wrote it, with or without a port.
    pub(super) fn find(&self, host: &str, path: &[u8]) -> Option<Arc<Route>> {
        let host = without_port(host);
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.iter().find(|route| route.has(host, path)).cloned()
    }
}

/// `shop.example:8000` → `shop.example`, `[::1]:80` → `[::1]`; also without the dot of a full name.
fn without_port(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, host: Option<&str>, prefix: &str) -> RouteSpec {
        RouteSpec {
            host: host.map(str::to_owned),
            prefix: prefix.into(),
            ..RouteSpec::new(name, "0.0.0.0:80".parse().unwrap(), None)
        }
    }

    fn route(name: &str, host: Option<&str>, prefix: &str) -> Result<Route, WireError> {
        Route::new(&spec(name, host, prefix), Arc::default())
    }

    #[test]
    fn the_host_decides_and_then_the_longest_prefix() {
        let table = Table::default();
        let all = [
            ("rest", None, "/"),
            ("any-api", None, "/api"),
            ("shop", Some("Shop.example"), "/"),
            ("shop-api", Some("shop.example"), "/api/"),
            ("shop-v2", Some("shop.example"), "/api/v2"),
        ];
        table.set(all.iter().map(|(n, h, p)| Arc::new(route(n, *h, p).unwrap())).collect());
        for (host, path, expected) in [
            ("other.example", "/", "rest"),
            ("other.example", "/api", "any-api"),
            ("", "/apix", "rest"),
            ("shop.example", "/", "shop"),
            ("SHOP.example:8080", "/api?x=1", "shop-api"),
            ("shop.example.", "/api/v2/things", "shop-v2"),
            ("shop.example", "/api/v22", "shop-api"),
            ("shop.example", "*", "shop"),
            ("[::1]:80", "/", "rest"),
        ] {
            assert_eq!(table.find(host, path.as_bytes()).unwrap().name, expected, "{host}{path}");
        }
        table.set(vec![Arc::new(route("shop", Some("shop.example"), "/a").unwrap())]);
        assert!(table.find("shop.example", b"/b").is_none());
        assert!(table.find("evil.example", b"/a").is_none());
    }

    #[test]
    fn what_cannot_be_a_route_is_refused() {
        for (name, host, prefix) in [
            ("", None, "/"),
            ("a b", None, "/"),
            ("a", Some("shop.example:80"), "/"),
            ("a", Some("sh/op"), "/"),
            ("a", None, "api"),
            ("a", None, "/a?b"),
        ] {
            let error = route(name, host, prefix).unwrap_err();
            assert_eq!(error.code, ErrorCode::BadRequest);
        }
        let at = |upstream: &str| Side { id: "1".into(), upstream: upstream.parse().unwrap() };
        assert!(check_side(&at("127.0.0.1:80")).is_ok());
        assert!(check_side(&at("127.0.0.1:0")).is_err());
        assert!(check_side(&at("0.0.0.0:80")).is_err());
        assert!(check_side(&Side { id: "../x".into(), ..at("127.0.0.1:80") }).is_err());
    }
}
