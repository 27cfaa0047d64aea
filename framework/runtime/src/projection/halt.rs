//! Halting: stops a source shard of a projection at an event that cannot be projected, retries the event, or skips it.

use std::rc::Rc;
use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};

use super::Projection;
use super::requests::SkipRequest;
use super::restore::restore;
use super::saver::Saver;
use super::skips::{self, SkipError, SkippedEvent};
use super::source::{Halt, ProjectFailure, ViewSource};
use super::view::ViewActor;
use crate::inbox::Done;
use whizbang_core::message::{MessageId, Name, ShardId};
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::{TARGET, error_chain, shortened};

impl<P: Projection> ViewActor<P> {
    /// Halts a source at an event that could not be projected, until the next attempt or finally. Other sources
    /// continue.
    pub(super) fn fail(
        &mut self,
        at: usize,
        position: u64,
        (event, id): (&Name, MessageId),
        failure: ProjectFailure,
        done: Done,
        ctx: &mut Context<Self>,
    ) {
        let Some(source) = self.sources.get_mut(at) else { return done() };
        let count = self.failures.entry((at, position)).or_insert(0);
        *count += 1;
        let (attempt, name, retry) = (*count, &self.context.name, self.context.retry);
        let is_final = !failure.is_transient || attempt >= retry.attempts.max(1);
        let error = failure.text;
        let shard = &source.shard;
        if is_final {
            tracing::error!(target: TARGET, projection = %name, message = %event, %id, %shard, position, attempt, error, "projection halted: event failed after the last attempt; skip it or deploy a version that projects it");
            let reason =
                format!("projection `{name}` halted at position {position} of {shard}, other shards continue: {error}");
            self.context.issues.note(&issue(name, shard), reason);
            if let Some(subscription) = self.context.subscriptions.get(shard) {
                subscription.suspend();
            }
            done();
            source.halt = Some(Halt { position, is_final, id, reason: error, dones: Vec::new() });
        } else {
            self.context.code.counts.retries.one();
            tracing::warn!(target: TARGET, projection = %name, message = %event, %id, attempt, error, "failed to project event: retrying");
            source.halt = Some(Halt { position, is_final, id, reason: error, dones: vec![done] });
            let wait = retry.wait(attempt, &self.context.ids);
            ctx.run_later(wait, move |this, ctx| this.resume(at, position, ctx));
        }
    }

    /// Ends the final halt of a source whose events before the halt are projected again. The event at which it was halted
    /// follows them and fails again.
    pub(super) fn forget_final_halt(&mut self, at: usize) {
        let Some(source) = self.sources.get_mut(at) else { return };
        if source.halt.take_if(|halt| halt.is_final).is_none() {
            return;
        }
        self.context.issues.clear_note(&issue(&self.context.name, &source.shard));
        if let Some(subscription) = self.context.subscriptions.get(&source.shard) {
            subscription.reopen();
        }
    }

    /// Resumes a halted source, with the event at which it is halted unless that is skipped.
    fn resume(&mut self, at: usize, position: u64, ctx: &mut Context<Self>) {
        if P::RESET.is_none() || self.unsaved == 0 {
            return self.resume_source(at, position, ctx);
        }
        // Events before this one, and those of other shards, do not fail with it again. The source stays halted during the
        // save, so that the checkpoint ends before the event.
        self.save(ctx);
        ctx.run_later(Duration::ZERO, move |this, ctx| this.resume_source(at, position, ctx));
    }

    fn resume_source(&mut self, at: usize, position: u64, ctx: &mut Context<Self>) {
        let Some(source) = self.sources.get_mut(at).filter(|source| source.holds(position)) else { return };
        let Some(halt) = source.halt.take() else { return };
        self.restart_source(at, halt.is_final, ctx);
        halt.dones.into_iter().for_each(|done| done());
    }

    /// Skips the event at which a source is finally halted.
    pub(super) fn skip(&mut self, skip: SkipRequest, ctx: &mut Context<Self>) {
        let SkipRequest { shard, position, reply } = skip;
        let is_halted_here = |source: &ViewSource| source.shard == shard && source.holds(position);
        let found = self
            .sources
            .iter()
            .position(is_halted_here)
            .and_then(|at| Some((at, self.sources.get(at)?.halt.as_ref()?)));
        let Some((at, halt)) = found.filter(|(_, halt)| halt.is_final) else {
            let (projection, shard) = (self.context.name.to_string(), shard.to_string());
            let _ = reply.send(Err(SkipError::NotHalted { projection, shard, position }));
            return;
        };
        let skip = SkippedEvent {
            domain: shard.domain.to_string(),
            shard: shard.shard,
            position,
            id: halt.id,
            reason: halt.reason.clone(),
            time: self.context.ids.clock().now(),
        };
        let context = Rc::clone(&self.context);
        let saving = async move {
            // Read again: another node of the service may have skipped an event.
            let mut skips = skips::skipped(&*context.store, &context.name).await?;
            skips.push(skip);
            let saved = skips::save(&*context.store, &context.name, &skips).await;
            saved.map(|()| skips)
        };
        ctx.wait(saving.into_actor(self).map(move |saved, this, ctx| {
            let _ = reply.send(match saved {
                Ok(skips) => {
                    this.skips = skips;
                    this.skipped(at, &shard, position, ctx);
                    Ok(())
                }
                Err(error) => Err(error.into()),
            });
        }));
    }

    /// Continues behind an event that an operator has skipped.
    pub(super) fn skipped(&mut self, at: usize, shard: &ShardId, position: u64, ctx: &mut Context<Self>) {
        let name = &self.context.name;
        tracing::warn!(target: TARGET, projection = %name, %shard, position, "event skipped by an operator");
        self.context.issues.clear_note(&issue(name, shard));
        self.failures.remove(&(at, position));
        self.resume(at, position, ctx);
    }

    /// Loads the view from the store again and restarts all subscriptions behind it. Queries wait until it contains
    /// what it did.
    pub(super) fn reload(&mut self, ctx: &mut Context<Self>) {
        self.view = None;
        self.work += 1;
        self.notify_flushed();
        for source in &mut self.sources {
            source.target = source.target.max(source.position());
        }
        self.is_catching_up = true;
        let context = Rc::clone(&self.context);
        // A save whose outcome is unknown may still be under way: after the claim it is committed or never will be.
        let claims = P::RESET.is_some() && self.saver.epoch().is_some();
        let restoring = async move {
            let saver = match claims {
                true => Some(Saver::Yes(context.store.claim_view(&context.name).await?)),
                false => None,
            };
            Ok::<_, StoreError>((saver, restore::<P>(&context).await?))
        };
        ctx.wait(restoring.into_actor(self).map(move |restored, this, ctx| match restored {
            Ok((saver, restored)) => {
                this.context.issues.clear_note(&this.read_issue());
                this.saver = saver.unwrap_or(this.saver);
                this.view = Some(restored.view);
                this.batch = Self::first_batch(this.saver, restored.rebuilt.is_some());
                this.unsaved = usize::from(!this.batch.statements().is_empty());
                for at in 0..this.sources.len() {
                    let Some(source) = this.sources.get_mut(at) else { continue };
                    source.projected = restored.positions.get(&source.shard).copied().unwrap_or(0);
                    let was_halted = source.halt.as_ref().is_some_and(|halt| halt.is_final);
                    this.restart_source(at, was_halted, ctx);
                }
                this.catch_up(ctx);
            }
            Err(error) => {
                tracing::warn!(
                    target: TARGET, projection = %this.context.name, error = %error_chain(&error),
                    "failed to read the view: retrying",
                );
                let (name, error) = (&this.context.name, error_chain(&error));
                let reason =
                    format!("projection `{name}` waits for its view, and its queries wait: failed to read it: {error}");
                this.context.issues.note(&this.read_issue(), shortened(reason));
                let wait = this.context.retry.wait(3, &this.context.ids).max(Duration::from_millis(1));
                ctx.wait(tokio::time::sleep(wait).into_actor(this).map(|(), this, ctx| this.reload(ctx)));
            }
        }));
    }

    /// Returns the name of the health note about a view that cannot be read.
    fn read_issue(&self) -> String {
        format!("reading view {}", self.context.name)
    }
}

/// Returns the name of the health note about a halted shard.
fn issue(projection: &Name, shard: &ShardId) -> String {
    format!("projection {projection} at {shard}")
}
