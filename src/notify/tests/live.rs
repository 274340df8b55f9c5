//! The live message through trouble of its own.

use std::time::Instant;

use super::{
    telegram::{Accepted, Fault, Moment, Mood, NEW_CHAT},
    *,
};
use crate::{fault::Faults, notify::flush, registry::MessageKind};

const PLENTY: Duration = Duration::from_secs(60);

fn edits(api: &BotApi) -> usize {
    api.moments().iter().filter(|moment| matches!(moment, Moment::Edited(_))).count()
}

/// Waits, without blocking the runtime, until the chat shows it.
async fn until(api: &BotApi, shown: impl Fn(&[Accepted]) -> bool) {
    let seen = async {
        while !shown(&api.accepted()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PLENTY, seen).await.is_ok(), "{:#?}", api.moments());
}

#[tokio::test]
async fn edits_coalesce_and_the_last_state_arrives() -> Done {
    let api = BotApi::start();
    api.set_mood(Mood::Paced);
    let desk = Desk::new().await?;
    let post = Post { pacer: Pacer::default(), ..desk.post(desk.config(&api, "")) };
    let running = desk.run_post(post);
    let began = Instant::now();
    let mut playing = desk.begin("Let guests sign", None).await;
    running.tick();
    until(&api, |all| all.len() == 1).await;
    for stage in &Stage::ALL[1..8] {
        playing.append(start(*stage).into()).await;
        running.tick();
        tokio::time::sleep(Duration::from_millis(50)).await;
        playing.append(Event::StepSucceeded { stage: *stage, output: json!({}) }.into()).await;
        running.tick();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    playing.end().await;
    running.tick();
    until(&api, |all| all.len() == 2).await;
    running.stop().await;
    let shown = api.accepted();
    assert!(shown[0].text.starts_with("✅") && shown[1].reply_to == Some(shown[0].id), "{shown:#?}");
    let most = began.elapsed().as_millis() / 1500 + 2;
    assert!(edits(&api) as u128 <= most, "{} edits", edits(&api));
    assert_eq!(api.requests(), 2 + edits(&api), "none was refused for coming too soon");
    Ok(())
}

#[tokio::test]
async fn a_live_message_that_was_deleted_does_not_come_again_and_the_end_is_told() -> Done {
    let api = BotApi::start();
    let desk = Desk::new().await?;
    let running = desk.run(desk.config(&api, "quiet = true"));
    let mut playing = desk.begin("Let guests sign", None).await;
    running.tick();
    until(&api, |all| all.len() == 1).await;
    api.delete(api.accepted()[0].id);
    playing.succeed(Stage::Backup).await;
    running.tick();
    api_requests(&api, 2).await;
    playing.succeed_from(Stage::Test).await;
    running.tick();
    desk.settled().await;
    running.stop().await;
    let shown = api.accepted();
    assert!(shown.len() == 1 && shown[0].reply_to.is_none() && shown[0].silent, "{shown:#?}");
    assert!(shown[0].text.contains("deployed") && shown[0].text.contains("Let guests sign"), "{shown:#?}");
    Ok(())
}

async fn api_requests(api: &BotApi, wanted: usize) {
    while api.requests() < wanted {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The daemon dies between an edit and its note: the edit is made again, and Telegram says that nothing changed.
#[tokio::test]
async fn an_edit_that_was_made_already_is_a_success() -> Done {
    let api = BotApi::start();
    let desk = Desk::new().await?;
    let pause = desk.dir.path().join("pause");
    let mut playing = desk.begin("Let guests sign", None).await;
    flush(desk.post(desk.config(&api, "")), PLENTY).await?;
    playing.succeed(Stage::Backup).await;
    let faults = Faults::parse(&format!("report:edit:effect=pause:{}", pause.display()))?;
    let running = desk.run_post(Post { faults, ..desk.post(desk.config(&api, "")) });
    while !pause.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.kill().await;
    // The clock would change the text.
    let shown = api.accepted()[0].text.clone();
    let running = desk.run(desk.config(&api, ""));
    api_requests(&api, 3).await;
    running.stop().await;
    assert!(api.requests() == 3 && shown.contains("✓ backup"), "{}", api.requests());
    let note = desk.registry.chat_message(playing.id, MessageKind::Begun).await?.ok_or("no note")?;
    assert!(note.open && !note.gone);
    Ok(())
}

/// Whether it arrived is not known: a second one could never be taken back.
#[tokio::test]
async fn a_live_message_whose_answer_was_lost_is_not_sent_again() -> Done {
    let api = BotApi::start();
    api.faults([Fault::LostAnswer]);
    let desk = Desk::new().await?;
    let mut playing = desk.begin("Let guests sign", None).await;
    let running = desk.run(desk.config(&api, ""));
    api_requests(&api, 1).await;
    running.kill().await;
    let running = desk.run(desk.config(&api, ""));
    desk.settled().await;
    assert_eq!(api.accepted().len(), 1);
    playing.fail_in_test(&["FAILED"]).await;
    running.tick();
    until(&api, |all| all.len() == 2).await;
    desk.settled().await;
    running.stop().await;
    assert!(api.rung().len() == 1 && api.rung()[0].reply_to.is_none());
    Ok(())
}

#[tokio::test]
async fn a_chat_that_moves_in_the_middle_is_told_the_end_in_its_new_place() -> Done {
    let api = BotApi::start();
    let desk = Desk::new().await?;
    let running = desk.run(desk.config(&api, ""));
    let mut playing = desk.begin("Let guests sign", None).await;
    running.tick();
    until(&api, |all| all.len() == 1).await;
    api.set_mood(Mood::Migrated);
    playing.succeed_from(Stage::Backup).await;
    running.tick();
    until(&api, |all| all.len() == 2).await;
    desk.settled().await;
    running.stop().await;
    let end = api.accepted().remove(1);
    assert_eq!((end.chat, end.reply_to, end.silent), (NEW_CHAT, None, false));
    assert!(end.text.contains("Let guests sign"), "{}", end.text);
    Ok(())
}

#[tokio::test]
async fn a_live_message_waits_a_little_for_what_pull_finds_out() -> Done {
    let api = BotApi::start();
    let desk = Desk::new().await?;
    let running = desk.run(desk.config(&api, ""));
    let id = desk.play(Play::fails()).await;
    running.tick();
    desk.settled().await;
    let new = NewDeployment {
        key: key(),
        commit: None,
        reference: "refs/heads/main".to_owned(),
        trigger: Trigger { kind: TriggerKind::Hook, by: None, delivery: None, forced: false },
        rollback: None,
    };
    let slow = desk.registry.enqueue(&new).await?;
    let (saga, seq) = desk.registry.saga(slow).await?;
    let message = Some(NewMessage::of(MessageKind::Begun));
    let begun = Event::Begun { previous: Some(id), rollback_to: None };
    desk.registry.append(slow, &saga, seq, &Entry { message, ..begun.into() }).await?;
    running.tick();
    // Pull hangs: in the end it is sent without the commit.
    until(&api, |all| all.len() == 2).await;
    running.stop().await;
    let live = api.accepted().remove(1);
    assert!(live.silent && live.text.contains("0 of 8"), "{}", live.text);
    Ok(())
}
