//! View actor: owns a view, projects events, saves it and answers queries.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, SpawnHandle, WrapFuture};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::batch::Batch;
use super::context::ViewContext;
use super::requests::{DeliveredEvent, PendingQuery, SaveRequest, SkipRequest};
use super::restore::Restored;
use super::saver::Saver;
use super::skips::SkippedEvent;
use super::source::{ProjectFailure, ViewSource};
use super::subscriber::ViewSubscriber;
use super::{Projection, ProjectionPlan};
use crate::actor::LocalMessage;
use crate::router::Outcome;
use whizbang_core::clock::instant;
use whizbang_core::message::{Name, ShardId};
use whizbang_core::telemetry::TARGET;

/// Number of events projected, and the time spent on them, before other tasks of the thread run.
const BURST: u32 = 64;
const BURST_TIME: Duration = Duration::from_millis(2);
/// Reason of a halt at an event with statements that the derive does not expect.
const NO_RESET: &str = "`statements` returned some, but `#[projection(…)]` has no `reset`";
/// Interval at which a view that is catching up is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The actor that owns a view.
pub(super) struct ViewActor<P: Projection> {
    pub(super) plan: ProjectionPlan<P>,
    pub(super) context: Rc<ViewContext>,
    pub(super) saver: Saver,
    /// `None` while the view is reloaded or encoded.
    pub(super) view: Option<Box<P>>,
    pub(super) sources: Vec<ViewSource>,
    /// Events skipped by an operator.
    pub(super) skips: Vec<SkippedEvent>,
    /// Number of failed attempts, by source and position.
    pub(super) failures: BTreeMap<(usize, u64), u32>,
    /// Another node has taken over the view: no event is projected.
    pub(super) is_taken_over: bool,
    /// Queries that arrived while the view is catching up.
    pub(super) waiting_queries: VecDeque<PendingQuery>,
    pub(super) is_catching_up: bool,
    /// A catch-up check is scheduled.
    pub(super) check_scheduled: bool,
    /// Number of events projected since other tasks ran, and since when.
    pub(super) burst: (u32, Instant),
    /// Number of events projected since the last save.
    pub(super) unsaved: usize,
    /// Statements since the last save. Empty on a node that does not save the view.
    pub(super) batch: Batch,
    /// Encoded size at the last save.
    pub(super) bytes: usize,
    pub(super) saving: bool,
    /// Timer of the next save.
    pub(super) save_timer: Option<SpawnHandle>,
    /// Duration of the last save.
    pub(super) save_duration: Duration,
    /// Notified when everything is saved.
    pub(super) drained: Vec<oneshot::Sender<()>>,
    /// Notified when the tables are written.
    pub(super) flushed: Vec<oneshot::Sender<u64>>,
    /// Number of saves and reloads.
    pub(super) work: u64,
}

impl<P: Projection> ViewActor<P> {
    pub(super) fn new(
        context: ViewContext,
        saver: Saver,
        restored: Restored<P>,
        skips: Vec<SkippedEvent>,
        heads: &BTreeMap<ShardId, u64>,
    ) -> Self {
        let batch = Self::first_batch(saver, restored.rebuilt.is_some());
        let rebuilt: Option<BTreeMap<_, _>> = restored.rebuilt.map(|positions| positions.into_iter().collect());
        let target = |shard: &ShardId| {
            let rebuilt = rebuilt.as_ref()?;
            rebuilt.get(shard).copied().into_iter().chain(heads.get(shard).copied()).max()
        };
        let sources = context.subscriptions.iter().map(|(shard, subscription)| ViewSource {
            dispatched: Rc::clone(&subscription.last),
            waiting: Rc::default(),
            projected: restored.positions.get(shard).copied().unwrap_or(0),
            round: 0,
            halt: None,
            target: target(shard).unwrap_or(0),
            shard: shard.clone(),
        });
        Self {
            plan: ProjectionPlan::of(),
            sources: sources.collect(),
            context: Rc::new(context),
            saver,
            view: Some(restored.view),
            skips,
            failures: BTreeMap::new(),
            is_taken_over: false,
            waiting_queries: VecDeque::new(),
            is_catching_up: false,
            check_scheduled: false,
            burst: (0, instant()),
            unsaved: usize::from(!batch.statements().is_empty()),
            batch,
            bytes: restored.bytes,
            saving: false,
            save_timer: None,
            save_duration: Duration::ZERO,
            drained: Vec::new(),
            flushed: Vec::new(),
            work: 0,
        }
    }

    /// Starts the subscriptions behind the view's positions, once they are filled.
    pub(super) fn begin(&mut self, ctx: &mut Context<Self>) {
        for at in 0..self.sources.len() {
            self.subscribe(at, ctx);
        }
        if self.unsaved > 0 {
            self.save_if_due(ctx);
        }
        self.catch_up(ctx);
    }

    pub(super) fn subscribe(&mut self, at: usize, ctx: &mut Context<Self>) {
        let Some(source) = self.sources.get_mut(at) else { return };
        source.waiting = Rc::default();
        source.round += 1;
        let events = self.plan.card.takes.iter().filter(|card| card.domain.as_str() == &*source.shard.domain);
        let subscriber = ViewSubscriber {
            view: ctx.address(),
            events: events.filter_map(|card| Name::new(&card.name).ok()).collect(),
            source: at,
            round: source.round,
            watermark: source.projected,
            waiting: Rc::clone(&source.waiting),
        };
        if let Some(subscription) = self.context.subscriptions.get(&source.shard) {
            subscription.set_subscribers(vec![Box::new(subscriber)]);
        }
    }

    /// Restarts the subscription of a source behind the view's position. One that is suspended for another reason
    /// than a halt stays suspended.
    pub(super) fn restart_source(&mut self, at: usize, was_halted: bool, ctx: &mut Context<Self>) {
        let subscription =
            self.sources.get(at).and_then(|source| self.context.subscriptions.get(&source.shard)).map(Rc::clone);
        let Some(subscription) = subscription else { return };
        if !was_halted && subscription.is_suspended() {
            return subscription.suspend();
        }
        subscription.close();
        subscription.reopen();
        self.subscribe(at, ctx);
        subscription.start_filling();
    }

    /// Holds queries back, and keeps the node unready, until the view contains everything that it has answered from
    /// before.
    pub(super) fn catch_up(&mut self, ctx: &mut Context<Self>) {
        let what = format!("projection {} catches up", self.context.name);
        if let Some(source) = self.source_behind() {
            let (name, shard, target) = (&self.context.name, &source.shard, source.target);
            let reason =
                format!("projection `{name}` is being rebuilt: {shard} is at {} of {target}", source.position());
            self.context.issues.raise(&what, reason);
            self.is_catching_up = true;
            if !std::mem::replace(&mut self.check_scheduled, true) {
                ctx.run_later(CHECK_INTERVAL, |this, ctx| {
                    this.check_scheduled = false;
                    if this.is_catching_up {
                        this.catch_up(ctx);
                    }
                });
            }
            return;
        }
        self.context.issues.resolve(&what);
        self.is_catching_up = false;
        self.sources.iter_mut().for_each(|source| source.target = 0);
        while let Some(asking) = self.waiting_queries.pop_front() {
            self.answer(asking);
        }
    }

    /// Returns a source whose events are still missing from the view before queries are answered.
    fn source_behind(&self) -> Option<&ViewSource> {
        let is_shut = |source: &ViewSource| {
            self.context.subscriptions.get(&source.shard).is_some_and(|subscription| subscription.is_suspended())
        };
        let mut behind = self.sources.iter().filter(|source| source.position() < source.target);
        behind.find(|source| !self.is_taken_over && (source.halt.is_some() || !is_shut(source)))
    }

    fn project(&mut self, taken: DeliveredEvent, ctx: &mut Context<Self>) {
        let DeliveredEvent { source: at, round, event, done, .. } = taken;
        let Some(position) = event.origin.as_ref().map(|origin| origin.sequence) else { return done() };
        let (Some(source), false) = (self.sources.get_mut(at), self.is_taken_over) else { return done() };
        if round != source.round || position <= source.projected {
            return done();
        }
        if let Some(halt) = source.halt.as_mut().filter(|halt| position >= halt.position) {
            if !halt.is_final {
                halt.dones.push(done);
                return;
            }
            if let Some(subscription) = self.context.subscriptions.get(&source.shard) {
                subscription.suspend();
            }
            return done();
        }
        if self.skips.iter().any(|skip| skip.is_at(&source.shard, position)) {
            source.projected = position;
            return done();
        }
        let Some(view) = &mut self.view else { return done() };
        let _span = tracing::debug_span!(
            target: TARGET, "project", kind = "projection", projection = %self.context.name, message = %event.name,
            id = %event.id, correlation = %event.correlation,
        )
        .entered();
        let Some(project) = self.plan.projects.get(&(&*event.domain, &*event.name)) else { return done() };
        let changes = Cell::new(false);
        let code = &self.context.code;
        let read = || match self.context.shapes.refusal(&event) {
            Some(error) => Err(error),
            None => project(view, &event, &changes),
        };
        let failure = match code.call(code.label(P::NAME, &event.name), read) {
            Ok(Ok(statements)) if P::RESET.is_some() || statements.is_empty() => {
                source.projected = position;
                self.unsaved += 1;
                if P::RESET.is_some() && self.saver.epoch().is_some() {
                    self.batch.add(at, position, &event, statements);
                } else {
                    // No statement of the event can fail here.
                    self.failures.remove(&(at, position));
                }
                self.save_if_due(ctx);
                done();
                if self.is_catching_up && self.source_behind().is_none() {
                    self.catch_up(ctx);
                }
                return self.rest(ctx);
            }
            Ok(Ok(_)) => ProjectFailure { text: NO_RESET.to_owned(), is_transient: false },
            Ok(Err(error)) => ProjectFailure { text: format!("failed to decode event: {error}"), is_transient: false },
            Err(panicked) => ProjectFailure { text: format!("`project` {panicked}"), is_transient: true },
        };
        self.fail(at, position, (&event.name, event.id), failure, done, ctx);
        if changes.get() {
            // The panic may have interrupted a change: the view in memory is no longer used.
            self.reload(ctx);
        }
    }

    /// Yields to other tasks of the thread after a burst of events.
    fn rest(&mut self, ctx: &mut Context<Self>) {
        let (count, begun) = &mut self.burst;
        if *count == 0 {
            *begun = instant();
        }
        *count += 1;
        if *count >= BURST || begun.elapsed() >= BURST_TIME {
            *count = 0;
            ctx.wait(tokio::task::yield_now().into_actor(self));
        }
    }

    fn answer(&self, query: PendingQuery) {
        let PendingQuery { envelope, settle, _permit } = query;
        let _span = tracing::debug_span!(
            target: TARGET, "answer", kind = "projection", projection = %self.context.name, message = %envelope.name,
            id = %envelope.id, correlation = %envelope.correlation,
        )
        .entered();
        let Some(answer) = self.plan.answers.get(&(&*envelope.domain, &*envelope.name)) else {
            return settle(Outcome::Unhandled);
        };
        let Some(view) = &self.view else { return settle(Outcome::Stopped) };
        let code = &self.context.code;
        settle(match code.call(code.label(P::NAME, &envelope.name), || answer(view, &envelope)) {
            Ok(Ok(bytes)) => Outcome::Done(bytes, envelope.codec),
            Ok(Err(unanswered)) => unanswered.outcome(),
            Err(panicked) => Outcome::Unanswered(format!("`answer` {panicked}")),
        });
    }
}

/// Reports a panic of the actor's context: actix drops such an actor silently.
impl<P: Projection> Drop for ViewActor<P> {
    fn drop(&mut self) {
        if whizbang_core::spawn::is_unwinding() {
            let name = &self.context.name;
            self.context.code.failed(&format!("projection {name}"), "its actor panicked");
            let reason = format!("projection `{name}` failed: restart the node");
            self.context.issues.raise(&format!("projection {name} failed"), reason);
        }
    }
}

impl<P: Projection> Actor for ViewActor<P> {
    type Context = Context<Self>;
}

impl<P: Projection> Handler<LocalMessage<DeliveredEvent>> for ViewActor<P> {
    type Result = ();

    fn handle(&mut self, taken: LocalMessage<DeliveredEvent>, ctx: &mut Self::Context) {
        let taken = taken.0.take();
        taken.waiting.set(taken.waiting.get() - 1);
        self.project(taken, ctx);
    }
}

impl<P: Projection> Handler<LocalMessage<PendingQuery>> for ViewActor<P> {
    type Result = ();

    fn handle(&mut self, asking: LocalMessage<PendingQuery>, _ctx: &mut Self::Context) {
        let asking = asking.0.take();
        // The dispatcher bounds the number of waiting queries.
        if self.is_catching_up { self.waiting_queries.push_back(asking) } else { self.answer(asking) }
    }
}

impl<P: Projection> Handler<LocalMessage<SkipRequest>> for ViewActor<P> {
    type Result = ();

    fn handle(&mut self, skip: LocalMessage<SkipRequest>, ctx: &mut Self::Context) {
        self.skip(skip.0.take(), ctx);
    }
}

impl<P: Projection> Handler<LocalMessage<SaveRequest>> for ViewActor<P> {
    type Result = ();

    fn handle(&mut self, save: LocalMessage<SaveRequest>, ctx: &mut Self::Context) {
        self.drained.push(save.0.take().0);
        // A save in progress checks again when it ends.
        self.unsaved = self.unsaved.max(1);
        self.save(ctx);
    }
}
