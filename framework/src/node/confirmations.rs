//! Confirmations: notes of destinations about what they have committed, and their verification by the sender.
//!
//! Called by receive windows, which confirm, and by the bridge handler, which receives notes.
//!
//! A note may be lost, and on a broker without permissions anyone may forge one. So a note only lets the next
//! messages go; only the answer of the destination's owner lets the store forget. A sender requests it, one request
//! per destination at a time.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::background;
use super::definition::NodeDefinition;
use super::known_owners::KnownOwner;
use super::thread::ThreadRuntime;
use crate::bridge::{Request, Response};
use crate::message::ShardId;
use crate::relay::{ConfirmationCheck, SendWindows};
use crate::retry::Retry;
use crate::store::ShardReader;
use crate::telemetry::TARGET;

/// Most destinations without sent messages that are queried at once. A forger can name any number of destinations.
const STRANGERS: usize = 64;
/// Shortest interval between requests to one destination.
const PACE: Duration = Duration::from_secs(1);
/// Interval of requests to a destination that has committed more than was ever sent to it.
const AGAIN: Duration = Duration::from_secs(30);

/// Result of comparing a note with the answer of the destination's owner.
enum Word {
    /// The owner has committed everything noted.
    Confirmed,
    /// The owner has committed less: the note was forged.
    Less,
    /// The owner has committed more than was ever sent to it.
    TooMuch,
}

impl ThreadRuntime {
    /// Confirms to the sending shard's owner how far this node has committed its messages.
    pub(super) fn tell_committed(self: &Rc<Self>, from: &ShardId, to: &ShardId, through: u64) {
        if self.definition.owns(&from.domain).is_some() {
            let home = self.definition.home(from.shard);
            if home == self.index {
                self.has_committed(from, to, through);
            } else {
                let (from, to) = (from.clone(), to.clone());
                self.threads.run(home, Box::new(move |share| share.has_committed(&from, &to, through)));
            }
        } else if self.definition.bridge.is_some() {
            // Sent by the publisher, which merges the confirmations of many messages.
            self.told.borrow_mut().insert((from.clone(), to.clone()), through);
            self.publisher.wake();
        }
    }

    /// Reports that a destination has committed nothing for long: its owner is unreachable or cannot handle the
    /// messages.
    pub(super) fn stalls(&self, from: &ShardId, to: &ShardId) {
        let why = format!("{to} commits no messages of {from}: they are kept and sent again");
        if self.definition.issues.note(&format!("{from} to {to} stalled"), why) {
            tracing::warn!(target: TARGET, %from, %to, "destination commits nothing: messages are kept and sent again");
        }
    }

    /// Applies the watermark of a shard of this node for messages of one of this thread's shards.
    fn has_committed(&self, from: &ShardId, to: &ShardId, through: u64) {
        self.believe(from, to, through);
        if let Some(lanes) = self.send_windows.get(from) {
            lanes.confirm(to, through, through);
        }
    }

    /// Applies a note of a remote destination about messages of one of this thread's shards.
    pub(super) fn heard_committed(self: &Rc<Self>, from: &ShardId, to: &ShardId, through: u64) {
        // Shards of this node write no notes.
        if self.owns(to) {
            return;
        }
        match self.believe(from, to, through) {
            Some(ConfirmationCheck::News | ConfirmationCheck::Resumed | ConfirmationCheck::Impossible) => {
                self.make_sure(from, to)
            }
            Some(ConfirmationCheck::Known) | None => {}
        }
    }

    fn believe(&self, from: &ShardId, to: &ShardId, through: u64) -> Option<ConfirmationCheck> {
        let (lanes, shard) = self.send_windows.get(from).zip(self.shards.get(from))?;
        let claim = lanes.committed(to, through, || sent_to(&*shard.reader(), to));
        match claim {
            ConfirmationCheck::News | ConfirmationCheck::Impossible => {}
            ConfirmationCheck::Resumed => {
                self.definition.issues.no_note(&format!("{from} to {to} stalled"));
                tracing::info!(target: TARGET, %from, %to, "destination commits again");
            }
            // A repeated watermark means that the destination has restarted or received a duplicate: forward or offer
            // missing messages without waiting for the retry delay.
            ConfirmationCheck::Known if self.owns(to) => lanes.hurry_to(to),
            ConfirmationCheck::Known => lanes.doubt(to),
        }
        shard.mark_dirty(&self.context);
        Some(claim)
    }

    /// Requests the watermark from the owner of a destination until it confirms what was noted.
    fn make_sure(self: &Rc<Self>, from: &ShardId, to: &ShardId) {
        let Some(lanes) = self.send_windows.get(from).cloned() else { return };
        let place = (from.clone(), to.clone());
        let noted = match lanes.begins_asking(to) {
            Some(noted) => noted,
            None if lanes.has(to) => return,
            None => {
                let mut strangers = self.strangers.borrow_mut();
                if strangers.len() >= STRANGERS || !strangers.insert(place.clone()) {
                    return;
                }
                0
            }
        };
        let me = Rc::downgrade(self);
        let asking = move || {
            let (me, lanes, place, mut noted) = (me.clone(), Rc::clone(&lanes), place.clone(), noted);
            async move {
                let (from, to) = &place;
                let retry = Retry { longest: AGAIN, ..Retry::default() };
                let mut failures = 0;
                loop {
                    let Some(spec) = me.upgrade().map(|share| Arc::clone(&share.definition)) else { return };
                    let answer = committed(&spec, from, to).await;
                    drop(spec);
                    let Some(share) = me.upgrade().filter(|share| !share.has_ended.get()) else { return };
                    let wait = match answer {
                        Some(through) => {
                            failures = 0;
                            match share.hears_answer(&lanes, from, to, through, noted) {
                                Word::Confirmed | Word::Less => PACE,
                                Word::TooMuch => AGAIN,
                            }
                        }
                        None => {
                            failures += 1;
                            retry.wait(failures, &share.context.ids).max(PACE)
                        }
                    };
                    drop(share);
                    tokio::time::sleep(wait).await;
                    match lanes.noted(to) {
                        Some(more) => noted = more,
                        None if wait == AGAIN || failures > 0 && lanes.has(to) => {}
                        None => break,
                    }
                }
                lanes.asked(to);
                if let Some(share) = me.upgrade() {
                    share.strangers.borrow_mut().remove(&place);
                }
            }
        };
        crate::spawn::repeated(&self.context.user_code, "query a destination", asking);
    }

    /// Applies the owner's answer to a request that was sent after `noted` was noted.
    fn hears_answer(&self, lanes: &SendWindows, from: &ShardId, to: &ShardId, through: u64, noted: u64) -> Word {
        let Some(shard) = self.shards.get(from) else { return Word::Confirmed };
        let sent = sent_to(&*shard.reader(), to);
        if through > sent {
            // This log is older than the destination: new messages would be dropped as duplicates, so nothing is sent.
            lanes.stop(to);
            let why = format!(
                "nothing is sent from {from} to {to}: the receiver has committed {through} messages, the log here contains {sent}. \
                 Is this store an older copy? It is asked again every {} s",
                AGAIN.as_secs()
            );
            if self.definition.issues.raise(&format!("{from} to {to}"), why) {
                tracing::error!(
                    target: TARGET, %from, %to, through, sent,
                    "receiver acknowledged a sequence that was never sent: is this store an older copy? Sending stopped",
                );
            }
            return Word::TooMuch;
        }
        if lanes.resume(to) {
            self.definition.issues.resolve(&format!("{from} to {to}"));
            tracing::info!(target: TARGET, %from, %to, "receiver matches the log again: sending resumed");
        }
        let is_less = lanes.confirm(to, through, noted);
        if is_less {
            tracing::warn!(
                target: TARGET, %from, %to, through, noted,
                "forged or outdated note: uncommitted messages are sent again",
            );
        }
        // Stored at once, so that confirmed messages are not sent again after a crash.
        for (to, through) in lanes.unstored(1) {
            let sent = shard.writer.borrow_mut().sent(&to, through);
            drop(sent.inspect_err(|error| self.context.report_append_error(error)));
        }
        shard.mark_dirty(&self.context);
        if is_less { Word::Less } else { Word::Confirmed }
    }

    /// Returns how far a destination has confirmed messages of one of this thread's shards.
    pub(super) fn confirmed(&self, from: &ShardId, to: &ShardId) -> u64 {
        let stored = self.shards.get(from).map_or(0, |shard| {
            let heads = shard.reader().outbox_heads();
            heads.into_iter().find(|(known, ..)| known == to).map_or(0, |(_, done, _)| done)
        });
        stored.max(self.send_windows.get(from).map_or(0, |lanes| lanes.confirmed(to)))
    }

    /// Requests once the confirmation of all open notes, so that their messages are not sent again after the next
    /// start.
    pub(super) async fn confirm_notes(&self) {
        let open = self.send_windows.iter().flat_map(|(from, lanes)| {
            let open = lanes.unconfirmed().into_iter().filter_map(|to| Some((lanes.noted(&to)?, to)));
            open.map(move |(noted, to)| (from, lanes, to, noted))
        });
        let asking = open.map(|(from, lanes, to, noted)| async move {
            if let Some(through) = committed(&self.definition, from, &to).await {
                self.hears_answer(lanes, from, &to, through, noted);
            }
        });
        join_all(asking).await;
    }
}

/// Requests from a destination's owner how far it has committed messages of `from`.
async fn committed(spec: &NodeDefinition, from: &ShardId, to: &ShardId) -> Option<u64> {
    let bridge = spec.bridge.as_ref()?;
    let asked = Request::Watermark { from: from.clone(), to: to.clone() };
    let Ok(Response::Watermark { through, store }) = bridge.request(asked, background::ASK).await else { return None };
    let speaker = spec.known_owners.find(&**bridge, &to.domain, store).await;
    (speaker == KnownOwner::Owner).then_some(through)
}

/// Returns the last sequence that a shard has sent to another.
pub(super) fn sent_to(reader: &dyn ShardReader, to: &ShardId) -> u64 {
    reader.outbox_heads().into_iter().find(|(known, ..)| known == to).map_or(0, |(_, _, head)| head)
}
