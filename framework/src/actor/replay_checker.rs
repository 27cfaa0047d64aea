//! Compares each live actor with the fold of its log while a simulation runs.
//!
//! Switched on by the [simulated cluster](crate::testing::sim), which runs on one thread. Before each turn the actor's stream is
//! read and replayed from its first turn, and everything that a turn is decided on must be equal: the counters, timers, steps to
//! undo, the memory of handled messages, and the user's state. Without the feature `testing` there is none of it.

use std::cell::{Cell, RefCell};

use futures_util::FutureExt;

use super::handler_table::{HandlerTable, UserState};
use super::instance::ActorInstance;
use super::state::KeyState;
use crate::clock::Timestamp;
use crate::inbox::Admission;
use crate::message::Digest;
use crate::store::{StoredTurn, StreamState};
use crate::user_code::user_code;

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static READING: Cell<bool> = const { Cell::new(false) };
    static FOUND: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Streams up to this length are compared before every turn, longer ones before every sixteenth: the comparison reads the whole
/// stream.
const SHORT: u64 = 64;

/// The comparison on this thread.
pub(crate) struct ReplayChecker;

impl ReplayChecker {
    /// Begins or ends the comparison, and forgets what it has found.
    pub(crate) fn set(on: bool) {
        ON.set(on);
        FOUND.take();
    }

    /// Returns whether a stream is read for the comparison: it takes no time then.
    pub(crate) fn is_reading() -> bool {
        READING.get()
    }

    /// Returns the first difference found since the last call.
    pub(crate) fn take_found() -> Option<String> {
        FOUND.take()
    }
}

impl ActorInstance {
    /// Compares this actor with its log, if that can be done now.
    pub(super) fn compare_with_log(&self) {
        let turns = self.state.turns;
        if !ON.get() || turns == 0 || (turns > SHORT && !turns.is_multiple_of(16)) || self.is_stopped() {
            return;
        }
        READING.set(true);
        let read = self.shard.reader().history(&self.dispatcher.actor, &self.key).now_or_never();
        READING.set(false);
        let Some(Ok(stored)) = read else { return };
        // Turns that are not committed are not in the log yet; one more in the log is another owner's, who fences this one.
        if stored.last().is_none_or(|last| last.number != turns) {
            return;
        }
        let compared = user_code(|| {
            let stored = StreamState { snapshot: None, turns: stored };
            match KeyState::rebuild(&self.dispatcher.handlers, &stored) {
                Ok(folded) => {
                    difference(&self.dispatcher.handlers, self.user.user(), &self.state, &folded, &stored.turns)
                }
                Err(error) => Some(format!("its log cannot be replayed: {error}")),
            }
        });
        let difference = compared.unwrap_or_else(|panicked| Some(format!("its log cannot be replayed: {panicked}")));
        if let Some(difference) = difference {
            FOUND.with_borrow_mut(|found| {
                found.get_or_insert_with(|| {
                    format!(
                        "{}.{} `{}` differs from its log: {difference}",
                        self.dispatcher.domain, self.dispatcher.actor, self.key
                    )
                });
            });
        }
    }
}

/// What a live actor and the fold of its log disagree on.
fn difference(
    plan: &HandlerTable,
    user: Option<&dyn UserState>,
    live: &KeyState,
    folded: &KeyState,
    stored: &[StoredTurn],
) -> Option<String> {
    if (live.turns, live.version) != (folded.turns, folded.version) {
        return Some(format!("it is at event {}, the log at event {}", live.version, folded.version));
    }
    if *live.rest != *folded.rest {
        return Some("timers, steps to undo, attempts or dead letters are not those of the log".to_owned());
    }
    // A message that was handled may be remembered or looked up, but it must never count as new.
    for turn in stored {
        if let Some((source, sequence)) = &turn.from
            && live.seen.admit_place(source, *sequence)
        {
            return Some(format!(
                "message {sequence} of {} was handled in turn {} and counts as new",
                source.shard, turn.number
            ));
        }
        if let Some(digest) = turn.digest
            && matches!(
                live.seen.admit_id(turn.id, &Digest::stored(digest), Timestamp::default()),
                Admission::New | Admission::Conflict
            )
        {
            return Some(format!("message {} was handled in turn {} and counts as new", turn.id, turn.number));
        }
    }
    let (live, folded) = (user?, folded.user.as_ref()?);
    match (live.described(), folded.described()) {
        (Some(live), Some(folded)) if tokens(&live) != tokens(&folded) => {
            Some(format!("the state is {live}, the log says {folded}"))
        }
        (Some(_), Some(_)) => None,
        _ => {
            plan.snapshots.as_ref()?;
            let (live, folded) = (live.save()?.ok()?, folded.save()?.ok()?);
            (live.len() != folded.len()).then(|| "the state is not that of the log".to_owned())
        }
    }
}

/// The words of a text in no order: a `HashMap` shows its entries in any.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens: Vec<_> = text.split(|char: char| char.is_whitespace() || "{}[](),:".contains(char)).collect();
    tokens.sort_unstable();
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_equal_in_any_order() {
        assert_eq!(tokens("{1: a, 2: b}"), tokens("{2: b, 1: a}"));
        assert_ne!(tokens("{1: a, 2: b}"), tokens("{1: a, 2: c}"));
    }
}
