//! What shards send to each other, on the receiver's thread: through which gate it comes in, who takes it, what is told back.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::hosted::Unrouted;
use super::thread::ThreadRuntime;
use crate::inbox::ReceiveWindow;
use crate::message::{Envelope, Key, Kind, Name, ShardId, shard_of};
use crate::router::{AckOutcome, Action, ActorEndpoint, Delivery, Outcome};
use crate::store::{Source, SourceKind};
use crate::telemetry::TARGET;

/// How many gates a thread has. A sender may name as many shards as it likes, so there is an end to them.
const GATES: usize = if cfg!(test) { 64 } else { 8192 };

/// By sending and receiving shard.
pub(super) type ReceiveWindows = HashMap<(ShardId, ShardId), Rc<ReceiveWindow>, FixedState>;

impl ThreadRuntime {
    /// The door for what no actor of a domain takes.
    pub(super) fn unrouted(&self, domain: &Name) -> Option<Rc<dyn ActorEndpoint>> {
        let found = self.endpoints.iter().find(|((of, actor), _)| of == domain && actor.as_str() == Unrouted::NAME);
        found.map(|(_, door)| Rc::clone(door))
    }

    /// Who takes what an actor has sent to the shard `to`, and what he does with it.
    fn way_of(&self, to: &ShardId, envelope: &mut Envelope) -> Option<(Rc<dyn ActorEndpoint>, Action)> {
        let shards = self.definition.owns(&to.domain)?;
        let valid = Key::from(envelope.key.as_str()).is_valid();
        if valid && shard_of(&envelope.key, shards) == to.shard {
            let work = if envelope.kind == Kind::Reply { Action::Reply } else { Action::Handle };
            return Some((self.door_of(envelope)?, work));
        }
        let reason = if valid {
            let key = envelope.key.escape_debug();
            format!("has the key `{key}`, which is not of shard {to}: `{}` has {shards} shards", to.domain)
        } else {
            format!("has a key of {} bytes", envelope.key.len())
        };
        // No actor of this shard has that key. Who stands in for it must be of this shard, where the message is counted.
        let stands_in = (0..=u32::MAX).map(|n| format!("stray-{n}")).find(|key| shard_of(key, shards) == to.shard);
        envelope.key = stands_in?;
        Some((self.unrouted(&to.domain)?, Action::DeadLetter(reason)))
    }

    /// Takes a message that was sent to one of this thread's shards.
    pub(super) fn direct(self: &Rc<Self>, envelope: Envelope, settle: Box<dyn FnOnce(AckOutcome)>) {
        let Some(to) = envelope.to.clone().filter(|to| self.shards.contains_key(to)) else {
            return settle(self.nowhere(&envelope));
        };
        if self.has_ended.get() || self.context.draining.get() {
            return settle(AckOutcome::Retry);
        }
        match &envelope.origin {
            Some(origin) => match self.gate(&origin.shard.clone(), &to) {
                Some(gate) => gate.admit(envelope, settle),
                None => settle(AckOutcome::Retry),
            },
            None => self.outside(
                envelope,
                Box::new(move |outcome| {
                    settle(match outcome {
                        Outcome::Busy | Outcome::Stopped | Outcome::Refused(_) | Outcome::Unknown(_) => {
                            AckOutcome::Retry
                        }
                        // Handed over without a reply, it was accepted: it must not vanish unseen.
                        Outcome::Unhandled => AckOutcome::Reject("nobody here handles such a message".to_owned()),
                        Outcome::Undecodable(reason) => AckOutcome::Reject(format!("the message {reason}")),
                        Outcome::Conflict => {
                            AckOutcome::Reject("its id was used before with another payload".to_owned())
                        }
                        Outcome::Expired => AckOutcome::Reject("its id is older than ids are remembered".to_owned()),
                        Outcome::IdInFuture => AckOutcome::Reject("its id is from the future".to_owned()),
                        Outcome::Late => AckOutcome::Reject("its deadline had passed".to_owned()),
                        Outcome::Unanswered(reason) | Outcome::Failed(reason) => AckOutcome::Reject(reason),
                        Outcome::Done(..) | Outcome::DeadLetter(_) => AckOutcome::Ack,
                    });
                }),
            ),
        }
    }

    /// What becomes of a message to a shard that is not of this thread.
    fn nowhere(&self, envelope: &Envelope) -> AckOutcome {
        let Some(to) = &envelope.to else { return AckOutcome::Retry };
        let Some(shards) = self.definition.owns(&to.domain).filter(|shards| to.shard >= *shards) else {
            return AckOutcome::Retry;
        };
        let domain = &to.domain;
        let Some(origin) = &envelope.origin else {
            return AckOutcome::Reject(format!(
                "`{domain}` has {shards} shards, and none with the number {}",
                to.shard
            ));
        };
        // An actor keeps what it has sent: it is taken once the two agree.
        let from = &origin.shard;
        let why = format!(
            "what {from} sends to {to} cannot be taken and stays there: `{domain}` has {shards} shards, its sender believes in more"
        );
        if self.definition.issues.raise(&format!("shards of {domain}"), why) {
            tracing::error!(target: TARGET, %from, %to, shards, "something is sent to a shard that is not there");
        }
        AckOutcome::Retry
    }

    fn known_gate(&self, from: &ShardId, to: &ShardId) -> Option<Rc<ReceiveWindow>> {
        self.receive_windows.borrow().get(&(from.clone(), to.clone())).cloned()
    }

    /// The gate between two shards; none if there are as many as there may be, and something is under way in all of them.
    pub(super) fn gate(self: &Rc<Self>, from: &ShardId, to: &ShardId) -> Option<Rc<ReceiveWindow>> {
        if let Some(gate) = self.known_gate(from, to) {
            return Some(gate);
        }
        if self.receive_windows.borrow().len() >= GATES && !self.make_room() {
            return None;
        }
        let floor = self.watermark(from, to);
        let me = Rc::downgrade(self);
        let doors = {
            let (me, to) = (me.clone(), to.clone());
            Rc::new(move |envelope: &mut Envelope| {
                let found = me.upgrade().and_then(|share| share.way_of(&to, envelope));
                found.unwrap_or_else(|| (Rc::new(RejectingEndpoint), Action::Handle))
            })
        };
        let asks = {
            let me = me.clone();
            Rc::new(move |gate: &Rc<ReceiveWindow>| match me.upgrade() {
                Some(share) => share.ask_sender(gate),
                None => gate.asked(),
            })
        };
        let committed = Rc::new(move |gate: &ReceiveWindow| {
            if let Some(share) = me.upgrade() {
                share.tell_how_far(gate);
            }
        });
        let (counts, standing) = (Arc::clone(&self.context.counts), Arc::clone(&self.definition.issues));
        let gate = ReceiveWindow::new((from.clone(), to.clone()), floor, doors, asks, committed, counts, standing);
        self.receive_windows.borrow_mut().insert((from.clone(), to.clone()), Rc::clone(&gate));
        Some(gate)
    }

    /// Tells the sender how far all is committed, once the store here knows it too: what it was told of it does not keep.
    fn tell_how_far(self: &Rc<Self>, gate: &ReceiveWindow) {
        let (from, to, through) = (gate.from.clone(), gate.to.clone(), gate.through());
        // Most often the turn that took the last message has told the store. Of one that was taken before nothing is written.
        let Some(floor) = gate.unstored() else { return self.tell_committed(&from, &to, through) };
        let Some(cell) = self.shards.get(&to) else { return };
        let appended = cell.writer.borrow_mut().advance(&floor);
        let me = Rc::downgrade(self);
        match appended {
            Ok(appended) => self.context.after_commit(appended, move |committed| {
                if let Some(me) = me.upgrade().filter(|_| committed.is_ok()) {
                    me.tell_committed(&from, &to, through);
                }
            }),
            Err(error) => self.context.report_append_error(&error),
        }
    }

    /// Takes away the gates that are at rest: the store knows what they know. If none is, those that only wait for what is
    /// missing; what they hold comes again.
    fn make_room(&self) -> bool {
        let mut gone: Vec<_> = self.receive_windows.borrow_mut().extract_if(|_, gate| gate.is_at_rest()).collect();
        if gone.is_empty() {
            gone = self.receive_windows.borrow_mut().extract_if(|_, gate| gate.only_waits()).collect();
        }
        gone.iter().for_each(|(_, gate)| gate.let_go());
        !gone.is_empty()
    }

    /// How far this thread's shard has committed what `from` sent it, as the store knows: what was answered once holds after a crash.
    pub(super) fn watermark(&self, from: &ShardId, to: &ShardId) -> u64 {
        let source = Source { shard: from.clone(), kind: SourceKind::Direct };
        self.shards.get(to).map_or(0, |shard| shard.reader().watermark(&source))
    }
}

/// The door when there is none.
struct RejectingEndpoint;

impl ActorEndpoint for RejectingEndpoint {
    fn deliver(&self, delivery: Delivery) {
        (delivery.completion)(Outcome::Stopped);
    }
    fn key_of(&self, _event: &Envelope) -> Result<Option<String>, String> {
        Ok(None)
    }
    fn live_count(&self) -> usize {
        0
    }
    fn passivate_idle(&self, _idle_sweeps: u64, _cap: usize) {}
    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::sync::oneshot;

    use super::*;
    use crate::doc_fixtures::Account;
    use crate::message::{MessageId, Origin};
    use crate::node::Node;
    use crate::store::memory::MemoryStore;

    /// A command without a key from the shard `n` of what may be anybody.
    fn from_shard(n: usize, sequence: u64, to: &ShardId) -> Envelope {
        let name = |text: &str| Name::new(text).unwrap();
        let shard = ShardId::new(name(&format!("d{}", n / 1000)), u16::try_from(n % 1000).unwrap());
        let origin = Origin { shard, actor: name("a"), key: "k".to_owned(), sequence, version: 0, store: None };
        let time = crate::clock::Timestamp::from_millis(0);
        let id = MessageId::from_idempotency_key("d", "", &format!("{n}/{sequence}"));
        Envelope {
            to: Some(to.clone()),
            origin: Some(origin),
            ..Envelope::new(id, Kind::Command, to.domain.clone(), name("Deposit"), time)
        }
    }

    #[test]
    fn a_sender_that_names_endless_shards_fills_no_memory_and_keeps_nobody_out() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await.unwrap();
            // What comes first is taken, and what comes behind a gap is held.
            for sequence in [1, 3] {
                let (done, wait) = oneshot::channel();
                node.links.run(
                    0,
                    Box::new(move |share| {
                        let to = share.shards.keys().next().cloned().unwrap();
                        let (all, later) = (3 * GATES, Rc::new(Cell::new(0)));
                        for n in 0..all {
                            let later = Rc::clone(&later);
                            let count =
                                move |settled| later.set(later.get() + usize::from(settled == AckOutcome::Retry));
                            share.direct(from_shard(n, sequence, &to), Box::new(count));
                            assert!(share.receive_windows.borrow().len() <= GATES);
                        }
                        assert!(
                            share.receive_windows.borrow().len() > GATES / 2,
                            "{}",
                            share.receive_windows.borrow().len()
                        );
                        done.send(later.get()).unwrap();
                    }),
                );
                let later = wait.await.unwrap();
                // Of what is taken as much is under way as there is room for, and what is held makes room for others.
                assert!(later >= GATES, "{later} of {} come again", 3 * GATES);
                node.wait_idle().await;
            }
            assert!(node.metrics().dead_letters > 0);
        });
    }
}
