//! What a Telegram chat would show, for `refit demo --chat`.
//!
//! A small server on the loopback answers the calls of the Bot API that the daemon makes, and keeps what it is told; nothing leaves this machine.
//! It takes everything: the strict one is in the tests. Of an edit only the lines are printed that it changes, as the eye sees it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    stopped,
    voice::{Voice, WIDTH, wrapped},
};
use crate::cli::error::{CliError, Result};

/// Of no bot that exists.
pub const TOKEN: &str = "1:a-bot-that-lives-in-this-demo-only-00000000";
pub const CHAT: i64 = 10_001;

/// For the message that rings after a push has ended: it comes at the pace that Telegram takes.
const RING_LIMIT: Duration = Duration::from_secs(20);

/// How long the bot waits for people who say nothing.
const SILENCE: Duration = Duration::from_secs(20);

const LARGEST_BODY: usize = 4 * 1024 * 1024;

/// Something that happened in the chat.
#[derive(Debug)]
struct News {
    message: i64,
    what: What,
    lines: Vec<String>,
}

#[derive(Debug)]
enum What {
    Sent { silent: bool, answers: bool },
    Edited,
    Deleted,
}

#[derive(Debug)]
pub struct Chat {
    address: SocketAddr,
    news: mpsc::UnboundedReceiver<News>,
    /// What each message shows.
    shown: HashMap<i64, Vec<String>>,
    server: JoinHandle<()>,
}

impl Drop for Chat {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Chat {
    pub async fn open() -> Result<Self> {
        let failed = |e| CliError::io("opening the demo's chat", e);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (sender, news) = mpsc::unbounded_channel();
        let server = tokio::spawn(serve(listener, Arc::new(Api { sender, messages: Mutex::new(0) })));
        Ok(Self { address, news, shown: HashMap::new(), server })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Prints what happened since the last time, up to the message that rings.
    pub async fn tell(&mut self, voice: Voice<'_>, cancel: &CancellationToken) -> Result<()> {
        voice.blank()?;
        voice.line("Meanwhile in the chat:")?;
        let deadline = tokio::time::Instant::now() + RING_LIMIT;
        loop {
            let news = tokio::select! {
                news = tokio::time::timeout_at(deadline, self.news.recv()) => news,
                () = cancel.cancelled() => return Err(stopped()),
            };
            let Ok(Some(news)) = news else { return voice.line("(nothing more came)") };
            let rings = matches!(news.what, What::Sent { silent: false, .. });
            self.print(voice, news)?;
            if rings {
                return voice.line("╰─");
            }
        }
    }

    fn print(&mut self, voice: Voice<'_>, news: News) -> Result<()> {
        let before = self.shown.insert(news.message, news.lines.clone()).unwrap_or_default();
        let (head, lines): (String, Vec<String>) = match news.what {
            What::Sent { silent, answers } => {
                let answers = if answers { " answers it" } else { "" };
                let sound = if silent { ", without a sound" } else { ", and the phone rings" };
                (format!("refit{answers}{sound}"), news.lines)
            }
            What::Edited => {
                let new = news.lines.into_iter().filter(|line| !before.contains(line)).collect();
                ("the message changes".to_owned(), new)
            }
            What::Deleted => ("the message is taken back".to_owned(), Vec::new()),
        };
        voice.line(&format!("╭─ {head}"))?;
        for line in lines.iter().flat_map(|line| wrapped(line, WIDTH - 4)) {
            voice.line(&format!("│ {line}"))?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Api {
    sender: mpsc::UnboundedSender<News>,
    messages: Mutex<i64>,
}

async fn serve(listener: TcpListener, api: Arc<Api>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let api = Arc::clone(&api);
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, Arc::clone(&api)));
            // Whoever hangs up has heard enough.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    api: Arc<Api>,
) -> std::result::Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let body = Limited::new(request.into_body(), LARGEST_BODY).collect().await?.to_bytes();
    let result = match method.as_str() {
        "getupdates" => {
            tokio::time::sleep(SILENCE).await;
            json!([])
        }
        "getme" => json!({
            "id": 1, "is_bot": true, "first_name": "refit", "username": "refit_demo_bot", "can_join_groups": true,
            "can_read_all_group_messages": false, "supports_inline_queries": false, "can_connect_to_business": false,
            "has_main_web_app": false,
        }),
        _ => api.take(&method, &body),
    };
    let mut response = Response::new(Full::new(Bytes::from(json!({ "ok": true, "result": result }).to_string())));
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    Ok(response)
}

impl Api {
    /// Takes a call, and returns its result.
    fn take(&self, method: &str, body: &[u8]) -> Value {
        // A file comes as a form.
        let input: Value = serde_json::from_slice(body).unwrap_or_default();
        let (message, what) = match method {
            "sendmessage" | "senddocument" => {
                let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
                *messages += 1;
                let silent = input["disable_notification"] == true || method == "senddocument";
                (*messages, What::Sent { silent, answers: input["reply_parameters"].is_object() })
            }
            "editmessagetext" => (input["message_id"].as_i64().unwrap_or_default(), What::Edited),
            "deletemessage" => (input["message_id"].as_i64().unwrap_or_default(), What::Deleted),
            _ => return Value::Bool(true),
        };
        let mut lines: Vec<String> = match file_name(body).filter(|_| method == "senddocument") {
            Some(name) => vec![format!("[file {name}]")],
            None => visible(input["text"].as_str().unwrap_or_default()).lines().map(str::to_owned).collect(),
        };
        lines.extend(buttons(&input));
        // The demo may have ended.
        let _ = self.sender.send(News { message, what, lines });
        json!({ "message_id": message, "date": 0, "chat": { "id": CHAT, "type": "private", "first_name": "Ada" }, "text": "…" })
    }
}

/// A line for each row.
fn buttons(input: &Value) -> Vec<String> {
    let markup = &input["reply_markup"];
    let rows = markup["inline_keyboard"].as_array().into_iter().flatten().filter_map(Value::as_array);
    let text = |button: &Value| button["text"].as_str().map(|text| format!("[{text}]"));
    rows.map(|row| row.iter().filter_map(text).collect::<Vec<_>>().join(" ")).collect()
}

fn file_name(form: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(form);
    let (_, rest) = text.split_once("filename=\"")?;
    Some(rest.split_once('"')?.0.to_owned())
}

/// What people read of Telegram's HTML, as the reports are written in it.
fn visible(html: &str) -> String {
    let mut text = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        text.push_str(&rest[..at]);
        rest = rest[at..].split_once('>').map_or("", |(_, rest)| rest);
    }
    text.push_str(rest);
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_not_shown() {
        assert_eq!(visible("✅ <b>a</b>: <a href=\"x?a&amp;b\">c</a> &lt;b&gt; &amp;lt;"), "✅ a: c <b> &lt;");
        let input =
            json!({ "reply_markup": { "inline_keyboard": [[{ "text": "a" }, { "text": "b" }], [{ "text": "c" }]] } });
        assert_eq!(buttons(&input), ["[a] [b]", "[c]"]);
        assert_eq!(file_name(b"x; name=\"d\"; filename=\"a.log\"\r\n").as_deref(), Some("a.log"));
    }
}
