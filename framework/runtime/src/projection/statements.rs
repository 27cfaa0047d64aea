//! Statements of a projection: what follows when a save with statements succeeds or fails.
//!
//! A failed save leaves tables, view and checkpoint as they were. So the view is read again, and its events are projected again
//! with the same statements.

use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use tokio::sync::oneshot;

use super::Projection;
use super::batch::{Batch, BatchedEvent};
use super::requests::FlushRequest;
use super::saver::Saver;
use super::source::ProjectFailure;
use super::view::ViewActor;
use crate::actor::LocalMessage;
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::{TARGET, error_chain};

/// Shortest pause before the view is read again after the database has rejected a save.
pub(super) const MIN_PAUSE: Duration = Duration::from_millis(50);

impl<P: Projection> ViewActor<P> {
    /// Returns the batch of a view that was read from the store: a node that saves a rebuilt view empties its tables first.
    pub(super) fn first_batch(saver: Saver, is_rebuilt: bool) -> Batch {
        match P::RESET.filter(|_| is_rebuilt && saver.epoch().is_some()) {
            Some(reset) => Batch::starting_with(reset),
            None => Batch::default(),
        }
    }

    /// The events up to the positions of the view are in the tables.
    pub(super) fn statements_ran(&mut self) {
        self.context.issues.clear_note(&self.statements_issue());
        let sources = &self.sources;
        self.failures.retain(|(at, position), _| sources.get(*at).is_some_and(|source| *position > source.projected));
    }

    /// Reads the view again after a save that failed. A statement that failed for a reason of its own is the failure of its
    /// event; otherwise the save is tried again until the database accepts it.
    pub(super) fn statements_failed(&mut self, error: &StoreError, batch: &Batch, ctx: &mut Context<Self>) {
        let name = self.context.name.clone();
        if !self.drained.is_empty() {
            // The node is shutting down: unsaved events are projected again after the restart.
            tracing::warn!(
                target: TARGET, projection = %name, error = %error_chain(error),
                "failed to save the view: its last events are projected again after the restart",
            );
            return self.notify_saved();
        }
        let event = match error {
            StoreError::Statement { number, is_transient: false, .. } => batch.event_of(*number),
            _ => None,
        };
        if let Some(event) = event.cloned() {
            return self.event_failed(&event, error, ctx);
        }
        self.context.code.counts.retries.one();
        let reason = format!("projection `{name}` waits for its tables: {}", error_chain(error));
        if self.context.issues.note(&self.statements_issue(), reason) {
            tracing::warn!(
                target: TARGET, projection = %name, error = %error_chain(error),
                "failed to save the view with its statements: retrying",
            );
        }
        self.reload_later(ctx);
    }

    /// Writes what is not in the tables yet, if this node saves the view; waits for that right if it is being claimed.
    fn flush(&mut self, flushed: oneshot::Sender<u64>, ctx: &mut Context<Self>) {
        self.flushed.push(flushed);
        match self.saver {
            Saver::Claiming => {}
            Saver::Yes(_) if self.unsaved > 0 => self.save(ctx),
            Saver::Yes(_) | Saver::No => self.notify_flushed(),
        }
    }

    pub(super) fn notify_flushed(&mut self) {
        for flushed in self.flushed.drain(..) {
            let _ = flushed.send(self.work);
        }
    }

    /// Reads the view again after a pause.
    pub(super) fn reload_later(&mut self, ctx: &mut Context<Self>) {
        let pause = self.context.retry.wait(3, &self.context.ids).max(MIN_PAUSE);
        ctx.wait(tokio::time::sleep(pause).into_actor(self).map(|(), this, ctx| this.reload(ctx)));
    }

    fn event_failed(&mut self, event: &BatchedEvent, error: &StoreError, ctx: &mut Context<Self>) {
        let (at, position) = (event.source, event.position);
        let failure = ProjectFailure { text: error_chain(error).to_string(), is_transient: true };
        self.forget_final_halt(at);
        self.fail(at, position, (&event.name, event.id), failure, Box::new(|| ()), ctx);
        self.reload(ctx);
        // The view in memory had the event, which it cannot contain again.
        if let Some(source) = self.sources.get_mut(at)
            && source.halt.as_ref().is_some_and(|halt| halt.is_final)
        {
            source.target = source.target.min(position.saturating_sub(1));
        }
    }

    fn statements_issue(&self) -> String {
        format!("statements of {}", self.context.name)
    }
}

impl<P: Projection> Handler<LocalMessage<FlushRequest>> for ViewActor<P> {
    type Result = ();

    fn handle(&mut self, flush: LocalMessage<FlushRequest>, ctx: &mut Self::Context) {
        self.flush(flush.0.take().0, ctx);
    }
}
