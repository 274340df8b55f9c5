//! Whose turn it is in an environment: a deployment's, or that of somebody who makes, restores or removes backups by hand.
//!
//! The state directory's lock keeps processes apart; this keeps the tasks of one process apart. What must never stand in the way (a rehearsal
//! of a backup) borrows the turn: it is told to stop as soon as anybody else wants it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use crate::model::EnvironmentKey;

#[derive(Debug, Default)]
pub struct Holds {
    all: Mutex<HashMap<EnvironmentKey, Arc<Hold>>>,
}

#[derive(Debug, Default)]
struct Hold {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Who waits for the turn and lends it to nobody.
    waiting: AtomicUsize,
    holder: Mutex<Option<Holder>>,
}

#[derive(Debug)]
struct Holder {
    /// For people: `a deployment`.
    what: String,
    /// Of one that gives way.
    gives_way: Option<CancellationToken>,
}

/// The turn, until this is dropped.
#[derive(Debug)]
pub struct Held {
    hold: Arc<Hold>,
    _turn: OwnedMutexGuard<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.hold.set(None);
    }
}

impl Holds {
    /// Waits for the turn; one that gives way is told to.
    pub async fn take(&self, key: &EnvironmentKey, what: &str) -> Held {
        let hold = self.of(key);
        let _waits = Waits::begin(&hold);
        hold.hurry();
        let turn = Arc::clone(&hold.turn).lock_owned().await;
        hold.set(Some(Holder { what: what.to_owned(), gives_way: None }));
        Held { hold: Arc::clone(&hold), _turn: turn }
    }

    /// The turn if nobody has it, or only one that gives way; else what has it.
    pub async fn take_now(&self, key: &EnvironmentKey, what: &str) -> Result<Held, String> {
        match self.of(key).firm_holder() {
            Some(holder) => Err(holder),
            None => Ok(self.take(key, what).await),
        }
    }

    /// The turn if nobody has or wants it, for one that gives way: `token` is cancelled as soon as somebody does.
    pub fn borrow(&self, key: &EnvironmentKey, what: &str, token: &CancellationToken) -> Option<Held> {
        let hold = self.of(key);
        let turn = Arc::clone(&hold.turn).try_lock_owned().ok()?;
        hold.set(Some(Holder { what: what.to_owned(), gives_way: Some(token.clone()) }));
        let held = Held { hold: Arc::clone(&hold), _turn: turn };
        // Who came meanwhile has seen the token, or is seen here.
        (hold.waiting.load(Ordering::SeqCst) == 0).then_some(held)
    }

    fn of(&self, key: &EnvironmentKey) -> Arc<Hold> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(key.clone()).or_default())
    }
}

impl Hold {
    fn holder(&self) -> std::sync::MutexGuard<'_, Option<Holder>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, holder: Option<Holder>) {
        *self.holder() = holder;
    }

    fn hurry(&self) {
        if let Some(token) = self.holder().as_ref().and_then(|holder| holder.gives_way.as_ref()) {
            token.cancel();
        }
    }

    fn firm_holder(&self) -> Option<String> {
        self.holder().as_ref().filter(|holder| holder.gives_way.is_none()).map(|holder| holder.what.clone())
    }
}

/// Counted for as long as it waits, also when it gives up.
struct Waits<'a>(&'a Hold);

impl<'a> Waits<'a> {
    fn begin(hold: &'a Hold) -> Self {
        hold.waiting.fetch_add(1, Ordering::SeqCst);
        Self(hold)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_a_borrower_gives_way() {
        let holds = Arc::new(Holds::default());
        let key = EnvironmentKey { app: "shop".parse().unwrap(), environment: "production".parse().unwrap() };
        let other = EnvironmentKey { environment: "dev".parse().unwrap(), ..key.clone() };
        let token = CancellationToken::new();
        let borrowed = holds.borrow(&key, "a rehearsal", &token).unwrap();
        assert!(holds.borrow(&key, "another", &token).is_none());
        assert!(holds.borrow(&other, "another", &CancellationToken::new()).is_some());
        let taker = tokio::spawn({
            let (holds, key) = (Arc::clone(&holds), key.clone());
            async move { holds.take(&key, "a deployment").await }
        });
        token.cancelled().await;
        assert!(!taker.is_finished(), "it waits until the borrower is done");
        drop(borrowed);
        let held = taker.await.unwrap();
        assert_eq!(holds.take_now(&key, "a backup").await.unwrap_err(), "a deployment");
        assert!(holds.borrow(&key, "a rehearsal", &CancellationToken::new()).is_none());
        drop(held);
        drop(holds.take_now(&key, "a backup").await.unwrap());
        assert!(holds.borrow(&key, "a rehearsal", &CancellationToken::new()).is_some());
    }
}
