//! The actor that has a view: projects, saves, answers, and stands still where it cannot go on.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, SpawnHandle, WrapFuture};
use bytes::Bytes;
use tokio::sync::oneshot;

use super::door::{Asking, SaveNow, ViewContext};
use super::plan::Unanswered;
use super::{Projection, ProjectionPlan};
use crate::actor::Here;
use crate::clock::instant;
use crate::inbox::{Done, Taker};
use crate::message::{CodecError, Envelope, Name, ShardId};
use crate::router::Outcome;
use crate::store::{Epoch, StoreError, View};
use crate::telemetry::TARGET;

/// How many bytes are written for each event, on the average: a view of this many times `n` bytes is saved after `n` events.
const BYTES_PER_EVENT: usize = 256;
/// After how many events a view is saved at the earliest, however small it is.
const EVENTS: usize = 256;
/// How long a change waits at most until it is saved, if saving is quick.
const SAVE_AFTER: Duration = Duration::from_secs(3);
/// How many times longer than a save takes the next one waits: saving a large view costs a twentieth of the time at most.
const REST: u32 = 20;

/// How far one source shard has come.
struct Source {
    shard: ShardId,
    /// The last position of its feed that was dispatched, to whomever.
    dispatched: Rc<Cell<u64>>,
    /// How many events wait in the mailbox.
    waiting: Rc<Cell<usize>>,
    /// Up to here everything is in the view.
    projected: u64,
}

impl Source {
    /// Up to here the view contains everything; events that it does not take are nothing to wait for.
    fn position(&self) -> u64 {
        if self.waiting.get() == 0 { self.projected.max(self.dispatched.get()) } else { self.projected }
    }
}

/// A view and how far it has come.
pub(super) struct Restored<P> {
    view: Box<P>,
    positions: BTreeMap<ShardId, u64>,
    bytes: usize,
}

/// The stored view; an empty one if there is none that can be used.
pub(super) async fn restore<P: Projection>(context: &ViewContext) -> Result<Restored<P>, StoreError> {
    let code = &context.code;
    let label = code.label(P::NAME, "");
    let empty = || {
        let initial = code.call(label, || Box::new(P::initial()));
        let view = initial.map_err(|panicked| CodecError::Decode { reason: format!("`Default` {panicked}") })?;
        Ok(Restored { view, positions: BTreeMap::new(), bytes: 0 })
    };
    let Some(stored) = context.store.view(&context.name).await? else { return empty() };
    if stored.schema != P::SCHEMA {
        tracing::info!(
            target: TARGET, projection = %context.name, stored = stored.schema, schema = P::SCHEMA,
            "the view has another schema, it is rebuilt from the first event",
        );
        return empty();
    }
    match code.call(label, || P::restore(&stored.bytes)) {
        Ok(Ok(view)) => {
            if let Some(shard) = newer_than_its_log(context, &stored.checkpoint).await? {
                tracing::warn!(
                    target: TARGET, projection = %context.name, %shard,
                    "the view is newer than the log: is that an older copy? The view is rebuilt from the first event",
                );
                return empty();
            }
            let positions = stored.checkpoint.into_iter().collect();
            Ok(Restored { view: Box::new(view), positions, bytes: stored.bytes.len() })
        }
        Ok(Err(error)) => {
            tracing::warn!(target: TARGET, projection = %context.name, %error, "the stored view cannot be used, it is rebuilt from the first event");
            empty()
        }
        Err(panicked) => {
            let error = panicked.text();
            tracing::warn!(target: TARGET, projection = %context.name, error, "the stored view cannot be used, it is rebuilt from the first event");
            empty()
        }
    }
}

/// A shard of this store whose log does not reach as far as a view does, if there is one.
async fn newer_than_its_log(
    context: &ViewContext,
    checkpoint: &[(ShardId, u64)],
) -> Result<Option<ShardId>, StoreError> {
    for (shard, position) in checkpoint {
        let log = context.store.read(shard).await?;
        if log.is_some_and(|log| log.position() < *position) {
            return Ok(Some(shard.clone()));
        }
    }
    Ok(None)
}

/// The actor that has a view.
pub(super) struct ViewActor<P: Projection> {
    plan: ProjectionPlan<P>,
    context: Rc<ViewContext>,
    /// Under which the view is saved.
    epoch: Epoch,
    /// None while it is read from the store again.
    view: Option<Box<P>>,
    sources: Vec<Source>,
    /// Rises when the view is read from the store again: what was dispatched before comes again and is not meant any more.
    round: u64,
    /// The events at which it has failed, by source and position, and how often.
    failures: BTreeMap<(usize, u64), u32>,
    stands: bool,
    /// How many events have been projected since the last save.
    unsaved: usize,
    /// The size of the view when it was last saved.
    bytes: usize,
    saving: bool,
    /// When the change is saved at the latest.
    alarm: Option<SpawnHandle>,
    /// How long a save has taken.
    cost: Duration,
    /// Whom to tell when all is saved.
    drained: Vec<oneshot::Sender<()>>,
}

impl<P: Projection> ViewActor<P> {
    pub(super) fn new(context: ViewContext, epoch: Epoch, restored: Restored<P>) -> Self {
        let sources = context.feeds.iter().map(|(shard, feed)| Source {
            shard: shard.clone(),
            dispatched: Rc::clone(&feed.last),
            waiting: Rc::default(),
            projected: restored.positions.get(shard).copied().unwrap_or(0),
        });
        Self {
            plan: ProjectionPlan::of(),
            sources: sources.collect(),
            context: Rc::new(context),
            epoch,
            view: Some(restored.view),
            round: 0,
            failures: BTreeMap::new(),
            stands: false,
            unsaved: 0,
            bytes: restored.bytes,
            saving: false,
            alarm: None,
            cost: Duration::ZERO,
            drained: Vec::new(),
        }
    }

    /// Lets the feeds begin behind what the view contains, once they are filled.
    pub(super) fn set_takers(&mut self, addr: &Addr<Self>) {
        for (at, source) in self.sources.iter_mut().enumerate() {
            source.waiting = Rc::default();
            let events = self.plan.card.takes.iter().filter(|card| card.domain.as_str() == &*source.shard.domain);
            let taker = ViewTaker {
                view: addr.clone(),
                events: events.filter_map(|card| Name::new(&card.name).ok()).collect(),
                source: at,
                round: self.round,
                floor: source.projected,
                waiting: Rc::clone(&source.waiting),
            };
            if let Some(feed) = self.context.feeds.get(&source.shard) {
                feed.takers(vec![Box::new(taker)]);
            }
        }
    }

    fn project(&mut self, taken: Taken, ctx: &mut Context<Self>) {
        let Taken { source: at, round, event, done, .. } = taken;
        let Some(position) = event.origin.as_ref().map(|origin| origin.sequence) else { return done() };
        let known = self.sources.get(at).map_or(u64::MAX, |source| source.projected);
        if self.stands || round != self.round || position <= known {
            return done();
        }
        let Some(view) = &mut self.view else { return done() };
        let _span = tracing::debug_span!(
            target: TARGET, "project", room = "projection", projection = %self.context.name, message = %event.name,
            id = %event.id, correlation = %event.correlation,
        )
        .entered();
        let Some(project) = self.plan.projects.get(&(&*event.domain, &*event.name)) else { return done() };
        let code = &self.context.code;
        let failure = match code.call(code.label(P::NAME, &event.name), || project(view, &event)) {
            Ok(Ok(())) => {
                if let Some(source) = self.sources.get_mut(at) {
                    source.projected = position;
                }
                self.failures.remove(&(at, position));
                self.unsaved += 1;
                self.save_if_due(ctx);
                return done();
            }
            Ok(Err(error)) => Failure { text: format!("the event {error}"), may_pass: false },
            Err(panicked) => Failure { text: format!("`project` {panicked}"), may_pass: true },
        };
        // The panic may have come in the midst of a change: what is in memory is not used any more.
        self.view = None;
        self.fail(at, position, &event, failure, done, ctx);
    }

    fn fail(
        &mut self,
        at: usize,
        position: u64,
        event: &Envelope,
        failure: Failure,
        done: Done,
        ctx: &mut Context<Self>,
    ) {
        let count = self.failures.entry((at, position)).or_insert(0);
        *count += 1;
        let (attempt, name, retry) = (*count, &self.context.name, self.context.retry);
        let again = failure.may_pass && attempt < retry.attempts.max(1);
        let error = failure.text;
        if again {
            self.context.code.counts.retries.one();
            tracing::warn!(target: TARGET, projection = %name, message = %event.name, id = %event.id, attempt, error, "an event could not be projected, it is tried again from the last save on");
        } else {
            let shard = event.origin.as_ref().map(|origin| origin.shard.to_string()).unwrap_or_default();
            tracing::error!(target: TARGET, projection = %name, message = %event.name, id = %event.id, shard, position, attempt, error, "an event cannot be projected, the projection stands still before it");
            let reason = format!("projection `{name}` stands still before position {position} of {shard}: {error}");
            self.context.standing.stands(name, reason);
            self.stands = true;
            for feed in self.context.feeds.values() {
                feed.shut();
            }
        }
        self.round += 1;
        let wait = if again { retry.wait(attempt, &self.context.ids) } else { Duration::ZERO };
        self.start_again(wait, done, ctx);
    }

    /// Reads the view from the store again, after `wait`, and lets the feeds begin behind it. The mailbox waits.
    fn start_again(&mut self, wait: Duration, done: Done, ctx: &mut Context<Self>) {
        let context = Rc::clone(&self.context);
        let restoring = async move {
            tokio::time::sleep(wait).await;
            restore::<P>(&context).await
        };
        ctx.wait(restoring.into_actor(self).map(move |restored, this, ctx| match restored {
            Ok(restored) => {
                for source in &mut this.sources {
                    source.projected = restored.positions.get(&source.shard).copied().unwrap_or(0);
                }
                this.view = Some(restored.view);
                this.unsaved = 0;
                if !this.stands {
                    for feed in this.context.feeds.values() {
                        feed.close();
                    }
                    this.set_takers(&ctx.address());
                    for feed in this.context.feeds.values() {
                        feed.fill();
                    }
                }
                done();
            }
            Err(error) => {
                tracing::warn!(target: TARGET, projection = %this.context.name, %error, "the view cannot be read yet");
                let wait = this.context.retry.wait(3, &this.context.ids).max(Duration::from_millis(1));
                this.start_again(wait, done, ctx);
            }
        }));
    }

    fn save_if_due(&mut self, ctx: &mut Context<Self>) {
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

    /// Saves the view with its checkpoint, one save at a time; what comes meanwhile waits for the next one.
    fn save(&mut self, ctx: &mut Context<Self>) {
        if self.saving {
            return;
        }
        if let Some(alarm) = self.alarm.take() {
            ctx.cancel_future(alarm);
        }
        // Standing still, it answers from what is stored, and has nothing to add to it.
        let Some(view) = self.view.as_ref().filter(|_| !self.stands) else { return self.saved() };
        let begun = instant();
        let bytes = match self.context.code.call(self.context.code.label(P::NAME, ""), || view.save()) {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return self.unsavable(error.to_string()),
            Err(panicked) => return self.unsavable(panicked.text().to_owned()),
        };
        self.unsaved = 0;
        self.bytes = bytes.len();
        let checkpoint = self.sources.iter().map(|source| (source.shard.clone(), source.position())).collect();
        let view = View { schema: P::SCHEMA, checkpoint, bytes: Bytes::from(bytes) };
        let (context, epoch) = (Rc::clone(&self.context), self.epoch);
        self.saving = true;
        let saving = async move { context.store.save_view(&context.name, epoch, view).await };
        ctx.spawn(saving.into_actor(self).map(move |saved, this, ctx| {
            this.saving = false;
            this.cost = begun.elapsed();
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
            if !this.drained.is_empty() && this.unsaved > 0 && !this.stands {
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
        self.context.standing.stands(name, format!("projection `{name}` stands still: {error}"));
        self.stands = true;
        for feed in self.context.feeds.values() {
            feed.shut();
        }
        self.saved();
    }

    /// The view has a form that cannot be written: it works, and is rebuilt from the first event at every start.
    fn unsavable(&mut self, error: String) {
        tracing::error!(target: TARGET, projection = %self.context.name, error, "the view cannot be written, so it will be rebuilt at the next start");
        // Not tried again before as many events have come as if it had been saved.
        self.unsaved = 0;
        self.saved();
    }

    fn saved(&mut self) {
        for drained in self.drained.drain(..) {
            let _ = drained.send(());
        }
    }
}

/// Why an event was not projected.
struct Failure {
    text: String,
    /// Whether another try may end better.
    may_pass: bool,
}

impl<P: Projection> Actor for ViewActor<P> {
    type Context = Context<Self>;
}

impl<P: Projection> Handler<Here<Taken>> for ViewActor<P> {
    type Result = ();

    fn handle(&mut self, taken: Here<Taken>, ctx: &mut Self::Context) {
        let taken = taken.0.take();
        taken.waiting.set(taken.waiting.get() - 1);
        self.project(taken, ctx);
    }
}

impl<P: Projection> Handler<Here<Asking>> for ViewActor<P> {
    type Result = ();

    fn handle(&mut self, asking: Here<Asking>, _ctx: &mut Self::Context) {
        let Asking { envelope, settle, _place } = asking.0.take();
        let _span = tracing::debug_span!(
            target: TARGET, "answer", room = "projection", projection = %self.context.name, message = %envelope.name,
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
            Ok(Err(Unanswered::Undecodable(error))) => Outcome::Undecodable(error.to_string()),
            Ok(Err(Unanswered::Unwritable(error))) => Outcome::Unanswered(format!("the answer {error}")),
            Err(panicked) => Outcome::Unanswered(format!("`answer` {panicked}")),
        });
    }
}

impl<P: Projection> Handler<Here<SaveNow>> for ViewActor<P> {
    type Result = ();

    fn handle(&mut self, save: Here<SaveNow>, ctx: &mut Self::Context) {
        self.drained.push(save.0.take().0);
        if self.stands {
            // What is stored is what it stands on.
            return self.saved();
        }
        // A save that is under way looks again when it ends.
        self.unsaved = self.unsaved.max(1);
        self.save(ctx);
    }
}

/// An event on its way to its view.
struct Taken {
    source: usize,
    round: u64,
    event: Envelope,
    done: Done,
    waiting: Rc<Cell<usize>>,
}

/// Gives the events of one source shard to a view.
struct ViewTaker<P: Projection> {
    view: Addr<ViewActor<P>>,
    events: Vec<Name>,
    source: usize,
    round: u64,
    floor: u64,
    waiting: Rc<Cell<usize>>,
}

impl<P: Projection> Taker for ViewTaker<P> {
    fn floor(&self) -> u64 {
        self.floor
    }

    fn takes(&self, event: &Name) -> bool {
        self.events.contains(event)
    }

    fn take(&self, event: &Envelope, done: Done) {
        self.waiting.set(self.waiting.get() + 1);
        let (event, waiting) = (event.clone(), Rc::clone(&self.waiting));
        #[expect(clippy::disallowed_methods, reason = "the feed bounds how many events are not settled")]
        self.view.do_send(Here::new(Taken { source: self.source, round: self.round, event, done, waiting }));
    }
}
