//! An attached bridge: the parts that sending needs.
//!
//! Used by the bridge. Clones refer to the same connection.
//!
//! A session is made when the node attaches and ends with it: a bridge has at most one. Threads that send have clones, and
//! none of them waits for another.

use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use async_nats::Client;
use tokio::sync::{Notify, broadcast, watch};

use super::acknowledgement::PublishFailure;
use super::actor::NatsActor;
use super::claims::Claims;
use super::connection::{Drops, Ending, LinkState};
use super::headers;
use super::jetstream::JetStream;
use super::ownership::Ownership;
use super::publisher::{PublisherLoop, Reply, ReplyFuture, ReplyKind};
use super::report::Report;
use super::watches::Watches;
use whizbang_core::bridge::BridgeError;
use whizbang_core::message::Name;
use whizbang_wire::Packet;

/// The time limit for the acknowledgement of a stream. After that the message counts as not sent.
pub(super) const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The parts of an attached bridge that sending needs.
pub(super) struct Session {
    /// The client library's handle; it reconnects by itself.
    pub(super) client: Client,
    /// The queue of messages to write, filled from any thread.
    pub(super) publisher: Arc<PublisherLoop>,
    /// The owner of the loops, which `detach` stops in order.
    pub(super) actor: Addr<NatsActor>,
    /// Ends the loops at once, without finishing messages in flight.
    pub(super) abandoned: Arc<Notify>,
    /// Marks the end of the connection as intended, so that it is not logged as a loss.
    pub(super) ending: Arc<Ending>,
    /// The state of the connection; a changed epoch means a reconnection.
    pub(super) link: watch::Receiver<LinkState>,
    /// The subjects that the server denies this user, as they are reported.
    pub(super) denials: broadcast::Sender<String>,
    /// The messages that the client has dropped.
    pub(super) drops: watch::Receiver<Drops>,
    /// The condition of the loops, for the health of the bridge.
    pub(super) report: Arc<Report>,
    /// The requests to the JetStream API, for shards and for the last published events.
    pub(super) jetstream: JetStream,
    /// The claims on the domains of this node. `None` if it owns none, or if its store has no identity.
    pub(super) claims: Option<Arc<Claims>>,
    /// Starts and ends the receipt of leased shards.
    pub(super) ownership: Arc<Ownership>,
    /// The domains that streams of events watch.
    pub(super) watches: Arc<Watches>,
}

impl Session {
    /// Queues a message and returns the future of its reply. The message is written in the order of the calls.
    ///
    /// # Errors
    /// [`BridgeError::Oversize`] for a message above the server's `max_payload`. [`BridgeError::Unreachable`] without a
    /// connection, [`BridgeError::Busy`] while the queue is full. In each case nothing was sent.
    pub(super) fn publish(
        &self,
        packet: Packet,
        subject: String,
        reply: ReplyKind,
    ) -> Result<ReplyFuture, BridgeError> {
        self.check_size(&packet)?;
        self.publisher.publish(subject, headers::to_nats(&packet)?, packet.payload, reply)
    }

    /// Checks a message against the limit of the connected server, which may differ from the one at the start.
    fn check_size(&self, packet: &Packet) -> Result<(), BridgeError> {
        let (bytes, limit) = (packet.size(), self.client.max_payload());
        if bytes > limit { Err(BridgeError::Oversize { bytes, limit }) } else { Ok(()) }
    }
}

/// Waits until a stream has stored the message, at most [`ACK_TIMEOUT`].
///
/// # Errors
/// After [`BridgeError::NoResponse`] the message may be stored. After the others it is not. The caller sends it again with
/// the same id, and the receiver drops the duplicate.
pub(super) async fn wait_for_acknowledgement(reply: ReplyFuture, domain: Name) -> Result<(), BridgeError> {
    let domain = || domain.to_string();
    match reply.within(ACK_TIMEOUT).await? {
        Some(Reply::Acknowledgement(Ok(())) | Reply::Response(_)) => Ok(()),
        // No stream takes the subject: the owner, which would have created it, has never run here.
        Some(Reply::Acknowledgement(Err(PublishFailure::NoStream))) => Err(BridgeError::NoOwner { domain: domain() }),
        Some(Reply::Acknowledgement(Err(PublishFailure::Rejected(source)))) => {
            Err(BridgeError::Broker { doing: "publish to a stream".to_owned(), source })
        }
        // It may be stored; the sender retries with the same id.
        None => Err(BridgeError::NoResponse { domain: domain(), deadline: ACK_TIMEOUT }),
    }
}
