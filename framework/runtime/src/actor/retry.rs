//! Failed deliveries: retried after a back-off, counted durably, and finally dead-lettered or answered.
//!
//! Called by the [actor](super::instance) for each new message. A command of an external caller fails for that caller
//! alone. A message whose order matters becomes a [dead letter](super::dead_letters) and parks its key.
//!
//! Why attempts are recorded: a message that crashes the process would be redelivered after every restart. So the
//! attempt is committed before the delivery, but only for messages that [may have
//! begun](super::ThreadContext::may_have_begun) before the restart; all others cost one commit. A recorded message that
//! did not finish is a suspect. Suspects run one at a time on the node: two in flight would both be blamed for one
//! crash.

use std::rc::Rc;

use super::live_actor::{ActorInstance, Ctx, Delivered, Permit, RecordedAttempt};
use super::requested::TurnFacts;
use super::timer_name::timer_in;
use super::turn::DedupMark;
use super::turn_error::TurnError;
use crate::router::{Action, DedupKey, Delivery, Outcome};
use whizbang_core::message::Envelope;
use whizbang_core::store::{Appended, DeadLetterReason, Note, StoreError};
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

impl TurnError {
    /// Returns whether another delivery may succeed.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Panic(_))
    }

    pub(super) fn reason(&self) -> DeadLetterReason {
        match self {
            Self::Panic(_)
            | Self::Effects(_)
            | Self::Store(_)
            | Self::Lost(_)
            | Self::Crashed(_)
            | Self::Refused(_)
            | Self::Busy(_) => DeadLetterReason::Attempts,
            Self::Undecodable(_) => DeadLetterReason::Undecodable,
            Self::Unhandled => DeadLetterReason::Unhandled,
            Self::Compensation(_) => DeadLetterReason::Compensation,
        }
    }

    /// Returns the outcome of a turn that is not tried again.
    pub(super) fn into_outcome(self) -> Outcome {
        match self {
            Self::Store(error) => Outcome::Refused(error),
            Self::Lost(error) => Outcome::Unknown(error),
            Self::Busy(_) => Outcome::Busy,
            failure => Outcome::DeadLetter(failure.text()),
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Panic(text) => format!("the handler panicked: {text}"),
            Self::Undecodable(text) => format!("failed to decode message: {text}"),
            Self::Effects(text) => format!("invalid effects: {text}"),
            Self::Unhandled => "no handler for this message".to_owned(),
            Self::Compensation(text) => text.clone(),
            Self::Refused(rejection) => format!("rejected by a layer: {rejection}"),
            Self::Busy(_) => "refused for now by a layer".to_owned(),
            Self::Crashed(attempts) => format!("the process ended during each of its last {attempts} deliveries"),
            Self::Store(error) | Self::Lost(error) => error_chain(error).to_string(),
        }
    }
}

impl ActorInstance {
    pub(super) fn turn_facts(&self, envelope: &Envelope) -> TurnFacts {
        TurnFacts {
            id: envelope.id,
            correlation: envelope.correlation,
            traceparent: envelope.traceparent.as_deref().map(Box::from),
            headers: envelope.headers.clone(),
            time: self.dispatcher.context.ids.clock().now(),
            key: Rc::clone(&self.key),
        }
    }

    pub(super) fn dedup_mark(&self, delivery: &Delivery) -> DedupMark {
        match &delivery.dedup_key {
            DedupKey::MessageId => {
                DedupMark::MessageId { digest: self.dispatcher.context.digest(&delivery.envelope).value() }
            }
            DedupKey::Sequence { source, sequence, tracker } => {
                DedupMark::Sequence { source: Rc::clone(source), sequence: *sequence, tracker: Rc::clone(tracker) }
            }
            DedupKey::Internal => match delivery.action {
                Action::Timer { .. } => DedupMark::Timer {
                    name: timer_in(self.dispatcher.handlers.facts.domain, &delivery.envelope).into_owned(),
                },
                _ => DedupMark::None,
            },
        }
    }

    /// Runs the turn of a message.
    pub(crate) fn attempt(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        let envelope = &delivery.envelope;
        let _span = tracing::debug_span!(
            target: TARGET, "turn", kind = "actor", message = %envelope.name, id = %envelope.id,
            correlation = %envelope.correlation,
        )
        .entered();
        let facts = self.turn_facts(envelope);
        let dispatcher = Rc::clone(&self.dispatcher);
        let turned = self.run_turn(facts, &self.dedup_mark(&delivery), Vec::new(), true, |state, user, effects| {
            dispatcher.decide(state, user, &delivery.action, &delivery.envelope, effects, false)
        });
        match turned {
            Ok(turned) => {
                let (completion, codec) = (delivery.completion, self.dispatcher.handlers.facts.codec);
                self.dispatcher.context.after_commit(&self.shard, turned.appended, move |committed| {
                    drop(permit);
                    completion(match committed {
                        Ok(()) => Outcome::Done(turned.reply, codec),
                        Err(error) => Outcome::Unknown(error),
                    });
                });
            }
            Err(failure) => self.handle_failure(delivery, permit, failure, ctx),
        }
    }

    /// Runs the turn of a message that may have ended the process before: the attempt is recorded before it begins. A
    /// message without remaining attempts is not delivered again.
    ///
    /// Other messages need no record: their turn is one commit. Only a message that [may have
    /// begun](super::ThreadContext::may_have_begun) before the node's last end costs a second one. If it was recorded
    /// and did not finish, it is delivered while no other suspect is, so that none is blamed for the crash of another.
    pub(crate) fn attempt_recorded(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        let id = delivery.envelope.id;
        let recorded = self.recorded_attempts(&delivery.envelope);
        let is_refused = |attempt: &RecordedAttempt| attempt.id == id && attempt.is_refused;
        let is_recorded = recorded > 0 && self.recorded_attempt.as_ref().is_some_and(is_refused);
        let before = recorded - u32::from(is_recorded);
        if before >= self.dispatcher.context.settings.retry.of(&delivery.envelope).crashes() {
            let failure = TurnError::Crashed(before);
            return self.end_failed(delivery, permit, failure, before, ctx);
        }
        let suspects = std::sync::Arc::clone(&self.dispatcher.context.suspect_permits);
        let alone = async move { if before == 0 { None } else { suspects.acquire_owned().await.ok() } };
        self.hold(ctx, alone, move |this, alone, ctx| {
            if let Some(error) = this.unavailable() {
                return this.handle_store_error(delivery, permit, error, ctx);
            }
            if !is_recorded {
                let note = Note::Attempt { message: id, attempt: before + 1 };
                match this.append_note(&delivery.envelope, DedupMark::None, note) {
                    Ok(_) => {}
                    Err(TurnError::Store(error)) => return this.handle_store_error(delivery, permit, error, ctx),
                    Err(failure) => return complete(delivery, permit, failure.into_outcome()),
                }
            }
            let recorded = this.all_committed();
            this.hold(ctx, recorded, move |this, recorded, ctx| {
                if let Err(error) = recorded {
                    return this.handle_store_error(delivery, permit, error, ctx);
                }
                this.recorded_attempt = Some(RecordedAttempt { id, is_refused: false });
                this.attempt(delivery, permit, ctx);
                // The process has survived it.
                this.recorded_attempt = this.recorded_attempt.take().filter(|attempt| attempt.is_refused);
                drop(alone);
            });
        });
    }

    /// Returns the number of recorded deliveries of a message.
    fn recorded_attempts(&self, envelope: &Envelope) -> u32 {
        let failing = self.state.rare.failed_attempts.filter(|(message, _)| *message == envelope.id);
        failing.map_or(0, |(_, count)| count)
    }

    /// Handles a failed turn: retries the message, or ends it.
    pub(crate) fn handle_failure(&mut self, delivery: Delivery, permit: Permit, failure: TurnError, ctx: &mut Ctx) {
        let outside = matches!(delivery.dedup_key, DedupKey::MessageId);
        let id = delivery.envelope.id;
        let recorded = self.recorded_attempt.as_mut().filter(|attempt| attempt.id == id && !attempt.is_refused);
        let is_recorded = recorded.is_some();
        if let (TurnError::Busy(_), Some(attempt)) = (&failure, recorded) {
            attempt.is_refused = true;
        }
        self.dispatcher.observe_failure(&delivery.action, &delivery.envelope, &self.key, &failure);
        match failure {
            TurnError::Busy(_) if outside => {
                self.dispatcher.context.counts.busy.one();
                self.recover(ctx, move |_, _| complete(delivery, permit, Outcome::Busy));
            }
            // It is not an attempt. The messages of its key that follow wait with it, in order.
            TurnError::Busy(after) => {
                self.dispatcher.context.counts.busy.one();
                self.recover(ctx, move |this, ctx| {
                    this.retry_after(Delivered { delivery, permit }, after, ctx);
                    this.count_layer_refusal();
                });
            }
            // An external caller is waiting for the answer; nothing was done.
            TurnError::Unhandled if outside => {
                self.recover(ctx, move |_, _| complete(delivery, permit, Outcome::Unhandled));
            }
            TurnError::Undecodable(reason) if outside => {
                self.recover(ctx, move |_, _| complete(delivery, permit, Outcome::Undecodable(reason)));
            }
            // A sender that is an actor sends it again to the reopened shard.
            TurnError::Lost(error) => complete(delivery, permit, Outcome::Unknown(error)),
            TurnError::Store(error) if outside || !matches!(error, StoreError::Oversize { .. }) => {
                self.handle_store_error(delivery, permit, error, ctx);
            }
            // A turn that is too large will never be smaller.
            failure => {
                let before = self.recorded_attempts(&delivery.envelope);
                let attempt = if is_recorded { before } else { before + 1 };
                let retry = self.dispatcher.context.settings.retry.of(&delivery.envelope);
                if self.dispatcher.context.settings.failure_log.admits_delivery(outside) {
                    tracing::warn!(
                        target: TARGET, actor = %self.dispatcher.actor, message = %delivery.envelope.name, %id, attempt,
                        error = failure.text(), "delivery failed",
                    );
                }
                if failure.is_transient() && attempt < retry.attempts.max(1) {
                    self.recover(ctx, move |this, ctx| this.schedule_retry(delivery, permit, attempt, ctx));
                } else {
                    self.recover(ctx, move |this, ctx| this.end_failed(delivery, permit, failure, attempt, ctx));
                }
            }
        }
    }

    /// Counts a refusal of the message in back-off by a layer: no attempt ends it, so it must show.
    fn count_layer_refusal(&mut self) {
        let Self { dispatcher, shard, key, back_off, .. } = self;
        let (actor, shard) = (&dispatcher.actor, &shard.id);
        if let Some(waiting) = back_off {
            waiting.refusals.delayed(
                &dispatcher.context,
                || format!("{shard}/{actor}/{key} layer"),
                || format!("a message of key `{}` of `{actor}` in {shard}", key.escape_debug()),
            );
        }
    }

    /// Ends a message after its last delivery. An external caller receives the error, and the key
    /// continues: nothing of the command is stored, and no other message depends on it. Any other message becomes a
    /// dead letter, because later messages must not overtake it.
    fn end_failed(&mut self, delivery: Delivery, permit: Permit, failure: TurnError, attempts: u32, ctx: &mut Ctx) {
        if !matches!(delivery.dedup_key, DedupKey::MessageId) {
            return self.dead_letter(delivery, permit, &failure, attempts, ctx);
        }
        self.dispatcher.context.counts.failed.one();
        if self.dispatcher.context.settings.failure_log.admits_command() {
            tracing::error!(
                target: TARGET, actor = %self.dispatcher.actor, message = %delivery.envelope.name, id = %delivery.envelope.id,
                attempts, error = failure.text(), "command failed after its last attempt; the caller receives the error",
            );
        }
        complete(delivery, permit, Outcome::Failed(failure.text()));
    }

    /// Retries a message whose turn the store rejected. It does not count as an attempt: the store has failed and not
    /// the message.
    pub(super) fn handle_store_error(&mut self, delivery: Delivery, permit: Permit, error: StoreError, ctx: &mut Ctx) {
        if self.is_stopped() {
            let outcome = self.shard.stopped_outcome();
            complete(delivery, permit, outcome);
        } else if matches!(delivery.dedup_key, DedupKey::MessageId) {
            self.recover(ctx, move |_, _| complete(delivery, permit, Outcome::Refused(error)));
        } else {
            // A later message of the same source would make it a duplicate: it is handled before anything else of this
            // key. The mailbox stays open, and the message is settled: the store may refuse this key alone.
            self.recover(ctx, move |this, ctx| {
                let context = &this.dispatcher.context;
                let wait = context.settings.retry.all.wait(3, &context.ids);
                this.retry_after(Delivered { delivery, permit }, wait, ctx);
            });
        }
    }

    /// Rebuilds the state if the failed turn has corrupted it, then calls `then`.
    pub(super) fn recover(&mut self, ctx: &mut Ctx, then: impl FnOnce(&mut Self, &mut Ctx) + 'static) {
        if self.load_error.take().is_some() { self.load(ctx, then) } else { then(self, ctx) }
    }

    /// Records the failed attempt, waits, and tries again. Later messages wait with it, so the order of the key is
    /// kept.
    fn schedule_retry(&mut self, delivery: Delivery, permit: Permit, attempt: u32, ctx: &mut Ctx) {
        let context = Rc::clone(&self.dispatcher.context);
        context.counts.retries.one();
        let note = Note::Attempt { message: delivery.envelope.id, attempt };
        // Recorded before the next try: attempts must run out even if the node restarts in between.
        match self.append_note(&delivery.envelope, DedupMark::None, note) {
            Ok(_) => {}
            Err(TurnError::Store(error)) => return self.handle_store_error(delivery, permit, error, ctx),
            Err(failure) => return complete(delivery, permit, failure.into_outcome()),
        }
        let wait = context.settings.retry.of(&delivery.envelope).wait(attempt, &context.ids);
        self.retry_after(Delivered { delivery, permit }, wait, ctx);
    }

    pub(super) fn append_note(
        &mut self,
        envelope: &Envelope,
        mark: DedupMark,
        note: Note,
    ) -> Result<Appended, TurnError> {
        let facts = self.turn_facts(envelope);
        self.run_turn(facts, &mark, vec![note], false, |_, _, _| Ok(())).map(|turned| turned.appended)
    }
}

pub(super) fn complete(delivery: Delivery, permit: Permit, outcome: Outcome) {
    drop(permit);
    (delivery.completion)(outcome);
}
