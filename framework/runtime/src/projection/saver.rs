//! The saver of a view: if several nodes share a store, each hosts the projection, and one of them saves its view.
//!
//! Called after each renewal of the node's lease. All nodes compute the saver from the members that they see. If they
//! disagree for a moment, the view's epoch decides: the store rejects a save of an earlier saver, and that node continues
//! without saving. A view is derived from the events, so nothing depends on who saves it or how often it moves;
//! for that reason a saver needs no lease of its own.

use std::rc::Rc;

use actix::{ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};

use super::Projection;
use super::skips::{SkippedEvent, skipped};
use super::view::ViewActor;
use crate::actor::LocalMessage;
use whizbang_core::store::{Epoch, StoreError};
use whizbang_core::telemetry::{TARGET, error_chain};

/// Notifies a view of whether this node saves it.
pub(super) struct SaverNotice(pub(super) bool);

/// The right of this node to save a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saver {
    /// Another node saves the view, or none does yet.
    No,
    /// The node becomes the saver.
    Claiming,
    /// The node saves the view under this epoch.
    Yes(Epoch),
}

impl Saver {
    pub(super) fn epoch(self) -> Option<Epoch> {
        match self {
            Self::Yes(epoch) => Some(epoch),
            Self::No | Self::Claiming => None,
        }
    }
}

impl<P: Projection> ViewActor<P> {
    fn set_saver(&mut self, saves: bool, ctx: &mut Context<Self>) {
        match (saves, self.saver) {
            (false, _) => self.saver = Saver::No,
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
            match claimed {
                Ok(epoch) if this.saver == Saver::Claiming => {
                    tracing::debug!(target: TARGET, projection = %name, epoch, "this node saves the view");
                    this.saver = Saver::Yes(epoch);
                    if this.unsaved > 0 {
                        this.save_if_due(ctx);
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    // The next renewal tries again.
                    tracing::warn!(target: TARGET, projection = %name, error = %error_chain(&error), "failed to claim the view: retrying");
                    this.saver = Saver::No;
                }
            }
        }));
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
