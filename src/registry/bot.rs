//! What the chat's bot must not forget: its buttons, the updates it has taken care of, and what a button put into the queue.

use std::time::Duration;

use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};

use super::{Registry, RegistryError, Result, damaged, from_json, now_ms, query, to_json};
use crate::{
    model::{DeploymentId, Trigger},
    notify::buttons::{Keyboard, Offered},
};

/// How long a button under a report can be pressed.
const OFFERED_FOR: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Rows of buttons and updates are kept this long after their end. Telegram itself keeps an update for a day.
const KEPT_FOR: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// How deployments that a button asked for are known: the beginning of their `trigger.delivery`.
const ORDER: &str = "telegram:";

/// Who may press a button, and until when.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub deployment: Option<DeploymentId>,
    pub chat: i64,
    /// Every operator where unset.
    pub user: Option<u64>,
    pub valid: Duration,
}

/// Buttons of one question: a press on one of them settles it.
#[derive(Debug, Clone)]
pub struct NewButton {
    /// What stands before the token in `callback_data`: a short word of `[a-z]`, for people who read logs.
    pub verb: &'static str,
    pub text: String,
    /// JSON; this room does not look into it.
    pub action: serde_json::Value,
}

/// A button that was pressed by one who may.
#[derive(Debug, Clone)]
pub struct Pressed {
    pub token: String,
    pub action: serde_json::Value,
    pub deployment: Option<DeploymentId>,
}

impl Pressed {
    /// The identity of what it puts into the queue, for [`Trigger::delivery`].
    pub fn order(&self) -> String {
        format!("{ORDER}{}", self.token)
    }
}

/// What a press came to.
#[derive(Debug, Clone)]
pub enum Press {
    Taken(Pressed),
    /// Nobody made such a button, or it is long forgotten.
    Unknown,
    /// It was made for another chat.
    ElsewhereOnly,
    /// It was made for another person.
    NotYours,
    /// The question was answered before, by this user.
    Used(u64),
    Expired,
}

impl Registry {
    /// Makes the buttons of a message about a deployment ready to be sent to a chat. The same ones are given again as long as they are good, so
    /// that a message whose buttons did not change is not changed by them.
    pub async fn offer(&self, keyboard: &Keyboard, deployment: DeploymentId, chat: i64) -> Result<Vec<Vec<Offered>>> {
        let what = "make buttons";
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await.map_err(query(what))?;
        let now = now_ms();
        let terms = Terms { deployment: Some(deployment), chat, user: None, valid: OFFERED_FOR };
        let mut rows = Vec::new();
        for row in &keyboard.0 {
            let mut offered = Vec::new();
            for button in row {
                let action = serde_json::json!({ "ask": button.action });
                let known: Option<String> = sqlx::query_scalar(
                    "SELECT token FROM buttons WHERE deployment = ? AND chat = ? AND action = ? AND single = 0
                     AND used_at IS NULL AND expires_at > ? ORDER BY expires_at DESC LIMIT 1",
                )
                .bind(deployment.0)
                .bind(chat)
                .bind(to_json("button", &action)?)
                .bind(now + millis(OFFERED_FOR) / 2)
                .fetch_optional(&mut *tx)
                .await
                .map_err(query(what))?;
                let token = match known {
                    Some(token) => token,
                    None => {
                        let token = token()?;
                        insert(&mut tx, (&token, &token), &action, false, &terms).await?;
                        token
                    }
                };
                offered.push(Offered { text: button.text.clone(), data: format!("ask:{token}") });
            }
            rows.push(offered);
        }
        tx.commit().await.map_err(query(what))?;
        Ok(rows)
    }

    /// Makes the buttons of a question; `single`: one press settles it, else each may be pressed again.
    pub async fn make_buttons(&self, buttons: &[NewButton], single: bool, terms: &Terms) -> Result<Vec<Offered>> {
        let what = "make buttons";
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await.map_err(query(what))?;
        let question = token()?;
        let mut offered = Vec::new();
        for button in buttons {
            let token = token()?;
            insert(&mut tx, (&token, &question), &button.action, single, terms).await?;
            offered.push(Offered { text: button.text.clone(), data: format!("{}:{token}", button.verb) });
        }
        tx.commit().await.map_err(query(what))?;
        Ok(offered)
    }

    /// A press: whether it counts is decided in one transaction, so that of two presses at once one counts. The same update again (its
    /// first handling was cut short) counts again: what follows must be something that can be done twice.
    pub async fn press(&self, token: &str, chat: i64, user: u64, update: i64) -> Result<Press> {
        let what = "take a pressed button";
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await.map_err(query(what))?;
        let row = sqlx::query("SELECT * FROM buttons WHERE token = ?").bind(token);
        let Some(row) = row.fetch_optional(&mut *tx).await.map_err(query(what))? else { return Ok(Press::Unknown) };
        if row.get::<i64, _>("chat") != chat {
            return Ok(Press::ElsewhereOnly);
        }
        if row.get::<Option<i64>, _>("for_user").is_some_and(|only| only.unsigned_abs() != user) {
            return Ok(Press::NotYours);
        }
        let pressed = Press::Taken(pressed(token, &row)?);
        if row.get::<Option<i64>, _>("used_at").is_some() {
            let again = row.get::<Option<i64>, _>("update_id") == Some(update);
            let by = row.get::<Option<i64>, _>("used_by").unwrap_or_default().unsigned_abs();
            return Ok(if again { pressed } else { Press::Used(by) });
        }
        let now = now_ms();
        if row.get::<i64, _>("expires_at") <= now {
            return Ok(Press::Expired);
        }
        if row.get::<bool, _>("single") {
            // The others of the question remember who answered it, and not by which update: only this one may be carried out again.
            sqlx::query(
                "UPDATE buttons SET used_at = ?1, used_by = ?2, update_id = iif(token = ?3, ?4, NULL)
                 WHERE question = ?5 AND used_at IS NULL",
            )
            .bind(now)
            .bind(user.cast_signed())
            .bind(token)
            .bind(update)
            .bind(row.get::<String, _>("question"))
            .execute(&mut *tx)
            .await
            .map_err(query(what))?;
            tx.commit().await.map_err(query(what))?;
        }
        Ok(pressed)
    }

    /// Open questions to a person in a chat are withdrawn: a newer one takes their place.
    pub async fn withdraw_questions(&self, chat: i64, user: u64) -> Result<()> {
        sqlx::query(
            "UPDATE buttons SET expires_at = ?1
             WHERE chat = ?2 AND for_user = ?3 AND single = 1 AND used_at IS NULL AND expires_at > ?1",
        )
        .bind(now_ms())
        .bind(chat)
        .bind(user.cast_signed())
        .execute(&self.write)
        .await
        .map_err(query("withdraw questions"))?;
        Ok(())
    }

    /// The deployment that a pressed button has put into the queue already.
    pub async fn ordered_deployment(&self, order: &str) -> Result<Option<DeploymentId>> {
        let known: Option<i64> = sqlx::query_scalar("SELECT deployment FROM bot_orders WHERE id = ?")
            .bind(order)
            .fetch_optional(&self.read)
            .await
            .map_err(query("read what a button asked for"))?;
        Ok(known.map(DeploymentId))
    }

    pub async fn update_seen(&self, update: i64) -> Result<bool> {
        let seen: Option<i64> = sqlx::query_scalar("SELECT id FROM bot_updates WHERE id = ?")
            .bind(update)
            .fetch_optional(&self.read)
            .await
            .map_err(query("read the bot's updates"))?;
        Ok(seen.is_some())
    }

    /// Notes that an update was taken care of. Whether it was new: of two who note the same one, one is told so.
    pub async fn note_update(&self, update: i64) -> Result<bool> {
        let noted = sqlx::query("INSERT INTO bot_updates (id, at) VALUES (?, ?) ON CONFLICT (id) DO NOTHING")
            .bind(update)
            .bind(now_ms())
            .execute(&self.write)
            .await
            .map_err(query("note an update"))?;
        Ok(noted.rows_affected() == 1)
    }

    /// Forgets updates that Telegram has forgotten, and buttons whose time is long over.
    pub async fn sweep_bot(&self) -> Result<()> {
        let before = now_ms() - millis(KEPT_FOR);
        for statement in ["DELETE FROM bot_updates WHERE at < ?", "DELETE FROM buttons WHERE expires_at < ?"] {
            sqlx::query(statement).bind(before).execute(&self.write).await.map_err(query("forget old buttons"))?;
        }
        Ok(())
    }
}

/// The deployment that a button has put into the queue already.
pub(super) async fn ordered(tx: &mut Transaction<'_, Sqlite>, trigger: &Trigger) -> Result<Option<DeploymentId>> {
    let Some(order) = order_of(trigger) else { return Ok(None) };
    let known: Option<i64> = sqlx::query_scalar("SELECT deployment FROM bot_orders WHERE id = ?")
        .bind(order)
        .fetch_optional(&mut **tx)
        .await
        .map_err(query("queue a deployment"))?;
    Ok(known.map(DeploymentId))
}

/// Notes, with the deployment, which button put it into the queue.
pub(super) async fn note_order(tx: &mut Transaction<'_, Sqlite>, trigger: &Trigger, id: i64) -> Result<()> {
    let Some(order) = order_of(trigger) else { return Ok(()) };
    sqlx::query("INSERT INTO bot_orders (id, deployment) VALUES (?, ?)")
        .bind(order)
        .bind(id)
        .execute(&mut **tx)
        .await
        .map_err(query("queue a deployment"))?;
    Ok(())
}

fn order_of(trigger: &Trigger) -> Option<&str> {
    trigger.delivery.as_deref().filter(|delivery| delivery.starts_with(ORDER))
}

async fn insert(
    tx: &mut Transaction<'_, Sqlite>,
    (token, question): (&str, &str),
    action: &serde_json::Value,
    single: bool,
    terms: &Terms,
) -> Result<()> {
    let now = now_ms();
    sqlx::query(
        "INSERT INTO buttons (token, question, action, single, deployment, chat, for_user, made_at, expires_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(token)
    .bind(question)
    .bind(to_json("button", action)?)
    .bind(single)
    .bind(terms.deployment.map(|id| id.0))
    .bind(terms.chat)
    .bind(terms.user.map(u64::cast_signed))
    .bind(now)
    .bind(now + millis(terms.valid))
    .execute(&mut **tx)
    .await
    .map_err(query("make buttons"))?;
    Ok(())
}

fn pressed(token: &str, row: &SqliteRow) -> Result<Pressed> {
    Ok(Pressed {
        token: token.to_owned(),
        action: from_json("button", row.get("action"))?,
        deployment: row.get::<Option<i64>, _>("deployment").map(DeploymentId),
    })
}

/// 128 random bits.
fn token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|e| -> RegistryError { damaged("the system's random numbers")(&e) })?;
    Ok(hex::encode(bytes))
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}
