//! A stand-in for Telegram's Bot API on the loopback: takes what the real one takes, and refuses what it refuses, in its words.
//!
//! It knows one bot ([`TOKEN`]) and one chat ([`CHAT`]) with one topic ([`TOPIC`]). What it accepted is kept for the test to read, as the chat shows it now
//! ([`BotApi::accepted`]) and as it came to that ([`BotApi::moments`]). Trouble can be ordered: for the next request ([`Fault`]), or until
//! further notice ([`BotApi::stop`], [`BotApi::set_mood`]). It runs in a thread of its own, so that tests without an async runtime can
//! use it, and keeps its port over a stop and a start.
//!
//! - `chat`: what the bot sends: messages, edits, files, deletions.
//! - `form`: a request's parameters, as JSON or as a form.
//! - `html`: the markup.
//!
//! Behaviour: <https://core.telegram.org/bots/api>, sections "Making requests" and "ResponseParameters", and those of the methods.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::ports::free_port;

mod bot;
mod chat;
mod form;
pub mod html;

pub use bot::{OPERATOR, SECOND_OPERATOR, STRANGER, Said};
pub use chat::{Accepted, Moment};
use form::Input;

pub const TOKEN: &str = "123456789:AAStandInForTheRealThing-0123456789ab";
pub const CHAT: i64 = -1_001_234_567_890;
pub const TOPIC: i64 = 77;

/// What the group turns into after [`Mood::Migrated`].
pub const NEW_CHAT: i64 = -1_009_999_999_999;

/// What the real one allows in a group: a message a second, and this many in a minute ("Broadcasting to users" of the bots' FAQ).
pub const PACE: Pace = Pace { gap: Duration::from_secs(1), most: 20, window: Duration::from_secs(60) };

/// The method that only waits for news: trouble that is ordered for "the next request" is not for it.
const POLLING: &str = "getupdates";

/// How long a message is waited for; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens to the next request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed without an answer, and nothing is taken.
    Hangup,
    /// Nothing is taken and no answer ever comes.
    Silence,
    /// Everything as usual, so much later.
    Late(Duration),
    /// The message is taken and no answer ever comes.
    LostAnswer,
    /// An answer of the server's own trouble.
    Broken,
    /// A page of some proxy between here and there.
    NotJson,
    /// 429 with `retry_after` in seconds.
    TooMany(u64),
    /// 400: the markup cannot be read.
    BadMarkup,
    /// 400 in these words.
    BadRequest(&'static str),
    /// The message is taken, and the answer has a shape that a client of today does not know.
    NewerAnswer,
}

/// How requests are met until further notice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Well,
    /// The bot is not in the chat.
    NoChat,
    /// The bot was thrown out.
    Blocked,
    /// The token was revoked.
    Revoked,
    /// The group became a supergroup with the id [`NEW_CHAT`].
    Migrated,
    /// More messages and edits than [`PACE`] allows, or [`BotApi::set_pace`], are answered 429.
    Paced,
}

/// What a chat takes in [`Mood::Paced`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    pub gap: Duration,
    pub most: usize,
    pub window: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        PACE
    }
}

#[derive(Debug, Default)]
struct State {
    /// With the method that they are for; without one, for any but [`POLLING`].
    faults: VecDeque<(Option<&'static str>, Fault)>,
    bot: bot::Bot,
    mood: Mood,
    pace: Pace,
    accepted: Vec<Accepted>,
    moments: Vec<Moment>,
    requests: usize,
    /// When messages and edits were taken, for the pace.
    taken: VecDeque<Instant>,
}

/// The running stand-in; it ends when it is dropped.
#[derive(Debug)]
pub struct BotApi {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    server: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl BotApi {
    pub fn start() -> Self {
        // Its own also while it is stopped: one that the kernel hands out could be another's when it is wanted back.
        let listener = TcpListener::bind(("127.0.0.1", free_port())).expect("a loopback port");
        let address = listener.local_addr().expect("its address");
        let mut api = Self { address, state: Arc::default(), server: None };
        api.serve(listener);
        api
    }

    /// For `telegram.api_url`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Nobody listens any more; connections that are open are closed.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.server.take() {
            drop(stop);
            thread.join().expect("the stand-in ends");
        }
    }

    /// Listens again on the same port.
    pub fn restart(&mut self) {
        self.stop();
        let began = Instant::now();
        let listener = loop {
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(error) if began.elapsed() > PATIENCE => panic!("{} is taken: {error}", self.address),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        self.serve(listener);
    }

    /// Orders faults for the next requests, one each.
    pub fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults.into_iter().map(|fault| (None, fault)));
    }

    /// Orders faults for the next requests of one method, such as `editMessageText`.
    pub fn faults_on(&self, method: &'static str, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults.into_iter().map(|fault| (Some(method), fault)));
    }

    pub fn set_mood(&self, mood: Mood) {
        self.lock().mood = mood;
    }

    pub fn set_pace(&self, pace: Pace) {
        self.lock().pace = pace;
    }

    /// The bot's messages as the chat shows them now, oldest first; deleted ones are missing.
    pub fn accepted(&self) -> Vec<Accepted> {
        self.lock().accepted.iter().filter(|message| !message.deleted).cloned().collect()
    }

    /// Those that made a phone ring.
    pub fn rung(&self) -> Vec<Accepted> {
        self.accepted().into_iter().filter(|message| !message.silent).collect()
    }

    /// What a message says together with the one that it answers.
    pub fn whole(&self, message: &Accepted) -> String {
        let answered = self.accepted().into_iter().find(|other| Some(other.id) == message.reply_to);
        format!("{}\n{}", answered.map(|other| other.text).unwrap_or_default(), message.text)
    }

    /// What happened in the chat, in order.
    pub fn moments(&self) -> Vec<Moment> {
        self.lock().moments.clone()
    }

    /// Somebody deletes a message of the bot.
    pub fn delete(&self, id: i64) {
        self.lock().delete_by_hand(id);
    }

    /// Requests so far, whatever became of them, but for those that only waited for news.
    pub fn requests(&self) -> usize {
        self.lock().requests
    }

    /// Waits until `wanted` messages were accepted, and returns them all.
    #[track_caller]
    pub fn wait_for(&self, wanted: usize) -> Vec<Accepted> {
        self.wait_until(&format!("{wanted} messages"), |api| api.accepted().len() >= wanted);
        self.accepted()
    }

    /// Waits until `wanted` messages rang, and returns them all.
    #[track_caller]
    pub fn wait_for_rings(&self, wanted: usize) -> Vec<Accepted> {
        self.wait_until(&format!("{wanted} messages that ring"), |api| api.rung().len() >= wanted);
        self.rung()
    }

    /// Waits until `wanted` requests came in.
    #[track_caller]
    pub fn wait_for_requests(&self, wanted: usize) {
        self.wait_until(&format!("{wanted} requests"), |api| api.requests() >= wanted);
    }

    #[track_caller]
    pub fn wait_until(&self, what: &str, reached: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !reached(self) {
            assert!(began.elapsed() < PATIENCE, "waited for {what} in vain: {:?}", self.lock());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&mut self, listener: TcpListener) {
        listener.set_nonblocking(true).expect("a listener for tokio");
        let (stop, stopped) = oneshot::channel();
        let state = Arc::clone(&self.state);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, state) => {}
                    _ = stopped => {}
                }
            });
            // Dropping the runtime drops every connection.
        });
        self.server = Some((stop, thread));
    }
}

impl Drop for BotApi {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, Arc::clone(&state)));
            // A connection that is hung up on purpose ends in an error.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

type Answer = Response<Full<Bytes>>;

/// A connection that is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("hung up")]
struct HungUp;

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Answer, HungUp> {
    let path = request.uri().path().to_owned();
    let kind = request.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.map_err(|_| HungUp)?.to_bytes();
    let fault = state.lock().unwrap_or_else(PoisonError::into_inner).fault_for(&path);
    let regular = || {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.handle(&path, &kind, &body)
    };
    match fault {
        None if path.to_ascii_lowercase().ends_with(&format!("/{POLLING}")) && is_known(&path) => {
            match Input::read(&kind, &body) {
                Ok(input) => Ok(bot::get_updates(&state, &input).await),
                Err(why) => Ok(refuse(400, &format!("Bad Request: {why}"), None)),
            }
        }
        None => Ok(regular()),
        Some(Fault::Hangup) => Err(HungUp),
        Some(Fault::Silence) => never().await,
        Some(Fault::Late(wait)) => {
            tokio::time::sleep(wait).await;
            Ok(regular())
        }
        Some(Fault::LostAnswer) => {
            drop(regular());
            never().await
        }
        Some(Fault::Broken) => Ok(refuse(500, "Internal Server Error", None)),
        Some(Fault::NotJson) => {
            let page = format!("<html>502 Bad Gateway for {path}</html>");
            Ok(respond(StatusCode::OK, page))
        }
        Some(Fault::TooMany(wait)) => Ok(too_many(wait)),
        Some(Fault::BadMarkup) => {
            Ok(refuse(400, "Bad Request: can't parse entities: Unsupported start tag \"x\" at byte offset 0", None))
        }
        Some(Fault::BadRequest(why)) => Ok(refuse(400, &format!("Bad Request: {why}"), None)),
        Some(Fault::NewerAnswer) => {
            drop(regular());
            Ok(respond(StatusCode::OK, json!({ "ok": true, "result": { "message": "of another kind" } }).to_string()))
        }
    }
}

async fn never() -> Result<Answer, HungUp> {
    std::future::pending::<Infallible>().await;
    Err(HungUp)
}

impl State {
    /// Counts a request, and says what was ordered for it.
    fn fault_for(&mut self, path: &str) -> Option<Fault> {
        let method = path.rsplit('/').next().unwrap_or_default();
        let polls = method.eq_ignore_ascii_case(POLLING);
        self.requests += usize::from(!polls);
        let meant =
            |(wanted, _): &(Option<&str>, Fault)| wanted.map_or(!polls, |name| method.eq_ignore_ascii_case(name));
        let at = self.faults.iter().position(meant)?;
        self.faults.remove(at).map(|(_, fault)| fault)
    }

    fn handle(&mut self, path: &str, kind: &str, body: &[u8]) -> Answer {
        let Some((token, method)) = path.strip_prefix("/bot").and_then(|rest| rest.split_once('/')) else {
            return refuse(404, "Not Found", None);
        };
        if self.mood == Mood::Revoked {
            return refuse(401, "Unauthorized", None);
        }
        if token != TOKEN {
            // A token of the right shape is unknown; anything else is no address at all.
            return match token.split_once(':') {
                Some((id, secret)) if id.parse::<u64>().is_ok() && secret.len() >= 35 => {
                    refuse(401, "Unauthorized", None)
                }
                _ => refuse(404, "Not Found", None),
            };
        }
        let input = match Input::read(kind, body) {
            Ok(input) => input,
            Err(why) => return refuse(400, &format!("Bad Request: {why}"), None),
        };
        let answer = self.call(&method.to_ascii_lowercase(), &input);
        answer.unwrap_or_else(|refusal| *refusal)
    }

    fn call(&mut self, method: &str, input: &Input) -> Result<Answer, Box<Answer>> {
        match method {
            "getme" => Ok(ok(&json!({
                "id": 123_456_789, "is_bot": true, "first_name": "Refit", "username": "refit_test_bot",
                "can_join_groups": true, "can_read_all_group_messages": false, "supports_inline_queries": false,
                "can_connect_to_business": false, "has_main_web_app": false,
            }))),
            "getchat" => self.chat(input).map(|chat| ok(&chat_info(chat))),
            "sendmessage" => self.send_message(input),
            "senddocument" => self.send_document(input),
            "editmessagetext" => self.edit_message_text(input),
            "deletemessage" => self.delete_message(input),
            _ => self.listen(method, input),
        }
    }

    fn chat(&self, input: &Input) -> Result<i64, Box<Answer>> {
        let refused = |code, why: &str, parameters| Err(Box::new(refuse(code, why, parameters)));
        if input.get("chat_id").is_none() {
            return refused(400, "Bad Request: chat_id is empty", None);
        }
        let chat = input.number("chat_id");
        match (self.mood, chat) {
            (Mood::Migrated, Some(NEW_CHAT)) => Ok(NEW_CHAT),
            (Mood::Migrated, Some(CHAT)) => refused(
                400,
                "Bad Request: group chat was upgraded to a supergroup chat",
                Some(json!({ "migrate_to_chat_id": NEW_CHAT })),
            ),
            (Mood::Blocked, Some(CHAT)) => refused(403, "Forbidden: bot was kicked from the supergroup chat", None),
            (Mood::Well | Mood::Paced, Some(CHAT)) => Ok(CHAT),
            _ => refused(400, "Bad Request: chat not found", None),
        }
    }
}

fn is_known(path: &str) -> bool {
    path.strip_prefix("/bot").and_then(|rest| rest.split_once('/')).is_some_and(|(token, _)| token == TOKEN)
}

fn chat_info(chat: i64) -> Value {
    json!({
        "id": chat, "title": "Deployments", "type": "supergroup", "is_forum": true,
        "accent_color_id": 1, "max_reaction_count": 11,
        "accepted_gift_types": {
            "unlimited_gifts": false, "limited_gifts": false, "unique_gifts": false, "premium_subscription": false,
            "gifts_from_channels": false,
        },
    })
}

fn ok(result: &Value) -> Answer {
    respond(StatusCode::OK, json!({ "ok": true, "result": result }).to_string())
}

fn too_many(wait: u64) -> Answer {
    refuse(429, &format!("Too Many Requests: retry after {wait}"), Some(json!({ "retry_after": wait })))
}

fn refuse(code: u16, description: &str, parameters: Option<Value>) -> Answer {
    let mut body = json!({ "ok": false, "error_code": code, "description": description });
    if let Some(parameters) = parameters {
        body["parameters"] = parameters;
    }
    respond(StatusCode::from_u16(code).expect("an HTTP status"), body.to_string())
}

fn respond(status: StatusCode, body: String) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}
