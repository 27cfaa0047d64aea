//! Whether an owner's log still is what was taken from it, and what becomes of events that it does not contain.
//!
//! Called by the [feed](super::subscription). Anyone who reaches the broker may send an event; only the owner's answer decides.

use std::rc::Rc;
use std::time::Duration;

use super::subscription::{DOUBT, Subscription};
use crate::clock::instant;
use crate::message::Envelope;
use crate::telemetry::TARGET;

/// How often an owner is asked whose log was another one.
const AGAIN: Duration = Duration::from_secs(30);

impl Subscription {
    /// Another event came under a position that was taken. It is dropped: the owner's log decides, not who sends what. The owner is
    /// asked, again and again while such events come, with one question at a time.
    pub(super) fn suspects(self: &Rc<Self>, position: u64) {
        self.overseer.counts.events_dropped.one();
        tracing::debug!(target: TARGET, source = %self.source, position, "dropped an event that is not what was taken");
        self.suspect.set(Some(position));
        self.doubt.set(true);
        self.fill();
    }

    /// The owner is asked what stands where this has come to; not all the time.
    pub(super) fn doubts(self: &Rc<Self>) {
        let now = instant();
        if self.doubted.get().is_none_or(|before| before + DOUBT < now) {
            self.doubted.set(Some(now));
            self.doubt.set(true);
            self.fill();
        }
    }

    /// Whether the owner's log holds what was taken from it last, as far as that is known.
    pub(super) async fn is_as_taken(&self) -> Result<bool, String> {
        let suspect = self.suspect.get();
        let position = suspect.unwrap_or_else(|| self.last.get());
        if position == 0 || (!self.doubt.replace(false) && suspect.is_none()) {
            return Ok(true);
        }
        let (events, head) = (self.pages)(self.source.clone(), position - 1, 1).await?;
        let is_there = |event: &&Envelope| event.origin.as_ref().is_some_and(|origin| origin.sequence == position);
        let known =
            events.first().filter(is_there).and_then(|event| self.recent_ids.borrow().knows(position, event.id));
        let as_taken = head >= position && known != Some(false);
        // One that came while the owner was asked is asked for next.
        if as_taken && self.suspect.get() == suspect {
            self.suspect.set(None);
        }
        Ok(as_taken)
    }

    /// The owner itself says that another event stands where one was taken: its log is not the one it was. What comes is not what
    /// was missed, and taking it would mix two logs; what does not come would be lost unseen. So nothing is taken, health reports
    /// it, and the owner is asked again from time to time.
    pub(super) fn contradicted(&self, position: u64) {
        let source = &self.source;
        let why = format!(
            "events of {source} are not taken: its log is not the one whose position {position} was taken. Is it an older copy? \
             The owner is asked again every {} s",
            AGAIN.as_secs()
        );
        if self.issues.raise(&self.trouble(), why) {
            tracing::error!(
                target: TARGET, %source, position,
                "its log is not the one that was taken from: is it an older copy? Nothing is taken from it until it is",
            );
        }
        self.stopped.set(true);
        let held = self.held.borrow_mut().take();
        held.for_each(|(_, done)| done());
        self.idle.look();
    }

    fn trouble(&self) -> String {
        format!("events of {}", self.source)
    }

    /// The owner's log is the one that was taken from.
    pub(super) fn confirmed(&self) {
        if self.stopped.replace(false) {
            self.issues.resolve(&self.trouble());
            tracing::info!(target: TARGET, source = %self.source, "its log is the one again that was taken from: going on");
        }
    }

    /// The owner's log ends at `head`, by its answer to a question that was asked when `known` was claimed to exist and `mark` was
    /// held. Whatever was claimed above that is false; what was claimed since then may be true, and is asked for next.
    pub(super) fn ends_at(&self, head: u64, known: u64, mark: u64) {
        let claimed = self.known.get();
        if known > head {
            self.disproved.set(Some(instant()));
        }
        self.known.set(if claimed > known { claimed } else { head.max(self.last.get()) });
        let forged = self.held.borrow_mut().above(head, mark);
        self.overseer.counts.events_dropped.many(forged.len() as u64);
        forged.into_iter().for_each(|done| done());
    }

    /// The owner's log has `event` at `position`: another one that is held for it is dropped.
    pub(super) fn displaces(&self, position: u64, event: &Envelope) {
        let forged = self.held.borrow_mut().other_than(position, event.id);
        if let Some(done) = forged {
            self.overseer.counts.events_dropped.one();
            done();
        }
    }

    /// Stops, and waits until the owner is to be asked again.
    pub(super) async fn wait_for_another_log(&self, position: u64) {
        self.contradicted(position);
        // Before the wait: whatever interrupts it, the owner is asked before anything is taken.
        self.doubt.set(true);
        tokio::time::sleep(DOUBT).await;
        // A log that has grown, or was put back, is told by its owner.
        let _ = tokio::time::timeout(AGAIN, self.news.notified()).await;
    }
}
