//! What the app is told about its client: `X-Forwarded-For`, `-Proto` and `-Host`.
//!
//! A stranger's own values are dropped, whatever they say, and with them `Forwarded` and `X-Real-IP`, which apps believe as well. Also dropped are names that differ only in
//! underscores: many frameworks read `X_Forwarded_For` and `X-Forwarded-For` into one variable. A trusted proxy's values are kept and added to.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use hyper::http::{HeaderName, HeaderValue, header};
use pingora_http::RequestHeader;

const FOR: &str = "x-forwarded-for";
const PROTO: &str = "x-forwarded-proto";
const HOST: &str = "x-forwarded-host";

/// What a proxy tells about a client. Of strangers none is believed.
const TOLD: [&str; 7] = [FOR, PROTO, HOST, "x-forwarded-port", "x-forwarded-prefix", "forwarded", "x-real-ip"];

/// Addresses with a common beginning: `10.0.0.0/8`, `::1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// This machine.
    pub const LOOPBACK: [Self; 2] = [
        Self { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), bits: 8 },
        Self { address: IpAddr::V6(Ipv6Addr::LOCALHOST), bits: 128 },
    ];

    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                (own.to_bits() ^ other.to_bits()) & mask == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                (own.to_bits() ^ other.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither an address nor a network such as 10.0.0.0/8");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
        if bits > most { Err(wrong()) } else { Ok(Self { address, bits }) }
    }
}

/// Sets the headers of a request that came from `client` over plain HTTP for `host`.
pub(super) fn set(
    request: &mut RequestHeader,
    client: Option<IpAddr>,
    host: Option<&HeaderValue>,
    trusted: &[Network],
) {
    let client = client.map(|ip| ip.to_canonical());
    let believed = client.is_some_and(|ip| trusted.iter().any(|network| network.contains(ip)));
    remove_disguised(request);
    if !believed {
        for name in TOLD {
            request.remove_header(name);
        }
    }
    // None of these can fail: the names are constants, and the values are printed addresses or were header values before.
    if let Some(ip) = client {
        let before = joined(request, FOR);
        let value = before.map_or_else(|| ip.to_string(), |before| format!("{before}, {ip}"));
        let _ = request.insert_header(FOR, value);
    }
    if !request.headers.contains_key(PROTO) {
        let _ = request.insert_header(PROTO, "http");
    }
    if !request.headers.contains_key(HOST)
        && let Some(host) = host
    {
        let _ = request.insert_header(HOST, host.clone());
    }
}

/// All values of a header as one; unreadable ones are left out.
fn joined(request: &RequestHeader, name: &str) -> Option<String> {
    let values: Vec<&str> = request.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    if values.is_empty() { None } else { Some(values.join(", ")) }
}

fn remove_disguised(request: &mut RequestHeader) {
    let disguised = |name: &&HeaderName| {
        let name = name.as_str();
        name.contains('_') && TOLD.contains(&name.replace('_', "-").as_str())
    };
    let found: Vec<HeaderName> = request.headers.keys().filter(disguised).cloned().collect();
    for name in found {
        request.remove_header(&name);
    }
}

/// The host that a request is for: of its target (HTTP/2), else the header's.
pub(super) fn host(request: &RequestHeader) -> Option<HeaderValue> {
    if let Some(authority) = request.uri.authority()
        && let Ok(value) = HeaderValue::from_str(authority.as_str())
    {
        return Some(value);
    }
    request.headers.get(header::HOST).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    fn sent(headers: &[(&'static str, &str)], client: &str) -> Vec<String> {
        let mut request = request(headers);
        let host = request.headers.get("host").cloned();
        set(&mut request, Some(client.parse().unwrap()), host.as_ref(), &Network::LOOPBACK);
        let mut all: Vec<String> = request
            .headers
            .iter()
            .filter(|(name, _)| name.as_str() != "host")
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn a_stranger_is_not_believed() {
        let lies = [
            ("host", "shop.example"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("forwarded", "for=10.0.0.1"),
            ("x-real-ip", "10.0.0.1"),
            ("x_forwarded_for", "10.0.0.1"),
            ("x-forwarded_proto", "https"),
        ];
        let expected = ["x-forwarded-for: 192.0.2.7", "x-forwarded-host: shop.example", "x-forwarded-proto: http"];
        assert_eq!(sent(&lies, "192.0.2.7"), expected);
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_added_to() {
        let told = [
            ("host", "127.0.0.1:8000"),
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-for", "10.9.9.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
        ];
        let expected = [
            "x-forwarded-for: 198.51.100.1, 10.9.9.9, 127.0.0.1",
            "x-forwarded-host: shop.example",
            "x-forwarded-proto: https",
        ];
        assert_eq!(sent(&told, "127.0.0.1"), expected);
        assert_eq!(sent(&told, "::ffff:127.0.0.1"), expected);
    }

    #[test]
    fn networks_have_what_they_say() {
        let has = |network: &str, ip: &str| network.parse::<Network>().unwrap().contains(ip.parse().unwrap());
        assert!(has("10.0.0.0/8", "10.200.3.4") && !has("10.0.0.0/8", "11.0.0.1"));
        assert!(has("0.0.0.0/0", "203.0.113.9") && !has("0.0.0.0/0", "::1"));
        assert!(has("192.0.2.1", "192.0.2.1") && !has("192.0.2.1", "192.0.2.2"));
        assert!(has("fd00::/8", "fd12::1") && !has("fd00::/8", "fe80::1"));
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "localhost", "10.0.0.0/x"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
