//! Trouble on the way: nothing lost, nothing twice, nothing hot, and the token never shown.

use super::{
    telegram::{Fault, Mood},
    *,
};
use crate::notify::{
    flush,
    render::Message,
    telegram::{Client, Manner, Verdict},
};

const PLENTY: Duration = Duration::from_secs(60);

#[tokio::test]
async fn reports_of_an_outage_arrive_once_and_in_order_when_it_is_over() -> Done {
    let mut api = BotApi::start();
    api.stop();
    let desk = Desk::new().await?;
    let (log, _guard) = Captured::begin();
    let running = desk.run(desk.config(&api, ""));
    for subject in ["first", "second"] {
        desk.play(Play { subject: subject.to_owned(), ..Play::fails() }).await;
        running.tick();
    }
    // Until it was tried at least once.
    while desk.waiting().await.1.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (waiting, why) = desk.waiting().await;
    assert_eq!(waiting, 2);
    assert!(why.is_some_and(|why| why.starts_with(&format!("{}: no connection: ", api.url()))));
    api.restart();
    desk.settled().await;
    running.stop().await;
    let texts: Vec<String> = api.accepted().into_iter().map(|a| a.text).collect();
    assert!(texts.len() == 2 && texts[0].contains("first") && texts[1].contains("second"), "{texts:?}");
    assert_eq!(log.text().matches("it is kept and tried again").count(), 1, "one outage, one line");
    assert!(log.text().contains("Telegram takes reports again"));
    Ok(())
}

#[tokio::test]
async fn trouble_at_telegram_is_sat_out() -> Done {
    for fault in [Fault::Broken, Fault::Hangup, Fault::NotJson, Fault::TooMany(1)] {
        let api = BotApi::start();
        api.faults([fault.clone()]);
        let desk = Desk::new().await?;
        desk.play(Play::fails()).await;
        let running = desk.run(desk.config(&api, ""));
        desk.settled().await;
        running.stop().await;
        assert_eq!((api.accepted().len(), api.requests()), (1, 2), "{fault:?}");
    }
    Ok(())
}

#[tokio::test]
async fn nothing_at_all_is_sent_while_telegram_asks_for_a_pause() -> Done {
    let api = BotApi::start();
    api.faults([Fault::TooMany(600)]);
    let desk = Desk::new().await?;
    desk.play(Play::fails()).await;
    let running = desk.run(desk.config(&api, ""));
    while desk.waiting().await.1.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..20 {
        desk.play(Play::fails()).await;
        running.tick();
        tokio::task::yield_now().await;
    }
    running.stop().await;
    assert_eq!(api.requests(), 1);
    let (waiting, why) = desk.waiting().await;
    assert_eq!((waiting, why.as_deref()), (21, Some("Telegram asks for a pause of 600 s")));
    let next = desk.registry.next_message_in().await?;
    assert_eq!(next, Some(Duration::ZERO), "the pause is the sender's, the newer ones are due");
    Ok(())
}

#[tokio::test]
async fn what_only_a_person_can_put_right_is_tried_rarely_and_said_once() -> Done {
    let unknown = "987654321:AAanother-token-of-the-right-length-0123";
    let cases = [
        (Mood::Well, unknown, "", "the bot's token is not known to Telegram: check `telegram.token`"),
        (Mood::Well, "not-a-token", "", "the bot's token is not known to Telegram: check `telegram.token`"),
        (
            Mood::NoChat,
            TOKEN,
            "",
            "the bot is not in the chat -1001234567890, or there is no such chat: add it to the group",
        ),
        (Mood::Blocked, TOKEN, "", "the bot may not write to the chat -1001234567890 (Forbidden: bot was kicked"),
        (Mood::Well, TOKEN, "thread = 5", "the chat -1001234567890 has no such topic: check `telegram.thread`"),
    ];
    for (mood, token, more, words) in cases {
        let (log, _guard) = Captured::begin();
        let api = BotApi::start();
        api.set_mood(mood);
        let desk = Desk::new().await?;
        desk.play(Play::fails()).await;
        desk.play(Play::fails()).await;
        let running = desk.run(desk.config_for(&api.url(), token, more));
        while desk.waiting().await.1.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.tick();
        running.stop().await;
        assert_eq!(api.requests(), 1, "{words}");
        let (waiting, why) = desk.waiting().await;
        assert_eq!(waiting, 2);
        assert!(why.as_ref().is_some_and(|why| why.starts_with(words)), "{why:?}");
        let text = log.text();
        assert_eq!(text.matches("it is kept and tried again").count(), 1);
        assert!(!text.contains(token), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_refused_message_is_kept_and_does_not_block_the_next() -> Done {
    let api = BotApi::start();
    api.faults([Fault::BadRequest("message is too long")]);
    let desk = Desk::new().await?;
    desk.play(Play { subject: "first".to_owned(), ..Play::fails() }).await;
    desk.play(Play { subject: "second".to_owned(), ..Play::fails() }).await;
    let config = desk.config(&api, "");
    let left = flush(desk.post(Arc::clone(&config)), PLENTY).await;
    assert!(api.accepted()[0].text.contains("second"));
    assert!(left.is_ok() || left.is_err_and(|why| why.contains("message is too long")));
    let running = desk.run(config);
    desk.settled().await;
    running.stop().await;
    let texts: Vec<String> = api.accepted().into_iter().map(|a| a.text).collect();
    assert!(texts.len() == 2 && texts[1].contains("first"), "{texts:?}");
    Ok(())
}

#[tokio::test]
async fn an_address_that_is_none_is_said_and_nothing_panics() -> Done {
    let desk = Desk::new().await?;
    let telegram = desk.config_for("http://127.0.0.1:9", TOKEN, "").telegram.clone().ok_or("no telegram")?;
    for url in ["mailto:x@example.org", "nonsense", "http://"] {
        let telegram = config::Telegram { api_url: url.to_owned(), ..telegram.clone() };
        let error = Client::new(&telegram, PLENTY).map(drop).unwrap_err();
        assert!(error.starts_with("`telegram.api_url` cannot be used: "), "{error}");
    }
    Ok(())
}

/// The real error paths, each with everything captured that any crate logs at any level.
#[tokio::test]
async fn no_error_and_no_log_shows_the_token() -> Done {
    let (log, _guard) = Captured::begin();
    let mut api = BotApi::start();
    let desk = Desk::new().await?;
    let message = Message { html: "<b>x</b>".to_owned(), plain: "x".to_owned() };
    let odd = "a token with / and % in it";
    let mut said = Vec::new();
    let unknown = "987654321:AAanother-token-of-the-right-length-0123";
    for token in [TOKEN, unknown, odd] {
        let config = desk.config_for(&api.url(), token, "");
        let mut client = Client::new(config.telegram.as_ref().ok_or("no telegram")?, Duration::from_secs(2))?;
        said.push(format!("{client:?}"));
        for fault in [Fault::Hangup, Fault::Silence, Fault::NotJson, Fault::BadRequest("no"), Fault::TooMany(3)] {
            api.faults([fault]);
            let verdict = client.send(&message, Manner::default()).await;
            assert!(!matches!(verdict, Verdict::Accepted(_)), "{verdict:?}");
            said.push(format!("{verdict:?}"));
        }
        for fault in [Fault::Hangup, Fault::NotJson, Fault::BadRequest("no")] {
            api.faults([fault.clone(), fault.clone(), fault]);
            said.push(format!("{:?}", client.edit(CHAT, 2, &message, &[]).await));
            said.push(format!("{:?}", client.delete(CHAT, 2).await));
            said.push(format!("{:?}", client.send_file("a.log", b"x".to_vec(), None).await));
        }
        said.push(format!("{:?}", client.send(&message, Manner::default()).await));
        api.stop();
        said.push(format!("{:?}", client.send(&message, Manner::default()).await));
        api.restart();
    }
    let said = format!("{}\n{}", said.join("\n"), log.text());
    for token in [TOKEN, unknown, odd, "a%20token%20with", "a+token"] {
        assert!(!said.contains(token), "{token} in {said}");
    }
    assert!(
        said.contains("no connection") && said.contains("no answer in time") && said.contains("not known"),
        "{said}"
    );
    Ok(())
}
