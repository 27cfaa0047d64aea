//! The dispatcher as an endpoint: messages in envelopes, passivation, and shards that are opened and closed.
//!
//! Called by the router, the node's threads and the subscriptions.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;

use super::dispatcher::{AdmitError, Unadmitted};
use super::live_actor::{Delivered, Dispatcher, LiveActor, RegistryEntry};
use crate::router::{ActorEndpoint, Delivery, Outcome};
use whizbang_core::message::{CodecError, Envelope, Shard, ShardId};
use whizbang_core::store::StoreError;

impl ActorEndpoint for Rc<Dispatcher> {
    fn deliver(&self, delivery: Delivery) {
        let inside = !matches!(delivery.dedup_key, crate::router::DedupKey::MessageId);
        let admitted = self.admit(Unadmitted::Envelope(delivery), inside);
        if let Err((refused, Unadmitted::Envelope(delivery))) = admitted {
            let outcome = match refused {
                AdmitError::Busy => Outcome::Busy,
                AdmitError::Stopped => Outcome::Stopped,
                AdmitError::Moved => Outcome::Moved,
                AdmitError::InvalidKey(_) => Outcome::Undecodable("a key has 1 to 256 bytes".to_owned()),
                AdmitError::Panicked(panicked) => Outcome::Undecodable(format!("computing the key {panicked}")),
            };
            (delivery.completion)(outcome);
        }
    }

    fn key_of(&self, event: &Envelope) -> Result<Option<String>, String> {
        if let Some(error) = self.context.settings.shapes.refusal(event) {
            return Err(error.to_string());
        }
        match self.handlers.reacts.get(&(event.domain.as_str(), event.name.as_str())) {
            Some((key_of, _)) => self
                .context
                .user_code
                .call(self.label, || key_of(event))
                .unwrap_or_else(|panicked| Err(CodecError::Decode { reason: format!("cannot be read: {panicked}") }))
                .map_err(|error| error.to_string()),
            None => Ok(None),
        }
    }

    fn live_count(&self) -> usize {
        self.registry.borrow().len()
    }

    fn passivate_idle(&self, idle_sweeps: u64, cap: usize) {
        let now = self.context.sweeps.get();
        let mut gone = Vec::new();
        {
            let mut keys = self.registry.borrow_mut();
            let oldest = now.checked_sub(idle_sweeps);
            if let Some(oldest) = oldest {
                gone.extend(keys.extract(|entry| entry.is_idle_since(oldest)));
            }
            if keys.len() > cap {
                // Find the sweep below which enough actors are idle: a count per sweep, not a sort of all keys.
                let mut excess = keys.len() - cap;
                let mut by_sweep = std::collections::BTreeMap::<u64, usize>::new();
                let live = keys.values().filter_map(|entry| entry.live.upgrade());
                for idle in live.filter(|live| live.queued.get() == 0) {
                    *by_sweep.entry(idle.last_sweep.get()).or_default() += 1;
                }
                let mut limit = None;
                let mut sum = 0;
                for (sweep, count) in by_sweep {
                    if sum >= excess {
                        break;
                    }
                    sum += count;
                    limit = Some(sweep);
                }
                if let Some(limit) = limit {
                    gone.extend(keys.extract(|entry| {
                        let goes = excess > 0 && entry.is_idle_since(limit);
                        excess -= usize::from(goes);
                        goes
                    }));
                }
            }
        }
        self.passivate(gone);
    }

    fn reset(&self) {
        let gone = self.registry.borrow_mut().extract(|_| true);
        refuse_waiting(gone);
        self.backlogs.all().iter().for_each(|backlog| backlog.reset());
    }

    fn open_shard(&self, shard: Shard) {
        let opened = self.context.shards.borrow().get(&ShardId::new(self.domain.clone(), shard)).cloned();
        if let Some(opened) = opened {
            self.open(&opened);
        }
    }

    fn close_shard(&self, shard: Shard) {
        let Some(backlog) = self.backlogs.close(shard) else { return };
        let is_of = |live: Rc<LiveActor>| Rc::ptr_eq(&live.shard, &backlog.shard);
        let gone = self.registry.borrow_mut().extract(|entry| entry.live.upgrade().is_none_or(is_of));
        // The mailboxes refuse what is queued: the shard is lost to them.
        refuse_waiting(gone);
        backlog.reset();
    }

    fn load_deferred(&self, shard: Shard) -> LocalBoxFuture<'static, Result<(), StoreError>> {
        match self.backlogs.get(shard) {
            Some(backlog) => Box::pin(backlog.load_deferred()),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }

    fn deliver_deferred(&self, shard: Shard) {
        if let Some(backlog) = self.backlogs.get(shard) {
            backlog.deliver_deferred();
        }
    }

    fn is_idle(&self) -> bool {
        self.backlogs.all().iter().all(|backlog| backlog.is_idle())
    }
}

/// Completes the messages that wait in the memory of actors that end. Their permits refer to the actors, which would never be freed.
fn refuse_waiting(gone: Vec<RegistryEntry>) {
    for live in gone.iter().filter_map(|entry| entry.live.upgrade()) {
        // No turn closes its own shard, so the actor is not borrowed.
        let Ok(mut actor) = live.actor.try_borrow_mut() else { continue };
        let waiting = actor.take_waiting();
        drop(actor);
        for Delivered { delivery, permit } in waiting {
            drop(permit);
            (delivery.completion)(live.shard.stopped_outcome());
        }
    }
}
