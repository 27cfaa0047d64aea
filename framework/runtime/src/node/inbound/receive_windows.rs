//! Receive windows of a thread: routes messages between shards to their endpoint, and confirms them to the sender.
//!
//! Called by the relay of this node and by the bridge handler.

use std::rc::Rc;
use std::sync::Arc;

use crate::inbox::{ReceiveWindow, WindowContext};
use crate::node::catalog::hosted::Unrouted;
use crate::node::thread::ThreadRuntime;
use crate::router::{Action, ActorEndpoint, Delivery, Outcome};
use whizbang_core::bridge::AckOutcome;
use whizbang_core::message::{Envelope, Key, Kind, Name, ShardId, shard_of};
use whizbang_core::store::{Source, SourceKind};
use whizbang_core::telemetry::TARGET;

/// Most receive windows of a thread. A forged sender can name any number of shards, so the count is bounded.
pub(in crate::node) const MAX_WINDOWS: usize = 8192;

impl ThreadRuntime {
    /// Returns the endpoint for messages that no actor of a domain handles.
    pub(in crate::node) fn unrouted(&self, domain: &Name) -> Option<Rc<dyn ActorEndpoint>> {
        let found = self.endpoints.iter().find(|((of, actor), _)| of == domain && actor.as_str() == Unrouted::NAME);
        found.map(|(_, endpoint)| Rc::clone(endpoint))
    }

    /// Returns the endpoint for a message sent by an actor to the shard `to`, and the action to perform there. `None` if it
    /// waits for a node with a newer program.
    fn route(&self, to: &ShardId, envelope: &mut Envelope) -> Option<(Rc<dyn ActorEndpoint>, Action)> {
        let shards = self.definition.owns(&to.domain)?;
        let valid = Key::from(envelope.key.as_str()).is_valid();
        if valid && shard_of(&envelope.key, shards) == to.shard {
            let work = if envelope.kind == Kind::Reply { Action::Reply } else { Action::Handle };
            return Some((self.endpoint_of(envelope)?, work));
        }
        let reason = if valid {
            let key = envelope.key.escape_debug();
            format!("has the key `{key}`, which is not of shard {to}: `{}` has {shards} shards", to.domain)
        } else {
            format!("has a key of {} bytes", envelope.key.len())
        };
        // No actor of this shard has that key. The substitute key must be of this shard, whose watermark counts the
        // message.
        let substitute = (0..=u32::MAX).map(|n| format!("stray-{n}")).find(|key| shard_of(key, shards) == to.shard);
        envelope.key = substitute?;
        Some((self.unrouted(&to.domain)?, Action::DeadLetter(reason)))
    }

    /// Delivers a message that was sent to one of this thread's shards.
    pub(in crate::node) fn direct(self: &Rc<Self>, envelope: Envelope, settle: Box<dyn FnOnce(AckOutcome)>) {
        let is_open = |to: &ShardId| self.shard(to).is_some_and(|shard| shard.is_open());
        let Some(to) = envelope.to.clone().filter(is_open) else {
            return settle(self.outcome_without_shard(&envelope));
        };
        if self.has_ended.get() || self.context.draining.get() {
            return settle(AckOutcome::Retry);
        }
        match &envelope.origin {
            Some(origin) => match self.receive_window(&origin.shard.clone(), &to) {
                Some(window) => window.admit(envelope, settle),
                None => settle(AckOutcome::Retry),
            },
            None => self.deliver_post(
                envelope,
                Box::new(move |outcome| {
                    settle(match outcome {
                        Outcome::Busy
                        | Outcome::Stopped
                        | Outcome::Moved
                        | Outcome::Refused(_)
                        | Outcome::Unknown(_) => AckOutcome::Retry,
                        // It arrived without a reply channel and was acknowledged to its caller, so it must not
                        // vanish unseen.
                        Outcome::Unhandled => AckOutcome::Reject("no handler for this message".to_owned()),
                        Outcome::Undecodable(reason) => {
                            AckOutcome::Reject(format!("failed to decode the message: {reason}"))
                        }
                        Outcome::Conflict => AckOutcome::Reject("id already used with another payload".to_owned()),
                        Outcome::Expired => AckOutcome::Reject("id expired".to_owned()),
                        Outcome::IdInFuture => AckOutcome::Reject("id is from the future".to_owned()),
                        Outcome::Late => AckOutcome::Reject("deadline passed".to_owned()),
                        Outcome::Unanswered(reason) | Outcome::Failed(reason) => AckOutcome::Reject(reason),
                        Outcome::Done(..) | Outcome::DeadLetter(_) => AckOutcome::Ack,
                    });
                }),
            ),
        }
    }

    /// Returns the outcome for a message to a shard that is not open on this thread.
    fn outcome_without_shard(&self, envelope: &Envelope) -> AckOutcome {
        let Some(to) = &envelope.to else { return AckOutcome::Retry };
        let Some(shards) = self.definition.owns(&to.domain).filter(|shards| to.shard >= *shards) else {
            return AckOutcome::Retry;
        };
        let domain = &to.domain;
        let Some(origin) = &envelope.origin else {
            return AckOutcome::Reject(format!("no shard {} in `{domain}`: it has {shards} shards", to.shard));
        };
        // An actor's message stays in its outbox: it is delivered once both agree on the shard count.
        let from = &origin.shard;
        let why = format!(
            "messages from {from} to {to} stay with their sender: `{domain}` has {shards} shards here and more at the sender; deploy the same shard count"
        );
        if self.definition.issues.raise(&format!("shards of {domain}"), why) {
            tracing::error!(target: TARGET, %from, %to, shards, "message for a shard that does not exist: it stays with its sender");
        }
        AckOutcome::Retry
    }

    fn known_window(&self, from: &ShardId, to: &ShardId) -> Option<Rc<ReceiveWindow>> {
        self.receive_windows.borrow().get(&(from.clone(), to.clone())).cloned()
    }

    /// Returns the window between two shards; `None` if `to` is not open here, or the bound is reached and every window
    /// has messages in flight.
    pub(in crate::node) fn receive_window(self: &Rc<Self>, from: &ShardId, to: &ShardId) -> Option<Rc<ReceiveWindow>> {
        if let Some(window) = self.known_window(from, to) {
            return Some(window);
        }
        if self.receive_windows.borrow().len() >= self.max_receive_windows.get() && !self.evict_windows() {
            return None;
        }
        let watermark = self.watermark(from, to)?;
        let me = Rc::downgrade(self);
        let endpoints = {
            let (me, to) = (me.clone(), to.clone());
            Rc::new(move |envelope: &mut Envelope| {
                let Some(runtime) = me.upgrade() else {
                    return Some((Rc::new(RejectingEndpoint) as Rc<dyn ActorEndpoint>, Action::Handle));
                };
                runtime.route(&to, envelope)
            })
        };
        let asks = {
            let me = me.clone();
            Rc::new(move |window: &Rc<ReceiveWindow>| match me.upgrade() {
                Some(runtime) => runtime.request_missing(window),
                None => window.end_requests(),
            })
        };
        let committed = Rc::new(move |window: &ReceiveWindow| {
            if let Some(runtime) = me.upgrade() {
                runtime.confirm_progress(window);
            }
        });
        let context = WindowContext {
            counts: Arc::clone(&self.context.counts),
            issues: Arc::clone(&self.definition.issues),
            queued: Rc::clone(&self.context.queued),
        };
        let window = ReceiveWindow::new((from.clone(), to.clone()), watermark, endpoints, asks, committed, context);
        self.receive_windows.borrow_mut().insert((from.clone(), to.clone()), Rc::clone(&window));
        Some(window)
    }

    /// Confirms to the sender how far everything is committed, once this store knows it too: the sender deletes what
    /// is confirmed.
    fn confirm_progress(self: &Rc<Self>, window: &ReceiveWindow) {
        let (from, to, through) = (window.from.clone(), window.to.clone(), window.through());
        // Most often the turn of the last message has stored the watermark. A duplicate writes nothing.
        let Some(watermark) = window.unstored() else { return self.confirm_committed(&from, &to, through) };
        let Some(cell) = self.shard(&to) else { return };
        let appended = cell.writer.borrow_mut().advance(&watermark);
        let me = Rc::downgrade(self);
        match appended {
            Ok(appended) => self.context.after_commit(&cell, appended, move |committed| {
                if let Some(me) = me.upgrade().filter(|_| committed.is_ok()) {
                    me.confirm_committed(&from, &to, through);
                }
            }),
            Err(error) => self.context.report_append_error(&error),
        }
    }

    /// Removes idle windows, whose state the store knows. If there are none, removes windows that only wait for
    /// missing messages; what they hold is sent again.
    fn evict_windows(&self) -> bool {
        let mut gone: Vec<_> = self.receive_windows.borrow_mut().extract_if(|_, window| window.is_idle()).collect();
        if gone.is_empty() {
            gone = self.receive_windows.borrow_mut().extract_if(|_, window| window.has_none_in_flight()).collect();
        }
        gone.iter().for_each(|(_, window)| window.release_held());
        !gone.is_empty()
    }

    /// Returns the stored watermark for messages of `from`: the answer must hold after a crash. `None` if `to` is not
    /// open here.
    pub(in crate::node) fn watermark(&self, from: &ShardId, to: &ShardId) -> Option<u64> {
        let source = Source { shard: from.clone(), kind: SourceKind::Direct };
        self.shard(to).map(|shard| shard.reader().watermark(&source))
    }
}

/// Endpoint that stops every delivery, for a thread that has ended.
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
    use crate::node::Node;
    use crate::tests::Account;
    use whizbang_core::message::{MessageId, Origin};
    use whizbang_log::memory::MemoryStore;

    /// A bound that the test reaches in a moment.
    const FEW: usize = 64;

    /// A command without a key from the shard `n` of a forged sender.
    fn from_shard(n: usize, sequence: u64, to: &ShardId) -> Envelope {
        let name = |text: &str| Name::new(text).unwrap();
        let shard = ShardId::new(name(&format!("d{}", n / 1000)), u16::try_from(n % 1000).unwrap());
        let origin = Origin { shard, actor: name("a"), key: "k".to_owned(), sequence, version: 0, store: None };
        let time = whizbang_core::clock::Timestamp::from_millis(0);
        let id = MessageId::from_idempotency_key("d", "", &format!("{n}/{sequence}"));
        Envelope {
            to: Some(to.clone()),
            origin: Some(origin),
            ..Envelope::new(id, Kind::Command, to.domain.clone(), name("Deposit"), time)
        }
    }

    #[test]
    fn forged_shards_neither_fill_memory_nor_block_others() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await.unwrap();
            // The first message is delivered; the one behind a gap is held.
            for sequence in [1, 3] {
                let (done, wait) = oneshot::channel();
                node.threads.run(
                    0,
                    Box::new(move |runtime| {
                        runtime.max_receive_windows.set(FEW);
                        let to = runtime.shards().first().unwrap().id.clone();
                        let (all, later) = (3 * FEW, Rc::new(Cell::new(0)));
                        for n in 0..all {
                            let later = Rc::clone(&later);
                            let count =
                                move |settled| later.set(later.get() + usize::from(settled == AckOutcome::Retry));
                            runtime.direct(from_shard(n, sequence, &to), Box::new(count));
                            assert!(runtime.receive_windows.borrow().len() <= FEW);
                        }
                        assert!(
                            runtime.receive_windows.borrow().len() > FEW / 2,
                            "{}",
                            runtime.receive_windows.borrow().len()
                        );
                        done.send(later.get()).unwrap();
                    }),
                );
                let later = wait.await.unwrap();
                // Deliveries are bounded by the windows in flight, and held messages give way to others.
                assert!(later >= FEW, "{later} of {} come again", 3 * FEW);
                node.wait_idle().await;
            }
            assert!(node.metrics().dead_letters > 0);
        });
    }
}
