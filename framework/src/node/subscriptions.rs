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

use super::background;
use super::definition::{NodeDefinition, VIEWS};
use super::known_owners::KnownOwner;
use super::thread::ThreadRuntime;
use crate::actor::ThreadContext;
use crate::bridge::{Request, Response};
use crate::inbox::{ActorSubscriber, Pages, Subscriber, Subscription};
use crate::message::{Envelope, Name, ShardId};
use crate::projection::{ViewContext, ViewEndpoint};
use crate::relay::{envelope_of, page};
use crate::store::{SourceKind, StoreError, Watermark};
use crate::telemetry::TARGET;

/// Actor types that share their subscriptions.
pub(super) struct Group {
    /// Indexes into the definition's actor types.
    types: Vec<usize>,
    pub(super) feeds: BTreeMap<ShardId, Rc<Subscription>>,
}

impl Group {
    pub(super) fn each(&self) -> impl Iterator<Item = (&ShardId, &Rc<Subscription>, &Vec<usize>)> {
        self.feeds.iter().map(|(source, feed)| (source, feed, &self.types))
    }
}

/// Groups the actor types: aggregates and sagas share subscriptions; a possibly slow type has its own and delays no
/// other.
pub(super) fn groups(spec: &Arc<NodeDefinition>, host: &ThreadContext) -> Vec<Group> {
    let takes = |at: &usize| spec.actors.get(*at).is_some_and(|hosted| !hosted.takes.is_empty());
    let apart = |at: &usize| spec.actors.get(*at).is_some_and(|hosted| hosted.apart);
    let (alone, together): (Vec<_>, Vec<_>) = (0..spec.actors.len()).filter(takes).partition(apart);
    let lists = std::iter::once(together).chain(alone.into_iter().map(|at| vec![at]));
    lists
        .filter(|types| !types.is_empty())
        .map(|types| {
            let taken = types.iter().filter_map(|at| spec.actors.get(*at)).flat_map(|hosted| &hosted.takes);
            let feeds = feeds(spec, host, taken);
            Group { types, feeds }
        })
        .collect()
}

/// Creates a subscription for each shard of the subscribed domains.
fn feeds<'a>(
    spec: &Arc<NodeDefinition>,
    host: &ThreadContext,
    taken: impl Iterator<Item = &'a (Name, Name)>,
) -> BTreeMap<ShardId, Rc<Subscription>> {
    let domains: BTreeSet<_> = taken.map(|(domain, _)| domain).collect();
    let shards = domains.into_iter().flat_map(|domain| {
        let count = spec.sources.get(domain).copied().unwrap_or(0);
        (0..count).map(|shard| ShardId::new(domain.clone(), shard))
    });
    let feed = |source: ShardId| {
        let feed = Subscription::new(
            source.clone(),
            pages(spec),
            Arc::clone(&host.user_code),
            Rc::clone(&host.idle),
            Arc::clone(&spec.issues),
        );
        (source, feed)
    };
    shards.map(feed).collect()
}

/// Starts the projections, if this is their thread.
pub(super) async fn views(
    spec: &Arc<NodeDefinition>,
    index: usize,
    host: &ThreadContext,
) -> Result<Vec<Rc<dyn ViewEndpoint>>, StoreError> {
    let mut views = Vec::new();
    for viewed in spec.views.iter().filter(|_| index == VIEWS) {
        let context = ViewContext {
            name: viewed.name.clone(),
            store: Arc::clone(&spec.store),
            feeds: feeds(spec, host, viewed.takes.iter()),
            retry: spec.config.retry,
            ids: host.ids.fork(),
            code: Arc::clone(&host.user_code),
            standing: Arc::clone(&spec.issues),
            shapes: Arc::clone(&spec.shapes),
            has_threads: spec.has_threads,
            queries: spec.config.in_flight,
        };
        views.push(viewed.hosted.open(context).await?);
    }
    Ok(views)
}

impl ThreadRuntime {
    /// Sets the subscribers of each subscription and where they start, from the store's watermarks.
    pub(super) fn set_takers(&self) {
        let mut known: HashMap<(ShardId, ShardId, Name), u64, FixedState> = HashMap::default();
        for (id, shard) in &self.shards {
            for Watermark { source, through } in shard.reader().watermarks() {
                if let SourceKind::Events { subscriber } = source.kind {
                    known.insert((id.clone(), source.shard, subscriber), through);
                }
            }
        }
        for (source, feed, types) in self.groups.iter().flat_map(Group::each) {
            let mut takers: Vec<Box<dyn Subscriber>> = Vec::new();
            for hosted in types.iter().filter_map(|at| self.definition.actors.get(*at)) {
                let events: Vec<_> = hosted
                    .takes
                    .iter()
                    .filter(|(domain, _)| *domain == source.domain)
                    .map(|(_, name)| name.clone())
                    .collect();
                let door = self.endpoints.get(&(hosted.domain.clone(), hosted.actor.clone()));
                let (Some(door), false) = (door, events.is_empty()) else { continue };
                let count = self.definition.owns(&hosted.domain).unwrap_or(1);
                let floors: Vec<_> = (0..count)
                    .map(|shard| {
                        let to = ShardId::new(hosted.domain.clone(), shard);
                        self.shards
                            .contains_key(&to)
                            .then(|| known.get(&(to, source.clone(), hosted.actor.clone())).copied().unwrap_or(0))
                    })
                    .collect();
                let whose = (&hosted.domain, &hosted.actor);
                let taker = ActorSubscriber::new(whose, Rc::clone(door), events, source, &feed.last, &floors);
                takers.push(Box::new(taker));
            }
            feed.takers(takers);
        }
    }

    /// Delivers an event that arrived over the bridge. `done` is called once all subscribers on this thread have
    /// settled it.
    pub(super) fn event(&self, event: Envelope, done: Box<dyn FnOnce()>) {
        let feeds = event.origin.as_ref().and_then(|origin| self.subscriptions.get(&origin.shard));
        let Some([feed, others @ ..]) = feeds.map(Vec::as_slice) else {
            self.beyond(&event);
            return done();
        };
        if others.is_empty() {
            return feed.event(event, done);
        }
        // The callback is shared: the last subscription to settle the event calls it.
        let all = Rc::new(Cell::new(Some(done)));
        let rest = Rc::new(Cell::new(others.len() + 1));
        for feed in std::iter::once(feed).chain(others) {
            let (all, rest) = (Rc::clone(&all), Rc::clone(&rest));
            let one = move || {
                rest.set(rest.get() - 1);
                if rest.get() == 0
                    && let Some(done) = all.take()
                {
                    done();
                }
            };
            feed.event(event.clone(), Box::new(one));
        }
    }

    /// Reports an event of a shard that this program does not know, although it subscribes to others of the domain.
    fn beyond(&self, event: &Envelope) {
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

    /// Records that the log of a source reaches up to `position`.
    pub(super) fn head(&self, source: &ShardId, position: u64) {
        for feed in self.subscriptions.get(source).into_iter().flatten() {
            feed.head(position);
        }
    }

    /// Starts filling what may be missing; `done` receives, once nothing is in flight, a number that changes with any
    /// work done here.
    pub(super) fn rest(self: &Rc<Self>, done: oneshot::Sender<u64>) {
        self.catch_up();
        let me = Rc::clone(self);
        crate::spawn::detached(&self.context.user_code, "wait until idle", async move {
            me.context.idle.until(|| me.is_at_rest()).await;
            let counts = &me.context.counts;
            let taken: u64 = me.subscriptions.values().flatten().map(|feed| feed.last.get()).sum();
            let _ = done.send(counts.turns.get() + counts.sent.get() + taken);
        });
    }

    fn is_at_rest(&self) -> bool {
        if self.has_ended.get() || self.context.stopped.get() {
            return true;
        }
        let sent = self.send_windows.iter().all(|(id, lanes)| {
            self.shards.get(id).is_none_or(|shard| {
                let mut heads = shard.reader().outbox_heads();
                // Unreachable destinations are reported in the node's health.
                heads.retain(|(to, ..)| self.is_reachable(to));
                lanes.is_at_rest(&heads)
            })
        });
        let taken = self.subscriptions.values().flatten().all(|feed| feed.is_at_rest());
        let idle = self.context.is_idle() && self.endpoints.values().all(|door| door.is_idle());
        idle && self.is_relayed() && sent && taken && self.told.borrow().is_empty()
    }
}

/// Returns the function that reads events of a source: from this node's own log, or from the owner's over the bridge.
fn pages(spec: &Arc<NodeDefinition>) -> Pages {
    let spec = Arc::clone(spec);
    Rc::new(move |source, after, limit| {
        let spec = Arc::clone(&spec);
        Box::pin(async move {
            if let Some(reader) = spec.reader(&source) {
                // Read before the events: an event committed in between may be missing from the page, and is
                // announced again.
                let head = reader.position();
                let events = page::events(&*reader, after, limit).await.map_err(|error| error.to_string())?;
                return Ok((events.into_iter().map(|event| envelope_of(&source, event)).collect(), head));
            }
            let Some(bridge) = &spec.bridge else {
                // There is no owner to ask. The manifest shows that the source has no owner here.
                return Ok((Vec::new(), after));
            };
            let limit = u32::try_from(limit).unwrap_or(u32::MAX);
            let asked = Request::Events { shard: source, after, limit };
            match bridge.request(asked.clone(), background::ASK).await {
                Ok(Response::Envelopes(mut page)) if page.envelopes.iter().all(|event| asked.admits(event)) => {
                    if spec.known_owners.find(&**bridge, asked.domain(), page.store).await != KnownOwner::Owner {
                        return Err("answered by a store that does not own the domain".to_owned());
                    }
                    let judged = spec.judged_all(&mut page.envelopes).await;
                    judged.map_err(|_| "failed to get the shapes of its events from the owner".to_owned())?;
                    Ok((page.envelopes, page.last))
                }
                Ok(Response::Envelopes(..)) => Err("owner returned events of a different shard".to_owned()),
                Ok(other) => Err(format!("{other:?}")),
                Err(error) => Err(error.to_string()),
            }
        })
    })
}
