//! The bridge of one simulated node: its link to the broker, and the publication of a message.
//!
//! The node calls it [through the trait `Bridge`](super::bridge_calls). All packets pass through the wire encoding. It behaves like the
//! bridge to NATS and has no more information about the broker than that one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;

use super::broker::{Broker, StoreOutcome, StoredPacket};
use super::crash_points::CrashPoint;
use super::fault_counts::FaultEvent;
use super::link::{SimLink, pause};
use super::store::SimStore;
use whizbang_core::bridge::BridgeError;
use whizbang_core::message::Name;

/// Time to wait for an acknowledgement of a published message.
pub(super) const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// The bridge of one simulated node.
pub(super) struct SimulatedBridge {
    /// The broker that carries all packets.
    pub(super) broker: Broker,
    /// The index of the service in the cluster.
    pub(super) service: usize,
    /// The index of the node in its service.
    pub(super) seat: usize,
    /// The store of the node, to see which shards it owns. `None` for the node of the clients, which has no store that others
    /// see.
    pub(super) store: Option<SimStore>,
    /// The link while the node is attached.
    pub(super) link: Mutex<Option<Arc<SimLink>>>,
}

/// Counts a publication until it is dropped.
struct Publication<'a>(&'a SimLink);

impl Drop for Publication<'_> {
    fn drop(&mut self) {
        self.0.decrement(&self.0.publications);
    }
}

impl SimulatedBridge {
    /// Creates a bridge that is not attached.
    pub(super) fn new(broker: Broker, service: usize, seat: usize, store: Option<SimStore>) -> Self {
        Self { broker, service, seat, store, link: Mutex::new(None) }
    }

    /// Returns the link. Fails once the node was killed or has detached.
    pub(super) fn link(&self) -> Result<Arc<SimLink>, BridgeError> {
        let link = self.link.lock().clone();
        link.filter(|link| link.is_attached()).ok_or(BridgeError::Closed)
    }

    /// Publishes a message to a stream and waits for its acknowledgement.
    pub(super) async fn publish_to(
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
