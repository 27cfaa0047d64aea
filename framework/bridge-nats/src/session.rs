//! An attached bridge: the parts that sending needs, and the condition that its loops report.
//!
//! Used by the bridge. Clones refer to the same connection.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use actix::Addr;
use async_nats::Client;
use tokio::sync::{Notify, watch};

use super::acknowledgement::PublishFailure;
use super::actor::NatsActor;
use super::claims::Claims;
use super::connection::{Ending, LinkState};
use super::headers;
use super::jetstream::JetStream;
use super::owned_shards::Ownership;
use super::publisher::{PublisherLoop, Reply, ReplyFuture, ReplyKind};
use whizbang_core::bridge::BridgeError;
use whizbang_core::telemetry::Issues;
use whizbang_wire::Packet;

/// The time limit for the acknowledgement of a stream. After that the message counts as not sent.
pub(super) const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The parts of an attached bridge that sending needs.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) publisher: Arc<PublisherLoop>,
    pub(super) actor: Addr<NatsActor>,
    pub(super) abandoned: Arc<Notify>,
    pub(super) ending: Arc<Ending>,
    pub(super) link: watch::Receiver<LinkState>,
    pub(super) report: Arc<Report>,
    pub(super) jetstream: JetStream,
    pub(super) claims: Option<Arc<Claims>>,
    pub(super) ownership: Arc<Ownership>,
}

/// The condition that the loops report.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) issues: Issues,
    pub(super) refused: AtomicU64,
    pub(super) recreated_consumers: AtomicU64,
}

impl Session {
    pub(super) fn publish(
        &self,
        packet: Packet,
        subject: String,
        reply: ReplyKind,
    ) -> Result<ReplyFuture, BridgeError> {
        self.check_size(&packet)?;
        self.publisher.publish(subject, headers::to_nats(&packet)?, packet.payload, reply)
    }

    fn check_size(&self, packet: &Packet) -> Result<(), BridgeError> {
        let (bytes, limit) = (packet.size(), self.client.max_payload());
        if bytes > limit { Err(BridgeError::Oversize { bytes, limit }) } else { Ok(()) }
    }

    pub(super) async fn wait_for_acknowledgement(self, reply: ReplyFuture, domain: String) -> Result<(), BridgeError> {
        match reply.within(ACK_TIMEOUT).await? {
            Some(Reply::Acknowledgement(Ok(())) | Reply::Response(_)) => Ok(()),
            // No stream takes the subject: the owner, which would have created it, has never run here.
            Some(Reply::Acknowledgement(Err(PublishFailure::NoStream))) => Err(BridgeError::NoOwner { domain }),
            Some(Reply::Acknowledgement(Err(PublishFailure::Rejected(source)))) => {
                Err(BridgeError::Broker { doing: "publish to a stream".to_owned(), source })
            }
            // It may be stored; the sender retries with the same id.
            None => Err(BridgeError::NoResponse { domain, deadline: ACK_TIMEOUT }),
        }
    }
}
