//! A report's way when nothing is in it, and what happens when the process dies on it.

use super::{
    telegram::{Fault, Mood, NEW_CHAT, TOPIC},
    *,
};
use crate::notify::{flush, telegram::check};

const PLENTY: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_end_is_reported_once_when_the_daemon_ticks() -> Done {
    let api = BotApi::start();
    let desk = Desk::new().await?;
    let config = desk.config(&api, &format!("thread = {TOPIC}"));
    let running = desk.run(Arc::clone(&config));
    let id = desk.play(Play::fails()).await;
    running.tick();
    desk.settled().await;
    running.tick();
    running.stop().await;
    let accepted = api.accepted();
    let [one] = accepted.as_slice() else { panic!("{accepted:?}") };
    assert_eq!((one.chat, one.thread, one.html, one.silent), (CHAT, Some(TOPIC), true, false));
    let view = desk.registry.deployment(id).await?.ok_or("no deployment")?;
    let events = desk.registry.events(id, 0).await?;
    assert_eq!(one.text, super::super::Report::of(&view, &events, &config).message().plain);
    assert_eq!(api.requests(), 1);
    Ok(())
}

#[tokio::test]
async fn a_backlog_goes_out_oldest_first_at_a_pace_that_telegram_takes() -> Done {
    let api = BotApi::start();
    api.set_mood(Mood::Paced);
    let desk = Desk::new().await?;
    for subject in ["first", "second", "third"] {
        desk.play(Play { subject: subject.to_owned(), ..Play::fails() }).await;
    }
    let post = Post { pacer: Pacer::default(), ..desk.post(desk.config(&api, "")) };
    flush(post, PLENTY).await?;
    let texts: Vec<String> = api.accepted().into_iter().map(|a| a.text).collect();
    assert_eq!(texts.len(), 3);
    assert!(["first", "second", "third"].iter().zip(&texts).all(|(subject, text)| text.contains(subject)), "{texts:?}");
    assert_eq!(api.requests(), 3, "none was refused for coming too soon");
    Ok(())
}

#[tokio::test]
async fn without_telegram_a_report_is_one_line_in_the_log() -> Done {
    let (log, _guard) = Captured::begin();
    let desk = Desk::new().await?;
    let id = desk.play(Play::fails()).await;
    flush(desk.post(desk.config_with("", "")), PLENTY).await?;
    assert_eq!(desk.waiting().await, (0, None));
    let line = format!(
        "deployment {id} of guestbook/production (0123456789): failed in test, nothing changed for users: \
         2 of 14 tests failed (exit code 1)"
    );
    assert!(log.text().contains(&line), "{}", log.text());
    Ok(())
}

#[tokio::test]
async fn markup_that_telegram_cannot_read_is_sent_as_plain_text() -> Done {
    let api = BotApi::start();
    api.faults([Fault::BadMarkup]);
    let desk = Desk::new().await?;
    desk.play(Play { subject: "a < b".to_owned(), ..Play::fails() }).await;
    flush(desk.post(desk.config(&api, "")), PLENTY).await?;
    let accepted = api.accepted();
    let [one] = accepted.as_slice() else { panic!("{accepted:?}") };
    assert!(!one.html && one.raw.contains("a < b"), "{one:?}");
    assert_eq!(api.requests(), 2);
    Ok(())
}

#[tokio::test]
async fn an_answer_of_a_newer_api_is_an_acceptance() -> Done {
    let api = BotApi::start();
    api.faults([Fault::NewerAnswer]);
    let desk = Desk::new().await?;
    desk.play(Play::fails()).await;
    flush(desk.post(desk.config(&api, "")), PLENTY).await?;
    assert_eq!((api.accepted().len(), desk.waiting().await.0), (1, 0));
    Ok(())
}

#[tokio::test]
async fn a_group_that_became_a_supergroup_is_followed() -> Done {
    let api = BotApi::start();
    api.set_mood(Mood::Migrated);
    let (log, _guard) = Captured::begin();
    let desk = Desk::new().await?;
    desk.play(Play::fails()).await;
    flush(desk.post(desk.config(&api, "")), PLENTY).await?;
    assert_eq!(api.accepted().iter().map(|a| a.chat).collect::<Vec<_>>(), [NEW_CHAT]);
    assert!(log.text().contains(&format!("new={NEW_CHAT}")), "the owner is told the new id");
    Ok(())
}

/// SIGKILL while Telegram has not yet taken the message.
#[tokio::test]
async fn a_kill_before_the_message_was_taken_loses_nothing_and_doubles_nothing() -> Done {
    let api = BotApi::start();
    api.faults([Fault::Silence]);
    let desk = Desk::new().await?;
    desk.play(Play::fails()).await;
    let running = desk.run(desk.config(&api, ""));
    seen(&api, 1).await;
    running.kill().await;
    assert_eq!((api.accepted().len(), desk.waiting().await.0), (0, 1));

    let running = desk.run(desk.config(&api, ""));
    desk.settled().await;
    running.stop().await;
    assert_eq!(api.accepted().len(), 1);
    Ok(())
}

/// SIGKILL between Telegram's acceptance and our note: the one case in which people may read a report twice.
#[tokio::test]
async fn a_kill_after_the_message_was_taken_may_repeat_it_once() -> Done {
    let api = BotApi::start();
    api.faults([Fault::LostAnswer]);
    let desk = Desk::new().await?;
    desk.play(Play::fails()).await;
    let running = desk.run(desk.config(&api, ""));
    seen(&api, 1).await;
    running.kill().await;
    let running = desk.run(desk.config(&api, ""));
    desk.settled().await;
    running.stop().await;
    let accepted = api.accepted();
    assert_eq!(accepted.len(), 2);
    assert_eq!(accepted[0].raw, accepted[1].raw);
    Ok(())
}

#[tokio::test]
async fn a_message_of_another_version_does_not_block_the_others() -> Done {
    let api = BotApi::start();
    let desk = Desk::new().await?;
    let new = NewDeployment {
        key: key(),
        commit: None,
        reference: "refs/heads/main".to_owned(),
        trigger: Trigger { kind: TriggerKind::Cli, by: None, delivery: None, forced: false },
        rollback: None,
    };
    let id = desk.registry.enqueue(&new).await?;
    let (saga, seq) = desk.registry.saga(id).await?;
    let message = Some(NewMessage { kind: "approval".into(), body: json!({ "version": 9 }) });
    let end = outcome::end(Status::Cancelled, &saga, &[]);
    let event = Event::Ended { status: Status::Cancelled, reason: None };
    let entry = Entry { event, facts: Facts::default(), end: Some(end), message };
    desk.registry.append(id, &saga, seq, &entry).await?;
    desk.play(Play::fails()).await;
    flush(desk.post(desk.config(&api, "")), PLENTY).await?;
    assert_eq!(api.accepted().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_flush_ends_at_its_limit_and_says_what_waits() -> Done {
    let api = BotApi::start();
    api.faults([Fault::Silence]);
    let desk = Desk::new().await?;
    desk.play(Play::fails()).await;
    let left = flush(desk.post(desk.config(&api, "")), Duration::from_secs(2)).await;
    assert_eq!(left, Err("one report waits to be sent: there was no time".to_owned()));
    flush(desk.post(desk.config(&api, "")), PLENTY).await?;
    assert_eq!(api.accepted().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_shutdown_lets_a_message_on_its_way_arrive() -> Done {
    let api = BotApi::start();
    api.faults([Fault::Late(Duration::from_millis(500))]);
    let desk = Desk::new().await?;
    desk.play(Play::fails()).await;
    let running = desk.run(desk.config(&api, ""));
    seen(&api, 1).await;
    running.stop().await;
    assert_eq!((api.accepted().len(), desk.waiting().await.0), (1, 0));
    Ok(())
}

/// The daemon's last deployment ends, and the daemon with it.
#[tokio::test]
async fn what_ended_just_before_the_shutdown_is_still_reported() -> Done {
    let api = BotApi::start();
    let desk = Desk::new().await?;
    let running = desk.run(desk.config(&api, ""));
    desk.play(Play::fails()).await;
    running.stop().await;
    assert_eq!((api.accepted().len(), desk.waiting().await.0), (1, 0));
    Ok(())
}

/// A second process, or a registry that is closed too early: the report is not lost.
#[tokio::test]
async fn a_registry_that_cannot_be_written_ends_nothing() -> Done {
    let api = BotApi::start();
    let desk = Desk::new().await?;
    desk.play(Play::fails()).await;
    desk.registry.close().await;
    let left = flush(desk.post(desk.config(&api, "")), PLENTY).await;
    assert!(left.is_err_and(|why| why.contains("the registry could not read the outbox")));
    assert_eq!(api.requests(), 0);
    let again = Registry::open(&desk.dir.path().join("state/refit.db")).await?;
    flush(Post { registry: again, ..desk.post(desk.config(&api, "")) }, PLENTY).await?;
    assert_eq!(api.accepted().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_check_says_who_writes_where_and_sends_nothing() -> Done {
    let api = BotApi::start();
    let desk = Desk::new().await?;
    let telegram = |config: &Config| config.telegram.clone().unwrap();
    let good = check(&telegram(&desk.config(&api, ""))).await;
    assert_eq!(good.as_deref(), Ok("@refit_test_bot can write to “Deployments”"));
    let token = "987654321:AAanother-token-of-the-right-length-0123";
    let unknown = check(&telegram(&desk.config_for(&api.url(), token, ""))).await.unwrap_err();
    assert_eq!(unknown, "the bot's token is not known to Telegram: check `telegram.token`");
    let elsewhere = check(&telegram(&desk.config(&api, "chat = 12"))).await.unwrap_err();
    assert!(elsewhere.starts_with("the bot is not in the chat 12, or there is no such chat"), "{elsewhere}");
    api.faults([Fault::NotJson]);
    let page = check(&telegram(&desk.config(&api, ""))).await.unwrap_err();
    assert!(page.contains("not the Bot API's") && !page.contains(TOKEN), "{page}");
    api.faults([Fault::TooMany(7)]);
    let slow = check(&telegram(&desk.config(&api, ""))).await.unwrap_err();
    assert_eq!(slow, "Telegram asks for a pause of 7 s");
    assert!(api.accepted().is_empty());
    Ok(())
}

/// Waits for requests without blocking the runtime that makes them.
async fn seen(api: &BotApi, requests: usize) {
    while api.requests() < requests {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_backup_that_is_not_good_rings_once_a_set_and_the_next_good_one_does_not() -> Done {
    let api = BotApi::start();
    let desk = Desk::new().await?;
    let found = |set: &str, good: bool| {
        let problems = if good { Vec::new() } else { vec!["`app`: restore: <b>no</b> & \u{1b}[31mred".to_owned()] };
        Rehearsed::new(key(), set.to_owned(), good, problems)
    };
    for (set, good) in [("s-1", false), ("s-1", false), ("s-2", false), ("s-3", true), ("s-4", true)] {
        desk.registry.rehearsed(&found(set, good)).await?;
    }
    api.faults([Fault::Broken]);
    let running = desk.run(desk.config(&api, ""));
    desk.settled().await;
    running.stop().await;
    let accepted = api.accepted();
    let told: Vec<(bool, bool)> = accepted.iter().map(|a| (a.html, a.silent)).collect();
    assert_eq!(told, [(true, false), (true, false), (true, true)], "{accepted:#?}");
    for (message, parts) in accepted.iter().zip([
        ["guestbook/production", "NOT good", "s-1", "`app`: restore: <b>no</b> &", "refit backup create"],
        ["guestbook/production", "NOT good", "s-2", "restore:", "--env production"],
        ["guestbook/production", "good again", "s-3", "restored to try it", "✅"],
    ]) {
        parts.iter().for_each(|part| assert!(message.text.contains(part), "no `{part}` in {}", message.text));
    }
    // The report of the deployment that fails because of it rings already.
    desk.registry.rehearsed(&found("s-5", false).in_report(true)).await?;
    let running = desk.run(desk.config(&api, ""));
    desk.settled().await;
    running.stop().await;
    let accepted = api.accepted();
    let last = accepted.last().ok_or("nothing was told")?;
    assert!(accepted.len() == 4 && last.silent && last.text.contains("s-5"), "{last:#?}");
    // Without Telegram nothing waits for ever.
    desk.registry.rehearsed(&found("s-6", false)).await?;
    flush(desk.post(desk.config_with("", "")), PLENTY).await?;
    assert_eq!(desk.waiting().await.0, 0);
    Ok(())
}
