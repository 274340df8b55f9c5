//! `refit demo-app`: the web server of the demo's app where there are no containers. It serves a directory's files and nothing else.

use std::{
    convert::Infallible,
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::cli::{
    args::DemoAppArgs,
    error::{CliError, Result},
};

/// Serves until the process is ended.
pub async fn run(args: &DemoAppArgs) -> Result<u8> {
    let address = ("127.0.0.1", args.port);
    let listener =
        TcpListener::bind(address).await.map_err(|e| CliError::io(format!("listening on port {}", args.port), e))?;
    let root: Arc<Path> = args.dir.clone().into();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, as a rule: others have to be closed first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let root = root.clone();
        let service = service_fn(move |request| {
            let root = root.clone();
            async move { Ok::<_, Infallible>(answer(&root, &request).await) }
        });
        tokio::spawn(async move {
            // A visitor who goes away in the middle is nobody's error.
            let _ =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(root: &Path, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    let Some(file) = file_of(root, request.uri().path()) else { return text(StatusCode::NOT_FOUND, "not found\n") };
    match tokio::fs::read(&file).await {
        Ok(content) => {
            let kind = if file.extension().is_some_and(|e| e == "html") { "text/html" } else { "text/plain" };
            let mut response = Response::new(Full::new(content.into()));
            response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
            response
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => text(StatusCode::NOT_FOUND, "not found\n"),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the file cannot be read\n"),
    }
}

/// The file that a path stands for; `None` for one that would leave the directory.
fn file_of(root: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path.trim_start_matches('/'));
    if !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    Some(if path.as_os_str().is_empty() { root.join("index.html") } else { root.join(path) })
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_the_directory() {
        let root = Path::new("/site");
        assert_eq!(file_of(root, "/"), Some(PathBuf::from("/site/index.html")));
        assert_eq!(file_of(root, "/a/b.txt"), Some(PathBuf::from("/site/a/b.txt")));
        assert_eq!(file_of(root, "//etc/passwd"), Some(PathBuf::from("/site/etc/passwd")));
        for bad in ["/../etc/passwd", "/a/../../b", "/.."] {
            assert_eq!(file_of(root, bad), None, "{bad}");
        }
    }
}
