//! Keys that cannot be loaded: tried again for a while, then parked and reported until they can be.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::queues::Head;
use super::{Backlog, MIN_WAIT, MOST, SLOW, settled};
use crate::clock::instant;
use crate::router::{DedupKey, Delivery};
use crate::store::{DeadLetter, DeadLetterReason, Mark, Note, StoreError};
use crate::telemetry::{TARGET, shortened};

/// The longest wait before a key is loaded again whose error may pass.
const SLOWEST: Duration = Duration::from_secs(60);

/// A key that cannot be loaded.
pub(super) struct Unloadable {
    failures: u32,
    /// Before this moment no timer makes it try again.
    next: Instant,
}

impl Backlog {
    /// Keeps a message whose key could not be loaded, and has it tried again as [`Retry`](crate::Retry) says. After the last
    /// attempt it is parked: a person sees it among the dead letters.
    ///
    /// # Errors
    /// The message again, if it cannot be written down now.
    #[allow(clippy::result_large_err, reason = "the message goes back to its caller, which keeps it on its stack")]
    pub(crate) fn unloaded<P: 'static>(
        self: &Rc<Self>,
        key: &Rc<str>,
        delivery: Delivery,
        permit: P,
        error: &StoreError,
    ) -> Result<(), (Delivery, P)> {
        let fresh = matches!(&delivery.dedup_key, DedupKey::Sequence { tracker, .. } if !tracker.is_deferred());
        let failures = self.state.borrow().keys.get(key).map_or(0, |queue| queue.failures) + 1;
        let retry = self.host.settings.retry.all;
        let spent = failures >= retry.attempts.max(1);
        let letter = spent.then(|| {
            let (work, error) = (&delivery.action, error.to_string());
            self.letter(key, work, &delivery.envelope, DeadLetterReason::Unloadable, Some(error))
        });
        if fresh {
            let Ok(appended) = self.write_message(key, &delivery) else { return Err((delivery, permit)) };
            let Delivery { action: work, envelope, dedup_key: arrival, completion: settle } = delivery;
            self.push((key, envelope.id), &arrival, &appended, Some(Box::new((work, envelope))));
            self.host.after_commit(appended, move |committed| {
                drop(permit);
                settle(settled(committed));
            });
        } else {
            let Delivery { action: work, envelope, .. } = delivery;
            self.state.borrow_mut().put_back(key, envelope.id, Some(Box::new((work, envelope))));
            drop(permit);
        }
        if let Some(letter) = letter {
            self.park(key, letter);
        }
        if let Some(queue) = self.state.borrow_mut().keys.get_mut(key) {
            queue.failures = failures;
        }
        if !spent {
            self.try_again(key, retry.wait(failures, &self.host.ids).max(MIN_WAIT), true);
        } else if error.is_transient() {
            self.try_again(key, retry.wait(failures, &self.host.ids).clamp(SLOW, SLOWEST), false);
        } else {
            self.set_head(key, Head::Parked);
            self.host.idle.look();
        }
        Ok(())
    }

    /// A key could not be loaded. Says so in logs, health and metrics, the more seldom the more often it has failed.
    pub(crate) fn failed_to_load(&self, key: &Rc<str>, error: &StoreError) {
        let mut state = self.state.borrow_mut();
        if state.unloadable.len() >= MOST && !state.unloadable.contains_key(key) {
            return;
        }
        let before = state.unloadable.len();
        let known =
            state.unloadable.entry(Rc::clone(key)).or_insert_with(|| Unloadable { failures: 0, next: instant() });
        known.failures += 1;
        let wait = self.host.settings.retry.all.wait(known.failures, &self.host.ids).clamp(SLOW, SLOWEST);
        known.next = instant() + wait;
        if known.failures.is_power_of_two() {
            tracing::error!(
                target: TARGET, actor = %self.actor, %key, failures = known.failures, %error,
                "failed to load a key; other keys are not affected",
            );
        }
        let after = state.unloadable.len();
        self.broken.set(after);
        drop(state);
        self.count_unloadable(before, after);
        self.host.settings.issues.does_not_load(&self.name(key), || {
            shortened(format!(
                "key `{}` of `{}` in {} cannot be loaded: {error}",
                key.escape_debug(),
                self.actor,
                self.shard.id
            ))
        });
    }

    /// Returns whether a key could not be loaded so recently that nothing but a caller or a person makes it try again.
    pub(crate) fn rests(&self, key: &str) -> bool {
        self.broken.get() > 0 && self.state.borrow().unloadable.get(key).is_some_and(|known| instant() < known.next)
    }

    /// A key is loaded: what waits for it is delivered, and nothing is said of it any longer.
    pub(crate) fn loaded(self: &Rc<Self>, key: &Rc<str>) {
        if self.broken.get() == 0 || self.state.borrow_mut().unloadable.remove(key).is_none() {
            return;
        }
        let left = self.state.borrow().unloadable.len();
        self.broken.set(left);
        self.count_unloadable(left + 1, left);
        self.host.settings.issues.loads(&self.name(key));
        tracing::info!(target: TARGET, actor = %self.actor, %key, "a key can be loaded again");
        let waits = {
            let mut state = self.state.borrow_mut();
            let queue = state.keys.get_mut(key).filter(|queue| matches!(queue.head, Head::Waits | Head::Parked));
            queue.map(|queue| queue.head = Head::Idle).is_some()
        };
        if waits {
            self.pump(key);
        }
    }

    pub(super) fn count_unloadable(&self, before: usize, after: usize) {
        let count = &self.host.counts.unloadable;
        count.set((count.get() + after as u64).saturating_sub(before as u64));
    }

    /// Marks the first message of a key as the one for which it could not be loaded: a person sees it as a dead letter.
    fn park(&self, key: &Rc<str>, letter: DeadLetter) {
        let is_parked = {
            let state = self.state.borrow();
            state.keys.get(key).and_then(|queue| queue.entries.front()).is_none_or(|entry| entry.parked)
        };
        if is_parked {
            return;
        }
        let about = (letter.envelope.id, letter.envelope.correlation);
        // If it cannot be written now, it is the next time.
        if self.write(about, Mark::None, &[Note::DeadLetter(Box::new(letter))], &[]).is_ok() {
            self.host.counts.dead_letters.one();
            let mut state = self.state.borrow_mut();
            if let Some(entry) = state.keys.get_mut(key).and_then(|queue| queue.entries.front_mut()) {
                entry.parked = true;
            }
        }
    }
}
