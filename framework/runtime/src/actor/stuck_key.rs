//! A key that fails again and again, because of the store or of a layer: listed in health and counted until it is served.
//!
//! Held by each live actor, by the deferred messages of an actor type and of a key, by the streams and jobs of workers, and by the
//! relay of a thread. A key is no longer listed once its holder is dropped, for instance because the shard was closed. The
//! failures of an actor that is passivated are kept for the next one of its key.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::thread::ThreadContext;
use whizbang_core::clock::instant;
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::{TARGET, error_chain, shortened};

/// The number of consecutive failures after which a key is listed. One or two end by themselves, for instance while a disk is
/// full for a moment.
const LISTED_AFTER: u32 = 3;
/// The time for which a layer may refuse one message before its key is listed. A rate limit delays messages by design.
pub(crate) const BUSY_FOR: Duration = Duration::from_secs(10);

/// The failures of one key since its last success. A key without any costs one pointer.
#[derive(Default)]
pub(crate) struct StuckKey(Option<Box<Failures>>);

struct Failures {
    context: Rc<ThreadContext>,
    name: String,
    count: u32,
    /// The time of the first failure.
    since: Instant,
    /// The turns of the thread before the first failure.
    turns_before: u64,
    is_listed: bool,
}

impl StuckKey {
    /// Counts a refused append of `name`; `subject` describes what is refused. A store that accepts nothing is reported once
    /// for the node, and not once for each key.
    pub(crate) fn refused(
        &mut self,
        context: &Rc<ThreadContext>,
        error: &StoreError,
        name: impl FnOnce() -> String,
        subject: impl FnOnce() -> String,
    ) {
        // A turn that is too large fails alone.
        if matches!(error, StoreError::Oversize { .. }) {
            return;
        }
        let turns_before = self.0.as_ref().map(|failures| failures.turns_before);
        let concerns_all = error.is_transient() && turns_before.is_none_or(|turns| turns == context.counts.turns.get());
        self.store_failed(context, error, !concerns_all, name, || format!("the store refuses {}", subject()));
    }

    /// Counts a failed read of `name`; `subject` describes what cannot be read.
    pub(crate) fn unreadable(
        &mut self,
        context: &Rc<ThreadContext>,
        error: &StoreError,
        name: impl FnOnce() -> String,
        subject: impl FnOnce() -> String,
    ) {
        self.store_failed(context, error, true, name, || format!("failed to read {}", subject()));
    }

    /// Counts a refusal of a message of `name` by a layer; `subject` describes what waits. The key is listed if it takes long.
    pub(crate) fn delayed(
        &mut self,
        context: &Rc<ThreadContext>,
        name: impl FnOnce() -> String,
        subject: impl FnOnce() -> String,
    ) {
        let waited = self.0.as_ref().map_or(Duration::ZERO, |failures| failures.since.elapsed());
        self.failed(context, waited >= BUSY_FOR, name, || {
            format!("a layer has refused {} for {} s", subject(), waited.as_secs())
        });
    }

    fn store_failed(
        &mut self,
        context: &Rc<ThreadContext>,
        error: &StoreError,
        may_list: bool,
        name: impl FnOnce() -> String,
        what: impl FnOnce() -> String,
    ) {
        // A lost or closed shard is opened elsewhere or again.
        if !matches!(error, StoreError::Fenced { .. } | StoreError::Closed) {
            self.failed(context, may_list, name, || format!("{}: {}", what(), error_chain(error)));
        }
    }

    fn failed(
        &mut self,
        context: &Rc<ThreadContext>,
        may_list: bool,
        name: impl FnOnce() -> String,
        text: impl FnOnce() -> String,
    ) {
        let failures = self.0.get_or_insert_with(|| {
            let (context, turns_before) = (Rc::clone(context), context.counts.turns.get());
            Box::new(Failures { context, name: name(), count: 0, since: instant(), turns_before, is_listed: false })
        });
        failures.count = failures.count.saturating_add(1);
        if failures.count < LISTED_AFTER || !may_list {
            return;
        }
        let is_first = !std::mem::replace(&mut failures.is_listed, true);
        if is_first {
            context.counts.stuck_keys.set(context.counts.stuck_keys.get() + 1);
        }
        let text = shortened(text());
        // The log repeats it after 4, 8, 16, … failures.
        if is_first || failures.count.is_power_of_two() {
            tracing::error!(
                target: TARGET, name = failures.name, failures = failures.count, reason = text,
                "key failed repeatedly; other keys are not affected",
            );
        }
        context.settings.issues.add_stuck_key(&failures.name, text);
    }

    /// Returns whether it has failed since its last success.
    pub(crate) fn is_failing(&self) -> bool {
        self.0.is_some()
    }

    /// Resolves the failures: the key was served.
    pub(crate) fn served(&mut self) {
        if let Some(failures) = self.0.take().filter(|failures| failures.is_listed) {
            tracing::info!(target: TARGET, name = failures.name, "key is served again");
        }
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        if self.is_listed {
            let count = &self.context.counts.stuck_keys;
            count.set(count.get().saturating_sub(1));
            self.context.settings.issues.serves(&self.name);
        }
    }
}

#[cfg(test)]
mod tests;
