//! What the gate answers by itself.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use hyper::http::header;
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::traffic::Page;

/// Why a request has no answer of the app.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    /// No route was made for it.
    NoRoute,
    /// Its route has no live side.
    Empty,
    Maintenance(Arc<Page>),
    /// It waited, and a bound was over.
    Overdue,
    /// The app does not accept connections.
    Unreachable,
    /// The app broke the connection, or answered something that is not HTTP.
    BrokenOff,
    /// The app said nothing for too long.
    Silent,
    TooLarge,
    BadRequest,
    SlowClient,
    /// Nobody is left to answer to.
    ClientLeft,
    Bug,
}

impl Trouble {
    /// 0: no answer.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::NoRoute => 404,
            Self::Empty | Self::Maintenance(_) | Self::Overdue => 503,
            Self::Unreachable | Self::BrokenOff => 502,
            Self::Silent => 504,
            Self::TooLarge => 413,
            Self::BadRequest => 400,
            Self::SlowClient => 408,
            Self::ClientLeft => 0,
            Self::Bug => 500,
        }
    }

    /// Seconds, where trying again helps.
    fn retry_after(&self) -> Option<u32> {
        match self {
            Self::Maintenance(page) => Some(page.retry_after),
            Self::Empty | Self::Overdue | Self::Unreachable => Some(5),
            _ => None,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoute => "nothing is served here",
            Self::Empty => "nothing is live here yet",
            Self::Maintenance(_) => "down for maintenance",
            Self::Overdue => "the app is being replaced, and this took longer than it should",
            Self::Unreachable => "the app does not accept connections",
            Self::BrokenOff => "the app broke off",
            Self::Silent => "the app did not answer in time",
            Self::TooLarge => "the request is too large",
            Self::BadRequest => "this is not a valid request",
            Self::SlowClient => "the request took too long to arrive",
            Self::ClientLeft => "the client went away",
            Self::Bug => "the gate failed",
        })
    }
}

pub(super) async fn send(session: &mut Session, trouble: &Trouble) -> Result<()> {
    let (kind, body) = match trouble {
        Trouble::Maintenance(page) => ("text/html; charset=utf-8", maintenance(page)),
        other => ("text/plain; charset=utf-8", format!("{} {other}\n", other.status())),
    };
    let mut head = ResponseHeader::build(trouble.status(), Some(6))?;
    head.insert_header(header::CONTENT_TYPE, kind)?;
    head.insert_header(header::CONTENT_LENGTH, body.len())?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    if let Some(seconds) = trouble.retry_after() {
        head.insert_header(header::RETRY_AFTER, seconds)?;
    }
    // The answer to a HEAD has no body, and pingora sees to that.
    session.write_response_header(Box::new(head), false).await?;
    session.write_response_body(Some(Bytes::from(body)), true).await
}

fn maintenance(page: &Page) -> String {
    let message = page.message.as_deref().unwrap_or("We are working on it and will be back soon.");
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Maintenance</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <style>body{{font:1.1em/1.5 system-ui,sans-serif;max-width:32em;margin:20vh auto;padding:0 1em}}</style></head>\n\
         <body><h1>Down for maintenance</h1><p>{}</p></body></html>\n",
        escape(message)
    )
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_become_markup() {
        let page = Page { message: Some("<script>alert('x')</script> & \"more\"".into()), retry_after: 1 };
        let html = maintenance(&page);
        assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;more&quot;"));
        assert!(!html.contains("<script>"));
    }
}
