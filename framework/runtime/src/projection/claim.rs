//! Becoming the saver of a view, and ceasing to be it.

use std::rc::Rc;

use actix::{ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};

use super::Projection;
use super::requests::SaverNotice;
use super::saver::Saver;
use super::skips::{SkippedEvent, skipped};
use super::statements::MIN_PAUSE;
use super::view::ViewActor;
use crate::actor::LocalMessage;
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::{TARGET, error_chain, shortened};

impl<P: Projection> ViewActor<P> {
    fn set_saver(&mut self, saves: bool, ctx: &mut Context<Self>) {
        match (saves, self.saver) {
            (false, _) => {
                self.saver = Saver::No;
                self.context.issues.clear_note(&self.claim_issue());
            }
            (true, Saver::No) => self.claim(ctx),
            (true, Saver::Claiming | Saver::Yes(_)) => {}
        }
        if self.sources.iter().any(|source| source.halt.as_ref().is_some_and(|halt| halt.is_final)) {
            self.read_skips(ctx);
        }
    }

    fn claim(&mut self, ctx: &mut Context<Self>) {
        self.saver = Saver::Claiming;
        let context = Rc::clone(&self.context);
        let claiming = async move { context.store.claim_view(&context.name).await };
        ctx.spawn(claiming.into_actor(self).map(|claimed, this, ctx| {
            let name = &this.context.name;
            if claimed.is_ok() {
                this.context.issues.clear_note(&this.claim_issue());
            }
            match claimed {
                Ok(epoch) if this.saver == Saver::Claiming => {
                    tracing::debug!(target: TARGET, projection = %name, epoch, "this node saves the view");
                    this.saver = Saver::Yes(epoch);
                    if P::RESET.is_some() {
                        // The view in memory is ahead of the tables, and its statements were not kept.
                        this.reload(ctx);
                    } else if this.unsaved > 0 {
                        this.save_if_due(ctx);
                    }
                }
                Ok(_) => this.notify_flushed(),
                // Another node saves the view now.
                Err(_) if this.saver != Saver::Claiming => this.notify_flushed(),
                Err(error) => {
                    let reason = format!("projection `{name}` waits for its view: failed to claim it: {}", error_chain(&error));
                    if this.context.issues.note(&this.claim_issue(), shortened(reason)) {
                        tracing::warn!(target: TARGET, projection = %name, error = %error_chain(&error), "failed to claim the view: retrying");
                    }
                    // The node is not idle until then: the tables of the view may lack events.
                    let pause = this.context.retry.wait(3, &this.context.ids).max(MIN_PAUSE);
                    ctx.run_later(pause, |this, ctx| match this.saver {
                        Saver::Claiming => this.claim(ctx),
                        Saver::No | Saver::Yes(_) => this.notify_flushed(),
                    });
                }
            }
        }));
    }

    /// Returns the name of the health note about a view that cannot be claimed.
    fn claim_issue(&self) -> String {
        format!("claim of {}", self.context.name)
    }

    /// Stops saving after a rejected save: another node has become the saver, and this one has not seen that yet.
    pub(super) fn stop_saving(&mut self, error: &StoreError) {
        tracing::debug!(
            target: TARGET, projection = %self.context.name, error = %error_chain(error),
            "another node saves the view",
        );
        self.saver = Saver::No;
        self.notify_saved();
    }

    /// Reads the skips that an operator may have requested on another node.
    fn read_skips(&mut self, ctx: &mut Context<Self>) {
        let context = Rc::clone(&self.context);
        let reading = async move { skipped(&*context.store, &context.name).await };
        ctx.spawn(reading.into_actor(self).map(|skips, this, ctx| match skips {
            Ok(skips) => this.apply_skips(skips, ctx),
            Err(error) => {
                let name = &this.context.name;
                tracing::warn!(target: TARGET, projection = %name, error = %error_chain(&error), "failed to read the skipped events: retrying");
            }
        }));
    }

    fn apply_skips(&mut self, skips: Vec<SkippedEvent>, ctx: &mut Context<Self>) {
        self.skips = skips;
        for at in 0..self.sources.len() {
            let Some(source) = self.sources.get(at) else { continue };
            let Some(halt) = source.halt.as_ref().filter(|halt| halt.is_final) else { continue };
            let (shard, position) = (source.shard.clone(), halt.position);
            if self.skips.iter().any(|skip| skip.is_at(&shard, position)) {
                self.skipped(at, &shard, position, ctx);
            }
        }
    }
}

impl<P: Projection> Handler<LocalMessage<SaverNotice>> for ViewActor<P> {
    type Result = ();

    fn handle(&mut self, notice: LocalMessage<SaverNotice>, ctx: &mut Self::Context) {
        let SaverNotice(saves) = notice.0.take();
        self.set_saver(saves, ctx);
    }
}
