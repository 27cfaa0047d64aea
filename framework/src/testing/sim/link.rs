//! One simulated node's connection to the broker: what it sends, asks and tells.
//!
//! Called by nodes as their [`Bridge`]; calls their doors through the [lanes](super::consumer). Everything goes through the encoding
//! of the wire. It behaves as the bridge to NATS does, and what that cannot know of the broker it does not know either.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use super::broker::{Broker, Parcel, Reached, commands, events};
use super::consumer::{self, Cargo};
use super::crash_points::CrashPoint;
use super::fault_counts::FaultEvent;
use crate::bridge::wire::Packet;
use crate::bridge::{Bridge, BridgeError, Inbound, NodeCard, Notification, Request, RequestError, Response};
use crate::message::{Envelope, MAX_PAYLOAD_BYTES, Name, ShardId, shard_of};

/// How long a stream may take to acknowledge a message before it counts as not sent.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);
/// After what time a stream that is missing is made again.
pub(super) const DELETION: Duration = Duration::from_secs(1);

/// Whether a node is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    Here,
    /// It takes nothing more in.
    Leaving,
    Gone,
}

/// A node, as the broker knows it.
pub(super) struct SimLink {
    pub(super) broker: Broker,
    pub(super) service: usize,
    pub(super) number: u64,
    pub(super) card: NodeCard,
    pub(super) door: Arc<dyn Inbound>,
    pub(super) stand: watch::Sender<Stand>,
    /// Nothing gets through, either way.
    isolated: AtomicBool,
    /// Messages that were taken from the broker and have not reached the door.
    pub(super) reserved: AtomicUsize,
    /// Messages sent whose acknowledgement has not come.
    publications: AtomicUsize,
    /// Messages with the node.
    pub(super) in_hand: AtomicUsize,
    /// Words about messages that are on their way to the broker.
    pub(super) words: AtomicUsize,
    /// One of these numbers has become less.
    pub(super) freed: Notify,
}

impl SimLink {
    pub(super) fn is_here(&self) -> bool {
        *self.stand.borrow() == Stand::Here
    }

    pub(super) fn is_gone(&self) -> bool {
        *self.stand.borrow() == Stand::Gone
    }

    pub(super) fn is_isolated(&self) -> bool {
        self.isolated.load(Ordering::Relaxed)
    }

    /// Cuts the node off, or connects it again.
    pub(super) fn isolate(&self, isolated: bool) {
        self.isolated.store(isolated, Ordering::Relaxed);
        if !isolated {
            self.door.reconnected();
            self.broker.ring_all();
        }
    }

    pub(super) fn end(&self) {
        self.stand.send_replace(Stand::Gone);
    }

    /// Counts what a crash of the node now interrupts.
    pub(super) fn interrupted(&self) {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let words = count(&self.words);
        for (hit, trouble) in [
            (count(&self.publications) > 0, FaultEvent::CrashInAPublication),
            (count(&self.in_hand) > words, FaultEvent::CrashInADelivery),
            (words > 0, FaultEvent::CrashInAnAcknowledgement),
        ] {
            if hit {
                self.broker.2.one(trouble);
            }
        }
    }

    /// Returns whether a delivery is neither settled nor lost.
    pub(super) fn holds_deliveries(&self) -> bool {
        self.is_here() && self.in_hand.load(Ordering::Relaxed) > 0
    }

    pub(super) fn less(&self, counter: &AtomicUsize) {
        counter.fetch_sub(1, Ordering::Relaxed);
        self.freed.notify_waiters();
    }

    /// Waits until a counter is zero.
    async fn emptied(&self, counter: &AtomicUsize) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if counter.load(Ordering::Relaxed) == 0 {
                return;
            }
            freed.await;
        }
    }

    /// A caller that does not know the number of shards leaves the destination to the owner.
    fn with_shard(&self, mut asked: Request) -> Request {
        if let Request::Command(envelope) = &mut asked
            && let Some((domain, shards)) = self.card.owns.iter().find(|(domain, _)| *domain == envelope.domain)
        {
            envelope.to.get_or_insert_with(|| ShardId::new(domain.clone(), shard_of(&envelope.key, *shards)));
        }
        asked
    }
}

/// One simulated node's connection to the broker.
pub(super) struct SimulatedBridge {
    broker: Broker,
    service: usize,
    line: Mutex<Option<Arc<SimLink>>>,
}

/// Counts a publication while it goes on, however it ends.
struct Publication<'a>(&'a SimLink);

impl Drop for Publication<'_> {
    fn drop(&mut self) {
        self.0.less(&self.0.publications);
    }
}

impl SimulatedBridge {
    pub(super) fn new(broker: Broker, service: usize) -> Self {
        Self { broker, service, line: Mutex::new(None) }
    }

    /// A bridge whose node has died sends nothing any more.
    fn line(&self) -> Result<Arc<SimLink>, BridgeError> {
        let line = self.line.lock().clone();
        line.filter(|line| line.is_here()).ok_or(BridgeError::Closed)
    }

    /// Sends a message to a stream and waits for its acknowledgement.
    async fn publish_to(
        &self,
        line: &SimLink,
        domain: &Name,
        stream: &str,
        packet: Packet,
        id: &str,
    ) -> Result<(), BridgeError> {
        line.publications.fetch_add(1, Ordering::Relaxed);
        let _publication = Publication(line);
        let broker = &self.broker;
        broker.begins(self.service, CrashPoint::Publication);
        let unanswered = async || {
            tokio::time::sleep(ACKNOWLEDGE).await;
            Err(BridgeError::NoResponse { domain: domain.to_string(), deadline: ACKNOWLEDGE })
        };
        let (flight, loss) = (broker.sets_out(), broker.loses().then(|| broker.draw(3)));
        let way = broker.way();
        if !way.is_zero() {
            tokio::time::sleep(way).await;
        }
        broker.resumed().await;
        if !flight.arrives() {
            return unanswered().await;
        }
        if !broker.is_heard(line) {
            return unanswered().await;
        }
        if loss == Some(0) {
            broker.2.one(FaultEvent::LostOnTheWayIn);
            broker.1.add(format_args!("  {id} is lost on its way to the broker"));
            return unanswered().await;
        }
        if loss == Some(1) {
            broker.2.one(FaultEvent::LostByTheBroker);
            broker.1.add(format_args!("  the broker acknowledges {id} and loses it"));
            broker.state().notes_lost(&Parcel { from: self.service, packet });
            return Ok(());
        }
        let reached = broker.store(stream, id, &Arc::new(Parcel { from: self.service, packet }));
        if loss == Some(2) && matches!(reached, Reached::Taken) {
            broker.2.one(FaultEvent::AcknowledgementLost);
            return unanswered().await;
        }
        // Even an answer that takes no time takes its turn.
        pause(broker.way()).await;
        if !broker.hears(line) {
            return unanswered().await;
        }
        match reached {
            Reached::Taken => Ok(()),
            Reached::NoStream => Err(BridgeError::NoOwner { domain: domain.to_string() }),
            Reached::NoLeader => Err(BridgeError::Unreachable {
                broker: "the simulated broker".to_owned(),
                reason: "it has no leader".to_owned(),
            }),
            Reached::Failed => Err(BridgeError::Broker {
                doing: "publishing to a stream".to_owned(),
                source: Arc::new(std::io::Error::other("it cannot be stored")),
            }),
        }
    }

    async fn asked(&self, to: Request, deadline: Duration) -> Result<Response, BridgeError> {
        let line = self.line()?;
        let packet = Packet::from_request(&to)?;
        let domain = to.domain().clone();
        let broker = &self.broker;
        if let Request::Command(envelope) = &to {
            broker.1.add(format_args!("asks {} {} of `{}`: {}", domain, envelope.name, envelope.key, envelope.id));
        }
        let no_answer = || BridgeError::NoResponse { domain: domain.to_string(), deadline };
        let answers: Vec<Arc<SimLink>> = {
            let state = broker.state();
            let answers = |line: &&Arc<SimLink>| match &to {
                Request::Query(query) => {
                    line.card.answers.iter().any(|(domain, name)| *domain == query.domain && *name == query.name)
                }
                _ => line.card.owns.iter().any(|(owned, _)| *owned == domain),
            };
            state.lines.values().filter(|line| line.is_here()).filter(answers).cloned().collect()
        };
        // Of all nodes that could answer one is asked.
        let chosen = if answers.len() > 1 { broker.draw(answers.len() as u64) } else { 0 };
        let other = answers.get(usize::try_from(chosen).unwrap_or(0)).cloned();
        let other = other.ok_or_else(|| BridgeError::NoOwner { domain: domain.to_string() })?;
        let (broker, service) = (broker.clone(), self.service);
        let whole = async move {
            let lost = || {
                let lost = broker.loses();
                if lost {
                    broker.2.one(FaultEvent::QuestionLost);
                }
                lost
            };
            if lost() {
                return None;
            }
            pause(broker.way()).await;
            broker.resumed().await;
            if !broker.is_heard(&line) || !broker.hears(&other) || broker.is_cut(service, other.service) {
                return None;
            }
            let busy = broker.handlers_take(other.service);
            if !busy.is_zero() {
                tokio::time::sleep(busy).await;
            }
            let asked = match packet.request() {
                Ok(asked) => other.with_shard(asked),
                Err(error) => return Some(Ok(Response::Refused(RequestError::Undecodable(error.to_string())))),
            };
            let answer = Packet::from_response(&other.door.request(asked).await, 2 * MAX_PAYLOAD_BYTES);
            // An answer of a node that has died meanwhile does not come.
            if other.is_gone() || lost() {
                return None;
            }
            pause(broker.way()).await;
            if !broker.is_heard(&other) || !broker.hears(&line) || broker.is_cut(other.service, service) {
                return None;
            }
            Some(answer.response())
        };
        // The question goes on its way even if nobody waits for the answer any longer.
        let (answer, answered) = oneshot::channel();
        crate::spawn::alone("simulated broker", async move {
            if let Some(whole) = whole.await {
                let _ = answer.send(whole);
            }
        });
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                tokio::time::sleep(deadline).await;
                Err(no_answer())
            }
            Err(_) => Err(no_answer()),
        }
    }

    async fn told(&self, tidings: Notification) -> Result<(), BridgeError> {
        let line = self.line()?;
        let packet = Packet::from_notification(&tidings);
        let broker = &self.broker;
        let listens = |line: &&Arc<SimLink>| match &tidings {
            Notification::Committed { from, .. } => line.card.owns.iter().any(|(domain, _)| *domain == from.domain),
            Notification::Head { shard, .. } => line.card.subscribes.iter().any(|(domain, ..)| *domain == shard.domain),
        };
        let listeners: Vec<Arc<SimLink>> = broker.state().lines.values().filter(listens).cloned().collect();
        for other in listeners {
            if broker.loses() {
                continue;
            }
            let (way, broker, packet, line) = (broker.way(), broker.clone(), packet.clone(), Arc::clone(&line));
            crate::spawn::alone("simulated broker", async move {
                pause(way).await;
                if let Ok(tidings) = packet.notification()
                    && !other.is_gone()
                    && broker.is_heard(&line)
                    && broker.hears(&other)
                    && !broker.is_cut(line.service, other.service)
                {
                    other.door.notify(tidings);
                }
            });
        }
        Ok(())
    }
}

/// Even what takes no time takes its turn.
pub(super) async fn pause(way: Duration) {
    if way.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(way).await;
    }
}

impl Bridge for SimulatedBridge {
    fn attach<'a>(&'a self, card: NodeCard, door: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        Box::pin(async move {
            self.broker.claim(&card)?;
            let line = self.broker.join(|number| {
                Arc::new(SimLink {
                    broker: self.broker.clone(),
                    service: self.service,
                    number,
                    card,
                    door,
                    stand: watch::channel(Stand::Here).0,
                    isolated: AtomicBool::new(false),
                    reserved: AtomicUsize::new(0),
                    publications: AtomicUsize::new(0),
                    in_hand: AtomicUsize::new(0),
                    words: AtomicUsize::new(0),
                    freed: Notify::new(),
                })
            });
            *self.line.lock() = Some(Arc::clone(&line));
            self.broker.ensure(&line);
            for (domain, _) in &line.card.owns {
                consumer::begin(&line, Cargo::Direct, commands(domain));
            }
            for (domain, ..) in &line.card.subscribes {
                consumer::begin(&line, Cargo::Events, events(domain));
            }
            Ok(())
        })
    }

    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            let line = self.line()?;
            let packet = Packet::from_envelope(&envelope)?;
            let domain = envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain).clone();
            let from = envelope
                .origin
                .as_ref()
                .map_or_else(String::new, |origin| format!("{} {}", origin.shard, origin.sequence));
            self.broker.1.add(format_args!(
                "{from} sends {} {} {} to {domain}",
                envelope.kind.as_str(),
                envelope.name,
                envelope.id,
            ));
            self.publish_to(&line, &domain, &commands(&domain), packet, &envelope.id.to_string()).await
        })
    }

    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            let line = self.line()?;
            let packet = Packet::from_envelope(&event)?;
            let Some(origin) = &event.origin else { return Ok(()) };
            self.broker
                .1
                .add(format_args!("{} {} is published: {} {}", origin.shard, origin.sequence, event.name, event.id));
            self.broker.note_published(&origin.shard, origin.sequence, event.id);
            let (domain, stream) = (&event.domain, events(&event.domain));
            let published = self.publish_to(&line, domain, &stream, packet, &event.id.to_string()).await;
            if matches!(published, Err(BridgeError::NoOwner { .. })) && line.is_here() {
                // The owner is this node: it made the stream when it started, and the broker has lost it since.
                crate::spawn::alone("simulated broker", async move {
                    tokio::time::sleep(DELETION).await;
                    if line.is_here() && line.broker.can_pull(&line) {
                        line.broker.ensure(&line);
                    }
                });
            }
            published
        })
    }

    fn request(&self, to: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        Box::pin(self.asked(to, deadline))
    }

    fn notify(&self, tidings: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(self.told(tidings))
    }

    fn durability(&self) -> String {
        "simulated: anything may be lost".to_owned()
    }

    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            let line = self.line.lock().clone().filter(|line| line.is_here()).ok_or(BridgeError::Closed)?;
            line.stand.send_replace(Stand::Leaving);
            for counter in [&line.publications, &line.reserved, &line.in_hand] {
                line.emptied(counter).await;
            }
            self.broker.leave(&line);
            Ok(())
        })
    }

    fn abandon(&self) {
        if let Some(line) = self.line.lock().take() {
            self.broker.leave(&line);
        }
    }
}
