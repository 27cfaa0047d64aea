//! Keys that cannot be loaded: retried for a while, then parked and reported until they load. Keys that fail while their actors
//! are passivated in between.

use std::rc::Rc;
use std::time::Duration;

use super::super::stuck_key::StuckKey;
use super::queues::{HeadState, Unloadable};
use super::{Backlog, MAX_KEYS, MIN_WAIT, SLOW_RETRY, is_fresh, outcome_of};
use crate::router::Delivery;
use whizbang_core::clock::instant;
use whizbang_core::store::{DeadLetter, DeadLetterReason, Mark, Note, StoreError};
use whizbang_core::telemetry::error_chain;
use whizbang_core::telemetry::{TARGET, shortened};

/// The longest wait before a key with a transient error is loaded again.
pub(super) const SLOWEST_RETRY: Duration = Duration::from_secs(60);
/// The most passivated keys of one actor type and shard whose failures are kept. Each takes about 200 bytes.
pub(super) const MAX_PASSIVATED: usize = 4096;

impl Backlog {
    /// Defers a message whose key could not be loaded, and retries it according to [`Retry`](whizbang_core::retry::Retry). After the
    /// last attempt it is parked and listed among the dead letters.
    ///
    /// # Errors
    /// The message unchanged and the reason, if it cannot be written now.
    #[allow(clippy::result_large_err, reason = "the message goes back to its caller, which keeps it on its stack")]
    pub(crate) fn defer_unloadable<P: 'static>(
        self: &Rc<Self>,
        key: &Rc<str>,
        delivery: Delivery,
        permit: P,
        error: &StoreError,
    ) -> Result<(), (Delivery, P, StoreError)> {
        let fresh = is_fresh(&delivery);
        let failures = self.state.borrow().queues.get(key).map_or(0, |queue| queue.failures) + 1;
        let retry = self.context.settings.retry.all;
        let spent = failures >= retry.attempts.max(1);
        let dead_letter = spent.then(|| {
            let (action, error) = (&delivery.action, error_chain(error).to_string());
            self.dead_letter(key, action, &delivery.envelope, DeadLetterReason::Unloadable, Some(error))
        });
        if fresh {
            let written = match self.write_message(key, &delivery) {
                Ok(written) => written,
                Err(error) => return Err((delivery, permit, error)),
            };
            let Delivery { action, envelope, dedup_key, completion } = delivery;
            self.push((key, envelope.id), &dedup_key, &written, Some(Box::new((action, envelope))));
            self.context.after_commit(&self.shard, written.appended, move |committed| {
                drop(permit);
                completion(outcome_of(committed));
            });
        } else {
            let Delivery { action, envelope, .. } = delivery;
            self.state.borrow_mut().cache(key, envelope.id, Some(Box::new((action, envelope))));
            drop(permit);
        }
        if let Some(dead_letter) = dead_letter {
            self.park(key, dead_letter);
        }
        if let Some(queue) = self.state.borrow_mut().queues.get_mut(key) {
            queue.failures = failures;
        }
        if !spent {
            self.retry_after(key, retry.wait(failures, &self.context.ids).max(MIN_WAIT), true);
        } else if error.is_transient() {
            self.retry_after(key, retry.wait(failures, &self.context.ids).clamp(SLOW_RETRY, SLOWEST_RETRY), false);
        } else {
            self.set_head(key, HeadState::Parked);
            self.context.idle.notify();
        }
        Ok(())
    }

    /// Reports a key that could not be loaded in logs, health and metrics. The log repeats it after 1, 2, 4, 8, …
    /// failures.
    pub(crate) fn failed_to_load(&self, key: &Rc<str>, error: &StoreError) {
        let mut state = self.state.borrow_mut();
        if state.unloadable.len() >= MAX_KEYS && !state.unloadable.contains_key(key) {
            return;
        }
        let before = state.unloadable.len();
        let known = state
            .unloadable
            .entry(Rc::clone(key))
            .or_insert_with(|| Unloadable { failures: 0, next_attempt: instant() });
        known.failures += 1;
        let wait =
            self.context.settings.retry.all.wait(known.failures, &self.context.ids).clamp(SLOW_RETRY, SLOWEST_RETRY);
        known.next_attempt = instant() + wait;
        if known.failures.is_power_of_two() {
            tracing::error!(
                target: TARGET, actor = %self.actor, %key, failures = known.failures, error = %error_chain(&error),
                "failed to load a key; other keys are not affected",
            );
        }
        let after = state.unloadable.len();
        self.unloadable_keys.set(after);
        drop(state);
        self.count_unloadable(before, after);
        self.context.settings.issues.add_unloadable_key(&self.issue_name(key), || {
            shortened(format!(
                "key `{}` of `{}` in {} cannot be loaded: {}",
                key.escape_debug(),
                self.actor,
                self.shard.id,
                error_chain(error),
            ))
        });
    }

    /// Keeps the failures of a key whose actor is passivated. A key that is used rarely is listed as well, and stays so.
    pub(crate) fn keep_failures(&self, key: &Rc<str>, failures: StuckKey) {
        let mut state = self.state.borrow_mut();
        if state.passivated.len() < MAX_PASSIVATED {
            state.passivated.insert(Rc::clone(key), failures);
        }
    }

    /// Returns the failures of a key before its actor was passivated.
    pub(crate) fn take_failures(&self, key: &str) -> StuckKey {
        let mut state = self.state.borrow_mut();
        if state.passivated.is_empty() { StuckKey::default() } else { state.passivated.remove(key).unwrap_or_default() }
    }

    /// Reports that the first message of a key could not be read.
    pub(super) fn failed_to_read(&self, key: &Rc<str>, error: &StoreError) {
        tracing::warn!(
            target: TARGET, actor = %self.actor, %key, error = %error_chain(error),
            "failed to read a deferred message; retrying",
        );
        if let Some(queue) = self.state.borrow_mut().queues.get_mut(key) {
            let subject = || {
                let (key, shard) = (key.escape_debug(), &self.shard.id);
                format!("the next message of key `{key}` of `{}` in {shard}", self.actor)
            };
            queue.unread.unreadable(&self.context, error, || format!("{} unread", self.issue_name(key)), subject);
        }
    }

    /// Resolves the failed reads of the first message of a key.
    pub(super) fn message_read(&self, key: &str) {
        if let Some(queue) = self.state.borrow_mut().queues.get_mut(key) {
            queue.unread.served();
        }
    }

    /// Returns whether a key failed to load so recently that only a caller or an operator makes it retry.
    pub(crate) fn rests(&self, key: &str) -> bool {
        self.unloadable_keys.get() > 0
            && self.state.borrow().unloadable.get(key).is_some_and(|known| instant() < known.next_attempt)
    }

    /// Clears the failure of a key that was loaded, and delivers its deferred messages.
    pub(crate) fn loaded(self: &Rc<Self>, key: &Rc<str>) {
        if self.unloadable_keys.get() == 0 || self.state.borrow_mut().unloadable.remove(key).is_none() {
            return;
        }
        let left = self.state.borrow().unloadable.len();
        self.unloadable_keys.set(left);
        self.count_unloadable(left + 1, left);
        self.context.settings.issues.loads(&self.issue_name(key));
        tracing::info!(target: TARGET, actor = %self.actor, %key, "key can be loaded again");
        let waits = {
            let mut state = self.state.borrow_mut();
            let queue =
                state.queues.get_mut(key).filter(|queue| matches!(queue.head, HeadState::BackOff | HeadState::Parked));
            queue.map(|queue| queue.head = HeadState::Idle).is_some()
        };
        if waits {
            self.deliver_next(key);
        }
    }

    pub(super) fn count_unloadable(&self, before: usize, after: usize) {
        let count = &self.context.counts.unloadable;
        count.set((count.get() + after as u64).saturating_sub(before as u64));
    }

    /// Marks the first message of a key as the one for which it could not be loaded, so that it is listed as a dead
    /// letter.
    fn park(&self, key: &Rc<str>, dead_letter: DeadLetter) {
        let is_parked = {
            let state = self.state.borrow();
            state.queues.get(key).and_then(|queue| queue.entries.front()).is_none_or(|entry| entry.parked)
        };
        if is_parked {
            return;
        }
        let about = (dead_letter.envelope.id, dead_letter.envelope.correlation);
        // If it cannot be written now, the next failure writes it.
        if self.write(about, Mark::None, &[Note::DeadLetter(Box::new(dead_letter))], &[]).is_ok() {
            self.context.counts.dead_letters.one();
            let mut state = self.state.borrow_mut();
            if let Some(entry) = state.queues.get_mut(key).and_then(|queue| queue.entries.front_mut()) {
                entry.parked = true;
            }
        }
    }
}
