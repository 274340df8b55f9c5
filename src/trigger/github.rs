//! GitHub's webhook: its signature, then its payload.
//!
//! The signature is an HMAC-SHA-256 over the raw body in `X-Hub-Signature-256: sha256=<64 hex digits>`; the older SHA-1 header is
//! never looked at. It is checked before a byte is parsed. Several secrets may be valid at once while one is replaced by another.
//!
//! A payload comes as JSON, or as a form whose field `payload` is that JSON (the webhook's "content type" setting). Of its
//! hundreds of keys only those below are read. Text for people is shortened here; it is still the pusher's text, to be
//! masked and escaped where it is shown.

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde::Deserialize;
use sha2::Sha256;

use super::hook::{branch_of, id, shown};
use crate::{
    model::{Branch, CommitId},
    secret::Secret,
};

/// GitHub's payloads are nested seven deep.
const DEEPEST: usize = 64;

const LONGEST_NAME: usize = 200;
const LONGEST_SUBJECT: usize = 300;
const LONGEST_MESSAGE: usize = 16 * 1024;
const LONGEST_DELIVERY: usize = 64;

/// Why a request is answered 401.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("no secret is configured for this webhook")]
    NoSecret,
    #[error("the header `X-Hub-Signature-256` is missing; set the secret in the webhook's settings")]
    Missing,
    #[error("the header `X-Hub-Signature-256` is not `sha256=` and 64 hexadecimal digits")]
    Malformed,
    #[error("the signature does not fit the body; check that the webhook's secret is the configured one")]
    Mismatch,
}

/// Checks `X-Hub-Signature-256` over the raw body. Returns which of the secrets it was made with. An empty secret fits nothing.
pub fn verify(secrets: &[Secret], body: &[u8], header: Option<&str>) -> Result<usize, SignatureError> {
    if secrets.iter().all(Secret::is_empty) {
        return Err(SignatureError::NoSecret);
    }
    let digits = header.ok_or(SignatureError::Missing)?.strip_prefix("sha256=").ok_or(SignatureError::Malformed)?;
    let lower_hex = digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let signature = hex::decode(digits).map_err(|_| SignatureError::Malformed)?;
    if !lower_hex {
        return Err(SignatureError::Malformed);
    }
    // Each comparison takes the same time whatever fits how far.
    let fits = |secret: &Secret| {
        let mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes());
        !secret.is_empty() && mac.is_ok_and(|mac| mac.chain_update(body).verify_slice(&signature).is_ok())
    };
    secrets.iter().position(fits).ok_or(SignatureError::Mismatch)
}

/// What a delivery is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    Push(Box<PushEvent>),
    /// Understood, and nothing to deploy: answered 200 with the reason.
    Ignored {
        reason: String,
    },
}

/// A push to a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushEvent {
    /// `X-GitHub-Delivery`: letters, digits and `-`, at most 64.
    pub delivery: Option<String>,
    /// `owner/name` of the repository, as the payload says.
    pub full_name: String,
    /// `refs/heads/…`
    pub reference: String,
    pub branch: Branch,
    /// `None` for a new branch.
    pub before: Option<CommitId>,
    pub after: CommitId,
    /// The push replaced history.
    pub forced: bool,
    /// Who pushed; at most 200 characters.
    pub pusher: Option<String>,
    /// The first line of the head commit's message, at most 300 characters.
    pub subject: Option<String>,
    /// The head commit's message, at most 16 KiB: for skip markers.
    pub message: Option<String>,
    /// When the head commit was made.
    pub time: Option<Timestamp>,
}

/// Why a request is answered 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("the header `X-GitHub-Event` is not the name of an event")]
    Event,
    #[error("the header `X-GitHub-Delivery` is not 1 to 64 letters, digits and `-`")]
    Delivery,
    #[error("the body is neither JSON nor a form with a `payload`")]
    Form,
    #[error("the body is nested deeper than {DEEPEST} levels")]
    TooDeep,
    #[error("the body is not a push payload: {0}")]
    Payload(String),
    #[error("the payload's `{field}`: {why}")]
    Value { field: &'static str, why: String },
}

#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "ref")]
    reference: String,
    before: String,
    after: String,
    #[serde(default)]
    deleted: bool,
    #[serde(default)]
    forced: bool,
    repository: Repository,
    pusher: Option<Pusher>,
    head_commit: Option<HeadCommit>,
}

#[derive(Deserialize)]
struct Repository {
    full_name: String,
}

#[derive(Deserialize)]
struct Pusher {
    name: Option<String>,
}

#[derive(Deserialize)]
struct HeadCommit {
    id: String,
    message: Option<String>,
    timestamp: Option<String>,
}

/// Reads a delivery whose signature fits. `event` is `X-GitHub-Event`, `delivery` `X-GitHub-Delivery`.
pub fn parse(event: &str, delivery: Option<&str>, body: &[u8]) -> Result<Parsed, ParseError> {
    let event_ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if event.is_empty() || event.len() > LONGEST_DELIVERY || !event.bytes().all(event_ok) {
        return Err(ParseError::Event);
    }
    if let Some(id) = delivery
        && (id.is_empty() || id.len() > LONGEST_DELIVERY || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
    {
        return Err(ParseError::Delivery);
    }
    match event {
        "push" => {}
        "ping" => return Ok(ignored("ping: the webhook works")),
        other => return Ok(ignored(format!("the event `{other}` deploys nothing"))),
    }
    let form;
    let json = if body.trim_ascii_start().starts_with(b"{") {
        body
    } else {
        form = form_field(body, b"payload").ok_or(ParseError::Form)?;
        &form
    };
    if is_deeper_than(json, DEEPEST) {
        return Err(ParseError::TooDeep);
    }
    let payload = serde_json::from_slice(json).map_err(|e| ParseError::Payload(shown(&e.to_string())))?;
    push(payload, delivery)
}

fn push(payload: Payload, delivery: Option<&str>) -> Result<Parsed, ParseError> {
    let branch = match branch_of(&payload.reference) {
        Ok(branch) => branch,
        Err(reason) => return Ok(ignored(reason)),
    };
    let id_of = |field, text: &str| id(text).map_err(|why| ParseError::Value { field, why });
    let after = match id_of("after", &payload.after)? {
        Some(after) if !payload.deleted => after,
        _ => return Ok(ignored(format!("the branch `{branch}` was deleted"))),
    };
    let full_name = payload.repository.full_name;
    let name_ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    if full_name.is_empty() || full_name.len() > LONGEST_NAME || !full_name.bytes().all(name_ok) {
        let why = "not `owner/name`".to_owned();
        return Err(ParseError::Value { field: "repository.full_name", why });
    }
    // GitHub's head commit is what the branch points at; another one would describe something else.
    let head = payload.head_commit.filter(|head| head.id == after.as_str());
    let message = head.as_ref().and_then(|h| h.message.as_deref()).map(|m| cut(m, LONGEST_MESSAGE));
    Ok(Parsed::Push(Box::new(PushEvent {
        delivery: delivery.map(str::to_owned),
        full_name,
        reference: payload.reference,
        branch,
        before: id_of("before", &payload.before)?,
        after,
        forced: payload.forced,
        pusher: payload.pusher.and_then(|p| p.name).map(|name| cut(&name, LONGEST_NAME)),
        subject: message.as_deref().and_then(|m| m.lines().next()).map(|line| cut(line, LONGEST_SUBJECT)),
        message,
        time: head.and_then(|h| h.timestamp).and_then(|time| time.parse().ok()),
    })))
}

fn ignored(reason: impl Into<String>) -> Parsed {
    Parsed::Ignored { reason: reason.into() }
}

fn cut(text: &str, longest: usize) -> String {
    text.chars().take(longest).collect()
}

/// Whether JSON's brackets nest deeper. Values of unknown keys are skipped by the parser, which has no limit for them.
fn is_deeper_than(json: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'{' | b'[') => depth += 1,
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

/// A field of an `application/x-www-form-urlencoded` body, decoded.
fn form_field(body: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let value = body.split(|b| *b == b'&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))?;
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => decoded.push(b' '),
            b'%' => {
                let mut byte = [0];
                hex::decode_to_slice(rest.get(..2)?, &mut byte).ok()?;
                decoded.push(byte[0]);
                rest = &rest[2..];
            }
            other => decoded.push(*other),
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "It's a Secret to Everybody";
    /// The example of GitHub's documentation.
    const VECTOR: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    #[test]
    fn githubs_own_example_fits() {
        let secrets = [Secret::new("older"), Secret::new(KEY)];
        assert_eq!(verify(&secrets, b"Hello, World!", Some(VECTOR)), Ok(1));
        assert_eq!(verify(&secrets[1..], b"Hello, World!", Some(VECTOR)), Ok(0));
    }

    #[test]
    fn anything_else_does_not() {
        let secrets = [Secret::new(KEY)];
        let check = |header: Option<&str>| verify(&secrets, b"Hello, World!", header);
        assert_eq!(check(None), Err(SignatureError::Missing));
        for malformed in [
            "",
            "sha256=",
            &VECTOR[7..],
            &VECTOR[..VECTOR.len() - 1],
            &format!("{VECTOR}0"),
            &format!(" {VECTOR}"),
            &VECTOR.to_uppercase(),
            &VECTOR.replace("sha256", "SHA256"),
            &VECTOR.replace("sha256", "sha1"),
            "sha1=2fd4e1c67a2d28fced849ee1bb76e7391b93eb12",
            &format!("sha256={}", "g".repeat(64)),
            &format!("sha256={}", "é".repeat(32)),
        ] {
            assert_eq!(check(Some(malformed)), Err(SignatureError::Malformed), "{malformed}");
        }
        let zeros = format!("sha256={}", "0".repeat(64));
        assert_eq!(check(Some(&zeros)), Err(SignatureError::Mismatch));
        for body in [&b"Hello, World?"[..], b"", b"Hello, World! "] {
            assert_eq!(verify(&secrets, body, Some(VECTOR)), Err(SignatureError::Mismatch));
        }
        assert_eq!(verify(&[Secret::new("other")], b"Hello, World!", Some(VECTOR)), Err(SignatureError::Mismatch));
    }

    #[test]
    fn an_empty_secret_lets_nobody_in() {
        let mac = Hmac::<Sha256>::new_from_slice(b"").unwrap().chain_update(b"{}").finalize().into_bytes();
        let header = format!("sha256={}", hex::encode(mac));
        assert_eq!(verify(&[], b"{}", Some(&header)), Err(SignatureError::NoSecret));
        assert_eq!(verify(&[Secret::new("")], b"{}", Some(&header)), Err(SignatureError::NoSecret));
        let mixed = [Secret::new(""), Secret::new("x")];
        assert_eq!(verify(&mixed, b"{}", Some(&header)), Err(SignatureError::Mismatch));
    }

    const BEFORE: &str = "1111111111111111111111111111111111111111";
    const AFTER: &str = "2222222222222222222222222222222222222222";
    const ZERO: &str = "0000000000000000000000000000000000000000";

    fn payload(reference: &str, after: &str) -> serde_json::Value {
        serde_json::json!({
            "ref": reference, "before": BEFORE, "after": after, "forced": true, "created": false,
            "repository": {"id": 1, "full_name": "acme/guestbook", "clone_url": "https://evil.example/x"},
            "pusher": {"name": "ada", "email": "ada@example.org"},
            "head_commit": {"id": after, "message": "subject\n\nbody [skip ci]", "timestamp": "2026-11-21T10:15:30+01:00",
                            "author": {"name": "Ada"}},
            "commits": [{"id": after, "added": ["a"]}],
        })
    }

    fn read(value: &serde_json::Value) -> Result<Parsed, ParseError> {
        parse("push", Some("72d3162e-cc78-11e3-81ab-4c9367dc0958"), value.to_string().as_bytes())
    }

    fn reason(value: &serde_json::Value) -> String {
        match read(value) {
            Ok(Parsed::Ignored { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn expected() -> PushEvent {
        PushEvent {
            delivery: Some("72d3162e-cc78-11e3-81ab-4c9367dc0958".to_owned()),
            full_name: "acme/guestbook".to_owned(),
            reference: "refs/heads/main".to_owned(),
            branch: "main".parse().unwrap(),
            before: Some(BEFORE.parse().unwrap()),
            after: AFTER.parse().unwrap(),
            forced: true,
            pusher: Some("ada".to_owned()),
            subject: Some("subject".to_owned()),
            message: Some("subject\n\nbody [skip ci]".to_owned()),
            time: Some("2026-11-21T09:15:30Z".parse().unwrap()),
        }
    }

    #[test]
    fn a_push_is_read_from_json_and_from_a_form() {
        let value = payload("refs/heads/main", AFTER);
        assert_eq!(read(&value), Ok(Parsed::Push(Box::new(expected()))));
        let encoded: String = value.to_string().bytes().map(|b| format!("%{b:02x}")).collect();
        let form = format!("x=1&payload={encoded}&y=+");
        let delivery = expected().delivery;
        assert_eq!(parse("push", delivery.as_deref(), form.as_bytes()), Ok(Parsed::Push(Box::new(expected()))));
    }

    #[test]
    fn missing_details_are_no_error() {
        let mut value = payload("refs/heads/main", AFTER);
        value["head_commit"] = serde_json::Value::Null;
        value["before"] = ZERO.into();
        value.as_object_mut().unwrap().remove("pusher");
        value.as_object_mut().unwrap().remove("forced");
        let bare = PushEvent {
            before: None,
            forced: false,
            pusher: None,
            subject: None,
            message: None,
            time: None,
            ..expected()
        };
        assert_eq!(read(&value), Ok(Parsed::Push(Box::new(bare))));
    }

    #[test]
    fn what_never_deploys_is_named() {
        for (reference, after, why) in [
            ("refs/heads/main", ZERO, "deleted"),
            ("refs/tags/v1", AFTER, "tag"),
            ("refs/pull/1/head", AFTER, "not a branch"),
            ("refs/heads/main;touch${IFS}owned", AFTER, "characters that a branch name may not have"),
            ("refs/heads/--upload-pack=touch", AFTER, "starts with `-`"),
            ("", AFTER, "not a branch"),
        ] {
            let reason = reason(&payload(reference, after));
            assert!(reason.contains(why), "{reference}: {reason}");
        }
        let mut deleted = payload("refs/heads/main", AFTER);
        deleted["deleted"] = true.into();
        assert!(reason(&deleted).contains("deleted"));
        for event in ["ping", "issues", "workflow_run"] {
            // Not even read.
            assert!(matches!(parse(event, None, b"\xff"), Ok(Parsed::Ignored { .. })), "{event}");
        }
    }

    #[test]
    fn bad_headers_and_values_are_refused() {
        let body = payload("refs/heads/main", AFTER).to_string();
        for event in ["", "Push", "push\n", "a b", &"a".repeat(65)] {
            assert_eq!(parse(event, None, body.as_bytes()), Err(ParseError::Event), "{event:?}");
        }
        for delivery in ["", "a b", "é", "$(x)", "a\n", "../x", &"a".repeat(65)] {
            assert_eq!(parse("push", Some(delivery), body.as_bytes()), Err(ParseError::Delivery), "{delivery:?}");
        }
        for after in ["abc1234", "-222222222222222222222222222222222222222", &"G".repeat(40), &"A".repeat(40)] {
            let error = read(&payload("refs/heads/main", after)).unwrap_err();
            assert!(matches!(error, ParseError::Value { field: "after", .. }), "{error}");
        }
        for name in ["", "a b", "a\u{1b}", &"a".repeat(201)] {
            let mut value = payload("refs/heads/main", AFTER);
            value["repository"]["full_name"] = name.into();
            assert!(read(&value).is_err(), "{name:?}");
        }
    }

    #[test]
    fn hostile_json_is_bounded_and_answered() {
        let push = |json: String| parse("push", None, json.as_bytes()).map(|_| ());
        let body = payload("refs/heads/main", AFTER).to_string();
        let with = |extra: &str| format!("{}{extra}}}", &body[..body.len() - 1]);
        assert_eq!(push(with(",\"x\":{\"y\":[1]}")), Ok(()));
        assert_eq!(push(with(&format!(",\"x\":{}", "[".repeat(1_000_000)))), Err(ParseError::TooDeep));
        assert_eq!(push(with(&format!(",\"x\":{}1{}", "[".repeat(100), "]".repeat(100)))), Err(ParseError::TooDeep));
        assert_eq!(push(with(",\"x\":\"[[[\\\"[[[\"")), Ok(()), "brackets in text do not count");
        for (json, why) in [
            (with(",\"after\":\"x\""), "duplicate field"),
            (with(",\"repository\":{\"full_name\":\"a/b\"}"), "duplicate field"),
            (with(",\"forced\":1e999"), "duplicate field"),
            (body.replace("\"forced\":true", "\"forced\":1e999"), "out of range"),
            (body.replace(&format!("\"{BEFORE}\""), &"9".repeat(100_000)), "out of range"),
            (body.replace(&format!("\"{BEFORE}\""), "12"), "expected a string"),
            ("{}".to_owned(), "missing field"),
            ("{\"ref\":".to_owned(), "EOF"),
        ] {
            let error = push(json).unwrap_err().to_string();
            assert!(error.contains(why) && error.len() < 400, "{why}: {error}");
        }
        for form in ["", "payload", "payload=%", "payload=%zz", "pay=1", "[1]"] {
            assert_eq!(push(form.to_owned()), Err(ParseError::Form), "{form}");
        }
    }

    #[test]
    fn long_text_is_cut() {
        let mut value = payload("refs/heads/main", AFTER);
        value["head_commit"]["message"] = "ü".repeat(100_000).into();
        value["pusher"]["name"] = "ü".repeat(100_000).into();
        let Ok(Parsed::Push(push)) = read(&value) else { panic!() };
        let count = |text: Option<String>| text.map(|t| t.chars().count());
        assert_eq!(
            (count(push.message), count(push.subject), count(push.pusher)),
            (Some(LONGEST_MESSAGE), Some(LONGEST_SUBJECT), Some(LONGEST_NAME))
        );
    }

    proptest::proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), form: bool) {
            let body = if form { [b"payload=".as_slice(), &body].concat() } else { body };
            let _ = parse("push", None, &body);
        }

        #[test]
        fn no_payload_panics(json in "[\\[\\]{}\",:0-9a-z\\\\ -]{0,200}", reference in ".{0,60}", id in ".{0,60}", event in ".{0,20}") {
            let _ = parse("push", None, json.as_bytes());
            let _ = read(&payload(&reference, &id));
            let _ = parse(&event, Some(&id), json.as_bytes());
            let _ = verify(&[Secret::new("x")], json.as_bytes(), Some(&id));
        }

        #[test]
        fn one_changed_byte_is_noticed(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..100), at: usize, bit in 0u32..8) {
            let secret = Secret::new(KEY);
            let mac = Hmac::<Sha256>::new_from_slice(KEY.as_bytes()).unwrap().chain_update(&body).finalize().into_bytes();
            let header = format!("sha256={}", hex::encode(mac));
            proptest::prop_assert_eq!(verify(std::slice::from_ref(&secret), &body, Some(&header)), Ok(0));
            let mut changed = body.clone();
            let at = at % changed.len();
            changed[at] ^= 1_u8 << bit;
            proptest::prop_assert_eq!(verify(&[secret], &changed, Some(&header)), Err(SignatureError::Mismatch));
        }
    }
}
