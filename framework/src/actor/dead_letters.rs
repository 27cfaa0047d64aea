//! The dead letters of one key: put aside, handled again, discarded.
//!
//! Called by the [attempt](super::retry) that was a message's last, and by the [actor](super::instance) for what comes behind a
//! dead letter and for what operators ask. Calls the turn. While letters are left nothing else of the key is handled.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;

use super::dispatcher::Permit;
use super::instance::ActorInstance;
use super::mailbox::{Ctx, Delivered};
use super::retry::finish;
use super::routing::work_of;
use super::turn::{Failure, Marked};
use crate::message::{Envelope, Kind, MessageId};
use crate::router::{Action, ActorEndpoint as _, DedupKey, Delivery, Outcome};
use crate::store::{DeadLetter, DeadLetterReason, Note, StoreError};
use crate::telemetry::{TARGET, shortened};

/// How many parked messages are handled again before other keys of the thread get their turn, at most.
const SLICE: usize = 32;
/// How many payload bytes such a slice holds in memory, unless one message alone is larger.
const SLICE_BYTES: usize = 1024 * 1024;

impl ActorInstance {
    fn letter(&self, envelope: Envelope, reason: DeadLetterReason, error: String, attempts: u32) -> Note {
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

    /// Puts a message aside after its last delivery; from now on its key is parked.
    pub(super) fn dead_letter(
        &mut self,
        delivery: Delivery,
        permit: Permit,
        failure: &Failure,
        attempts: u32,
        ctx: &mut Ctx,
    ) {
        tracing::error!(
            target: TARGET, actor = %self.dispatcher.actor, message = %delivery.envelope.name, id = %delivery.envelope.id,
            attempts, error = failure.text(), "a message is a dead letter now, its key is parked",
        );
        let note = self.letter(delivery.envelope.clone(), failure.reason(), failure.text(), attempts);
        if self.put_aside(delivery, permit, note, failure.text(), ctx) {
            self.dispatcher.context.counts.dead_letters.one();
        }
    }

    /// Puts a message behind the dead letter of its key, in order. Once as many are parked as may be, callers are told `Busy`, and
    /// what actors have sent stays with them: it waits here, unsettled, until letters are handled or discarded.
    pub(crate) fn park(&mut self, delivery: Delivery, mut permit: Permit, ctx: &mut Ctx) {
        // What was deferred stands in this shard's log already, and comes before all that is fresh.
        let is_deferred = matches!(&delivery.dedup_key, DedupKey::Sequence { tracker, .. } if tracker.is_deferred());
        if is_deferred || self.crowd.is_none() && self.state.rest.parked.has_room() {
            let error = "its key is parked behind a dead letter".to_owned();
            let note = self.letter(delivery.envelope.clone(), DeadLetterReason::Behind, error.clone(), 0);
            self.put_aside(delivery, permit, note, error, ctx);
        } else if matches!(delivery.dedup_key, DedupKey::Sequence { .. }) {
            // It takes the place of a turn from nobody while it waits, and a node that stops does not wait for it.
            permit.flight = None;
            self.crowd.get_or_insert_default().push_back(Delivered { delivery, permit });
        } else {
            self.dispatcher.context.counts.busy.one();
            finish(delivery, permit, Outcome::Busy);
        }
    }

    /// Takes what had no room behind the dead letters of the key, as far as there is room now.
    fn admit_crowd(&mut self, ctx: &mut Ctx) {
        if let Some(crowd) = self.crowd.take() {
            self.admit(*crowd, ctx);
        }
    }

    fn admit(&mut self, mut crowd: VecDeque<Delivered>, ctx: &mut Ctx) {
        if let Some(still) = &mut self.crowd {
            // The one before had no room again.
            return still.append(&mut crowd);
        }
        let Some(delivered) = crowd.pop_front() else { return };
        // What is held for last ends first: the rest comes behind all that this message waits for, and before the mailbox.
        self.hold(ctx, std::future::ready(()), move |this, (), ctx| this.admit(crowd, ctx));
        self.take(delivered, ctx);
    }

    /// Returns whether it is put aside now; if not, it has been refused or comes again.
    fn put_aside(&mut self, delivery: Delivery, permit: Permit, note: Note, error: String, ctx: &mut Ctx) -> bool {
        let marked = self.marked(&delivery);
        match self.note_down(&delivery.envelope, marked, note) {
            Ok(appended) => {
                let settle = delivery.completion;
                self.dispatcher.context.after_commit(appended, move |committed| {
                    drop(permit);
                    settle(match committed {
                        Ok(()) => Outcome::DeadLetter(error),
                        Err(error) => Outcome::Unknown(error),
                    });
                });
                return true;
            }
            Err(Failure::Store(error)) => self.refused(delivery, permit, error, ctx),
            Err(failure) => finish(delivery, permit, Outcome::DeadLetter(failure.text())),
        }
        false
    }

    /// Reads dead letters of this key by their ids, after what it has appended is durable. Ends after others of the thread had
    /// their turn.
    fn read_letters(&self, ids: Vec<MessageId>) -> impl Future<Output = Result<Vec<DeadLetter>, StoreError>> + 'static {
        let committed = self.committed();
        let reader = self.shard.reader();
        let (actor, key) = (self.dispatcher.actor.clone(), Rc::clone(&self.key));
        async move {
            committed.await?;
            tokio::task::yield_now().await;
            let mut letters = Vec::with_capacity(ids.len());
            for id in ids {
                let before = id.as_u128().checked_sub(1).map(MessageId::from_u128);
                // All letters of one id come together: several actors may have failed on one event.
                let page = reader.dead_letters(before, 1).await?;
                let own =
                    |letter: &DeadLetter| letter.envelope.id == id && letter.actor == actor && *letter.key == *key;
                letters.extend(page.into_iter().filter(own));
            }
            Ok(letters)
        }
    }

    /// Takes the turns of the parked messages, oldest first, until one fails again. In slices: other keys go on between them.
    pub(crate) fn redrive(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        let ids = self.state.rest.parked.first(SLICE, SLICE_BYTES);
        if ids.is_empty() {
            self.settle_after_commit(
                delivery,
                permit,
                Outcome::Done(Bytes::new(), self.dispatcher.handlers.facts.codec),
            );
            return self.admit_crowd(ctx);
        }
        let reading = self.read_letters(ids);
        self.hold(ctx, reading, move |this, letters, ctx| match letters {
            Ok(letters) if letters.is_empty() => finish(delivery, permit, Outcome::Unhandled),
            Ok(letters) => this.redrive_slice(letters, delivery, permit, ctx),
            Err(error) => finish(delivery, permit, Outcome::Refused(error)),
        });
    }

    fn redrive_slice(&mut self, letters: Vec<DeadLetter>, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        for letter in letters {
            let envelope = &letter.envelope;
            if !self.state.rest.parked.contains(envelope.id) {
                // A timer that was set or cleared by one before it.
                continue;
            }
            let (marked, notes) = (self.marked_again(envelope), vec![Note::Resolved { message: envelope.id }]);
            let facts = self.facts(envelope);
            let door = Rc::clone(&self.dispatcher);
            let work = self.work_again(&letter);
            let turned = self.turn(facts, &marked, notes, false, |state, user, effects| {
                door.decide(state, user, &work, envelope, effects, true)
            });
            if let Err(failure) = turned {
                return self.mend(ctx, move |_, _| finish(delivery, permit, failure.told()));
            }
        }
        self.redrive(delivery, permit, ctx);
    }

    /// The work that a redriven letter asks of this key. An event whose key could not be chosen, or was too long, stands at
    /// another one: there it is refused again, unless the program chooses this key now.
    fn work_again(&self, letter: &DeadLetter) -> Action {
        let envelope = &letter.envelope;
        if envelope.kind != Kind::Event {
            return work_of(envelope);
        }
        match self.dispatcher.key_of(envelope) {
            Ok(Some(key)) if *key == *letter.key => Action::React,
            Ok(Some(key)) => Action::DeadLetter(format!(
                "asks for the key `{}`, not for this one",
                shortened(key.escape_debug().to_string())
            )),
            Ok(None) => Action::DeadLetter("is not taken by this actor".to_owned()),
            Err(error) => Action::DeadLetter(error),
        }
    }

    /// Discards a dead letter: it will never be handled, and whatever waits for it is told so in the same commit. The sender of a
    /// command gets a rejection, and a saga goes on without the reply.
    pub(crate) fn discard(&mut self, message: MessageId, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        if !self.state.rest.parked.contains(message) {
            return finish(delivery, permit, Outcome::Unhandled);
        }
        let reading = self.read_letters(vec![message]);
        self.hold(ctx, reading, move |this, letters, ctx| match letters {
            Ok(letters) => match letters.into_iter().next() {
                Some(letter) => this.discard_letter(&letter.envelope, delivery, permit, ctx),
                None => finish(delivery, permit, Outcome::Unhandled),
            },
            Err(error) => finish(delivery, permit, Outcome::Refused(error)),
        });
    }

    fn discard_letter(&mut self, envelope: &Envelope, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        let (marked, notes) = (self.marked_again(envelope), vec![Note::Resolved { message: envelope.id }]);
        let facts = self.facts(envelope);
        let door = Rc::clone(&self.dispatcher);
        let turned = self
            .turn(facts, &marked, notes, false, |state, _, effects| door.give_up(state, envelope, effects.requested()));
        match turned {
            Ok(_) => {
                self.settle_after_commit(
                    delivery,
                    permit,
                    Outcome::Done(Bytes::new(), self.dispatcher.handlers.facts.codec),
                );
                self.admit_crowd(ctx);
            }
            Err(failure) => self.mend(ctx, move |_, _| finish(delivery, permit, failure.told())),
        }
    }

    /// A command from outside is marked again, so that the sender who asks again gets the reply.
    fn marked_again(&self, envelope: &Envelope) -> Marked {
        if envelope.kind == Kind::Command && envelope.origin.is_none() && work_of(envelope) == Action::Handle {
            Marked::Outside { digest: self.dispatcher.context.digest(envelope).value() }
        } else {
            Marked::None
        }
    }
}
