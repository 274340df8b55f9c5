//! The stand-in refuses what it should: a double that accepts anything would prove nothing.

use serde_json::{Value, json};

use super::telegram::{BotApi, CHAT, Mood, TOKEN, TOPIC, html::visible};

async fn call(api: &BotApi, path: &str, body: &Value) -> (u16, String) {
    let response = reqwest::Client::new()
        .post(format!("{}/{path}", api.url()))
        .header("content-type", "application/json")
        .body(body.to_string())
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
