//! Counters of the events that faults have caused. A fault that hits nothing proves nothing.
//!
//! Incremented where a fault takes effect, read by [coverage](super::coverage) and rules.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// Declares the fault events with their texts, and the list of all of them.
macro_rules! fault_events {
    ($($(#[$doc:meta])* $name:ident $text:literal,)*) => {
        /// An event that a fault has caused in a simulated cluster.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum FaultEvent {
            $($(#[$doc])* $name,)*
        }

        impl FaultEvent {
            /// All events that faults can cause.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }

        impl fmt::Display for FaultEvent {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text,)*
                })
            }
        }
    };
}

fault_events! {
    /// A message was lost on its way to the broker; the sender got no acknowledgement.
    PublishLost "lost before the broker",
    /// A message was stored, but its acknowledgement was lost.
    PublishAckLost "stored, acknowledgement lost",
    /// A message was acknowledged but never stored.
    AckedAndLost "acknowledged but not stored",
    /// A message was stored twice.
    StoredTwice "stored twice",
    /// A message was lost on its way from the broker to a node.
    DeliveryLost "lost behind the broker",
    /// A message was delivered twice.
    DeliveredTwice "delivered twice",
    /// A settlement was lost on its way to the broker.
    SettlementLost "settlement lost",
    /// A request or its response was lost.
    RequestLost "request or response lost",
    /// A message was redelivered because it was not settled within the ack wait.
    AckWaitExpired "redelivered after the ack wait",
    /// A message was redelivered behind newer ones.
    RedeliveredOutOfOrder "redelivered behind newer messages",
    /// A message waited because the limit of messages in flight was reached.
    InFlightLimitReached "waited for the in-flight limit",
    /// A message was dropped because its id was in the deduplication window.
    DuplicateDropped "dropped as a duplicate",
    /// A message was dropped as a duplicate although the stream no longer had the first one.
    FalseDuplicate "dropped as a duplicate without being stored",
    /// A hostile client sent a forged packet.
    PacketForged "forged by a hostile client",
    /// A message was lost when its stream was purged.
    MessagePurged "purged from a stream",
    /// A stream was deleted with its consumers.
    StreamLost "stream lost",
    /// A message was refused because the broker had no leader.
    RefusedWithoutLeader "refused without a leader",
    /// A message was refused but stored.
    RefusedAndStored "refused without a leader, but stored",
    /// The broker forgot a settlement and redelivered the message.
    SettlementForgotten "redelivered after a forgotten settlement",
    /// A message waited because the broker was paused.
    BrokerPaused "waited for a paused broker",
    /// A message between two partitioned services was lost.
    Partitioned "lost in a partition",
    /// A message to an isolated node was lost.
    InboundBlocked "lost on the way to an isolated node",
    /// A message from an isolated node was lost.
    OutboundBlocked "lost on the way from an isolated node",
    /// A wall clock jumped.
    ClockJumped "clock jumped",
    /// A handler panicked.
    HandlerPanicked "handler panicked",
    /// A message waited for slow handlers.
    HandlerSlow "waited for a slow handler",
    /// A store failed.
    StoreFailed "store failed",
    /// A node was killed with pending commits.
    CrashDuringCommit "killed during a commit",
    /// A pending append survived a crash; its outcome was not reported.
    AppendSurvivedCrash "pending append survived a crash",
    /// A pending append was lost in a crash.
    AppendLostInCrash "pending append lost in a crash",
    /// A node was killed while it waited for the broker's acknowledgement.
    CrashDuringPublication "killed during a publication",
    /// A node was killed while it handled a delivery.
    CrashDuringDelivery "killed during a delivery",
    /// A node was killed between the commit of a message's effect and its settlement at the broker.
    CrashDuringAcknowledgement "killed during an acknowledgement",
    /// A node was killed during its start.
    CrashDuringStart "killed during its start",
    /// A job failed after its effect.
    JobFailed "job failed after its effect",
    /// A job hung after its effect, until its time limit ended it.
    JobHung "job hung after its effect",
    /// A node was killed between the effect of a job and its commit.
    CrashDuringJob "killed between the effect and the commit of a job",
    /// The effect of a job was repeated.
    EffectRepeated "effect of a job repeated",
    /// A message of an actor failed until an operator acted.
    MessagePoisoned "message failed until an operator acted",
    /// A key was unreadable for a while.
    KeyBlocked "key unreadable",
    /// A second node on another store was refused.
    SecondNodeRefused "second node refused",
    /// A service was upgraded.
    Upgraded "service upgraded",
    /// A client sent a command twice.
    CommandDuplicated "command sent twice",
    /// A client reused an id for another payload and got a conflict.
    IdReused "id reused for another payload",
    /// A client used ids that were too old or in the future.
    IdOutsideTimeWindow "id outside the time window",
    /// A client used a short deadline.
    DeadlineShortened "short deadline",
    /// The clock of the clients was wrong.
    ClientClockSkewed "client clock skewed",
    /// A client sent a command while its clock differed from that of the other client.
    ClientClocksDiffered "clocks of two clients differed",
    /// A service was handed over while its old node kept running.
    HandedOver "handed over with the old node running",
    /// A shard was released by a node of its service and opened by another.
    ShardHandedOver "shard handed over to another node",
    /// A shard was opened by another node after the end of its owner's lease.
    ShardTakenOver "shard taken over after a lease",
    /// A node was paused.
    NodePaused "node paused",
    /// A node was paused for longer than its lease.
    PausedBeyondLease "node paused for longer than its lease",
    /// A node was stopped.
    NodeStopped "node stopped",
    /// A node was cut off from its store.
    StoreCut "node cut off from its store",
    /// A node that had lost its shards tried to commit and was fenced.
    ZombieFenced "old node fenced",
}

impl FaultEvent {
    /// Returns whether the event requires a cluster with versions.
    pub(super) fn needs_version(self) -> bool {
        matches!(self, Self::Upgraded)
    }

    /// Returns whether the event requires a service of several nodes.
    pub(super) fn needs_several_nodes(self) -> bool {
        let is_move = matches!(self, Self::ShardHandedOver | Self::ShardTakenOver | Self::NodeStopped);
        is_move || matches!(self, Self::NodePaused | Self::PausedBeyondLease | Self::StoreCut)
    }

    /// Returns whether the event requires a cluster with workers.
    pub(super) fn needs_worker(self) -> bool {
        matches!(self, Self::JobFailed | Self::JobHung | Self::CrashDuringJob | Self::EffectRepeated)
    }
}

/// The number of occurrences per event. Clones share the counters.
#[derive(Clone, Default)]
pub(super) struct FaultCounts(Arc<Mutex<BTreeMap<FaultEvent, u64>>>);

impl FaultCounts {
    /// Counts one event.
    pub(super) fn one(&self, event: FaultEvent) {
        self.add(event, 1);
    }

    /// Counts several events at once.
    pub(super) fn add(&self, event: FaultEvent, times: u64) {
        if times > 0 {
            *self.0.lock().entry(event).or_default() += times;
        }
    }

    /// Returns the counts so far. Events that never happened are missing.
    pub(super) fn counts(&self) -> BTreeMap<FaultEvent, u64> {
        self.0.lock().clone()
    }
}

/// The number of injected faults of one kind, and the number of their hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultCount {
    /// The number of faults that were drawn, described, or injected by the scenario.
    pub requested: u64,
    /// The number of hits. A fault such as `Panic` may hit several times.
    pub fired: u64,
}

impl FaultCount {
    /// Adds the counts of another run.
    pub(super) fn add(&mut self, requested: u64, fired: u64) {
        self.requested += requested;
        self.fired += fired;
    }
}
