//! The dead letters of one key: parked, redriven, discarded.
//!
//! Called by the [retries](super::retry) after a message's last attempt, and by the [actor](super::instance) for
//! messages behind a dead letter and for requests of operators. Calls the turn. While a key has dead letters, no other
//! message of it is handled.

use std::rc::Rc;

use bytes::Bytes;

use super::backlog::is_fresh;
use super::identity::Role;
use super::live_actor::{ActorInstance, Ctx, Delivered, Permit};
use super::retry::complete;
use super::turn::DedupMark;
use super::turn_error::TurnError;
use crate::router::{Action, ActorEndpoint as _, DedupKey, Delivery, Outcome};
use whizbang_core::message::{Codec, Envelope, Kind, MessageId};
use whizbang_core::store::{DeadLetter, DeadLetterReason, Note, StoreError};
use whizbang_core::telemetry::{TARGET, shortened};

/// The most parked messages that are redriven before other keys of the thread run.
const SLICE: usize = 32;
/// The payload bytes that such a slice holds in memory, unless one message alone is larger.
const SLICE_BYTES: usize = 1024 * 1024;
/// The name of the task that reads dead letters of a key.
const READ_TASK: &str = "read dead letters";

impl ActorInstance {
    fn dead_letter_note(&self, envelope: Envelope, reason: DeadLetterReason, error: String, attempts: u32) -> Note {
        Note::DeadLetter(Box::new(DeadLetter {
            actor: self.dispatcher.actor.clone(),
            key: self.key.to_string(),
            reason,
            error,
            attempts,
            time: self.dispatcher.context.ids.clock().now(),
            envelope,
        }))
    }

    /// Dead-letters a message after its last delivery; from now on its key is parked.
    pub(super) fn dead_letter(
        &mut self,
        delivery: Delivery,
        permit: Permit,
        failure: &TurnError,
        attempts: u32,
        ctx: &mut Ctx,
    ) {
        if self.dispatcher.context.settings.failure_log.admits_dead_letter() {
            tracing::error!(
                target: TARGET, actor = %self.dispatcher.actor, message = %delivery.envelope.name, id = %delivery.envelope.id,
                attempts, error = failure.text(), "message dead-lettered and key parked; redrive or discard it",
            );
        }
        let note = self.dead_letter_note(delivery.envelope.clone(), failure.reason(), failure.text(), attempts);
        if self.park_message(delivery, permit, note, failure.text(), ctx) {
            self.dispatcher.context.counts.dead_letters.one();
        }
    }

    /// Parks a message behind the dead letter of its key, in order. At the limit of parked messages, callers receive
    /// `Busy`, and messages of other actors wait in the backlog until dead letters are redriven or discarded.
    pub(crate) fn park(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        if self.state.rare.parked.has_capacity() {
            let error = "key is parked behind a dead letter".to_owned();
            let note = self.dead_letter_note(delivery.envelope.clone(), DeadLetterReason::Behind, error.clone(), 0);
            self.park_message(delivery, permit, note, error, ctx);
        } else if is_fresh(&delivery) {
            // Without completion it would hold up the messages of its sender to all other keys.
            self.defer(Delivered { delivery, permit }, ctx);
        } else if let (DedupKey::Sequence { .. }, Some(backlog)) = (&delivery.dedup_key, self.backlog()) {
            drop(permit);
            backlog.rest(&self.key, delivery);
        } else {
            self.dispatcher.context.counts.busy.one();
            complete(delivery, permit, Outcome::Busy);
        }
    }

    /// Delivers the messages over the limit, as far as there is capacity now.
    fn admit_overflow(&self) {
        if let Some(backlog) = self.backlog() {
            backlog.resume(&self.key);
        }
    }

    /// Returns whether the message is parked now; if not, it was refused or will be delivered again.
    fn park_message(&mut self, delivery: Delivery, permit: Permit, note: Note, error: String, ctx: &mut Ctx) -> bool {
        let mark = self.dedup_mark(&delivery);
        match self.append_note(&delivery.envelope, mark, note) {
            Ok(appended) => {
                let completion = delivery.completion;
                self.dispatcher.context.after_commit(&self.shard, appended, move |committed| {
                    drop(permit);
                    completion(match committed {
                        Ok(()) => Outcome::DeadLetter(error),
                        Err(error) => Outcome::Unknown(error),
                    });
                });
                return true;
            }
            Err(TurnError::Store(error)) => self.handle_store_error(delivery, permit, error, ctx),
            Err(failure) => complete(delivery, permit, failure.into_outcome()),
        }
        false
    }

    /// Reads dead letters of this key by id, after its appends are durable. Yields to other actors of the thread first.
    fn read_dead_letters(
        &self,
        ids: Vec<MessageId>,
    ) -> impl Future<Output = Result<Vec<DeadLetter>, StoreError>> + 'static {
        let committed = self.all_committed();
        let (reader, context) = (self.shard.reader(), Rc::clone(&self.dispatcher.context));
        let (actor, key) = (self.dispatcher.actor.clone(), Rc::clone(&self.key));
        let reading = async move {
            committed.await?;
            tokio::task::yield_now().await;
            let mut dead_letters = Vec::with_capacity(ids.len());
            for id in ids {
                let before = id.as_u128().checked_sub(1).map(MessageId::from_u128);
                // One page holds all dead letters of an id: several actors may have failed on one event.
                let page = reader.dead_letters(before, 1).await?;
                let own = |dead_letter: &DeadLetter| {
                    dead_letter.envelope.id == id && dead_letter.actor == actor && *dead_letter.key == *key
                };
                dead_letters.extend(page.into_iter().filter(own));
            }
            Ok(dead_letters)
        };
        async move { context.call_store(READ_TASK, reading).await }
    }

    /// Runs the turns of the parked messages, oldest first, until one fails again. Works in slices; other keys run
    /// between them.
    pub(crate) fn redrive(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        let ids = self.state.rare.parked.first(SLICE, SLICE_BYTES);
        if ids.is_empty() {
            self.complete_after_commit(
                delivery,
                permit,
                Outcome::Done(Bytes::new(), self.dispatcher.handlers.facts.codec),
            );
            return self.admit_overflow();
        }
        let reading = self.read_dead_letters(ids);
        self.hold(ctx, reading, move |this, dead_letters, ctx| match dead_letters {
            Ok(dead_letters) if dead_letters.is_empty() => {
                complete(delivery, permit, Outcome::Unhandled);
                this.admit_overflow();
            }
            Ok(dead_letters) => this.redrive_slice(dead_letters, delivery, permit, ctx),
            Err(error) => {
                complete(delivery, permit, Outcome::Refused(error));
                this.admit_overflow();
            }
        });
    }

    fn redrive_slice(&mut self, dead_letters: Vec<DeadLetter>, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        for dead_letter in dead_letters {
            let envelope = &dead_letter.envelope;
            if !self.state.rare.parked.contains(envelope.id) {
                // A timer that an earlier message has set or cleared.
                continue;
            }
            let (mark, notes) = (self.mark_again(envelope), vec![Note::Resolved { message: envelope.id }]);
            let facts = self.turn_facts(envelope);
            let dispatcher = Rc::clone(&self.dispatcher);
            let action = self.action_again(&dead_letter);
            let turned = self.run_turn(facts, &mark, notes, false, |state, user, effects| {
                // The operator has decided about the dead letter, and not about commands that waited behind it.
                let waited = dead_letter.reason == DeadLetterReason::Behind;
                if waited && dispatcher.reject_expired(&action, envelope, effects.requested()) {
                    return Ok(());
                }
                dispatcher.decide(state, user, &action, envelope, effects, true)
            });
            if let Err(failure) = turned {
                return self.recover(ctx, move |this, _| {
                    complete(delivery, permit, failure.into_outcome());
                    // Those before it have made room.
                    this.admit_overflow();
                });
            }
        }
        self.redrive(delivery, permit, ctx);
    }

    /// Returns the action that a redriven dead letter requires of this key. An event whose key could not be computed,
    /// or was too long, is stored under another key. There it is refused again, unless the program computes this key
    /// now.
    fn action_again(&self, dead_letter: &DeadLetter) -> Action {
        let envelope = &dead_letter.envelope;
        if envelope.kind != Kind::Event {
            return Action::of(envelope);
        }
        match self.dispatcher.key_of(envelope) {
            Ok(Some(key)) if *key == *dead_letter.key => Action::React,
            Ok(Some(key)) => Action::DeadLetter(format!(
                "belongs to the key `{}`, not to this one",
                shortened(key.escape_debug().to_string())
            )),
            Ok(None) => Action::DeadLetter("is not handled by this actor".to_owned()),
            Err(error) => Action::DeadLetter(error),
        }
    }

    /// Discards a dead letter: it is never handled, and the actor that waits for it is notified in the same commit. The
    /// sender of a command gets a rejection, and a saga continues without the reply.
    pub(crate) fn discard(&mut self, message: MessageId, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        if !self.state.rare.parked.contains(message) {
            return complete(delivery, permit, Outcome::Unhandled);
        }
        let reading = self.read_dead_letters(vec![message]);
        self.hold(ctx, reading, move |this, dead_letters, ctx| match dead_letters {
            Ok(dead_letters) => match dead_letters.into_iter().next() {
                Some(dead_letter) => this.discard_dead_letter(&dead_letter.envelope, delivery, permit, ctx),
                None => complete(delivery, permit, Outcome::Unhandled),
            },
            Err(error) => complete(delivery, permit, Outcome::Refused(error)),
        });
    }

    /// Discards a message of the key's backlog. It does not need the key's stream, which may be unreadable.
    ///
    /// The reply to a saga is an exception. The saga awaits the reply to each of its steps, and would wait forever for one that
    /// is not discarded in its own stream. So the key is loaded; if that fails, the reply stays listed.
    pub(super) fn discard_deferred(
        &mut self,
        message: MessageId,
        found: Result<Option<(Action, Envelope)>, StoreError>,
        errand: Delivered,
        ctx: &mut Ctx,
    ) {
        let is_saga = self.dispatcher.handlers.facts.role == Role::Saga;
        let discarded = match found {
            Ok(Some((_, envelope))) if is_saga && envelope.kind == Kind::Reply => {
                if self.load_error.is_some() {
                    return self.handle_after_load(errand, ctx);
                }
                // It is delivered now, because the key can be loaded.
                Some(Err(Outcome::Busy))
            }
            Ok(found) => self
                .backlog()
                .and_then(|backlog| backlog.discard(&self.key, message, found.as_ref().map(|(_, envelope)| envelope))),
            Err(error) => Some(Err(Outcome::Refused(error))),
        };
        let Delivered { delivery, permit } = errand;
        match discarded.unwrap_or(Err(Outcome::Unhandled)) {
            Ok(appended) => self.dispatcher.context.after_commit(&self.shard, appended, move |committed| {
                let done = Outcome::Done(Bytes::new(), Codec::Bincode);
                complete(delivery, permit, committed.map_or_else(Outcome::Unknown, |()| done));
            }),
            Err(outcome) => complete(delivery, permit, outcome),
        }
    }

    fn discard_dead_letter(&mut self, envelope: &Envelope, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        let (mark, notes) = (self.mark_again(envelope), vec![Note::Resolved { message: envelope.id }]);
        let facts = self.turn_facts(envelope);
        let dispatcher = Rc::clone(&self.dispatcher);
        let turned = self.run_turn(facts, &mark, notes, false, |state, _, effects| {
            dispatcher.discard_message(state, envelope, effects.requested())
        });
        match turned {
            Ok(_) => {
                self.complete_after_commit(
                    delivery,
                    permit,
                    Outcome::Done(Bytes::new(), self.dispatcher.handlers.facts.codec),
                );
                self.admit_overflow();
            }
            Err(failure) => self.recover(ctx, move |_, _| complete(delivery, permit, failure.into_outcome())),
        }
    }

    /// Returns the mark of a redriven message. A command of an external caller is marked again, so that a repeated
    /// request gets the reply.
    fn mark_again(&self, envelope: &Envelope) -> DedupMark {
        if envelope.kind == Kind::Command && envelope.origin.is_none() {
            DedupMark::MessageId { digest: self.dispatcher.context.digest(envelope).value() }
        } else {
            DedupMark::None
        }
    }
}

#[cfg(test)]
mod tests;
