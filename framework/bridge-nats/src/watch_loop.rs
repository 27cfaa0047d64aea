//! The loops of watches: core subscriptions to the events and heads of a domain, one for each watched domain of a connection.
//!
//! Begun by the bridge's `watch` on any thread; they run in the [actor](super::actor) with the other loops. Only the positions of the
//! events are used, so a lost or forged message costs a delay or a request.

use std::sync::{Arc, Weak};
use std::time::Duration;

use actix::{AsyncContext, Context, Handler, Message, WrapFuture};
use async_nats::Subscriber;
use futures_util::stream::{StreamExt, select};
use tokio::sync::{broadcast, oneshot, watch};

use super::NatsBridge;
use super::actor::NatsActor;
use super::connection::{Drops, LinkState, round_trip};
use super::consumer::sleep_until;
use super::decode::reported_position;
use super::session::Session;
use super::subscriptions::subscribe;
use super::watches::{DomainWatch, EndOfReports};
use whizbang_core::bridge::{BridgeError, Watch, Watcher};
use whizbang_core::clock::monotonic;
use whizbang_core::message::Name;
use whizbang_core::spawn::contained;
use whizbang_core::telemetry::TARGET;
use whizbang_wire::subject::Namespace;

/// The time after a dropped message at which a watch reports an interruption. Messages that are dropped in it cause no further one.
const INTERRUPTED_AFTER_DROPS: Duration = Duration::from_secs(1);

impl NatsBridge {
    /// Begins a watch, with the subscription of another watch of the domain if there is one.
    ///
    /// It begins in the actor and not in this future: a stream that is alive but not polled must not keep other streams from starting.
    ///
    /// # Errors
    /// [`BridgeError::Refused`] if the server denies the subscription, and [`BridgeError::Closed`] once the bridge is detached.
    /// Nothing is left behind then, and neither if the future is dropped.
    pub(super) async fn begin_watch(&self, domain: &Name, watcher: Arc<dyn Watcher>) -> Result<Watch, BridgeError> {
        let session = self.session()?;
        let (begun, wait) = oneshot::channel();
        let (actor, namespace, domain) = (session.actor.clone(), self.namespace().clone(), domain.clone());
        let begin = BeginWatch { session, namespace, domain, watcher, begun };
        actor.send(begin).await.map_err(|_| BridgeError::Closed)?;
        wait.await.map_err(|_| BridgeError::Closed)?
    }
}

/// Begins a watch.
pub(super) struct BeginWatch {
    /// The connection.
    session: Arc<Session>,
    /// The prefix of the subjects.
    namespace: Namespace,
    /// The domain to watch.
    domain: Name,
    /// The receiver of the reports.
    watcher: Arc<dyn Watcher>,
    /// Receives the watch. A watch that it does not take is dropped, which ends it.
    begun: oneshot::Sender<Result<Watch, BridgeError>>,
}

impl Message for BeginWatch {
    type Result = ();
}

impl Handler<BeginWatch> for NatsActor {
    type Result = ();

    fn handle(&mut self, begin: BeginWatch, context: &mut Context<Self>) {
        let run = async move {
            if let Err(error) = contained(begin.run()).await {
                tracing::error!(target: TARGET, error, "failed to watch a domain");
            }
        };
        context.spawn(run.into_actor(self));
    }
}

impl BeginWatch {
    /// Begins the watch, unless the caller is dropped before.
    async fn run(self) {
        let Self { session, namespace, domain, watcher, mut begun } = self;
        let watch = tokio::select! {
            biased;
            () = begun.closed() => return,
            watch = begin(&session, namespace, &domain, watcher) => watch,
        };
        // A caller that was dropped since then leaves the watch to be dropped here.
        drop(begun.send(watch));
    }
}

/// Begins a watch. Streams of the connection take turns, so that those of one domain share a subscription.
async fn begin(
    session: &Session,
    namespace: Namespace,
    domain: &Name,
    watcher: Arc<dyn Watcher>,
) -> Result<Watch, BridgeError> {
    let mut domains = session.watches.domains.lock().await;
    let running = domains.get(domain).and_then(Weak::upgrade).filter(|watch| watch.is_running());
    if let Some(watch) = running {
        return Ok(watch.add(watcher));
    }
    domains.retain(|_, watch| watch.strong_count() > 0);
    let mut drops = session.drops.clone();
    drops.mark_unchanged();
    let messages = subscribe_to(session, &namespace, domain).await?;
    let link = session.link.clone();
    let (watch, watchers, ended) = DomainWatch::new();
    let run = RunWatch { domain: domain.clone(), namespace, messages, link, drops, watchers, ended };
    session.actor.send(run).await.map_err(|_| BridgeError::Closed)?;
    domains.insert(domain.clone(), Arc::downgrade(&watch));
    Ok(watch.add(watcher))
}

/// Subscribes to the events and heads of a domain, and waits until the server has read it: an event that is published afterwards is
/// reported. Without a connection it returns after two seconds; the reconnection is then reported as an interruption.
///
/// # Errors
/// [`BridgeError::Refused`] with the subject that the server denies.
async fn subscribe_to(session: &Session, namespace: &Namespace, domain: &Name) -> Result<[Subscriber; 2], BridgeError> {
    let mut denials = session.denials.subscribe();
    let subjects = [namespace.event_filter(domain), namespace.head_filter(domain)];
    let [events, heads] = &subjects;
    let messages = [
        subscribe(&session.client, events.clone(), None).await?,
        subscribe(&session.client, heads.clone(), None).await?,
    ];
    // Two round trips also bring back the denials.
    round_trip(&session.client).await;
    round_trip(&session.client).await;
    loop {
        match denials.try_recv() {
            Ok(denied) if subjects.contains(&denied) => {
                let reason = format!("this user is not permitted to use `{denied}`");
                return Err(BridgeError::Refused { broker: session.publisher.broker().to_owned(), reason });
            }
            Ok(_) | Err(broadcast::error::TryRecvError::Lagged(_)) => {}
            Err(_) => return Ok(messages),
        }
    }
}

/// Starts the loop of a watch.
pub(super) struct RunWatch {
    /// The watched domain. Reports about others are dropped: the server may not check permissions.
    domain: Name,
    /// The prefix of the subjects.
    namespace: Namespace,
    /// The events and the heads.
    messages: [Subscriber; 2],
    /// The state of the connection. Messages of the time without one are lost.
    link: watch::Receiver<LinkState>,
    /// The messages that the client has dropped, which may be reports.
    drops: watch::Receiver<Drops>,
    /// The watchers, which are notified when the loop ends.
    watchers: EndOfReports,
    /// Resolves when the last watcher has left.
    ended: oneshot::Receiver<()>,
}

impl Message for RunWatch {
    type Result = ();
}

impl Handler<RunWatch> for NatsActor {
    type Result = ();

    fn handle(&mut self, watch: RunWatch, context: &mut Context<Self>) {
        let run = async move {
            if let Err(error) = contained(watch.run()).await {
                tracing::error!(target: TARGET, error, "watch of a domain failed: its readers look for events from time to time");
            }
        };
        context.spawn(run.into_actor(self));
    }
}

impl RunWatch {
    /// Reports until the last watcher has left, or the connection is closed. It never waits for a watcher.
    async fn run(self) {
        let Self { domain, namespace, messages: [events, heads], mut link, mut drops, watchers, mut ended } = self;
        let mut messages = select(events, heads);
        let mut epoch = link.borrow_and_update().epoch;
        let mut interrupted_at = None;
        loop {
            tokio::select! {
                biased;
                _ = &mut ended => return,
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = *link.borrow_and_update();
                    if now.up && now.epoch != epoch {
                        epoch = now.epoch;
                        watchers.0.each(|watcher| watcher.interrupted());
                    }
                }
                Ok(()) = drops.changed() => {
                    interrupted_at.get_or_insert(monotonic() + INTERRUPTED_AFTER_DROPS);
                }
                () = sleep_until(interrupted_at) => {
                    interrupted_at = None;
                    watchers.0.each(|watcher| watcher.interrupted());
                }
                message = messages.next() => {
                    let Some(message) = message else { return };
                    if let Some((shard, position)) = reported_position(&namespace, &message)
                        && shard.domain == domain
                    {
                        watchers.0.each(|watcher| watcher.grown(&shard, position));
                    }
                }
            }
        }
    }
}
