//! Saving: when and how a view is saved with its checkpoint, and what follows if that fails.

use std::rc::Rc;
use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use bytes::Bytes;
use tokio::time::Instant;

use super::Projection;
use super::context::LARGE_VIEW;
use super::view::ViewActor;
use whizbang_core::clock::instant;
use whizbang_core::message::CodecError;
use whizbang_core::store::{StoreError, View};
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::{error_chain, shortened};
use whizbang_core::user_code::{Panicked, caught, user_code};

/// Average number of bytes written per event: a view of `n` times this size is saved after `n` events.
const BYTES_PER_EVENT: usize = 256;
/// Fewest events between saves, however small the view is.
const MIN_EVENTS: usize = 256;
/// Longest delay of a save after a change, if saving is fast.
const SAVE_AFTER: Duration = Duration::from_secs(3);
/// The same with statements, whose tables are read by others.
const SAVE_STATEMENTS_AFTER: Duration = Duration::from_millis(50);
/// Pause after a save, as a multiple of its duration: saving a large view takes at most a twentieth of the time. With
/// statements it is at most [`SAVE_AFTER`], because the duration contains the wait for locks.
const SAVE_PAUSE: u32 = 20;

impl<P: Projection> ViewActor<P> {
    pub(super) fn save_if_due(&mut self, ctx: &mut Context<Self>) {
        if self.saver.epoch().is_none() {
            return;
        }
        if self.unsaved >= MIN_EVENTS.max(self.bytes / BYTES_PER_EVENT) || self.batch.is_full() {
            self.save(ctx);
        } else if self.save_timer.is_none() {
            let pause = self.save_duration.saturating_mul(SAVE_PAUSE);
            let wait = match P::RESET {
                Some(_) => pause.clamp(SAVE_STATEMENTS_AFTER, SAVE_AFTER),
                None => pause.max(SAVE_AFTER),
            };
            self.save_timer = Some(ctx.run_later(wait, |this, ctx| {
                this.save_timer = None;
                this.save(ctx);
            }));
        }
    }

    /// Saves the view with its checkpoint, one save at a time; later changes wait for the next one.
    ///
    /// A large view is encoded on a separate thread. Its events and queries wait for that; actors do not.
    pub(super) fn save(&mut self, ctx: &mut Context<Self>) {
        if self.saving {
            return;
        }
        if let Some(alarm) = self.save_timer.take() {
            ctx.cancel_future(alarm);
        }
        let saves = self.saver.epoch().is_some() && !self.is_taken_over;
        let Some(view) = self.view.take_if(|_| saves) else { return self.notify_saved() };
        let begun = instant();
        if self.bytes <= LARGE_VIEW || !self.context.has_threads {
            let code = &self.context.code;
            let bytes = code.call(code.label(P::NAME, ""), || view.save());
            self.view = Some(view);
            return self.store_encoded(bytes, begun, ctx);
        }
        self.saving = true;
        let encoding = whizbang_core::spawn::run_on_new_thread("whizbang-view", move || {
            let bytes = user_code(|| view.save());
            (view, bytes)
        });
        ctx.wait(encoding.into_actor(self).map(move |encoded, this, ctx| {
            this.saving = false;
            // `None` only if the thread ended during the encoding: the view is lost with it.
            let Some((view, bytes)) = encoded else { return this.reload(ctx) };
            if bytes.is_err() {
                this.context.code.counts.panics.one();
            }
            this.view = Some(view);
            this.store_encoded(bytes, begun, ctx);
        }));
    }

    fn store_encoded(
        &mut self,
        bytes: Result<Result<Vec<u8>, CodecError>, Panicked>,
        begun: Instant,
        ctx: &mut Context<Self>,
    ) {
        let bytes = match bytes {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return self.report_unsavable(&error.to_string(), ctx),
            Err(panicked) => return self.report_unsavable(&panicked.to_string(), ctx),
        };
        self.context.issues.clear_note(&format!("view {}", self.context.name));
        // Another node may have become the saver during the encoding.
        let Some(epoch) = self.saver.epoch() else { return self.notify_saved() };
        self.unsaved = 0;
        self.bytes = bytes.len();
        let checkpoint = self.sources.iter().map(|source| (source.shard.clone(), source.position())).collect();
        let view = View { schema: P::SCHEMA, checkpoint, bytes: Bytes::from(bytes) };
        let (context, batch) = (Rc::clone(&self.context), std::mem::take(&mut self.batch));
        self.saving = true;
        self.work += 1;
        let saving = async move {
            let save = async { context.store.save_view_with(&context.name, epoch, view, batch.statements()).await };
            let saved = match caught(save).await {
                Ok(saved) => saved,
                Err(panicked) => {
                    let task = format!("save view {}", context.name);
                    context.code.failed(&task, &format!("{}; saving again", panicked.text()));
                    Err(StoreError::io("saving a view", std::io::Error::other(panicked.to_string())))
                }
            };
            (saved, batch)
        };
        let saving = saving.into_actor(self).map(move |(saved, batch), this, ctx| {
            this.saving = false;
            this.save_duration = begun.elapsed();
            let issue = format!("saving view {}", this.context.name);
            match &saved {
                Ok(()) => this.context.code.task_recovered(&format!("save view {}", this.context.name)),
                Err(StoreError::ViewTaken { .. }) => {}
                // Its note says what it waits for, or which event halts it.
                Err(_) if P::RESET.is_some() => {}
                Err(error) => {
                    let why = format!("failed to save view `{}`: {}", this.context.name, error_chain(error));
                    this.context.issues.note(&issue, shortened(why));
                }
            }
            if matches!(saved, Ok(()) | Err(StoreError::ViewTaken { .. })) {
                this.context.issues.clear_note(&issue);
            }
            if let Err(error @ StoreError::ViewTaken { .. }) = saved {
                return match this.context.is_shared {
                    true => this.stop_saving(&error),
                    false => this.end_taken_over(&error),
                };
            }
            if P::RESET.is_some() {
                match &saved {
                    Ok(()) => this.statements_ran(),
                    Err(error) => return this.statements_failed(error, &batch, ctx),
                }
            }
            if let Err(error) = saved {
                tracing::warn!(
                    target: TARGET, projection = %this.context.name, error = %error_chain(&error),
                    "failed to save the view: retrying",
                );
                this.unsaved = this.unsaved.max(1);
                if !this.drained.is_empty() {
                    // The node is shutting down: unsaved events are projected again after the restart.
                    return this.notify_saved();
                }
            }
            if !this.drained.is_empty() && this.unsaved > 0 && !this.is_taken_over {
                // Events were projected during the previous save.
                this.unsaved = 0;
                return this.save(ctx);
            }
            this.notify_saved();
            if this.unsaved > 0 {
                this.save_if_due(ctx);
            }
        });
        if P::RESET.is_some() {
            // The view must not get ahead of what may have to be done again, nor the batch grow.
            ctx.wait(saving);
        } else {
            ctx.spawn(saving);
        }
    }

    /// Stops the projection: another node has taken over the view.
    fn end_taken_over(&mut self, error: &StoreError) {
        let name = &self.context.name;
        tracing::error!(
            target: TARGET, projection = %name, error = %error_chain(&error),
            "view taken over by another node: projection stopped",
        );
        self.context.issues.raise(name, format!("projection `{name}` stopped: {}", error_chain(error)));
        self.is_taken_over = true;
        for subscription in self.context.subscriptions.values() {
            subscription.suspend();
        }
        self.notify_saved();
    }

    /// Reports that the view cannot be encoded. Logged once; a health note stays until the view is saved.
    ///
    /// The projection works, and is rebuilt from the first event at every start. One with statements repeats its last events until
    /// the view can be saved: its statements would gather without a bound.
    fn report_unsavable(&mut self, error: &str, ctx: &mut Context<Self>) {
        let name = &self.context.name;
        let effect = if P::RESET.is_some() { "its tables wait" } else { "each start rebuilds it" };
        let reason = format!("view of projection `{name}` not saved, {effect}: {error}");
        if self.context.issues.note(&format!("view {name}"), reason) {
            tracing::error!(target: TARGET, projection = %name, error, "view not saved: {effect}");
        }
        // Not retried before as many events have arrived as after a save.
        self.unsaved = 0;
        if P::RESET.is_some() && self.drained.is_empty() {
            return self.reload_later(ctx);
        }
        self.notify_saved();
    }

    pub(super) fn notify_saved(&mut self) {
        self.notify_flushed();
        for drained in self.drained.drain(..) {
            let _ = drained.send(());
        }
    }
}
