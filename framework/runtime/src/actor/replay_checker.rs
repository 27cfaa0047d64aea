//! Compares each live actor with the replay of its log while a simulation runs.
//!
//! Enabled by the simulated cluster of `whizbang-testing`, which runs on one thread. Before each turn the actor's
//! stream is read and replayed from its first turn. Everything that a turn decides on must be equal: the counters,
//! timers, open steps, dedup state and the user's state. Compiled only with the feature `testing`.

use std::cell::{Cell, RefCell};

use futures_util::FutureExt;

use super::handler_table::HandlerTable;
use super::live_actor::ActorInstance;
use super::state::KeyState;
use super::user_state::UserState;
use crate::inbox::Admission;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::Digest;
use whizbang_core::store::{StoredTurn, StreamState};
use whizbang_core::telemetry::error_chain;
use whizbang_core::user_code::user_code;

thread_local! {
    static ENABLED: Cell<bool> = const { Cell::new(false) };
    static READING: Cell<bool> = const { Cell::new(false) };
    static FOUND: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Streams up to this length are compared before every turn, longer ones before every sixteenth: the comparison reads
/// the whole stream.
const SHORT_STREAM: u64 = 64;

/// The comparison on this thread.
#[derive(Debug)]
pub struct ReplayChecker;

impl ReplayChecker {
    /// Enables or disables the comparison and clears its findings.
    pub fn set(on: bool) {
        ENABLED.set(on);
        FOUND.take();
    }

    /// Returns whether a stream is being read for the comparison; simulated time does not pass then.
    pub fn is_reading() -> bool {
        READING.get()
    }

    /// Takes the first difference found since the last call.
    pub fn take_found() -> Option<String> {
        FOUND.take()
    }
}

impl ActorInstance {
    /// Compares this actor with its log, if that is possible now.
    pub(super) fn compare_with_log(&self) {
        let turns = self.state.turns;
        if !ENABLED.get() || turns == 0 || (turns > SHORT_STREAM && !turns.is_multiple_of(16)) || self.is_stopped() {
            return;
        }
        READING.set(true);
        let read = self.shard.reader().history(&self.dispatcher.actor, &self.key).now_or_never();
        READING.set(false);
        let Some(Ok(stored)) = read else { return };
        // Uncommitted turns are not in the log yet; an additional turn in the log belongs to another owner, which
        // fences this one.
        if stored.last().is_none_or(|last| last.number != turns) {
            return;
        }
        let compared = user_code(|| {
            let stored = StreamState { snapshot: None, turns: stored };
            match KeyState::rebuild(&self.dispatcher.handlers, &stored) {
                Ok(folded) => {
                    difference(&self.dispatcher.handlers, self.user.user(), &self.state, &folded, &stored.turns)
                }
                Err(error) => Some(format!("failed to replay its log: {}", error_chain(&error))),
            }
        });
        let difference = compared.unwrap_or_else(|panicked| Some(format!("failed to replay its log: {panicked}")));
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

/// Returns the first difference between a live actor and the replay of its log.
fn difference(
    handlers: &HandlerTable,
    user: Option<&dyn UserState>,
    live: &KeyState,
    folded: &KeyState,
    stored: &[StoredTurn],
) -> Option<String> {
    if (live.turns, live.version) != (folded.turns, folded.version) {
        return Some(format!("live actor is at event {}, the log at event {}", live.version, folded.version));
    }
    if *live.rare != *folded.rare {
        return Some("timers, open steps, attempts or dead letters differ from the log".to_owned());
    }
    // A handled message may be remembered or looked up, but it must never count as new.
    for turn in stored {
        if let Some((source, sequence)) = &turn.from
            && live.dedup.admit_sequence(source, *sequence)
        {
            return Some(format!(
                "message {sequence} of {} was handled in turn {} and counts as new",
                source.shard, turn.number
            ));
        }
        if let Some(digest) = turn.digest
            && matches!(
                live.dedup.admit_id(turn.id, &Digest::stored(digest), Timestamp::default()),
                Admission::New | Admission::Conflict
            )
        {
            return Some(format!("message {} was handled in turn {} and counts as new", turn.id, turn.number));
        }
    }
    let (live, folded) = (user?, folded.user.as_ref()?);
    match (live.described(), folded.described()) {
        (Some(live), Some(folded)) if tokens(&live) != tokens(&folded) => {
            Some(format!("the state is {live}, the log gives {folded}"))
        }
        (Some(_), Some(_)) => None,
        _ => {
            handlers.snapshots.as_ref()?;
            let (live, folded) = (live.save()?.ok()?, folded.save()?.ok()?);
            (live.len() != folded.len()).then(|| "the state differs from the log".to_owned())
        }
    }
}

/// Returns the sorted words of a text: a `HashMap` prints its entries in any order.
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
