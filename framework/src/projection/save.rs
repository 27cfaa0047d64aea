//! Saves a view with its checkpoint: when, how, and what follows if it fails.

use std::rc::Rc;
use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use bytes::Bytes;
use tokio::time::Instant;

use super::Projection;
use super::restore::LARGE;
use super::view::ViewActor;
use crate::clock::instant;
use crate::message::CodecError;
use crate::store::{StoreError, View};
use crate::telemetry::TARGET;
use crate::user_code::{Panicked, caught, user_code};

/// How many bytes are written for each event, on the average: a view of this many times `n` bytes is saved after `n` events.
const BYTES_PER_EVENT: usize = 256;
/// After how many events a view is saved at the earliest, however small it is.
const EVENTS: usize = 256;
/// How long a change waits at most until it is saved, if saving is quick.
const SAVE_AFTER: Duration = Duration::from_secs(3);
/// How many times longer than a save takes the next one waits: saving a large view costs a twentieth of the time at most.
const REST: u32 = 20;

impl<P: Projection> ViewActor<P> {
    pub(super) fn save_if_due(&mut self, ctx: &mut Context<Self>) {
        if self.unsaved >= EVENTS.max(self.bytes / BYTES_PER_EVENT) {
            self.save(ctx);
        } else if self.alarm.is_none() {
            let wait = SAVE_AFTER.max(self.cost * REST);
            self.alarm = Some(ctx.run_later(wait, |this, ctx| {
                this.alarm = None;
                this.save(ctx);
            }));
        }
    }

    /// Saves the view with its checkpoint, one save at a time; what comes in between waits for the next one.
    ///
    /// A large view is encoded on a thread of its own, and its events and queries wait for that; actors do not.
    pub(super) fn save(&mut self, ctx: &mut Context<Self>) {
        if self.saving {
            return;
        }
        if let Some(alarm) = self.alarm.take() {
            ctx.cancel_future(alarm);
        }
        let Some(view) = self.view.take_if(|_| !self.is_taken_over) else { return self.saved() };
        let begun = instant();
        if self.bytes <= LARGE || !self.context.has_threads {
            let code = &self.context.code;
            let bytes = code.call(code.label(P::NAME, ""), || view.save());
            self.view = Some(view);
            return self.encoded(bytes, begun, ctx);
        }
        self.saving = true;
        let encoding = crate::spawn::apart("whizbang-view", move || {
            let bytes = user_code(|| view.save());
            (view, bytes)
        });
        ctx.wait(encoding.into_actor(self).map(move |encoded, this, ctx| {
            this.saving = false;
            // Only if the thread ended in the midst of it: the view went with it.
            let Some((view, bytes)) = encoded else { return this.start_again(ctx) };
            if bytes.is_err() {
                this.context.code.counts.panics.one();
            }
            this.view = Some(view);
            this.encoded(bytes, begun, ctx);
        }));
    }

    fn encoded(
        &mut self,
        bytes: Result<Result<Vec<u8>, CodecError>, Panicked>,
        begun: Instant,
        ctx: &mut Context<Self>,
    ) {
        let bytes = match bytes {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return self.unsavable(&error.to_string()),
            Err(panicked) => return self.unsavable(&panicked.to_string()),
        };
        self.context.standing.no_note(&format!("view {}", self.context.name));
        self.unsaved = 0;
        self.bytes = bytes.len();
        let checkpoint = self.sources.iter().map(|source| (source.shard.clone(), source.position())).collect();
        let view = View { schema: P::SCHEMA, checkpoint, bytes: Bytes::from(bytes) };
        let (context, epoch) = (Rc::clone(&self.context), self.epoch);
        self.saving = true;
        let saving = async move {
            match caught(async { context.store.save_view(&context.name, epoch, view).await }).await {
                Ok(saved) => saved,
                Err(panicked) => {
                    let task = format!("save view {}", context.name);
                    context.code.failed(&task, &format!("{}; it is saved again", panicked.text()));
                    Err(StoreError::io("saving a view", std::io::Error::other(panicked.to_string())))
                }
            }
        };
        ctx.spawn(saving.into_actor(self).map(move |saved, this, ctx| {
            this.saving = false;
            this.cost = begun.elapsed();
            if saved.is_ok() {
                this.context.code.goes_on(&format!("save view {}", this.context.name));
            }
            if let Err(error @ StoreError::ViewTaken { .. }) = saved {
                return this.taken_over(&error);
            }
            if let Err(error) = saved {
                tracing::warn!(target: TARGET, projection = %this.context.name, %error, "the view could not be saved, it will be tried again");
                this.unsaved = this.unsaved.max(1);
                if !this.drained.is_empty() {
                    // The node stops and waits: what is not saved is projected again when it has started again.
                    return this.saved();
                }
            }
            if !this.drained.is_empty() && this.unsaved > 0 && !this.is_taken_over {
                // Something was projected while the save before was under way.
                this.unsaved = 0;
                return this.save(ctx);
            }
            this.saved();
            if this.unsaved > 0 {
                this.save_if_due(ctx);
            }
        }));
    }

    /// Another node has the view now. What is followed here is of no use to anybody any more.
    fn taken_over(&mut self, error: &StoreError) {
        let name = &self.context.name;
        tracing::error!(target: TARGET, projection = %name, %error, "another node has taken over the view");
        self.context.standing.raise(name, format!("projection `{name}` stands still: {error}"));
        self.is_taken_over = true;
        for feed in self.context.feeds.values() {
            feed.shut();
        }
        self.saved();
    }

    /// The view cannot be saved, or not restored from what would be saved: it works, and is rebuilt from the first event at every
    /// start. The first time it is logged, and a note in the health says it until the view is saved.
    fn unsavable(&mut self, error: &str) {
        let name = &self.context.name;
        let reason = format!("the view of projection `{name}` is not saved, each start rebuilds it: it {error}");
        if self.context.standing.note(&format!("view {name}"), reason) {
            tracing::error!(target: TARGET, projection = %name, error, "view not saved: each start rebuilds it");
        }
        // Not tried again before as many events have come as if it had been saved.
        self.unsaved = 0;
        self.saved();
    }

    pub(super) fn saved(&mut self) {
        for drained in self.drained.drain(..) {
            let _ = drained.send(());
        }
    }
}
