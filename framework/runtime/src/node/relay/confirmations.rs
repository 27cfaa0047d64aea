//! Confirmations: notes of destinations about what they have committed, and their verification by the sender.
//!
//! Called by receive windows, which confirm, and by the bridge handler, which receives notes.
//!
//! A note may be lost, and on a broker without permissions any client may forge one. So a note only lets the next
//! messages go; only the answer of the destination's owner lets the store forget. A sender requests it, one request
//! per destination at a time.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::node::definition::known_owners::Ownership;
use crate::node::definition::{NodeDefinition, REQUEST_TIMEOUT};
use crate::node::thread::ThreadRuntime;
use crate::relay::{ConfirmationCheck, SendWindows, page};
use whizbang_core::bridge::{Request, Response};
use whizbang_core::clock::instant;
use whizbang_core::message::ShardId;
use whizbang_core::retry::Retry;
use whizbang_core::telemetry::TARGET;

/// Most destinations without sent messages that are queried at once. A forger can name any number of destinations.
const MAX_UNKNOWN: usize = 64;
/// Shortest interval between requests to one destination.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of requests to a destination that has committed more than was ever sent to it.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Result of comparing a note with the answer of the destination's owner.
enum NoteCheck {
    /// The owner has committed everything noted.
    Confirmed,
    /// The owner has committed less: the note was forged.
    Exaggerated,
    /// The owner has committed more than was ever sent to it.
    Impossible,
}

impl ThreadRuntime {
    /// Confirms to the sending shard's owner how far this node has committed its messages.
    pub(in crate::node) fn confirm_committed(self: &Rc<Self>, from: &ShardId, to: &ShardId, through: u64) {
        if self.is_local(from) {
            let home = self.definition.thread_of(from.shard);
            if home == self.index {
                self.local_committed(from, to, through);
            } else {
                let (from, to) = (from.clone(), to.clone());
                self.threads.run(home, Box::new(move |runtime| runtime.local_committed(&from, &to, through)));
            }
        } else if self.definition.bridge.is_some() {
            // Sent by the publisher, which merges the confirmations of many messages.
            self.confirmations.borrow_mut().insert((from.clone(), to.clone()), through);
            self.publisher.notify();
        }
    }

    /// Reports that a destination has committed nothing for long: its owner is unreachable or cannot handle the
    /// messages.
    pub(in crate::node) fn report_stalled(&self, from: &ShardId, to: &ShardId) {
        let why = format!("{to} commits no messages of {from}: they are kept and sent again");
        if self.definition.issues.note(&format!("{from} to {to} stalled"), why) {
            tracing::warn!(target: TARGET, %from, %to, "destination commits nothing: messages are kept and sent again");
        }
    }

    /// Forgets the send windows of a shard, and what health reports about them.
    pub(in crate::node) fn reset_windows(&self, from: &ShardId, windows: &SendWindows) {
        for to in windows.reset() {
            self.definition.issues.clear_note(&format!("{from} to {to} stalled"));
            self.definition.issues.resolve(&format!("{from} to {to}"));
        }
    }

    /// Applies the watermark of a shard of this node for messages of one of this thread's shards.
    fn local_committed(&self, from: &ShardId, to: &ShardId, through: u64) {
        self.record_note(from, to, through);
        if let Some(windows) = self.windows_of(from) {
            windows.confirm(to, through, through);
        }
    }

    /// Applies a note of a remote destination about messages of one of this thread's shards.
    pub(in crate::node) fn note_committed(self: &Rc<Self>, from: &ShardId, to: &ShardId, through: u64) {
        // Shards that are open on this node write no notes.
        if self.is_local(to) {
            return;
        }
        match self.record_note(from, to, through) {
            Some(ConfirmationCheck::Advanced | ConfirmationCheck::Resumed | ConfirmationCheck::Impossible) => {
                self.confirm_note(from, to)
            }
            Some(ConfirmationCheck::Unchanged) | None => {}
        }
    }

    fn record_note(&self, from: &ShardId, to: &ShardId, through: u64) -> Option<ConfirmationCheck> {
        let (windows, shard) = self.windows_of(from).zip(self.shard(from))?;
        let claim = windows.committed(to, through, || page::sent_to(&*shard.reader(), to));
        match claim {
            ConfirmationCheck::Advanced | ConfirmationCheck::Impossible => {}
            ConfirmationCheck::Resumed => {
                self.definition.issues.clear_note(&format!("{from} to {to} stalled"));
                tracing::info!(target: TARGET, %from, %to, "destination commits again");
            }
            // A repeated watermark means that the destination has restarted or received a duplicate: forward or offer
            // missing messages without waiting for the retry delay.
            ConfirmationCheck::Unchanged if self.is_local(to) => windows.restart_if_stalled(to),
            ConfirmationCheck::Unchanged => windows.query_soon(to),
        }
        self.context.mark_dirty(&shard);
        Some(claim)
    }

    /// Requests the watermark from the owner of a destination until it confirms what was noted.
    fn confirm_note(self: &Rc<Self>, from: &ShardId, to: &ShardId) {
        let Some(windows) = self.windows_of(from) else { return };
        let place = (from.clone(), to.clone());
        let noted = match windows.begin_confirming(to) {
            Some(noted) => noted,
            None if windows.has(to) => return,
            None => {
                let mut strangers = self.unknown_destinations.borrow_mut();
                if strangers.len() >= MAX_UNKNOWN || !strangers.insert(place.clone()) {
                    return;
                }
                0
            }
        };
        let me = Rc::downgrade(self);
        let asking = move || {
            let (me, windows, place, mut noted) = (me.clone(), Rc::clone(&windows), place.clone(), noted);
            async move {
                let (from, to) = &place;
                let retry = Retry { longest: RECHECK_INTERVAL, ..Retry::default() };
                let mut failures = 0;
                loop {
                    let Some(definition) = me.upgrade().map(|runtime| Arc::clone(&runtime.definition)) else { return };
                    let answer = request_committed(&definition, from, to).await;
                    drop(definition);
                    let Some(runtime) = me.upgrade().filter(|runtime| !runtime.has_ended.get()) else { return };
                    let wait = match answer {
                        Some(through) => {
                            failures = 0;
                            match runtime.check_note(&windows, from, to, through, noted) {
                                NoteCheck::Confirmed | NoteCheck::Exaggerated => MIN_INTERVAL,
                                NoteCheck::Impossible => RECHECK_INTERVAL,
                            }
                        }
                        None => {
                            failures += 1;
                            retry.wait(failures, &runtime.context.ids).max(MIN_INTERVAL)
                        }
                    };
                    drop(runtime);
                    tokio::time::sleep(wait).await;
                    match windows.unconfirmed_note(to) {
                        Some(more) => noted = more,
                        None if wait == RECHECK_INTERVAL || failures > 0 && windows.has(to) => {}
                        None => break,
                    }
                }
                windows.end_confirming(to);
                if let Some(runtime) = me.upgrade() {
                    runtime.unknown_destinations.borrow_mut().remove(&place);
                }
            }
        };
        whizbang_core::spawn::restarting(&self.context.user_code, "query a destination", asking);
    }

    /// Applies the owner's answer to a request that was sent after `noted` was noted.
    fn check_note(&self, windows: &SendWindows, from: &ShardId, to: &ShardId, through: u64, noted: u64) -> NoteCheck {
        let Some(shard) = self.shard(from) else { return NoteCheck::Confirmed };
        let sent = page::sent_to(&*shard.reader(), to);
        if through > sent {
            // This log is older than the destination: new messages would be dropped as duplicates, so nothing is sent.
            windows.stop(to);
            let why = format!(
                "nothing is sent from {from} to {to}: the receiver has committed {through} messages, the log here contains {sent}. \
                 Is this store an older copy? It is asked again every {} s",
                RECHECK_INTERVAL.as_secs()
            );
            if self.definition.issues.raise(&format!("{from} to {to}"), why) {
                tracing::error!(
                    target: TARGET, %from, %to, through, sent,
                    "receiver acknowledged a sequence that was never sent: is this store an older copy? Sending stopped",
                );
            }
            return NoteCheck::Impossible;
        }
        if windows.resume(to) {
            self.definition.issues.resolve(&format!("{from} to {to}"));
            tracing::info!(target: TARGET, %from, %to, "receiver matches the log again: sending resumed");
        }
        let is_less = windows.confirm(to, through, noted);
        if is_less && self.definition.log_limits.untrue_answers.admits(instant()) {
            tracing::warn!(
                target: TARGET, %from, %to, through, noted,
                "forged or outdated note: uncommitted messages are sent again",
            );
        }
        // Stored at once, so that confirmed messages are not sent again after a crash.
        for (to, through) in windows.unstored(1) {
            let sent = shard.writer.borrow_mut().sent(&to, through);
            drop(sent.inspect_err(|error| self.context.report_append_error(error)));
        }
        self.context.mark_dirty(&shard);
        if is_less { NoteCheck::Exaggerated } else { NoteCheck::Confirmed }
    }

    /// Returns how far a destination has confirmed messages of one of this thread's shards.
    pub(in crate::node) fn confirmed(&self, from: &ShardId, to: &ShardId) -> u64 {
        let stored = self.shard(from).map_or(0, |shard| {
            let heads = shard.reader().outbox_heads();
            heads.into_iter().find(|(known, ..)| known == to).map_or(0, |(_, done, _)| done)
        });
        stored.max(self.windows_of(from).map_or(0, |windows| windows.confirmed(to)))
    }

    /// Requests once the confirmation of all open notes, so that their messages are not sent again after the next
    /// start.
    pub(in crate::node) async fn confirm_notes(&self) {
        let open = self.all_windows().into_iter().flat_map(|(from, windows)| {
            let open = windows.unconfirmed().into_iter().filter_map(|to| Some((windows.unconfirmed_note(&to)?, to)));
            let open: Vec<_> = open.map(|(noted, to)| (from.clone(), Rc::clone(&windows), to, noted)).collect();
            open
        });
        let asking = open.map(|(from, windows, to, noted)| async move {
            if let Some(through) = request_committed(&self.definition, &from, &to).await {
                self.check_note(&windows, &from, &to, through, noted);
            }
        });
        join_all(asking).await;
    }
}

/// Requests from a destination's owner how far it has committed messages of `from`.
async fn request_committed(definition: &NodeDefinition, from: &ShardId, to: &ShardId) -> Option<u64> {
    let bridge = definition.bridge.as_ref()?;
    let asked = Request::Watermark { from: from.clone(), to: to.clone() };
    let Ok(Response::Watermark { through, store }) = bridge.request(asked, REQUEST_TIMEOUT).await else {
        return None;
    };
    let ownership = definition.known_owners.find(&**bridge, &to.domain, store).await;
    (ownership == Ownership::Owner).then_some(through)
}
