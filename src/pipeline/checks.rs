//! Smoke checks: one attempt, and the attempts again that a check allows.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::net::TcpStream;

use crate::{
    config::{Environment, SmokeCheck, SmokeKind},
    pipeline::stages::Step,
    runtime::Instance,
};

/// Between two attempts at one check.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The most of an answer's body that is looked at, in bytes.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// A client for probes and checks: connections are not kept (the next answer may come from another version), redirects are
/// not followed (a redirect is an answer), and no proxy of the environment is used.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
        .build()
        // Only a broken TLS setup can fail here, and then plain HTTP still has to work.
        .unwrap_or_default()
}

/// How an app is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As its users reach it.
    Public,
    /// Past the gate.
    Direct(SocketAddr),
}

impl Way {
    /// Whether a check says something about the app when it is reached this way.
    pub fn has(self, check: &SmokeCheck) -> bool {
        match (self, &check.kind) {
            (Self::Public, _) | (_, SmokeKind::Exec { .. }) => true,
            (Self::Direct(_), SmokeKind::Http { url, .. }) => url.starts_with('/'),
            (Self::Direct(_), SmokeKind::Tcp { .. }) => false,
        }
    }
}

/// Runs a check until it passes or its retries are used up. The error is for people.
pub async fn run(step: &Step, instance: &Instance, way: Way, check: &SmokeCheck) -> Result<(), String> {
    let mut attempt = 0;
    loop {
        let result = tokio::select! {
            result = tokio::time::timeout(check.timeout, once(step, instance, way, check)) => {
                result.unwrap_or_else(|_| Err(format!("no answer within {:?}", check.timeout)))
            }
            () = step.job.cancel.cancelled() => return Err("cancelled".to_owned()),
        };
        match result {
            Err(_) if attempt < check.retries => {
                attempt += 1;
                tokio::select! {
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                    () = step.job.cancel.cancelled() => return Err("cancelled".to_owned()),
                }
            }
            other => return other,
        }
    }
}

async fn once(step: &Step, instance: &Instance, way: Way, check: &SmokeCheck) -> Result<(), String> {
    match &check.kind {
        SmokeKind::Http { url, status, contains, absent, json, max_latency } => {
            let url = match way {
                Way::Direct(address) if url.starts_with('/') => format!("http://{address}{url}"),
                _ => public_url(&step.environment, url)?,
            };
            let began = Instant::now();
            let answer = step.world.http().get(&url).send().await.map_err(|e| http_error(&e))?;
            let latency = began.elapsed();
            let got = answer.status().as_u16();
            if got != *status {
                return Err(format!("it answered {got}, and {status} is asked for"));
            }
            if let Some(max) = max_latency
                && latency > *max
            {
                return Err(format!("it took {latency:?}, and at most {max:?} is asked for"));
            }
            if contains.is_empty() && absent.is_empty() && json.is_empty() {
                return Ok(());
            }
            let body = bounded_body(answer).await?;
            let text = String::from_utf8_lossy(&body);
            if let Some(missing) = contains.iter().find(|wanted| !text.contains(wanted.as_str())) {
                return Err(format!("the answer does not contain `{missing}`"));
            }
            if let Some(present) = absent.iter().find(|unwanted| text.contains(unwanted.as_str())) {
                return Err(format!("the answer contains `{present}`"));
            }
            if json.is_empty() {
                return Ok(());
            }
            let document: Value = serde_json::from_slice(&body).map_err(|e| format!("the answer is not JSON: {e}"))?;
            json.iter().try_for_each(|(path, wanted)| json_value(&document, path, wanted))
        }
        SmokeKind::Tcp { address } => {
            let address = if address.parse::<u16>().is_ok() {
                format!("{}:{address}", public_host(&step.environment))
            } else {
                address.clone()
            };
            TcpStream::connect(&address).await.map(drop).map_err(|e| format!("connecting to {address}: {e}"))
        }
        SmokeKind::Exec { command } => {
            let runtime = step.world.runtime(&step.environment);
            let done = runtime.exec(instance, command, check.timeout).await.map_err(|e| e.to_string())?;
            if done.code == 0 {
                return Ok(());
            }
            step.job.log.line(done.output.join("\n"));
            Err(format!("it exited with code {}", done.code))
        }
    }
}

/// A path is taken on the environment's public port, as a client on this host reaches it.
fn public_url(environment: &Environment, url: &str) -> Result<String, String> {
    if !url.starts_with('/') {
        return Ok(url.to_owned());
    }
    let port = environment.port.ok_or("a path needs a `port` in the environment")?;
    let host = match public_host(environment) {
        IpAddr::V6(v6) => format!("[{v6}]"),
        IpAddr::V4(v4) => v4.to_string(),
    };
    Ok(format!("http://{host}:{port}{url}"))
}

fn public_host(environment: &Environment) -> IpAddr {
    if environment.bind.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { environment.bind }
}

async fn bounded_body(mut answer: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| http_error(&e))? {
        let room = MAX_BODY - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == MAX_BODY {
            break;
        }
    }
    Ok(body)
}

/// `database.state` → the value there; numbers in the path index arrays.
fn json_value(document: &Value, path: &str, wanted: &Value) -> Result<(), String> {
    let mut at = document;
    for part in path.split('.') {
        let next = match at {
            Value::Array(items) => part.parse::<usize>().ok().and_then(|i| items.get(i)),
            other => other.get(part),
        };
        at = next.ok_or_else(|| format!("the answer has no `{path}`"))?;
    }
    if at == wanted { Ok(()) } else { Err(format!("`{path}` is {at}, and {wanted} is asked for")) }
}

/// The innermost reason of a failed request, without the URL (which may hold a token).
pub fn http_error(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut source: &dyn std::error::Error = error;
    while let Some(inner) = source.source() {
        source = inner;
    }
    source.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_paths_reach_objects_and_arrays() {
        let document = json!({ "database": { "state": "ok" }, "items": [1, { "n": 2 }] });
        assert_eq!(json_value(&document, "database.state", &json!("ok")), Ok(()));
        assert_eq!(json_value(&document, "items.1.n", &json!(2)), Ok(()));
        assert!(json_value(&document, "database.state", &json!("down")).is_err_and(|e| e.contains("\"ok\"")));
        assert!(json_value(&document, "items.7", &json!(2)).is_err_and(|e| e.contains("no `items.7`")));
    }
}
