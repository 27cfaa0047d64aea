//! Event subscriptions of one thread: which actor types and views subscribe to which source, and the idle check over
//! them.
//!
//! Called by the thread's runtime, by the bridge handler for live events, and by the threads with new log heads.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::FixedState;
use tokio::sync::oneshot;

use crate::actor::ThreadContext;
use crate::inbox::{ActorSubscriber, ReadEvents, Subscriber, Subscription};
use crate::node::definition::{NodeDefinition, VIEW_THREAD};
use crate::node::thread::{SubscriptionGroup, ThreadRuntime};
use crate::node::transport::log_reader::{check_owner, read_here, request_page};
use crate::projection::{ViewContext, ViewEndpoint};
use crate::router::{LogPage, ReadError};
use whizbang_core::message::{Envelope, Name, ShardId};
use whizbang_core::store::{SourceKind, StoreError, Watermark};
use whizbang_core::telemetry::TARGET;

/// Groups the actor types: aggregates and sagas share subscriptions; a possibly slow type has its own and delays no
/// other.
pub(in crate::node) fn groups(definition: &Arc<NodeDefinition>, context: &ThreadContext) -> Vec<SubscriptionGroup> {
    let takes = |at: &usize| definition.actors.get(*at).is_some_and(|hosted| !hosted.takes.is_empty());
    let is_isolated = |at: &usize| definition.actors.get(*at).is_some_and(|hosted| hosted.is_isolated);
    let (alone, together): (Vec<_>, Vec<_>) = (0..definition.actors.len()).filter(takes).partition(is_isolated);
    let lists = std::iter::once(together).chain(alone.into_iter().map(|at| vec![at]));
    lists
        .filter(|types| !types.is_empty())
        .map(|types| {
            let taken = types.iter().filter_map(|at| definition.actors.get(*at)).flat_map(|hosted| &hosted.takes);
            let subscriptions = subscriptions_of(definition, context, taken);
            SubscriptionGroup { types, subscriptions }
        })
        .collect()
}

/// Creates a subscription for each shard of the subscribed domains.
fn subscriptions_of<'a>(
    definition: &Arc<NodeDefinition>,
    context: &ThreadContext,
    taken: impl Iterator<Item = &'a (Name, Name)>,
) -> BTreeMap<ShardId, Rc<Subscription>> {
    let domains: BTreeSet<_> = taken.map(|(domain, _)| domain).collect();
    let shards = domains.into_iter().flat_map(|domain| {
        let count = definition.sources.get(domain).copied().unwrap_or(0);
        (0..count).map(|shard| ShardId::new(domain.clone(), shard))
    });
    let subscription = |source: ShardId| {
        let subscription = Subscription::new(
            source.clone(),
            event_reader(definition),
            Arc::clone(&context.user_code),
            Rc::clone(&context.idle),
            Arc::clone(&definition.issues),
            Rc::clone(&context.queued),
        );
        (source, subscription)
    };
    shards.map(subscription).collect()
}

/// Starts the projections, if this is their thread.
pub(in crate::node) async fn views(
    definition: &Arc<NodeDefinition>,
    index: usize,
    context: &ThreadContext,
) -> Result<Vec<Rc<dyn ViewEndpoint>>, StoreError> {
    let mut views = Vec::new();
    for viewed in definition.views.iter().filter(|_| index == VIEW_THREAD) {
        let context = ViewContext {
            name: viewed.name.clone(),
            store: Arc::clone(&definition.store),
            subscriptions: subscriptions_of(definition, context, viewed.takes.iter()),
            retry: definition.config.retry,
            ids: context.ids.fork(),
            code: Arc::clone(&context.user_code),
            issues: Arc::clone(&definition.issues),
            shapes: Arc::clone(&definition.shapes),
            has_threads: definition.has_threads,
            queries: definition.config.in_flight,
            is_shared: definition.membership.is_some(),
        };
        views.push(viewed.hosted.open(context).await?);
    }
    Ok(views)
}

impl ThreadRuntime {
    /// Sets the subscribers of each subscription and where they start, from the store's watermarks.
    pub(in crate::node) fn set_takers(&self) {
        let mut known: HashMap<(ShardId, ShardId, Name), u64, FixedState> = HashMap::default();
        for shard in self.shards() {
            for Watermark { source, through } in shard.reader().watermarks() {
                if let SourceKind::Events { subscriber } = source.kind {
                    known.insert((shard.id.clone(), source.shard, subscriber), through);
                }
            }
        }
        for (source, subscription, types) in self.groups.iter().flat_map(SubscriptionGroup::each) {
            let mut subscribers: Vec<Box<dyn Subscriber>> = Vec::new();
            for hosted in types.iter().filter_map(|at| self.definition.actors.get(*at)) {
                let events: Vec<_> = hosted
                    .takes
                    .iter()
                    .filter(|(domain, _)| *domain == source.domain)
                    .map(|(_, name)| name.clone())
                    .collect();
                let endpoint = self.endpoints.get(&(hosted.domain.clone(), hosted.actor.clone()));
                let (Some(endpoint), false) = (endpoint, events.is_empty()) else { continue };
                let count = self.definition.owns(&hosted.domain).unwrap_or(1);
                let watermarks: Vec<_> = (0..count)
                    .map(|shard| {
                        let to = ShardId::new(hosted.domain.clone(), shard);
                        self.shard(&to)
                            .map(|_| known.get(&(to, source.clone(), hosted.actor.clone())).copied().unwrap_or(0))
                    })
                    .collect();
                let whose = (&hosted.domain, &hosted.actor);
                let subscriber =
                    ActorSubscriber::new(whose, Rc::clone(endpoint), events, source, &subscription.last, &watermarks);
                subscribers.push(Box::new(subscriber));
            }
            // A shard may have been lost since the subscribers were dropped, which left it without any.
            subscription.reopen();
            subscription.set_subscribers(subscribers);
        }
    }

    /// Delivers events that arrived over the bridge. `settled` fires once all subscribers on this thread have settled all of
    /// them; it is dropped if one will not be settled.
    pub(in crate::node) fn events(&self, events: Vec<Envelope>, settled: oneshot::Sender<()>) {
        // One more than there are events: nothing fires before the last one is delivered.
        let open = Rc::new((Cell::new(events.len() + 1), Cell::new(Some(settled))));
        let settle = |open: &(Cell<usize>, Cell<Option<oneshot::Sender<()>>>)| {
            open.0.set(open.0.get() - 1);
            if open.0.get() == 0
                && let Some(settled) = open.1.take()
            {
                let _ = settled.send(());
            }
        };
        for event in events {
            let open = Rc::clone(&open);
            self.event(event, Box::new(move || settle(&open)));
        }
        settle(&open);
    }

    /// Delivers one event. `done` is called once all subscribers on this thread have settled it.
    fn event(&self, event: Envelope, done: Box<dyn FnOnce()>) {
        let subscriptions = event.origin.as_ref().and_then(|origin| self.subscriptions.get(&origin.shard));
        let Some([subscription, others @ ..]) = subscriptions.map(Vec::as_slice) else {
            self.report_unknown_shard(&event);
            return done();
        };
        if others.is_empty() {
            return subscription.event(event, done);
        }
        // The callback is shared: the last subscription to settle the event calls it.
        let all = Rc::new(Cell::new(Some(done)));
        let rest = Rc::new(Cell::new(others.len() + 1));
        for subscription in std::iter::once(subscription).chain(others) {
            let (all, rest) = (Rc::clone(&all), Rc::clone(&rest));
            let one = move || {
                rest.set(rest.get() - 1);
                if rest.get() == 0
                    && let Some(done) = all.take()
                {
                    done();
                }
            };
            subscription.event(event.clone(), Box::new(one));
        }
    }

    /// Reports an event of a shard that this program does not know, although it subscribes to others of the domain.
    fn report_unknown_shard(&self, event: &Envelope) {
        let Some(source) = event.origin.as_ref().map(|origin| &origin.shard) else { return };
        let Some(shards) = self.definition.sources.get(&source.domain).filter(|shards| source.shard >= **shards) else {
            return;
        };
        let domain = &source.domain;
        let why = format!(
            "events of shard {} of `{domain}` are not handled: this program knows {shards} shards, the owner has more; deploy the same shard count",
            source.shard,
        );
        if self.definition.issues.raise(&format!("shards of {domain}"), why) {
            tracing::error!(target: TARGET, %source, shards, "event of an unknown shard dropped: it stays in its log");
        }
    }

    /// Starts filling what may be missing; `done` receives, once nothing is in flight, a number that changes with any
    /// work done here.
    pub(in crate::node) fn wait_idle(self: &Rc<Self>, done: oneshot::Sender<u64>) {
        self.catch_up();
        let me = Rc::clone(self);
        whizbang_core::spawn::detached(&self.context.user_code, "wait until idle", async move {
            me.context.idle.wait_until(|| me.is_idle()).await;
            let counts = &me.context.counts;
            // The tables of views are part of an idle node. A save or a reload changes the number, so another reading follows.
            let mut flushed = 0;
            for view in &me.views {
                flushed += view.flush().await;
            }
            let taken: u64 = me.subscriptions.values().flatten().map(|subscription| subscription.last.get()).sum();
            let _ = done.send(counts.turns.get() + counts.sent.get() + taken + flushed);
        });
    }

    fn is_idle(&self) -> bool {
        if self.has_ended.get() || self.context.stopped.get() {
            return true;
        }
        let sent = self.all_windows().iter().all(|(id, windows)| {
            self.shard(id).is_none_or(|shard| {
                let mut heads = shard.reader().outbox_heads();
                // Unreachable destinations are reported in the node's health.
                heads.retain(|(to, ..)| self.is_reachable(to));
                windows.is_idle(&heads)
            })
        });
        let taken = self.subscriptions.values().flatten().all(|subscription| subscription.is_idle());
        let idle = self.context.is_idle() && self.endpoints.values().all(|endpoint| endpoint.is_idle());
        idle && self.is_relayed() && sent && taken && self.confirmations.borrow().is_empty()
    }
}

/// Returns the function that reads events of a source: from this node's own log, or from the owner's over the bridge.
fn event_reader(definition: &Arc<NodeDefinition>) -> ReadEvents {
    let definition = Arc::clone(definition);
    Rc::new(move |source, after, limit| {
        let definition = Arc::clone(&definition);
        Box::pin(async move {
            let read = async {
                if let Some(reader) = definition.reader(&source) {
                    return read_here(&*reader, &source, after, limit, None).await;
                }
                let Some(bridge) = &definition.bridge else {
                    // There is no owner to ask. The manifest shows that the source has no owner here.
                    return Ok(LogPage { events: Vec::new(), last: after, store: None });
                };
                let limit = u32::try_from(limit).unwrap_or(u32::MAX);
                let mut page = request_page(&**bridge, source.clone(), after, limit).await?;
                check_owner(&**bridge, &definition.known_owners, &source, page.store).await?;
                let judged = definition.resolve_shapes(&mut page.envelopes).await;
                judged.map_err(|_| {
                    ReadError::Later("failed to get the shapes of its events from the owner".to_owned())
                })?;
                Ok(LogPage { events: page.envelopes, last: page.last, store: page.store })
            };
            let page = read.await.map_err(|error| error.to_string())?;
            Ok((page.events, page.last))
        })
    })
}
