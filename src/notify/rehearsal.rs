//! A backup that was tried out: that it is not good rings; that a later one is good again does not.

use super::{
    courier::{Courier, Next, Trouble, backoff, may_give_up},
    render::{Canvas, LIMIT, Message},
    telegram::{Manner, Verdict},
    words::one_line,
};
use crate::{
    redact::Redactor,
    registry::{Message as Row, RegistryError, Rehearsed},
};

/// The moments of such a message, for tests.
const WHAT: &str = "rehearsal";

/// Problems that are told, and the length of each in UTF-16 units.
const PROBLEMS: usize = 5;
const PROBLEM: usize = 500;

impl Courier {
    /// Sends it, and notes what became of that. Sent again where the answer was not heard.
    pub(super) async fn tell_of_backup(&mut self, row: &Row, found: &Rehearsed) -> Result<Next, RegistryError> {
        let verdict = match &self.client {
            // The daemon's log has it already.
            None => Verdict::Accepted(None),
            Some(Err(why)) => Verdict::Closed(why.clone()),
            Some(Ok(client)) => {
                let chat = client.place().0;
                if let Some(wait) = self.post.pacer.held() {
                    return Ok(Next::Hold(wait));
                }
                self.post.pacer.turn(chat, super::Turn::Message).await;
                self.registry().message_sending(row.id).await?;
                self.post.reach(WHAT, "intent").await;
                let text = words(found, &self.post.config.redactor);
                let manner = Manner { silent: !found.rings(), reply_to: None, buttons: &[] };
                let Some(Ok(client)) = &mut self.client else { return Ok(Next::More) };
                let verdict = client.send(&text, manner).await;
                if matches!(verdict, Verdict::Accepted(_)) {
                    self.post.reach(WHAT, "effect").await;
                }
                verdict
            }
        };
        let unheard = matches!(verdict, Verdict::Unheard(_));
        let trouble = match Trouble::of(verdict, row.attempts) {
            Ok(_) => {
                self.registry().message_sent(row, None, None).await?;
                self.post.reach(WHAT, "record").await;
                self.works();
                return Ok(Next::More);
            }
            Err(trouble) => trouble,
        };
        if trouble.hopeless && may_give_up(row) {
            let (why, set) = (&trouble.why, &found.set);
            tracing::error!(environment = %found.key, set, why, "Telegram refused a report for a day; it is given up");
            self.registry().message_dropped(row.id).await?;
            return Ok(Next::More);
        }
        let pause = trouble.hold.unwrap_or_else(|| backoff(row.attempts));
        self.registry().message_failed(row.id, &trouble.why, pause, unheard).await?;
        Ok(self.hindered(trouble, None))
    }
}

/// What is said of a set.
fn words(found: &Rehearsed, redactor: &Redactor) -> Message {
    let mut canvas = Canvas::default();
    canvas.words(if found.good { "✅ " } else { "🔴 " });
    canvas.bold(&found.key.to_string());
    if found.good {
        canvas.words(": its backups are good again\n");
        row(&mut canvas, "backup", &found.set, " was restored to try it");
        return canvas.message();
    }
    canvas.words(": the backup is NOT good, it could not be restored\n");
    row(&mut canvas, "backup", &found.set, "");
    for problem in found.problems.iter().take(PROBLEMS) {
        row(&mut canvas, "reason", &one_line(problem, redactor, PROBLEM), "");
    }
    if let Some(more) = found.problems.len().checked_sub(PROBLEMS).filter(|more| *more > 0) {
        canvas.words(&format!("and {more} more\n"));
    }
    let place = format!("--app {} --env {}", found.key.app, found.key.environment);
    row(&mut canvas, "next", &format!("refit backup create {place}"), " takes another one now");
    row(&mut canvas, "next", &format!("refit backup verify latest --restore {place}"), " tries the newest out");
    debug_assert!(canvas.units <= LIMIT);
    canvas.message()
}

fn row(canvas: &mut Canvas, label: &str, value: &str, remark: &str) {
    canvas.bold(label);
    canvas.words(" ");
    canvas.code(value);
    canvas.words(remark);
    canvas.words("\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::EnvironmentKey, secret::Secret};

    #[test]
    fn what_is_said_is_short_masked_and_names_the_next_step() {
        let key = EnvironmentKey { app: "shop".parse().unwrap(), environment: "production".parse().unwrap() };
        let redactor = Redactor::new([&Secret::new("correct horse battery")]);
        let mut problems = vec!["`shop`: restore: correct horse battery <b>\n".to_owned()];
        problems.extend((0..8).map(|_| "x".repeat(5_000)));
        let set = "2026-11-21_10-15-30".to_owned();
        let bad = words(&Rehearsed::new(key.clone(), set.clone(), false, problems), &redactor);
        for part in [
            "shop/production",
            "NOT good",
            &set,
            "[masked]",
            "&lt;b&gt;",
            "and 4 more",
            "refit backup create --app shop",
        ] {
            assert!(bad.html.contains(part), "{part} in {}", bad.html);
        }
        assert!(!bad.html.contains("horse") && bad.plain.len() < LIMIT);
        let good = words(&Rehearsed::new(key, set, true, Vec::new()), &redactor);
        assert_eq!(
            good.plain,
            "✅ shop/production: its backups are good again\nbackup 2026-11-21_10-15-30 was restored to try it"
        );
    }
}
