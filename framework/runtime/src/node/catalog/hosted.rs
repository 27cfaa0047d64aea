//! Hosted actor types, before their threads exist.
//!
//! Called by the builder, which checks them, and by each thread, which installs them.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use crate::actor::{ActorType, Dispatcher, HandlerTable, Plan, Stateful, ThreadContext};
use crate::aggregate::{Publisher, publish};
use crate::router::{ActorCard, ActorEndpoint, LocalRoutes};
use crate::worker::{Worker, WorkerDispatcher, WorkerLimits, WorkerOptions, WorkerPlan};
use whizbang_core::message::{Codec, Domain, Envelope, Event, Name, Shard};
use whizbang_core::user_code::user_code;

/// One hosted actor type, before its threads exist.
pub(in crate::node) trait HostedType: Send + Sync {
    fn domain(&self) -> (&'static str, u16);
    /// The codec of the domain's messages.
    fn codec(&self) -> Codec;
    /// The names that the domain has retired.
    fn retired(&self) -> &'static [&'static str];
    fn card(&self) -> ActorCard;
    /// Returns an option that is out of its range, with the range.
    fn invalid_option(&self) -> Option<(&'static str, &'static str)> {
        None
    }
    /// Returns a note for health if the type has paused its work, and how often it has.
    fn pauses(&self) -> (Option<String>, u64) {
        (None, 0)
    }
    /// Returns whether the type has its own event subscriptions because it may be slow.
    fn is_isolated(&self) -> bool {
        false
    }
    /// Returns the key of the actor that handles an event, if one does.
    fn key_of(&self, _event: &Envelope) -> Option<String> {
        None
    }
    /// Installs the type's endpoints on one thread, for a domain with that many shards. None of them is open yet.
    /// `events` are the names that stored events of its domain may have.
    fn install(
        &self,
        context: &Rc<ThreadContext>,
        domain: Name,
        actor: Name,
        shards: Shard,
        events: &Arc<HashSet<String>>,
        routes: &mut LocalRoutes,
    ) -> Rc<dyn ActorEndpoint>;
}

/// An actor type. Everything that depends on the Rust type is in its constants and in the function that lists its
/// handlers.
pub(in crate::node) struct Hosted {
    domain: (&'static str, u16),
    codec: Codec,
    retired: &'static [&'static str],
    describe: fn() -> ActorType,
    /// The events of a publisher, which are listed one by one.
    published: Vec<fn(&mut HandlerTable)>,
    role: Option<&'static str>,
}

impl Hosted {
    pub(in crate::node) fn new<A: Stateful>() -> Self {
        Self {
            domain: (A::Domain::NAME, A::Domain::SHARDS),
            codec: A::Domain::CODEC,
            retired: A::Domain::RETIRED,
            describe: ActorType::of::<A>,
            published: Vec::new(),
            role: None,
        }
    }

    /// The publisher of a domain, without events.
    pub(in crate::node) fn publisher<D: Domain>() -> Self {
        Self { role: Some("publisher"), ..Self::new::<Publisher<D>>() }
    }

    /// Adds an event to a publisher.
    pub(in crate::node) fn publish<E: Event>(&mut self) {
        self.published.push(publish::<E>);
    }

    fn actor_type(&self) -> ActorType {
        let mut actor_type = (self.describe)();
        self.published.iter().for_each(|add| add(&mut actor_type.table));
        actor_type
    }
}

impl HostedType for Hosted {
    fn domain(&self) -> (&'static str, u16) {
        self.domain
    }

    fn codec(&self) -> Codec {
        self.codec
    }

    fn retired(&self) -> &'static [&'static str] {
        self.retired
    }

    fn card(&self) -> ActorCard {
        let card = self.actor_type().table.card;
        ActorCard { role: self.role.unwrap_or(card.role), ..card }
    }

    fn key_of(&self, event: &Envelope) -> Option<String> {
        let table = self.actor_type().table;
        let (key_of, _) = table.reacts.get(&(event.domain.as_str(), event.name.as_str()))?;
        user_code(|| key_of(event)).ok()?.ok().flatten()
    }

    fn install(
        &self,
        context: &Rc<ThreadContext>,
        domain: Name,
        actor: Name,
        shards: Shard,
        events: &Arc<HashSet<String>>,
        routes: &mut LocalRoutes,
    ) -> Rc<dyn ActorEndpoint> {
        let mut actor_type = self.actor_type();
        actor_type.table.connect(events, &context.settings.shapes, &context.settings.propagated);
        let commands = std::mem::take(&mut actor_type.routes);
        let endpoint = Dispatcher::new(Rc::clone(context), actor_type, domain, actor, shards);
        for add in commands {
            add(&endpoint, routes);
        }
        Rc::new(endpoint)
    }
}

/// One hosted worker, before its threads exist. All threads share the worker value.
pub(in crate::node) struct HostedWorker<W> {
    worker: Arc<W>,
    limits: Arc<WorkerLimits>,
}

impl<W: Worker> HostedWorker<W> {
    pub(in crate::node) fn new(worker: W, options: WorkerOptions) -> Self {
        Self { worker: Arc::new(worker), limits: WorkerLimits::new(W::Domain::NAME, W::NAME, options) }
    }
}

impl<W: Worker> HostedType for HostedWorker<W> {
    fn domain(&self) -> (&'static str, u16) {
        (W::Domain::NAME, W::Domain::SHARDS)
    }

    fn codec(&self) -> Codec {
        <W::Domain as Domain>::CODEC
    }

    fn retired(&self) -> &'static [&'static str] {
        W::Domain::RETIRED
    }

    fn card(&self) -> ActorCard {
        WorkerPlan::<W>::of().card
    }

    fn invalid_option(&self) -> Option<(&'static str, &'static str)> {
        self.limits.invalid_option()
    }

    fn pauses(&self) -> (Option<String>, u64) {
        self.limits.pauses()
    }

    fn is_isolated(&self) -> bool {
        true
    }

    fn install(
        &self,
        context: &Rc<ThreadContext>,
        domain: Name,
        actor: Name,
        shards: Shard,
        _events: &Arc<HashSet<String>>,
        _routes: &mut LocalRoutes,
    ) -> Rc<dyn ActorEndpoint> {
        let (worker, limits) = (Arc::clone(&self.worker), Arc::clone(&self.limits));
        Rc::new(WorkerDispatcher::new(Rc::clone(context), worker, limits, domain, actor, shards))
    }
}

/// Handles messages without a handler in the domain by making them dead letters, which an operator can see.
pub(in crate::node) struct Unrouted;

/// Placeholder domain of [`Unrouted`]; the real one is passed when it is installed.
pub(in crate::node) struct Anywhere;

impl Domain for Anywhere {
    const NAME: &'static str = "anywhere";
}

impl Unrouted {
    /// Name in the store; reserved, no actor type may use it.
    pub(in crate::node) const NAME: &'static str = "unrouted";
}

impl Stateful for Unrouted {
    type Domain = Anywhere;
    const NAME: &'static str = "unrouted";
    const ROLE: crate::actor::Role = crate::actor::Role::Aggregate;
    fn initial() -> Self {
        Self
    }
    fn wire(_plan: &mut Plan<Self>) {}
}
