//! What destinations say that they have committed, and what senders believe of it.
//!
//! A note may get lost, and on a broker without permissions anyone may write one. So a note lets the next messages go, and only the
//! answer of the destination's owner lets the store forget: a sender asks for it, with one question for a destination at a time.

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

/// How many destinations that nothing was sent to are asked about at once. Anyone can name destinations without end.
const STRANGERS: usize = 64;
/// How often a destination is asked at most.
const PACE: Duration = Duration::from_secs(1);
/// How often a destination is asked that has taken more than was ever sent to it.
const AGAIN: Duration = Duration::from_secs(30);

/// What the owner of a destination has said.
enum Word {
    /// All that it has noted.
    Confirmed,
    /// Less than was noted: somebody else wrote the note.
    Less,
    /// More than was ever sent to it.
    TooMuch,
}

impl ThreadRuntime {
    /// Tells the sending shard's owner how far this node has committed what it sent.
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
            // Told when something is carried, which makes one of many.
            self.told.borrow_mut().insert((from.clone(), to.clone()), through);
            self.publisher.wake();
        }
    }

    /// Nothing of what one shard has sent another was committed for long: its owner is away, or cannot take it.
    pub(super) fn stalls(&self, from: &ShardId, to: &ShardId) {
        let why = format!("{to} commits nothing of what {from} has sent it; it is kept and sent again");
        if self.definition.issues.note(&format!("{from} to {to} waits"), why) {
            tracing::warn!(target: TARGET, %from, %to, "nothing of what was sent is committed; it is sent again");
        }
    }

    /// A shard of this node has committed what one of this thread's shards sent it.
    fn has_committed(&self, from: &ShardId, to: &ShardId, through: u64) {
        self.believe(from, to, through);
        if let Some(lanes) = self.send_windows.get(from) {
            lanes.confirm(to, through, through);
        }
    }

    /// A note has come that a destination elsewhere has committed what one of this thread's shards sent it.
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
                self.definition.issues.no_note(&format!("{from} to {to} waits"));
                tracing::info!(target: TARGET, %from, %to, "what was sent is committed again");
            }
            // Nothing new, so why was it told? The destination has started again, or was sent a duplicate: what it lacks is
            // handed on, or offered to it, without waiting for patience to end.
            ConfirmationCheck::Known if self.owns(to) => lanes.hurry_to(to),
            ConfirmationCheck::Known => lanes.doubt(to),
        }
        shard.mark_dirty(&self.context);
        Some(claim)
    }

    /// Asks the owner of a destination itself how far it has committed, until it confirms what was noted.
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
        crate::spawn::repeated(&self.context.user_code, "ask a destination how far it is", asking);
    }

    /// The owner of a destination has answered how far it has committed, asked after `noted` was noted.
    fn hears_answer(&self, lanes: &SendWindows, from: &ShardId, to: &ShardId, through: u64, noted: u64) -> Word {
        let Some(shard) = self.shards.get(from) else { return Word::Confirmed };
        let sent = sent_to(&*shard.reader(), to);
        if through > sent {
            // This log is not the one it heard from: whatever is sent now would be dropped for a duplicate, so nothing is.
            lanes.stop(to);
            let why = format!(
                "nothing is sent from {from} to {to}: it has taken {through} messages, and the log here knows of {sent}. \
                 Is this store an older copy? It is asked again every {} s",
                AGAIN.as_secs()
            );
            if self.definition.issues.raise(&format!("{from} to {to}"), why) {
                tracing::error!(
                    target: TARGET, %from, %to, through, sent,
                    "has taken more than was ever sent to it: is this store an older copy? Nothing more is sent to it",
                );
            }
            return Word::TooMuch;
        }
        if lanes.resume(to) {
            self.definition.issues.resolve(&format!("{from} to {to}"));
            tracing::info!(target: TARGET, %from, %to, "has taken no more than was sent to it: going on");
        }
        let is_less = lanes.confirm(to, through, noted);
        if is_less {
            tracing::warn!(
                target: TARGET, %from, %to, through, noted,
                "a note claimed more than its destination has committed: what it has not is sent again",
            );
        }
        // What was confirmed is written down at once, so that it is not sent again after a crash.
        for (to, through) in lanes.unstored(1) {
            let sent = shard.writer.borrow_mut().sent(&to, through);
            drop(sent.inspect_err(|error| self.context.report_append_error(error)));
        }
        shard.mark_dirty(&self.context);
        if is_less { Word::Less } else { Word::Confirmed }
    }

    /// How far a destination has confirmed to have committed what one of this thread's shards sent it.
    pub(super) fn confirmed(&self, from: &ShardId, to: &ShardId) -> u64 {
        let stored = self.shards.get(from).map_or(0, |shard| {
            let heads = shard.reader().outbox_heads();
            heads.into_iter().find(|(known, ..)| known == to).map_or(0, |(_, done, _)| done)
        });
        stored.max(self.send_windows.get(from).map_or(0, |lanes| lanes.confirmed(to)))
    }

    /// Asks once for what was noted and is not confirmed, so that it need not be sent again after the next start.
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

/// How far a destination has committed what `from` has sent it, by the answer of its owner.
async fn committed(spec: &NodeDefinition, from: &ShardId, to: &ShardId) -> Option<u64> {
    let bridge = spec.bridge.as_ref()?;
    let asked = Request::Watermark { from: from.clone(), to: to.clone() };
    let Ok(Response::Watermark { through, store }) = bridge.request(asked, background::ASK).await else { return None };
    let speaker = spec.known_owners.find(&**bridge, &to.domain, store).await;
    (speaker == KnownOwner::Owner).then_some(through)
}

/// The last sequence that a shard has sent to another.
pub(super) fn sent_to(reader: &dyn ShardReader, to: &ShardId) -> u64 {
    reader.outbox_heads().into_iter().find(|(known, ..)| known == to).map_or(0, |(_, _, head)| head)
}
