//! Buttons: who may press them, how often, and what a press puts into the queue.

use std::time::Duration;

use serde_json::json;

use super::{tests::*, *};
use crate::{
    model::{DeploymentId, TriggerKind},
    notify::buttons::{Action, Button, Keyboard},
};

const HOUR: Duration = Duration::from_secs(3600);

fn terms(user: Option<u64>, valid: Duration) -> Terms {
    Terms { deployment: None, chat: -5, user, valid }
}

fn yes_and_no() -> [NewButton; 2] {
    ["yes", "no"].map(|verb| NewButton { verb, text: verb.to_owned(), action: json!({ "do": verb }) })
}

fn token(data: &str) -> &str {
    data.split_once(':').unwrap().1
}

#[tokio::test]
async fn one_press_settles_a_question_and_only_the_same_update_counts_again() -> Done {
    let (_dir, registry) = registry().await?;
    let made = registry.make_buttons(&yes_and_no(), true, &terms(Some(7), HOUR)).await?;
    let [yes, no] = [&made[0], &made[1]].map(|offered| token(&offered.data));
    assert!(made.iter().all(|offered| offered.data.len() <= 64) && made[0].data.starts_with("yes:"));

    assert!(matches!(registry.press(yes, -6, 7, 1).await?, Press::ElsewhereOnly));
    assert!(matches!(registry.press(yes, -5, 8, 2).await?, Press::NotYours));
    assert!(matches!(registry.press("f00d", -5, 7, 3).await?, Press::Unknown));
    // At once: whichever comes first, the other is told so.
    let (one, two) = tokio::join!(registry.press(yes, -5, 7, 4), registry.press(yes, -5, 7, 5));
    let (first, second) = if matches!(one, Ok(Press::Taken(_))) { (4, two?) } else { (5, one?) };
    assert!(matches!(second, Press::Used(7)));
    let Press::Taken(again) = registry.press(yes, -5, 7, first).await? else { panic!("its own update is refused") };
    assert_eq!(again.action, json!({ "do": "yes" }));
    assert!(matches!(registry.press(no, -5, 7, first).await?, Press::Used(7)), "the other answer is gone");
    Ok(())
}

#[tokio::test]
async fn a_question_ends_by_time_and_by_a_newer_one() -> Done {
    let (_dir, registry) = registry().await?;
    let late = registry.make_buttons(&yes_and_no(), true, &terms(None, Duration::ZERO)).await?;
    assert!(matches!(registry.press(token(&late[0].data), -5, 7, 1).await?, Press::Expired));
    let old = registry.make_buttons(&yes_and_no(), true, &terms(Some(7), HOUR)).await?;
    let other = registry.make_buttons(&yes_and_no(), true, &terms(Some(8), HOUR)).await?;
    registry.withdraw_questions(-5, 7).await?;
    assert!(matches!(registry.press(token(&old[0].data), -5, 7, 2).await?, Press::Expired));
    assert!(matches!(registry.press(token(&other[0].data), -5, 8, 3).await?, Press::Taken(_)));
    Ok(())
}

#[tokio::test]
async fn what_stands_under_a_report_stays_the_same_and_can_be_pressed_again() -> Done {
    let (_dir, registry) = registry().await?;
    let id = registry.enqueue(&new_deployment('1')).await?;
    let button = |action: Action| Button { text: action.text().to_owned(), action };
    let keyboard = Keyboard(vec![vec![button(Action::Cancel), button(Action::Logs)]]);
    let offered = registry.offer(&keyboard, id, -5).await?;
    assert_eq!(registry.offer(&keyboard, id, -5).await?, offered);
    assert_ne!(registry.offer(&keyboard, id, -6).await?, offered, "another chat");
    let cancel = token(&offered[0][0].data);
    for update in [1, 2] {
        let Press::Taken(pressed) = registry.press(cancel, -5, 7, update).await? else { panic!("refused") };
        assert_eq!((pressed.action, pressed.deployment), (json!({ "ask": "cancel" }), Some(id)));
    }
    Ok(())
}

#[tokio::test]
async fn a_button_puts_one_deployment_into_the_queue() -> Done {
    let (_dir, registry) = registry().await?;
    let mut new = new_deployment('1');
    (new.trigger.kind, new.trigger.delivery) = (TriggerKind::Telegram, Some("telegram:abc".to_owned()));
    let id = registry.enqueue(&new).await?;
    assert_eq!(registry.enqueue(&new).await?, id);
    assert_eq!(registry.deployments(&Filter::default()).await?.len(), 1);
    new.trigger.delivery = Some("telegram:def".to_owned());
    assert_eq!(registry.enqueue(&new).await?, DeploymentId(id.0 + 1));
    Ok(())
}

#[tokio::test]
async fn an_update_is_new_once() -> Done {
    let (_dir, registry) = registry().await?;
    assert!(!registry.update_seen(9).await?);
    assert!(registry.note_update(9).await? && !registry.note_update(9).await?);
    registry.sweep_bot().await?;
    assert!(registry.update_seen(9).await?, "it is kept as long as Telegram may send it again");
    Ok(())
}
