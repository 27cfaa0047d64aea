//! Path of a message through the [line](super::exclusive) of its key, for a worker that is exclusive by key.
//!
//! Called by the path of a [job](super::job), before it waits for a slot.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::Worker;
use super::dispatcher::WorkerDispatcher;
use super::exclusive::{Lines, Place, Queued, Turn};
use super::job_log::JobLog;
use super::ledger::Ledger;
use crate::actor::OwnedShard;
use crate::router::DedupKey;
use whizbang_core::message::{Envelope, MessageId};
use whizbang_core::spawn::{FIRST_RESTART, LONGEST_RESTART};

/// Result of the wait in a line.
pub(super) enum InLine {
    /// The message holds the line.
    Holds,
    /// It was recorded, and its job begins later.
    Recorded,
    /// The shard closes.
    Closing,
}

impl<W: Worker> WorkerDispatcher<W> {
    /// Enters the line of the message's key, after the messages that arrived before it; `None` if the worker is not
    /// exclusive.
    pub(super) async fn enter_line(
        &self,
        shard: &Rc<OwnedShard>,
        envelope: &Envelope,
        arrival: &DedupKey,
        queued: Option<&Queued>,
    ) -> Option<Place> {
        let lines = self.lines.as_ref()?;
        lines.restored(shard.id.shard).await;
        if let Some(queued) = queued {
            queued.is_first().await;
        }
        let place = lines.enter(&envelope.key, shard, matches!(arrival, DedupKey::Sequence { .. }));
        queued.inspect(|queued| queued.leave());
        Some(place)
    }

    /// Waits until a message holds the line of its key, or records it.
    pub(super) async fn wait_in_line(
        self: &Rc<Self>,
        place: &Place,
        log: &JobLog,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        arrival: &DedupKey,
        failed: u32,
    ) -> InLine {
        loop {
            let turn = place.turn();
            if turn == Turn::Begin {
                return InLine::Holds;
            }
            if turn == Turn::Record
                && self.can_defer(arrival)
                && self.defer(log, ledger, envelope, arrival, failed).await
            {
                let priority = self.priority(envelope);
                if place.recorded(envelope.id, priority) {
                    self.begin_later(&log.shard, envelope.id, priority, Duration::ZERO);
                }
                self.begin_queued();
                return InLine::Recorded;
            }
            if self.context.is_closing(&log.shard) {
                return InLine::Closing;
            }
            self.line_moved(place, &log.shard).await;
        }
    }

    /// Waits until a message that is not recorded holds the line of its key. Returns false if the shard closes.
    pub(super) async fn holds_line(&self, place: &Place, shard: &Rc<OwnedShard>) -> bool {
        while place.turn() != Turn::Begin {
            if self.context.is_closing(shard) {
                return false;
            }
            self.line_moved(place, shard).await;
        }
        true
    }

    async fn line_moved(&self, place: &Place, shard: &Rc<OwnedShard>) {
        tokio::select! {
            biased;
            () = place.changed() => {}
            () = Rc::clone(&self.context).sleep_unless_closing(Rc::clone(shard), Duration::MAX) => {}
        }
    }

    /// Passes on the line of a recorded job that is done or a dead letter.
    pub(super) fn leave_line(&self, envelope: &Envelope) {
        if let Some(lines) = &self.lines {
            lines.leave(&envelope.key, envelope.id);
        }
    }

    /// Adds the recorded jobs of a shard to the lines of their keys, in order. Reads each of them, because the ledger has
    /// only their ids. One that cannot be read is listed in health, and holds up all keys of the shard: its own is unknown. Ends if the shard was lost or has lost commits since its generation was read: nothing removes an
    /// entry that is added after that, and it would hold the line of its key for ever.
    pub(super) async fn restore_lines(
        self: &Rc<Self>,
        lines: &Rc<Lines>,
        shard: &Rc<OwnedShard>,
        generation: u64,
        ids: Vec<MessageId>,
    ) {
        let is_stale = || shard.is_lost() || shard.generation.get() != generation;
        if is_stale() {
            return;
        }
        let log = self.shard_log(shard);
        for id in ids {
            let mut wait = FIRST_RESTART;
            let read = loop {
                if let Ok(read) = self.deferred_job(&log, id).await {
                    break read;
                }
                Rc::clone(&self.context).sleep_unless_closing(Rc::clone(shard), wait).await;
                wait = (wait * 2).min(LONGEST_RESTART);
                if is_stale() {
                    return;
                }
                if self.context.is_closing(shard) {
                    // No job begins any longer; those that wait for the lines end.
                    return lines.set_restored(shard.id.shard);
                }
            };
            if is_stale() {
                return;
            }
            if let Some(dead_letter) = read {
                let envelope = Envelope { key: dead_letter.key, ..dead_letter.envelope };
                let priority = self.priority(&envelope);
                if lines.claim(&envelope.key, shard, id, priority) {
                    self.begin_later(shard, id, priority, Duration::ZERO);
                }
            }
        }
        self.begin_queued();
        lines.set_restored(shard.id.shard);
    }
}
