//! The link between one simulated node and the broker: sends, requests and notifications.
//!
//! Called by nodes as their [`Bridge`]; [consumers](super::consumer) call the node. All packets pass through the wire encoding. The
//! link behaves like the bridge to NATS and has no more information about the broker than that one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::broker::{Broker, StoreOutcome, StoredPacket, commands, events};
use super::consumer::{self, StreamKind};
use super::crash_points::CrashPoint;
use super::fault_counts::FaultEvent;
use super::fault_profile::LinkDirection;
use super::store::SimStore;
use whizbang_core::bridge::{Bridge, BridgeError, Inbound, NodeCard, Notification, Request, Response};
use whizbang_core::message::{Envelope, MessageId, Name, ShardId, shard_of};
use whizbang_core::store::Epoch;
use whizbang_wire::Packet;

/// Time to wait for an acknowledgement of a published message.
pub(super) const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Time before a missing stream is created again.
pub(super) const RECREATE_DELAY: Duration = Duration::from_secs(1);

/// The state of a node's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkState {
    Attached,
    /// The node accepts no more messages.
    Detaching,
    Gone,
}

/// The link of a node, as the broker sees it.
pub(super) struct SimLink {
    pub(super) broker: Broker,
    pub(super) service: usize,
    pub(super) number: u64,
    pub(super) card: NodeCard,
    pub(super) inbound: Arc<dyn Inbound>,
    pub(super) state: watch::Sender<LinkState>,
    /// The seat of the node in its service.
    pub(super) seat: usize,
    /// The node's handle of its store.
    store: Option<SimStore>,
    /// True if messages to the node are lost.
    inbound_cut: AtomicBool,
    /// True if messages from the node are lost.
    outbound_cut: AtomicBool,
    /// Messages pulled from the broker that have not reached the node.
    pub(super) reserved: AtomicUsize,
    /// Published messages that are not acknowledged.
    publications: AtomicUsize,
    /// Messages that the node handles.
    pub(super) in_flight: AtomicUsize,
    /// Settlements in transit to the broker.
    pub(super) pending_settlements: AtomicUsize,
    /// Notified when one of these counters decreases.
    pub(super) decremented: Notify,
    /// The leased shards that the node receives, with their epochs.
    pub(super) owned: Mutex<BTreeMap<ShardId, Epoch>>,
}

impl SimLink {
    pub(super) fn is_attached(&self) -> bool {
        *self.state.borrow() == LinkState::Attached
    }

    pub(super) fn is_gone(&self) -> bool {
        *self.state.borrow() == LinkState::Gone
    }

    pub(super) fn is_inbound_cut(&self) -> bool {
        self.inbound_cut.load(Ordering::Relaxed)
    }

    pub(super) fn is_outbound_cut(&self) -> bool {
        self.outbound_cut.load(Ordering::Relaxed)
    }

    /// Isolates or reconnects the node.
    pub(super) fn isolate(&self, isolated: bool) {
        self.cut(isolated.then_some(LinkDirection::Both));
    }

    /// Cuts the link, or reconnects the node.
    pub(super) fn cut(&self, direction: Option<LinkDirection>) {
        self.inbound_cut.store(direction.is_some_and(|cut| cut != LinkDirection::Outbound), Ordering::Relaxed);
        self.outbound_cut.store(direction.is_some_and(|cut| cut != LinkDirection::Inbound), Ordering::Relaxed);
        if direction.is_none() {
            self.inbound.reconnected();
            self.broker.notify_all();
        }
    }

    /// Checks that the node may answer a request. `asked` is the id and the shard of a command, or of the query of a key.
    pub(super) fn check_answer(&self, request: &str, asked: Option<&(MessageId, ShardId)>, response: &Response) {
        let is_answer = !matches!(response, Response::Refused(_) | Response::Shape(_));
        if let Some(store) = self.store.as_ref().filter(|_| is_answer && self.card.has_leased_shards && !self.is_gone())
        {
            store.check_answer(request, asked);
        }
    }

    pub(super) fn end(&self) {
        self.state.send_replace(LinkState::Gone);
    }

    /// Counts the operations that a crash of the node would interrupt now.
    pub(super) fn count_interrupted(&self) {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let pending_settlements = count(&self.pending_settlements);
        for (hit, event) in [
            (count(&self.publications) > 0, FaultEvent::CrashDuringPublication),
            (count(&self.in_flight) > pending_settlements, FaultEvent::CrashDuringDelivery),
            (pending_settlements > 0, FaultEvent::CrashDuringAcknowledgement),
        ] {
            if hit {
                self.broker.fault_counts.one(event);
            }
        }
    }

    /// Returns whether a delivery is unsettled.
    pub(super) fn holds_deliveries(&self) -> bool {
        self.is_attached() && self.in_flight.load(Ordering::Relaxed) > 0
    }

    pub(super) fn decrement(&self, counter: &AtomicUsize) {
        counter.fetch_sub(1, Ordering::Relaxed);
        self.decremented.notify_waiters();
    }

    /// Waits until a counter is zero.
    pub(super) async fn wait_zero(&self, counter: &AtomicUsize) {
        loop {
            // Registers before the check, so that a decrement in between is not missed.
            let decremented = self.decremented.notified();
            tokio::pin!(decremented);
            decremented.as_mut().enable();
            if counter.load(Ordering::Relaxed) == 0 {
                return;
            }
            decremented.await;
        }
    }

    /// Adds the shard to a command of a caller that does not know the number of shards.
    pub(super) fn with_shard(&self, mut request: Request) -> Request {
        if let Request::Command(envelope) = &mut request
            && let Some((domain, shards)) = self.card.owns.iter().find(|(domain, _)| *domain == envelope.domain)
        {
            envelope.to.get_or_insert_with(|| ShardId::new(domain.clone(), shard_of(&envelope.key, *shards)));
        }
        request
    }
}

/// The bridge of one simulated node.
pub(super) struct SimulatedBridge {
    pub(super) broker: Broker,
    pub(super) service: usize,
    seat: usize,
    store: Option<SimStore>,
    link: Mutex<Option<Arc<SimLink>>>,
}

/// Counts a publication until it is dropped.
struct Publication<'a>(&'a SimLink);

impl Drop for Publication<'_> {
    fn drop(&mut self) {
        self.0.decrement(&self.0.publications);
    }
}

impl SimulatedBridge {
    pub(super) fn new(broker: Broker, service: usize, seat: usize, store: Option<SimStore>) -> Self {
        Self { broker, service, seat, store, link: Mutex::new(None) }
    }

    /// Returns the link. Fails once the node was killed or has detached.
    pub(super) fn link(&self) -> Result<Arc<SimLink>, BridgeError> {
        let link = self.link.lock().clone();
        link.filter(|link| link.is_attached()).ok_or(BridgeError::Closed)
    }

    /// Publishes a message to a stream and waits for its acknowledgement.
    async fn publish_to(
        &self,
        link: &SimLink,
        domain: &Name,
        stream: &str,
        stored: StoredPacket,
        id: &str,
    ) -> Result<(), BridgeError> {
        link.publications.fetch_add(1, Ordering::Relaxed);
        let _publication = Publication(link);
        let broker = &self.broker;
        broker.reach_crash_point(self.service, CrashPoint::Publication);
        let no_ack = async || {
            tokio::time::sleep(PUBLISH_TIMEOUT).await;
            Err(BridgeError::NoResponse { domain: domain.to_string(), deadline: PUBLISH_TIMEOUT })
        };
        let (transit, loss) = (broker.start_transit(), broker.draws_loss().then(|| broker.draw(3)));
        let latency = broker.latency();
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        broker.wait_unpaused().await;
        if !transit.arrives() {
            return no_ack().await;
        }
        if !broker.is_outbound_open(link) {
            return no_ack().await;
        }
        if loss == Some(0) {
            broker.fault_counts.one(FaultEvent::PublishLost);
            broker.trace.add(format_args!("  {id} is lost on its way to the broker"));
            return no_ack().await;
        }
        if loss == Some(1) {
            broker.fault_counts.one(FaultEvent::AckedAndLost);
            broker.trace.add(format_args!("  the broker acknowledges and loses {id}"));
            broker.state().record_lost(&stored);
            return Ok(());
        }
        let stored = broker.store(stream, id, &Arc::new(stored));
        if loss == Some(2) && matches!(stored, StoreOutcome::Stored) {
            broker.fault_counts.one(FaultEvent::PublishAckLost);
            return no_ack().await;
        }
        // Yields even without latency.
        pause(broker.latency()).await;
        if !broker.is_inbound_open(link) {
            return no_ack().await;
        }
        match stored {
            StoreOutcome::Stored => Ok(()),
            StoreOutcome::NoStream => Err(BridgeError::NoOwner { domain: domain.to_string() }),
            StoreOutcome::NoLeader => Err(BridgeError::Unreachable {
                broker: "the simulated broker".to_owned(),
                reason: "no leader".to_owned(),
            }),
            StoreOutcome::Failed => Err(BridgeError::Broker {
                doing: "publishing to a stream".to_owned(),
                source: Arc::new(std::io::Error::other("failed to store the message")),
            }),
        }
    }
}

/// Waits for a latency. Yields even if it is zero.
pub(super) async fn pause(latency: Duration) {
    if latency.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(latency).await;
    }
}

impl Bridge for SimulatedBridge {
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        Box::pin(async move {
            self.broker.claim(&card)?;
            let link = self.broker.join(|number| {
                Arc::new(SimLink {
                    broker: self.broker.clone(),
                    service: self.service,
                    number,
                    card,
                    inbound,
                    state: watch::channel(LinkState::Attached).0,
                    seat: self.seat,
                    store: self.store.clone(),
                    inbound_cut: AtomicBool::new(false),
                    outbound_cut: AtomicBool::new(false),
                    reserved: AtomicUsize::new(0),
                    publications: AtomicUsize::new(0),
                    in_flight: AtomicUsize::new(0),
                    pending_settlements: AtomicUsize::new(0),
                    decremented: Notify::new(),
                    owned: Mutex::default(),
                })
            });
            *self.link.lock() = Some(Arc::clone(&link));
            self.broker.ensure_streams(&link);
            if link.card.has_leased_shards {
                return Ok(());
            }
            for (domain, _) in &link.card.owns {
                consumer::begin(&link, StreamKind::Direct, commands(domain));
            }
            for (domain, ..) in &link.card.subscribes {
                consumer::begin(&link, StreamKind::Events, events(domain));
            }
            Ok(())
        })
    }

    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            let link = self.link()?;
            let packet = Packet::from_envelope(&envelope)?;
            let domain = envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain).clone();
            let from = envelope
                .origin
                .as_ref()
                .map_or_else(String::new, |origin| format!("{} {}", origin.shard, origin.sequence));
            self.broker.trace.add(format_args!(
                "{from} sends {} {} {} to {domain}",
                envelope.kind.as_str(),
                envelope.name,
                envelope.id,
            ));
            let stored = StoredPacket { from: self.service, to: envelope.to.clone(), packet };
            self.publish_to(&link, &domain, &commands(&domain), stored, &envelope.id.to_string()).await
        })
    }

    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            let link = self.link()?;
            let packet = Packet::from_envelope(&event)?;
            let Some(origin) = &event.origin else { return Ok(()) };
            self.broker
                .trace
                .add(format_args!("{} {} is published: {} {}", origin.shard, origin.sequence, event.name, event.id));
            self.broker.record_published(&origin.shard, origin.sequence, event.id);
            let (domain, stream) = (&event.domain, events(&event.domain));
            link.send_live(&origin.shard, &packet);
            let stored = StoredPacket { from: self.service, to: None, packet };
            let published = self.publish_to(&link, domain, &stream, stored, &event.id.to_string()).await;
            if matches!(published, Err(BridgeError::NoOwner { .. })) && link.is_attached() {
                // This node owns the stream; the broker has lost it since.
                whizbang_core::spawn::alone("simulated broker", async move {
                    tokio::time::sleep(RECREATE_DELAY).await;
                    if link.is_attached() && link.broker.can_pull(&link) {
                        link.broker.ensure_streams(&link);
                    }
                });
            }
            published
        })
    }

    fn own<'a>(&'a self, shard: &'a ShardId, epoch: Epoch) -> BoxFuture<'a, Result<(), BridgeError>> {
        Box::pin(self.receive_shard(shard, epoch))
    }

    fn disown<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, ()> {
        Box::pin(self.release_shard(shard))
    }

    fn request(&self, to: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        Box::pin(self.ask(to, deadline))
    }

    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(self.send_notification(notification))
    }

    fn durability(&self) -> String {
        "simulated: messages may be lost".to_owned()
    }

    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            let link = self.link.lock().clone().filter(|link| link.is_attached()).ok_or(BridgeError::Closed)?;
            link.state.send_replace(LinkState::Detaching);
            for counter in [&link.publications, &link.reserved, &link.in_flight] {
                link.wait_zero(counter).await;
            }
            self.broker.leave(&link);
            Ok(())
        })
    }

    fn abandon(&self) {
        if let Some(link) = self.link.lock().take() {
            self.broker.leave(&link);
        }
    }
}
