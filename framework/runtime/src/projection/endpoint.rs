//! Projection endpoint: how the node starts, feeds, queries and stops a projection.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::rc::Rc;

use actix::{Actor, Addr};
use futures_util::future::LocalBoxFuture;
use tokio::sync::oneshot;

use super::context::ViewContext;
use super::requests::{FlushRequest, PendingQuery, QueryPermit, SaveRequest, SaverNotice, SkipRequest};
use super::restore::restore;
use super::saver::Saver;
use super::skips::{SkipError, skipped};
use super::view::ViewActor;
use super::{Projection, ProjectionPlan};
use crate::actor::LocalMessage;
use crate::inbox::Subscription;
use crate::router::{ActorCard, Completion, Outcome};
use whizbang_core::message::{Envelope, Name, ShardId};
use whizbang_core::store::StoreError;

/// A projection type before it is started.
pub(crate) trait ViewType: Send + Sync {
    /// Returns the events and queries of the projection.
    fn card(&self) -> ActorCard;

    /// Loads the stored view and starts the actor on this thread. No event arrives before its subscriptions are filled.
    fn open(&self, context: ViewContext) -> LocalBoxFuture<'static, Result<Rc<dyn ViewEndpoint>, StoreError>>;
}

/// A projection on its thread.
pub(crate) trait ViewEndpoint {
    /// Returns its subscriptions.
    fn subscriptions(&self) -> &BTreeMap<ShardId, Rc<Subscription>>;

    /// Answers a query.
    fn query(&self, envelope: Envelope, settle: Completion);

    /// Skips the event at which the projection is halted.
    fn skip(&self, shard: ShardId, position: u64) -> LocalBoxFuture<'static, Result<(), SkipError>>;

    /// Begins or ends to save the view, on a store that several nodes share.
    fn set_saver(&self, saves: bool);

    /// Writes the tables of the view, if it has some and this node saves it. Returns a number that changes with any work done.
    fn flush(&self) -> LocalBoxFuture<'static, u64>;

    /// Stops accepting events and saves the view.
    fn drain(&self) -> LocalBoxFuture<'static, ()>;

    /// Stops accepting events.
    fn end(&self);
}

/// The [`ViewType`] of `P`.
pub(crate) struct ProjectionType<P>(PhantomData<fn() -> P>);

impl<P> ProjectionType<P> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<P: Projection> ViewType for ProjectionType<P> {
    fn card(&self) -> ActorCard {
        ProjectionPlan::<P>::of().card
    }

    fn open(&self, context: ViewContext) -> LocalBoxFuture<'static, Result<Rc<dyn ViewEndpoint>, StoreError>> {
        Box::pin(async move {
            let saver = match context.is_shared {
                true => Saver::No,
                false => Saver::Yes(context.store.claim_view(&context.name).await?),
            };
            let restored = restore::<P>(&context).await?;
            let skips = skipped(&*context.store, &context.name).await?;
            // End of this store's logs: a rebuilt view answers only once it has come that far.
            let mut heads = BTreeMap::new();
            for shard in context.subscriptions.keys() {
                if let Some(log) = context.store.read(shard).await? {
                    heads.insert(shard.clone(), log.position());
                }
            }
            let (name, subscriptions, limit) = (context.name.clone(), context.subscriptions.clone(), context.queries);
            let view = ViewActor::create(|ctx| {
                let mut actor = ViewActor::new(context, saver, restored, skips, &heads);
                actor.begin(ctx);
                actor
            });
            Ok(Rc::new(ProjectionDispatcher { name, view, subscriptions, limit, waiting: Rc::default() })
                as Rc<dyn ViewEndpoint>)
        })
    }
}

/// The [`ViewEndpoint`] of `P`: sends to the actor that owns the view.
struct ProjectionDispatcher<P: Projection> {
    name: Name,
    view: Addr<ViewActor<P>>,
    subscriptions: BTreeMap<ShardId, Rc<Subscription>>,
    limit: usize,
    waiting: Rc<Cell<usize>>,
}

impl<P: Projection> ViewEndpoint for ProjectionDispatcher<P> {
    fn subscriptions(&self) -> &BTreeMap<ShardId, Rc<Subscription>> {
        &self.subscriptions
    }

    fn query(&self, envelope: Envelope, settle: Completion) {
        if self.waiting.get() >= self.limit {
            return settle(Outcome::Busy);
        }
        self.waiting.set(self.waiting.get() + 1);
        let query = PendingQuery { envelope, settle, _permit: QueryPermit(Rc::clone(&self.waiting)) };
        #[expect(clippy::disallowed_methods, reason = "`limit` bounds how many wait")]
        self.view.do_send(LocalMessage::new(query));
    }

    fn skip(&self, shard: ShardId, position: u64) -> LocalBoxFuture<'static, Result<(), SkipError>> {
        let (reply, wait) = oneshot::channel();
        let stopped = SkipError::NotHalted { projection: self.name.to_string(), shard: shard.to_string(), position };
        #[expect(clippy::disallowed_methods, reason = "sent by an operator, one at a time")]
        self.view.do_send(LocalMessage::new(SkipRequest { shard, position, reply }));
        Box::pin(async move { wait.await.unwrap_or(Err(stopped)) })
    }

    fn set_saver(&self, saves: bool) {
        #[expect(clippy::disallowed_methods, reason = "sent once for each renewal of the lease")]
        self.view.do_send(LocalMessage::new(SaverNotice(saves)));
    }

    fn flush(&self) -> LocalBoxFuture<'static, u64> {
        if P::RESET.is_none() {
            return Box::pin(std::future::ready(0));
        }
        let (flushed, wait) = oneshot::channel();
        #[expect(clippy::disallowed_methods, reason = "sent once for each wait until the node is idle")]
        self.view.do_send(LocalMessage::new(FlushRequest(flushed)));
        Box::pin(async move { wait.await.unwrap_or(0) })
    }

    fn drain(&self) -> LocalBoxFuture<'static, ()> {
        let (saved, wait) = oneshot::channel();
        #[expect(clippy::disallowed_methods, reason = "sent once, when the node stops")]
        self.view.do_send(LocalMessage::new(SaveRequest(saved)));
        Box::pin(async move { drop(wait.await) })
    }

    fn end(&self) {
        for subscription in self.subscriptions.values() {
            subscription.suspend();
        }
    }
}
