//! What bollard's errors mean for Refit: the one place where they are translated.

use std::{future::Future, io, time::Duration};

use bollard::errors::Error;

use crate::runtime::{Result, RuntimeError};

/// The longest that a call which is no stream may take. bollard's own limit ends with the answer's head.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// Waits for an answer, within [`CALL_LIMIT`].
pub(super) async fn answer<T>(
    call: impl Future<Output = std::result::Result<T, Error>>,
) -> std::result::Result<T, Error> {
    tokio::time::timeout(CALL_LIMIT, call).await.unwrap_or(Err(Error::RequestTimeoutError))
}

/// Translates an error of `operation` (`start container x`).
pub(super) fn failure(operation: impl Into<String>, error: Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { status_code, message } => refused(operation.into(), status_code, &message),
        Error::DockerStreamError { error } => RuntimeError::failed(operation, error.trim()),
        other => match unreachable(&other) {
            Some(why) => unavailable(why),
            None => RuntimeError::failed(operation, other),
        },
    }
}

/// Whether the engine answered that there is no such thing.
pub(super) fn is_missing(error: &Error) -> bool {
    status(error) == Some(404)
}

pub(super) fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

pub(super) fn unavailable(why: impl Into<String>) -> RuntimeError {
    RuntimeError::Unavailable { what: "Docker".to_owned(), why: why.into() }
}

fn refused(operation: String, status: u16, message: &str) -> RuntimeError {
    let message = message.trim();
    if let Some((what, name)) = missing_thing(message).filter(|_| status == 404) {
        return RuntimeError::Missing { what, name };
    }
    if let Some(port) = taken_port(message) {
        let why = format!(
            "port {port} is taken by another program or container; `docker ps --filter publish={port}` and \
             `ss -ltnp 'sport = :{port}'` show which"
        );
        return RuntimeError::Failed { operation, why };
    }
    RuntimeError::failed(operation, message)
}

/// `No such image: x`, `No such container: x`, `network x not found`.
fn missing_thing(message: &str) -> Option<(&'static str, String)> {
    for (what, words) in [("image", "No such image: "), ("container", "No such container: ")] {
        if let Some(name) = message.strip_prefix(words) {
            return Some((what, name.trim().to_owned()));
        }
    }
    let name = message.strip_prefix("network ")?.strip_suffix(" not found")?;
    Some(("network", name.to_owned()))
}

/// The host port in the engine's words for a port that somebody else has.
fn taken_port(message: &str) -> Option<u16> {
    let end = message
        .find(" failed: port is already allocated")
        .or_else(|| message.find(": bind: address already in use"))?;
    message[..end].rsplit(':').next()?.parse().ok()
}

fn unreachable(error: &Error) -> Option<String> {
    match error {
        Error::RequestTimeoutError => Some("it does not answer; look at `systemctl status docker`".to_owned()),
        Error::IOError { err } => Some(connection(err)),
        Error::HyperResponseError { err } if err.is_user() => None,
        Error::HyperResponseError { .. } => Some("it closed the connection in the middle of an answer".to_owned()),
        Error::HyperLegacyError { err } => Some(io_source(err).map_or_else(|| err.to_string(), connection)),
        Error::SocketNotFoundError(_) => Some(connection(&io::ErrorKind::NotFound.into())),
        _ => None,
    }
}

fn connection(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "it is not running; start it with `systemctl start docker`".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "its socket may not be used by this user; add the user to the group `docker`".to_owned()
        }
        _ => format!("the connection broke: {error}"),
    }
}

fn io_source<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e io::Error> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref() {
            return Some(io);
        }
        source = error.source();
    }
    None
}

/// Turns "there is no such thing" into `None`.
pub(super) fn found<T>(operation: impl Into<String>, answer: std::result::Result<T, Error>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(failure(operation, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(status_code: u16, message: &str) -> String {
        failure("start x", Error::DockerResponseServerError { status_code, message: message.to_owned() }).to_string()
    }

    #[test]
    fn the_engines_words_become_clear() {
        for taken in [
            "driver failed programming external connectivity on endpoint q (27): Bind for 127.0.0.1:2233 failed: port is already allocated",
            "driver failed (27): Error starting userland proxy: listen tcp4 0.0.0.0:2233: bind: address already in use",
            "failed to bind host port for 0.0.0.0:2233:172.17.0.2:80/tcp: listen tcp4 0.0.0.0:2233: bind: address already in use",
        ] {
            let message = server(500, taken);
            assert!(message.starts_with("start x: port 2233 is taken") && message.contains("ss -ltnp"), "{message}");
        }
        assert_eq!(server(404, "No such image: sha256:ab"), "image `sha256:ab` does not exist");
        assert_eq!(server(404, "network back not found"), "network `back` does not exist");
        assert_eq!(server(500, "something else\n"), "start x: something else");
    }

    #[test]
    fn each_way_of_being_away_has_its_way_out() {
        let io = |kind: io::ErrorKind| failure("x", Error::IOError { err: kind.into() }).to_string();
        assert!(io(io::ErrorKind::PermissionDenied).contains("group `docker`"));
        assert!(io(io::ErrorKind::ConnectionRefused).contains("systemctl start docker"));
        assert!(matches!(failure("x", Error::RequestTimeoutError), RuntimeError::Unavailable { .. }));
    }
}
