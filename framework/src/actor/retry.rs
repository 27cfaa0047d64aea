//! Deliveries that fail: tried again after a while, counted durably, and at last put aside or answered.
//!
//! Called by the [actor](super::instance) for each message that is new. A command of a caller from outside fails for that caller
//! alone. A message whose order matters becomes a [dead letter](super::dead_letters) that parks its key.

use std::rc::Rc;

use super::dispatcher::Permit;
use super::instance::ActorInstance;
use super::mailbox::{Ctx, Delivered};
use super::requested::TurnFacts;
use super::timer_name::timer_in;
use super::turn::{Failure, Marked};
use crate::message::Envelope;
use crate::router::{Action, DedupKey, Delivery, Outcome};
use crate::store::{Appended, DeadLetterReason, Note, StoreError};
use crate::telemetry::TARGET;

impl Failure {
    /// Whether another delivery may end better.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Panic(_))
    }

    pub(super) fn reason(&self) -> DeadLetterReason {
        match self {
            Self::Panic(_) | Self::Effects(_) | Self::Store(_) | Self::Ended(_) => DeadLetterReason::Attempts,
            Self::Undecodable(_) => DeadLetterReason::Undecodable,
            Self::Unhandled => DeadLetterReason::Unhandled,
            Self::Compensation(_) => DeadLetterReason::Compensation,
        }
    }

    /// Returns what an operator who asked for the turn is told.
    pub(super) fn told(self) -> Outcome {
        match self {
            Self::Store(error) => Outcome::Refused(error),
            failure => Outcome::DeadLetter(failure.text()),
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Panic(text) => format!("the handler panicked: {text}"),
            Self::Undecodable(text) => format!("the message {text}"),
            Self::Effects(text) => format!("what the handler asked for {text}"),
            Self::Unhandled => "no actor here handles such a message".to_owned(),
            Self::Compensation(text) => text.clone(),
            Self::Ended(attempts) => format!("the process ended during each of its last {attempts} deliveries"),
            Self::Store(error) => error.to_string(),
        }
    }
}

impl ActorInstance {
    pub(super) fn facts(&self, envelope: &Envelope) -> TurnFacts {
        TurnFacts {
            id: envelope.id,
            correlation: envelope.correlation,
            traceparent: envelope.traceparent.as_deref().map(Box::from),
            time: self.dispatcher.context.ids.clock().now(),
            key: Rc::clone(&self.key),
        }
    }

    pub(super) fn marked(&self, delivery: &Delivery) -> Marked {
        match &delivery.dedup_key {
            DedupKey::MessageId => {
                Marked::Outside { digest: self.dispatcher.context.digest(&delivery.envelope).value() }
            }
            DedupKey::Sequence { source, sequence, tracker: floor } => {
                Marked::From { source: Rc::clone(source), sequence: *sequence, floor: Rc::clone(floor) }
            }
            DedupKey::Internal => match delivery.action {
                Action::Timer { .. } => Marked::Timer {
                    name: timer_in(self.dispatcher.handlers.facts.domain, &delivery.envelope).into_owned(),
                },
                _ => Marked::None,
            },
        }
    }

    /// Takes the turn of a message.
    pub(crate) fn attempt(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        let envelope = &delivery.envelope;
        let _span = tracing::debug_span!(
            target: TARGET, "turn", room = "actor", message = %envelope.name, id = %envelope.id,
            correlation = %envelope.correlation,
        )
        .entered();
        let facts = self.facts(envelope);
        let door = Rc::clone(&self.dispatcher);
        let turned = self.turn(facts, &self.marked(&delivery), Vec::new(), true, |state, user, effects| {
            door.decide(state, user, &delivery.action, &delivery.envelope, effects, false)
        });
        match turned {
            Ok(turned) => {
                let (settle, codec) = (delivery.completion, self.dispatcher.handlers.facts.codec);
                self.dispatcher.context.after_commit(turned.appended, move |committed| {
                    drop(permit);
                    settle(match committed {
                        Ok(()) => Outcome::Done(turned.reply, codec),
                        Err(error) => Outcome::Unknown(error),
                    });
                });
            }
            Err(failure) => self.failed(delivery, permit, failure, ctx),
        }
    }

    /// Takes the turn of a message that may have ended the process before: the attempt is recorded before it begins, and a
    /// message that has used up its attempts so is not delivered again.
    ///
    /// A fresh message needs no record: its turn is one commit. Only what the node [may have begun](super::ThreadContext::may_have_begun)
    /// before its last end costs a second one. A message that was recorded and did not finish is a suspect; suspects are delivered
    /// one at a time on the whole node, so that none is blamed for the crash of another.
    pub(crate) fn attempt_again(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        let id = delivery.envelope.id;
        let before = self.attempts_of(&delivery.envelope);
        if before >= self.dispatcher.context.settings.retry.of(&delivery.envelope).crashes() {
            let failure = Failure::Ended(before);
            return self.out_of_attempts(delivery, permit, failure, before, ctx);
        }
        let suspects = std::sync::Arc::clone(&self.dispatcher.context.suspect_permits);
        let alone = async move { if before == 0 { None } else { suspects.acquire_owned().await.ok() } };
        self.hold(ctx, alone, move |this, alone, ctx| {
            if let Some(error) = this.unfit() {
                return this.refused(delivery, permit, error, ctx);
            }
            let note = Note::Attempt { message: id, attempt: before + 1 };
            match this.note_down(&delivery.envelope, Marked::None, note) {
                Ok(_) => {}
                Err(Failure::Store(error)) => return this.refused(delivery, permit, error, ctx),
                Err(failure) => return finish(delivery, permit, Outcome::DeadLetter(failure.text())),
            }
            let recorded = this.committed();
            this.hold(ctx, recorded, move |this, recorded, ctx| {
                if let Err(error) = recorded {
                    return this.refused(delivery, permit, error, ctx);
                }
                this.begun = Some(id);
                this.attempt(delivery, permit, ctx);
                // The process has survived it.
                this.begun = None;
                drop(alone);
            });
        });
    }

    /// How many deliveries of a message are on record.
    fn attempts_of(&self, envelope: &Envelope) -> u32 {
        let failing = self.state.rest.failing.filter(|(message, _)| *message == envelope.id);
        failing.map_or(0, |(_, count)| count)
    }

    /// Decides what becomes of a message whose turn has failed.
    pub(crate) fn failed(&mut self, delivery: Delivery, permit: Permit, failure: Failure, ctx: &mut Ctx) {
        let outside = matches!(delivery.dedup_key, DedupKey::MessageId);
        match failure {
            // A sender from outside is there to be told; nothing was done.
            Failure::Unhandled if outside => {
                self.mend(ctx, move |_, _| finish(delivery, permit, Outcome::Unhandled));
            }
            Failure::Undecodable(reason) if outside => {
                self.mend(ctx, move |_, _| finish(delivery, permit, Outcome::Undecodable(reason)));
            }
            Failure::Store(error) if outside || !matches!(error, StoreError::Oversize { .. }) => {
                self.refused(delivery, permit, error, ctx);
            }
            // A turn that is too large will never be smaller.
            failure => {
                let id = delivery.envelope.id;
                let before = self.attempts_of(&delivery.envelope);
                let attempt = if self.begun == Some(id) { before } else { before + 1 };
                let retry = self.dispatcher.context.settings.retry.of(&delivery.envelope);
                tracing::warn!(
                    target: TARGET, actor = %self.dispatcher.actor, message = %delivery.envelope.name, %id, attempt,
                    error = failure.text(), "a delivery failed",
                );
                if failure.is_transient() && attempt < retry.attempts.max(1) {
                    self.mend(ctx, move |this, ctx| this.again(delivery, permit, attempt, ctx));
                } else {
                    self.mend(ctx, move |this, ctx| this.out_of_attempts(delivery, permit, failure, attempt, ctx));
                }
            }
        }
    }

    /// Ends a message after its last delivery. A caller from outside is told that its command has failed, and the key goes on:
    /// nothing of the command is stored, and no other message depends on it. Everything else is put aside, because what comes
    /// behind it must not overtake it.
    fn out_of_attempts(&mut self, delivery: Delivery, permit: Permit, failure: Failure, attempts: u32, ctx: &mut Ctx) {
        if !matches!(delivery.dedup_key, DedupKey::MessageId) {
            return self.dead_letter(delivery, permit, &failure, attempts, ctx);
        }
        self.dispatcher.context.counts.failed.one();
        tracing::error!(
            target: TARGET, actor = %self.dispatcher.actor, message = %delivery.envelope.name, id = %delivery.envelope.id,
            attempts, error = failure.text(), "a command from outside failed, its caller is told",
        );
        finish(delivery, permit, Outcome::Failed(failure.text()));
    }

    /// Keeps a message that the store would not take. Not counted as an attempt: it is the store that fails, not the message.
    pub(super) fn refused(&mut self, delivery: Delivery, permit: Permit, error: StoreError, ctx: &mut Ctx) {
        if self.is_stopped() {
            finish(delivery, permit, Outcome::Stopped);
        } else if matches!(delivery.dedup_key, DedupKey::MessageId) {
            self.mend(ctx, move |_, _| finish(delivery, permit, Outcome::Refused(error)));
        } else {
            // What comes behind it from the same place would hide it: it is taken before anything else of this key.
            self.mend(ctx, move |this, ctx| this.take_later(Delivered { delivery, permit }, ctx));
        }
    }

    /// Rebuilds the state if the failed turn has spoilt it, then goes on.
    pub(super) fn mend(&mut self, ctx: &mut Ctx, then: impl FnOnce(&mut Self, &mut Ctx) + 'static) {
        if self.broken.take().is_some() { self.load(ctx, then) } else { then(self, ctx) }
    }

    /// Writes the failed attempt down, waits, and tries again. What comes meanwhile waits with it: the key's order stays.
    fn again(&mut self, delivery: Delivery, permit: Permit, attempt: u32, ctx: &mut Ctx) {
        let host = Rc::clone(&self.dispatcher.context);
        host.counts.retries.one();
        let note = Note::Attempt { message: delivery.envelope.id, attempt };
        // Counted in the log before the next try: what fails must come to its end though the node is started again.
        match self.note_down(&delivery.envelope, Marked::None, note) {
            Ok(_) => {}
            Err(Failure::Store(error)) => return self.refused(delivery, permit, error, ctx),
            Err(failure) => return finish(delivery, permit, Outcome::DeadLetter(failure.text())),
        }
        let wait = host.settings.retry.of(&delivery.envelope).wait(attempt, &host.ids);
        self.wait_out(Delivered { delivery, permit }, wait, ctx);
    }

    pub(super) fn note_down(&mut self, envelope: &Envelope, marked: Marked, note: Note) -> Result<Appended, Failure> {
        let facts = self.facts(envelope);
        self.turn(facts, &marked, vec![note], false, |_, _, _| Ok(())).map(|turned| turned.appended)
    }
}

pub(super) fn finish(delivery: Delivery, permit: Permit, outcome: Outcome) {
    drop(permit);
    (delivery.completion)(outcome);
}
