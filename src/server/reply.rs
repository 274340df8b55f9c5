//! Answers: small JSON objects. An error is `{error, hint}`.

use serde::Serialize;
use warp::http::{
    HeaderValue, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
};

/// What every route answers with.
pub(super) type Response = warp::reply::Response;

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

/// `value` as JSON. A value that cannot be written is a bug, and answers 500.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => with_type(status, body, "application/json"),
        Err(source) => {
            tracing::error!("an answer could not be written as JSON: {source}");
            with_type(StatusCode::INTERNAL_SERVER_ERROR, br#"{"error":"internal error"}"#.to_vec(), "application/json")
        }
    }
}

pub(super) fn error(status: StatusCode, error: &str, hint: Option<&str>) -> Response {
    json(status, &ErrorBody { error, hint })
}

pub(super) fn method_not_allowed(allowed: &'static str) -> Response {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, &format!("this route takes only {allowed}"), None);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn with_type(status: StatusCode, body: Vec<u8>, content_type: &'static str) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    harden(&mut response, content_type);
    response
}

/// The headers of every answer: browsers must not guess a type, and nothing here may be kept by a cache.
pub(super) fn harden(response: &mut Response, content_type: &'static str) {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
}
