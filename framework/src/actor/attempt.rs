//! Deliveries that fail: tried again after a while, counted durably, put aside as dead letters, driven again by a person.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;

use super::decide::work_of;
use super::door::Permit;
use super::effects::TurnFacts;
use super::keyed::KeyActor;
use super::mailbox::{Ctx, Delivered};
use super::plan::Stateful;
use super::timer_name::timer_in;
use super::turn::{Failure, Marked};
use crate::message::{Domain, Envelope, Kind, MessageId, digest};
use crate::router::{Arrival, Delivery, Outcome, Work};
use crate::store::{Appended, DeadLetter, DeadLetterReason, Note, StoreError};
use crate::telemetry::TARGET;

impl Failure {
    /// Whether another delivery may end better.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Panic(_))
    }

    fn reason(&self) -> DeadLetterReason {
        match self {
            Self::Panic(_) | Self::Effects(_) | Self::Store(_) => DeadLetterReason::Attempts,
            Self::Undecodable(_) => DeadLetterReason::Undecodable,
            Self::Unhandled => DeadLetterReason::Unhandled,
            Self::Compensation(_) => DeadLetterReason::Compensation,
        }
    }

    /// What a person who asked for the turn is told.
    fn told(self) -> Outcome {
        match self {
            Self::Store(error) => Outcome::Refused(error),
            failure => Outcome::DeadLetter(failure.text()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Panic(text) => format!("the handler panicked: {text}"),
            Self::Undecodable(text) => format!("the message {text}"),
            Self::Effects(text) => format!("what the handler asked for {text}"),
            Self::Unhandled => "nobody here handles such a message".to_owned(),
            Self::Compensation(text) => text.clone(),
            Self::Store(error) => error.to_string(),
        }
    }
}

impl<A: Stateful> KeyActor<A> {
    fn facts(&self, envelope: &Envelope) -> TurnFacts {
        TurnFacts {
            id: envelope.id,
            correlation: envelope.correlation,
            traceparent: envelope.traceparent.as_deref().map(Box::from),
            time: self.door.host.ids.clock().now(),
            key: Rc::clone(&self.key),
        }
    }

    fn marked(delivery: &Delivery) -> Marked {
        match &delivery.arrival {
            Arrival::Outside => Marked::Outside { digest: digest(&delivery.envelope.name, &delivery.envelope.payload) },
            Arrival::From { source, sequence, floor } => {
                Marked::From { source: Rc::clone(source), sequence: *sequence, floor: Rc::clone(floor) }
            }
            Arrival::Inside => match delivery.work {
                Work::Wake { .. } => Marked::Timer { name: timer_in::<A>(&delivery.envelope).into_owned() },
                _ => Marked::None,
            },
        }
    }

    /// Takes the turn of a message.
    pub(crate) fn attempt(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx<A>) {
        let envelope = &delivery.envelope;
        let _span = tracing::debug_span!(
            target: TARGET, "turn", room = "actor", message = %envelope.name, id = %envelope.id,
            correlation = %envelope.correlation,
        )
        .entered();
        let facts = self.facts(envelope);
        let door = Rc::clone(&self.door);
        let turned = self.turn(facts, &Self::marked(&delivery), Vec::new(), true, |state, effects| {
            door.decide(state, &delivery.work, &delivery.envelope, effects, false)
        });
        match turned {
            Ok(turned) => {
                let settle = delivery.settle;
                self.door.host.after(turned.appended, move |committed| {
                    drop(permit);
                    settle(match committed {
                        Ok(()) => Outcome::Done(turned.reply, A::Domain::CODEC),
                        Err(error) => Outcome::Unknown(error),
                    });
                });
            }
            Err(failure) => self.failed(delivery, permit, failure, ctx),
        }
    }

    /// Decides what becomes of a message whose turn has failed.
    pub(crate) fn failed(&mut self, delivery: Delivery, permit: Permit, failure: Failure, ctx: &mut Ctx<A>) {
        let outside = matches!(delivery.arrival, Arrival::Outside);
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
                let before =
                    self.state.rest.failing.filter(|(message, _)| *message == id).map_or(0, |(_, count)| count);
                let attempt = before + 1;
                let retry = self.door.host.settings.retry.of(&delivery.envelope);
                tracing::warn!(
                    target: TARGET, actor = %self.door.actor, message = %delivery.envelope.name, %id, attempt,
                    error = failure.text(), "a delivery failed",
                );
                if failure.is_transient() && attempt < retry.attempts.max(1) {
                    self.mend(ctx, move |this, ctx| this.again(delivery, permit, attempt, ctx));
                } else {
                    self.mend(ctx, move |this, ctx| this.dead_letter(delivery, permit, &failure, attempt, ctx));
                }
            }
        }
    }

    /// Keeps a message that the store would not take. Not counted as an attempt: it is the store that fails, not the message.
    fn refused(&mut self, delivery: Delivery, permit: Permit, error: StoreError, ctx: &mut Ctx<A>) {
        if self.is_stopped() {
            finish(delivery, permit, Outcome::Stopped);
        } else if matches!(delivery.arrival, Arrival::Outside) {
            self.mend(ctx, move |_, _| finish(delivery, permit, Outcome::Refused(error)));
        } else {
            // What comes behind it from the same place would hide it: it is taken before anything else of this key.
            self.mend(ctx, move |this, ctx| this.take_later(Delivered { delivery, permit }, ctx));
        }
    }

    /// Rebuilds the state if the failed turn has spoilt it, then goes on.
    fn mend(&mut self, ctx: &mut Ctx<A>, then: impl FnOnce(&mut Self, &mut Ctx<A>) + 'static) {
        if self.broken.take().is_some() { self.load(ctx, then) } else { then(self, ctx) }
    }

    /// Writes the failed attempt down, waits, and tries again. What comes meanwhile waits with it: the key's order stays.
    fn again(&mut self, delivery: Delivery, permit: Permit, attempt: u32, ctx: &mut Ctx<A>) {
        let host = Rc::clone(&self.door.host);
        host.counts.retries.one();
        let note = Note::Attempt { message: delivery.envelope.id, attempt };
        // Counted in the log before the next try: a crash loop must come to its end, too.
        match self.note_down(&delivery.envelope, Marked::None, note) {
            Ok(_) => {}
            Err(Failure::Store(error)) => return self.refused(delivery, permit, error, ctx),
            Err(failure) => return finish(delivery, permit, Outcome::DeadLetter(failure.text())),
        }
        let wait = host.settings.retry.of(&delivery.envelope).wait(attempt, &host.ids);
        self.wait_out(Delivered { delivery, permit }, wait, ctx);
    }

    fn note_down(&mut self, envelope: &Envelope, marked: Marked, note: Note) -> Result<Appended, Failure> {
        let facts = self.facts(envelope);
        self.turn(facts, &marked, vec![note], false, |_, _| Ok(())).map(|turned| turned.appended)
    }

    fn letter(&self, envelope: Envelope, reason: DeadLetterReason, error: String, attempts: u32) -> Note {
        Note::DeadLetter(Box::new(DeadLetter {
            actor: self.door.actor.clone(),
            key: self.key.to_string(),
            reason,
            error,
            attempts,
            time: self.door.host.ids.clock().now(),
            envelope,
        }))
    }

    /// Puts a message aside after its last delivery; from now on its key is parked.
    fn dead_letter(&mut self, delivery: Delivery, permit: Permit, failure: &Failure, attempts: u32, ctx: &mut Ctx<A>) {
        tracing::error!(
            target: TARGET, actor = %self.door.actor, message = %delivery.envelope.name, id = %delivery.envelope.id,
            attempts, error = failure.text(), "a message is a dead letter now, its key is parked",
        );
        let note = self.letter(delivery.envelope.clone(), failure.reason(), failure.text(), attempts);
        if self.put_aside(delivery, permit, note, failure.text(), ctx) {
            self.door.host.counts.dead_letters.one();
        }
    }

    /// Puts a message behind the dead letter of its key, in order.
    pub(crate) fn park(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx<A>) {
        let error = "its key is parked behind a dead letter".to_owned();
        let note = self.letter(delivery.envelope.clone(), DeadLetterReason::Behind, error.clone(), 0);
        self.put_aside(delivery, permit, note, error, ctx);
    }

    /// Whether it is put aside now; if not, it has been refused or comes again.
    fn put_aside(&mut self, delivery: Delivery, permit: Permit, note: Note, error: String, ctx: &mut Ctx<A>) -> bool {
        let marked = Self::marked(&delivery);
        match self.note_down(&delivery.envelope, marked, note) {
            Ok(appended) => {
                let settle = delivery.settle;
                self.door.host.after(appended, move |committed| {
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

    /// Takes the turns of the parked messages, oldest first, until one fails again.
    pub(crate) fn redrive(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx<A>) {
        let committed = self.committed();
        let reader = self.shard.reader();
        let (actor, key) = (self.door.actor.clone(), Rc::clone(&self.key));
        let reading = async move {
            committed.await?;
            reader.history(&actor, &key).await
        };
        self.hold(ctx, reading, move |this, turns: Result<Vec<_>, StoreError>, ctx| {
            let turns = match turns {
                Ok(turns) => turns,
                Err(error) => return finish(delivery, permit, Outcome::Refused(error)),
            };
            let notes = turns.into_iter().flat_map(|turn| turn.notes);
            let mut letters: Vec<_> = notes
                .filter_map(|note| match note {
                    Note::DeadLetter(letter) if this.state.rest.parked.contains(&letter.envelope.id) => Some(*letter),
                    _ => None,
                })
                .collect();
            // A message that became a dead letter twice stands here twice: the later one tells how it stands.
            letters.sort_by_key(|letter| this.state.rest.parked.iter().position(|id| *id == letter.envelope.id));
            letters.dedup_by_key(|letter| letter.envelope.id);
            this.redrive_next(letters.into(), delivery, permit, ctx);
        });
    }

    fn redrive_next(
        &mut self,
        mut letters: VecDeque<DeadLetter>,
        delivery: Delivery,
        permit: Permit,
        ctx: &mut Ctx<A>,
    ) {
        while let Some(letter) = letters.pop_front() {
            let envelope = &letter.envelope;
            if !self.state.rest.parked.contains(&envelope.id) {
                // A timer that was set or cleared by one before it.
                continue;
            }
            let marked = if envelope.origin.is_none() && work_of(envelope) == Work::Handle {
                // Marked again, so that the sender who asks again gets the reply.
                Marked::Outside { digest: digest(&envelope.name, &envelope.payload) }
            } else {
                Marked::None
            };
            let notes = vec![Note::Resolved { message: envelope.id }];
            let facts = self.facts(envelope);
            let door = Rc::clone(&self.door);
            let timers =
                letters.iter().map(|letter| &letter.envelope).filter(|envelope| envelope.kind == Kind::Document);
            self.parked_timers = timers.map(|timer| (timer.id, timer_in::<A>(timer).into_owned())).collect();
            let turned = self.turn(facts, &marked, notes, false, |state, effects| {
                door.decide(state, &work_of(envelope), envelope, effects, true)
            });
            self.parked_timers.clear();
            if let Err(failure) = turned {
                return self.mend(ctx, move |_, _| finish(delivery, permit, failure.told()));
            }
        }
        let done = Outcome::Done(Bytes::new(), A::Domain::CODEC);
        self.settle_after_commit(delivery, permit, done);
    }

    /// Throws a dead letter away.
    pub(crate) fn discard(&mut self, message: MessageId, delivery: Delivery, permit: Permit) {
        if !self.state.rest.parked.contains(&message) {
            return (delivery.settle)(Outcome::Unhandled);
        }
        match self.note_down(&delivery.envelope, Marked::None, Note::Resolved { message }) {
            Ok(_) => self.settle_after_commit(delivery, permit, Outcome::Done(Bytes::new(), A::Domain::CODEC)),
            Err(failure) => (delivery.settle)(failure.told()),
        }
    }
}

fn finish(delivery: Delivery, permit: Permit, outcome: Outcome) {
    drop(permit);
    (delivery.settle)(outcome);
}
