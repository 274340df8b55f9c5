//! How often a chat is written to.
//!
//! Telegram takes about a message a second in one chat, and about twenty a minute in a group ("Broadcasting to users" of the bots'
//! FAQ); edits count like messages. Everything that writes to a chat, reports and the bot's answers alike, takes its [turn](Pacer::turn) from one [`Pacer`]. Edits
//! have the lower right: they are further apart, and leave a part of each minute to messages. What Telegram itself asks for
//! (`retry_after`) holds for the whole bot.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What a chat takes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Between two requests to one chat.
    pub gap: Duration,
    /// Between two edits in one chat.
    pub edit_gap: Duration,
    /// Requests to one group in any `window`; the last `reserve` of them are not for edits.
    pub most: usize,
    pub reserve: usize,
    pub window: Duration,
}

impl Limits {
    pub const TELEGRAM: Self = Self {
        gap: Duration::from_millis(1050),
        edit_gap: Duration::from_millis(1500),
        most: 20,
        reserve: 8,
        window: Duration::from_secs(60),
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A message, or an edit that people must see.
    Message,
    /// An edit that the next one makes needless.
    Edit,
}

/// Cheap to clone; clones share what they know.
#[derive(Debug, Clone)]
pub struct Pacer {
    limits: Limits,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    chats: HashMap<i64, Chat>,
    held_until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Chat {
    /// The turns of the last window.
    taken: VecDeque<Instant>,
    edited: Option<Instant>,
}

impl Default for Pacer {
    fn default() -> Self {
        Self::new(Limits::TELEGRAM)
    }
}

impl Pacer {
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: Arc::default() }
    }

    /// Waits until the chat takes another request, and takes the turn.
    pub async fn turn(&self, chat: i64, turn: Turn) {
        while let Err(wait) = self.try_turn(chat, turn) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes the turn if it is there.
    ///
    /// # Errors
    /// How long it takes, if nobody else comes first.
    pub fn try_turn(&self, chat: i64, turn: Turn) -> Result<(), Duration> {
        self.lock().turn(&self.limits, chat, turn, Instant::now())
    }

    /// Telegram asks for a pause: nothing goes anywhere for so long.
    pub fn hold(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.lock();
        state.held_until = Some(state.held_until.map_or(until, |held| held.max(until)));
    }

    /// How long the pause still is that Telegram asked for.
    pub fn held(&self) -> Option<Duration> {
        let left = self.lock().held_until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn turn(&mut self, limits: &Limits, chat: i64, turn: Turn, now: Instant) -> Result<(), Duration> {
        let held = self.held_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let of_chat = self.chats.entry(chat).or_default();
        let wait = held.max(of_chat.wait(limits, chat, turn, now));
        if !wait.is_zero() {
            return Err(wait);
        }
        of_chat.taken.push_back(now);
        if turn == Turn::Edit {
            of_chat.edited = Some(now);
        }
        Ok(())
    }
}

impl Chat {
    fn wait(&mut self, limits: &Limits, chat: i64, turn: Turn, now: Instant) -> Duration {
        while self.taken.front().is_some_and(|at| now.duration_since(*at) >= limits.window) {
            self.taken.pop_front();
        }
        let since = |at: Option<&Instant>, gap: Duration| {
            at.map_or(Duration::ZERO, |at| (*at + gap).saturating_duration_since(now))
        };
        let mut wait = since(self.taken.back(), limits.gap);
        if turn == Turn::Edit {
            wait = wait.max(since(self.edited.as_ref(), limits.edit_gap));
        }
        // The ids of groups are negative.
        if chat < 0 {
            let reserve = if turn == Turn::Edit { limits.reserve } else { 0 };
            let most = limits.most.saturating_sub(reserve).max(1);
            let over = (self.taken.len() + 1).checked_sub(most).filter(|over| *over > 0);
            wait = wait.max(since(over.and_then(|over| self.taken.get(over - 1)), limits.window));
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: i64 = -100;

    fn limits() -> Limits {
        Limits { gap: Duration::from_secs(1), most: 4, reserve: 2, window: Duration::from_secs(10), ..Limits::TELEGRAM }
    }

    /// Seconds after `began` at which `turns` come, when each is waited for as [`Pacer::turn`] does.
    fn times(state: &mut State, began: Instant, chat: i64, turns: &[Turn]) -> Vec<f64> {
        let mut now = began;
        let mut one = |turn: &Turn| {
            while let Err(wait) = state.turn(&limits(), chat, *turn, now) {
                now += wait;
            }
            now.duration_since(began).as_secs_f64()
        };
        turns.iter().map(&mut one).collect()
    }

    #[test]
    fn messages_keep_their_distance_and_a_group_its_minute() {
        let (mut state, now) = (State::default(), Instant::now());
        assert_eq!(times(&mut state, now, 5, &[Turn::Message; 6]), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(times(&mut state, now, GROUP, &[Turn::Message; 6]), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0]);
    }

    #[test]
    fn edits_are_rarer_and_leave_room_for_messages() {
        let (mut state, now) = (State::default(), Instant::now());
        assert_eq!(times(&mut state, now, GROUP, &[Turn::Edit; 3]), [0.0, 1.5, 10.0]);
        let later = now + Duration::from_secs(11);
        assert_eq!(times(&mut state, later, GROUP, &[Turn::Message; 2]), [0.0, 1.0], "there is room beside an edit");
        assert!(state.turn(&limits(), GROUP, Turn::Edit, later + Duration::from_secs(3)).is_err());
        assert_eq!(times(&mut state, now, 5, &[Turn::Edit, Turn::Message, Turn::Edit]), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn a_pause_that_telegram_asks_for_holds_everywhere_and_is_not_shortened() {
        let pacer = Pacer::new(limits());
        assert_eq!(pacer.held(), None);
        pacer.clone().hold(Duration::from_secs(3000));
        pacer.hold(Duration::from_secs(3));
        assert!(pacer.held().is_some_and(|left| left > Duration::from_secs(2000)));
        assert!(pacer.try_turn(5, Turn::Message).is_err_and(|wait| wait > Duration::from_secs(2000)));
    }
}
