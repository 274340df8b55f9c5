//! The stand-in refuses what it should: a double that accepts anything would prove nothing.

use std::time::Duration;

use serde_json::{Value, json};

use super::telegram::{BotApi, CHAT, Fault, Moment, Mood, NEW_CHAT, Pace, TOKEN, TOPIC, html::visible};

async fn call(api: &BotApi, path: &str, body: &Value) -> (u16, String) {
    post(api, path, "application/json", body.to_string()).await
}

async fn post(api: &BotApi, path: &str, kind: &str, body: String) -> (u16, String) {
    let response = reqwest::Client::new()
        .post(format!("{}/{path}", api.url()))
        .header("content-type", kind)
        .body(body)
        .send()
        .await
        .unwrap();
    let status = response.status().as_u16();
    let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(answer["ok"], status == 200, "{answer}");
    (status, answer["description"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn requests_are_judged_like_telegram_does() {
    let api = BotApi::start();
    let send = format!("bot{TOKEN}/sendMessage");
    let long = "🙂".repeat(2049);
    let refused = [
        ("bot1:short/getMe", json!({}), 404, "Not Found"),
        ("bot987654321:AAanother-token-of-the-right-length-0123/getMe", json!({}), 401, "Unauthorized"),
        (&format!("bot{TOKEN}/sendMesage"), json!({}), 404, "Not Found: method not found"),
        (&send, json!([]), 400, "Bad Request: can't parse JSON object"),
        (&send, json!({ "text": "x" }), 400, "Bad Request: chat_id is empty"),
        (&send, json!({ "chat_id": CHAT }), 400, "Bad Request: message text is empty"),
        (&send, json!({ "chat_id": CHAT, "text": " \n" }), 400, "Bad Request: message text is empty"),
        (
            &send,
            json!({ "chat_id": CHAT, "text": "<b> </b>", "parse_mode": "HTML" }),
            400,
            "Bad Request: message text is empty",
        ),
        (&send, json!({ "chat_id": 5, "text": "x" }), 400, "Bad Request: chat not found"),
        (&send, json!({ "chat_id": CHAT, "text": long }), 400, "Bad Request: message is too long"),
        (
            &send,
            json!({ "chat_id": CHAT, "text": "x", "parse_mode": "Text" }),
            400,
            "Bad Request: unsupported parse_mode",
        ),
        (
            &send,
            json!({ "chat_id": CHAT, "text": "x", "message_thread_id": 3 }),
            400,
            "Bad Request: message thread not found",
        ),
        (
            &send,
            json!({ "chat_id": CHAT, "text": "<script>", "parse_mode": "html" }),
            400,
            "Bad Request: can't parse entities: Unsupported start tag \"script\" at byte offset 0",
        ),
    ];
    for (path, body, status, description) in refused {
        assert_eq!(call(&api, path, &body).await, (status, description.to_owned()), "{path} {body}");
    }
    assert!(api.accepted().is_empty());

    let body = json!({ "chat_id": CHAT, "text": "<b>a</b> &lt;", "parse_mode": "HTML", "message_thread_id": TOPIC, "disable_notification": true });
    assert_eq!(call(&api, &send, &body).await.0, 200);
    api.wait_for_requests(1);
    let accepted = api.wait_for(1).remove(0);
    assert_eq!((accepted.text.as_str(), accepted.thread, accepted.silent), ("a <", Some(TOPIC), true));
    assert_eq!(call(&api, &send, &json!({ "chat_id": CHAT.to_string(), "text": "🙂".repeat(2048) })).await.0, 200);
    api.set_mood(Mood::Paced);
    assert_eq!(call(&api, &send, &body).await, (429, "Too Many Requests: retry after 1".to_owned()));
}

#[tokio::test]
async fn messages_are_edited_and_deleted_as_telegram_does() {
    let api = BotApi::start();
    let [send, edit, delete] =
        ["sendMessage", "editMessageText", "deleteMessage"].map(|method| format!("bot{TOKEN}/{method}"));
    let keyboard = |data: &str| json!({ "inline_keyboard": [[{ "text": "Cancel", "callback_data": data }]] });
    let new = json!({ "chat_id": CHAT, "text": "one", "disable_notification": true, "reply_markup": keyboard("c:1") });
    assert_eq!(call(&api, &send, &new).await.0, 200);
    let id = api.accepted()[0].id;
    let to = |id: i64, text: &str| json!({ "chat_id": CHAT, "message_id": id, "text": text });
    let mut same = to(id, "one");
    same["reply_markup"] = keyboard("c:1");
    let mut elsewhere = to(id, "x");
    elsewhere["chat_id"] = NEW_CHAT.into();
    let unmodified = "message is not modified: specified new message content and reply markup are exactly the same as a current \
                      content and reply markup of the message";
    let mut wrong_button = to(id, "two");
    wrong_button["reply_markup"] = keyboard(&"x".repeat(65));
    let mut wrong_reply = new.clone();
    wrong_reply["reply_parameters"] = json!({ "message_id": 99 });
    let mut mute_reply = wrong_reply.clone();
    mute_reply["reply_parameters"]["allow_sending_without_reply"] = true.into();
    for (path, body, description) in [
        (&edit, same, unmodified),
        (&edit, elsewhere, "chat not found"),
        (&edit, to(99, "x"), "message to edit not found"),
        (&edit, to(1, "x"), "message can't be edited"),
        (&edit, to(id, &"🙂".repeat(2049)), "MESSAGE_TOO_LONG"),
        (&edit, wrong_button, "BUTTON_DATA_INVALID"),
        (&send, wrong_reply, "message to be replied not found"),
        (&delete, to(99, ""), "message to delete not found"),
        (&delete, to(1, ""), "message can't be deleted"),
    ] {
        assert_eq!(call(&api, path, &body).await, (400, format!("Bad Request: {description}")), "{path} {body}");
    }
    assert_eq!(call(&api, &edit, &to(id, "two")).await.0, 200);
    let shown = api.accepted().remove(0);
    assert_eq!((shown.text.as_str(), shown.buttons.len(), shown.silent), ("two", 0, true), "the keyboard is gone");
    assert!(api.rung().is_empty());
    assert_eq!(call(&api, &send, &mute_reply).await.0, 200);
    let mut reply = json!({ "chat_id": CHAT, "text": "three", "reply_parameters": { "message_id": id } });
    assert_eq!(call(&api, &send, &reply).await.0, 200);
    assert_eq!(api.wait_for_rings(1)[0].reply_to, Some(id));
    assert_eq!(call(&api, &delete, &to(id, "")).await.0, 200);
    reply["text"] = "four".into();
    assert_eq!(call(&api, &send, &reply).await.0, 400, "nothing is there to reply to");
    api.delete(id + 1);
    assert_eq!(api.accepted().len(), 1);
    let kinds = api.moments().into_iter().map(|moment| match moment {
        Moment::Sent(message) => format!("sent {}", message.text),
        Moment::Edited(message) => format!("edited {}", message.text),
        Moment::Deleted(id) => format!("deleted {id}"),
    });
    let kinds: Vec<String> = kinds.collect();
    assert_eq!(kinds, ["sent one", "edited two", "sent one", "sent three", "deleted 2", "deleted 3"]);

    // Edits count too.
    api.set_mood(Mood::Paced);
    api.set_pace(Pace { gap: Duration::ZERO, most: 1, window: Duration::from_secs(60) });
    assert_eq!(call(&api, &edit, &to(id + 2, "5")).await.0, 429);
    api.set_mood(Mood::Well);
    api.faults_on("editMessageText", [Fault::Broken]);
    assert_eq!(call(&api, &send, &new).await.0, 200);
    assert_eq!(call(&api, &edit, &to(id + 2, "5")).await.0, 500);
}

#[tokio::test]
async fn a_file_comes_as_a_form() {
    let api = BotApi::start();
    let path = format!("bot{TOKEN}/sendDocument");
    let kind = "multipart/form-data; boundary=xyz";
    let part =
        |name: &str, text: &str| format!("--xyz\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n");
    let file = "--xyz\r\nContent-Disposition: form-data; name=\"file0\"; filename=\"a.log\"\r\nContent-Type: text/plain\r\n\r\n\
                one\r\n--\ntwo\r\n--xyz--\r\n";
    let chat = part("chat_id", &CHAT.to_string());
    let none = post(&api, &path, kind, format!("{chat}--xyz--\r\n")).await;
    assert_eq!(none, (400, "Bad Request: there is no document in the request".to_owned()));
    assert_eq!(post(&api, &path, kind, "--xyz\r\n".to_owned()).await.0, 400);
    let long = post(&api, &path, kind, format!("{chat}{}{file}", part("caption", &"x".repeat(1025)))).await;
    assert_eq!(long, (400, "Bad Request: message caption is too long".to_owned()));
    let body = format!("{chat}{}{}{file}", part("document", "attach://file0"), part("disable_notification", "true"));
    assert_eq!(post(&api, &path, kind, body).await.0, 200);
    let accepted = api.accepted().remove(0);
    let file = accepted.file.unwrap();
    assert_eq!((file.name.as_str(), file.content.as_slice(), accepted.silent), ("a.log", &b"one\r\n--\ntwo"[..], true));
}

#[test]
fn markup_is_read_strictly() {
    let good = "<b>bold <i>both</i></b> <a href=\"https://x.example/?a&amp;b\">link</a> <pre>a &lt; b</pre> <code>&#60;&#x3e;&quot;</code>";
    assert_eq!(visible(good).as_deref(), Ok("bold both link a < b <>\""));
    assert_eq!(visible("<pre><code class=\"language-rust\">x</code></pre>").as_deref(), Ok("x"));
    for bad in [
        "a < b",
        "a & b",
        "&nbsp;",
        "a > b",
        "&lt",
        "<b>",
        "</b>",
        "<b><i></b></i>",
        "<script>x</script>",
        "<b class=\"x\">x</b>",
        "<a>x</a>",
        "<a href='x'>x</a>",
        "<code><b>x</b></code>",
        "<b><code>x</code></b>",
        "<pre>",
        "<B>x</B>",
        "<>x</>",
        "<b",
        "&#xd800;",
    ] {
        assert!(visible(bad).is_err(), "{bad}");
    }
}
