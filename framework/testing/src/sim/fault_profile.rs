//! Faults of a simulated cluster: permanent ones ([`FaultProfile`]) and single ones at a moment ([`Fault`]).
//!
//! Drawn by [plans](super::plan), injected by the [scheduler](super::fault_scheduler).

use std::fmt;
use std::time::Duration;

use super::SimError;
use super::crash_points::CrashPoint;

/// Faults that are active all the time.
///
/// ```
/// use whizbang::testing::FaultProfile;
///
/// let slow_disk = FaultProfile { commit_delay: 200, read_delay: 50, ..FaultProfile::NONE };
/// assert_eq!(slow_disk.to_string(), "0 ‰ loss, 0 ‰ duplicates, latency up to 0 ms, commits up to 200 ms, reads up to 50 ms");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultProfile {
    /// Messages lost per thousand: on the way to the broker, in the broker, or on the way from it. Also applies to its replies.
    pub loss: u16,
    /// Messages stored or delivered twice, per thousand.
    pub duplication: u16,
    /// Maximum latency of a message in milliseconds. Messages overtake each other within it.
    pub delay: u16,
    /// Maximum duration of a commit in milliseconds. Uncommitted data is lost in a crash.
    pub commit_delay: u16,
    /// Maximum duration of a read from a store in milliseconds. The data read may be that old.
    pub read_delay: u16,
}

/// The numbers are chosen by the test. A [`Flow`](super::Flow) draws them: a quarter of its cases has none.
impl FaultProfile {
    /// Returns whether the profile delays messages for long: lost messages are sent again with growing delays.
    pub(super) fn disturbs(self) -> bool {
        const LONG: u16 = 500;
        self.loss > 0 || self.delay > LONG || self.commit_delay > LONG || self.read_delay > LONG
    }

    /// No faults: every message arrives once, in order and at once.
    pub const NONE: Self = Self { loss: 0, duplication: 0, delay: 0, commit_delay: 0, read_delay: 0 };
}

impl fmt::Display for FaultProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return f.write_str("none");
        }
        write!(
            f,
            "{} ‰ loss, {} ‰ duplicates, latency up to {} ms, commits up to {} ms, reads up to {} ms",
            self.loss, self.duplication, self.delay, self.commit_delay, self.read_delay
        )
    }
}

/// An action of an operator on a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorAction {
    /// Redrives it and the messages parked behind it.
    Redrive,
    /// Discards it.
    Discard,
}

/// The direction in which a link is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkDirection {
    /// Messages to the node are lost.
    Inbound,
    /// Messages from the node are lost.
    Outbound,
    /// Messages in both directions are lost.
    Both,
}

/// A fault at one moment. Services are numbered from 0, in the order in which they were added.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Kills a node of the service and restarts it later. Any prefix of its uncommitted appends may survive.
    Crash {
        /// The service.
        service: usize,
        /// The number of steps that other tasks take before the crash: the order within one instant.
        steps: u8,
        /// The time until the restart.
        down: Duration,
    },
    /// Kills a node of the service in the middle of the next operation of this kind, and restarts it later. Has no effect if none
    /// starts within [10 s](Fault::MAX_WAIT).
    CrashAt {
        /// The service.
        service: usize,
        /// The operation to interrupt.
        point: CrashPoint,
        /// The number of steps that other tasks take before the crash.
        steps: u8,
        /// The time until the restart.
        down: Duration,
    },
    /// Makes the wall clock of the service's node jump.
    ClockJump {
        /// The service.
        service: usize,
        /// The size of the jump in milliseconds.
        millis: i64,
        /// The time until the clock is corrected. While the error exceeds a sender's deadline, external commands are rejected as
        /// late.
        duration: Duration,
    },
    /// Kills a node of the service and restarts it at once on a machine with a wrong wall clock. Timers that were set before are
    /// due by that clock, so a timer may fire long before its time.
    Reboot {
        /// The service.
        service: usize,
        /// The clock error in milliseconds.
        millis: i64,
        /// The time until the clock is corrected.
        duration: Duration,
    },
    /// Loses messages from one service to another. The other direction works.
    Partition {
        /// The sending service.
        from: usize,
        /// The receiving service.
        to: usize,
        /// The duration.
        duration: Duration,
    },
    /// Loses messages to or from a service's nodes.
    Isolate {
        /// The service.
        service: usize,
        /// The direction.
        direction: LinkDirection,
        /// The duration.
        duration: Duration,
    },
    /// Loses all messages stored in the broker or in transit.
    PurgeStreams,
    /// A hostile client writes forged, malformed and oversize packets to every domain, see
    /// [`Hostile`](whizbang_conformance::bridge::hostile::Hostile). Not drawn at random, because it fills the trace.
    Forge {
        /// The seed of the packets.
        seed: u64,
        /// The number of packets.
        count: u16,
    },
    /// Deletes all streams of the broker with their messages and consumers. Their owners create them again.
    LoseStreams,
    /// Pauses the broker.
    PauseBroker {
        /// The duration.
        duration: Duration,
    },
    /// The broker has no leader: it refuses messages, yet stores half of those, delivers nothing, and has forgotten the last
    /// settlement of every consumer.
    ChangeLeader {
        /// The duration.
        duration: Duration,
    },
    /// Messages carry ids, and the broker drops every message with a known id, even if it no longer has the first one.
    DropDuplicates {
        /// The time for which the broker knows an id.
        window: Duration,
        /// The time during which messages carry ids.
        duration: Duration,
    },
    /// The broker fails to store half of the messages but remembers their ids, so that a retry counts as a duplicate.
    FailToStore {
        /// The duration.
        duration: Duration,
    },
    /// Shortens the ack wait: unsettled messages are redelivered soon.
    ShortenAckWait {
        /// The ack wait, at least 1 ms.
        wait: Duration,
        /// The duration.
        duration: Duration,
    },
    /// Limits the messages in flight per consumer.
    LimitInFlight {
        /// The limit.
        limit: u16,
        /// The duration.
        duration: Duration,
    },
    /// Delays the service's handlers for each message, one after the other.
    SlowHandlers {
        /// The service.
        service: usize,
        /// The delay per message.
        per_message: Duration,
        /// The duration.
        duration: Duration,
    },
    /// Isolates the service's node while another node takes over. Then reconnects the old node, which does not know that it
    /// lost ownership, and kills it later. One of [several nodes](super::Sim::nodes) is also cut off from its store.
    HandOver {
        /// The service.
        service: usize,
        /// The time during which the old node is isolated.
        cut_off: Duration,
        /// The time until the old node is killed after that.
        lingers: Duration,
    },
    /// The next messages of the service's handlers cause panics, and succeed when retried. At most two panics per message.
    Panic {
        /// The service.
        service: usize,
        /// The number of panics.
        times: u8,
    },
    /// The next jobs of the service's workers fail after their effect and are retried. At most two failures or panics per
    /// message.
    FailJobs {
        /// The service.
        service: usize,
        /// The number of failures.
        times: u8,
    },
    /// The next jobs of the service's workers hang after their effect, until the node's
    /// [`job_limit`](whizbang_runtime::NodeConfig::job_limit) ends them, and are retried. At most two per message.
    HangJobs {
        /// The service.
        service: usize,
        /// The number of jobs.
        times: u8,
    },
    /// The next message of an actor that the service handles within [10 s](Fault::MAX_WAIT) fails in every attempt and becomes a
    /// dead letter. An operator handles it later; from then on the message succeeds.
    Poison {
        /// The service.
        service: usize,
        /// The time between the dead letter and the operator action.
        after: Duration,
        /// The operator action.
        action: OperatorAction,
    },
    /// Makes the next key of an aggregate or saga that a node of the service loads unreadable. Messages for other keys must not
    /// wait.
    BlockKey {
        /// The service.
        service: usize,
        /// The duration, counted from the fault.
        duration: Duration,
    },
    /// Starts a second node of the service on an empty store, as after a missing mount. The broker must refuse it, because the
    /// domains are claimed for another store.
    SecondNode {
        /// The service. It owns a domain.
        service: usize,
    },
    /// Kills all nodes of the service and starts nodes of another version, see [`Sim::version`](super::Sim::version). Version 0 is
    /// the first.
    Upgrade {
        /// The service.
        service: usize,
        /// The version.
        version: usize,
        /// The time until the restart.
        down: Duration,
    },
    /// Pauses a node of a service with [several nodes](super::Sim::nodes), as SIGSTOP does. After 2 s others own its shards.
    PauseNode {
        /// The service.
        service: usize,
        /// The duration.
        duration: Duration,
    },
    /// Stops a node of a service with several nodes, which hands its shards over, and starts another one later, which joins the
    /// others.
    StopNode {
        /// The service.
        service: usize,
        /// The time until the restart.
        down: Duration,
    },
    /// Cuts a node of a service with several nodes off from its store: requests, replies or both wait.
    CutStore {
        /// The service.
        service: usize,
        /// The direction, as seen from the node.
        direction: LinkDirection,
        /// The duration.
        duration: Duration,
    },
    /// Cuts a node of a service with several nodes off from the broker: messages to it, from it or both are lost.
    CutBroker {
        /// The service.
        service: usize,
        /// The direction.
        direction: LinkDirection,
        /// The duration.
        duration: Duration,
    },
    /// Sets the wall clock of all clients wrong: their ids have another time, and their deadlines have passed or never pass.
    SkewClientClocks {
        /// The clock error in milliseconds.
        millis: i64,
        /// The duration.
        duration: Duration,
    },
    /// Sets the wall clock of one of two clients wrong, which then sends every second command: ids of two times alternate, and an id
    /// may be older than one that was handled before it.
    SkewOneClient {
        /// The clock error in milliseconds.
        millis: i64,
        /// The duration.
        duration: Duration,
    },
    /// Sends the next commands of clients twice with the same id, at once or within 3 s. They must be handled once and get the same
    /// reply.
    DuplicateCommands {
        /// The number of commands.
        times: u8,
    },
    /// Reuses the ids of the next acknowledged commands for another payload, which must be a conflict.
    ReuseIds {
        /// The number of commands.
        times: u8,
    },
    /// Also sends the next commands of clients with ids of the years 2000 and 2100, which must be rejected.
    OldAndFutureIds {
        /// The number of commands.
        times: u8,
    },
    /// Shortens the deadline of the first attempt of the next commands.
    ShortenDeadlines {
        /// The deadline.
        deadline: Duration,
        /// The number of commands.
        times: u8,
    },
    /// Fails the store of the service: the outcome of pending commits is unknown, and the shards must be opened again. In every
    /// second case it fails again soon after, possibly while they are.
    FailCommits {
        /// The service.
        service: usize,
    },
}

impl Fault {
    /// The time that a fault waits for the operation that it interrupts.
    pub const MAX_WAIT: Duration = Duration::from_secs(10);

    /// Returns the services that the fault refers to.
    fn services(&self) -> Vec<usize> {
        match self {
            Self::Crash { service, .. }
            | Self::CrashAt { service, .. }
            | Self::ClockJump { service, .. }
            | Self::Reboot { service, .. }
            | Self::Isolate { service, .. }
            | Self::SlowHandlers { service, .. }
            | Self::HandOver { service, .. }
            | Self::Panic { service, .. }
            | Self::FailJobs { service, .. }
            | Self::HangJobs { service, .. }
            | Self::Poison { service, .. }
            | Self::BlockKey { service, .. }
            | Self::Upgrade { service, .. }
            | Self::SecondNode { service }
            | Self::PauseNode { service, .. }
            | Self::StopNode { service, .. }
            | Self::CutStore { service, .. }
            | Self::CutBroker { service, .. }
            | Self::FailCommits { service } => vec![*service],
            Self::Partition { from, to, .. } => vec![*from, *to],
            Self::PurgeStreams
            | Self::Forge { .. }
            | Self::LoseStreams
            | Self::PauseBroker { .. }
            | Self::ChangeLeader { .. }
            | Self::DropDuplicates { .. }
            | Self::FailToStore { .. }
            | Self::ShortenAckWait { .. }
            | Self::LimitInFlight { .. }
            | Self::SkewClientClocks { .. }
            | Self::SkewOneClient { .. }
            | Self::DuplicateCommands { .. }
            | Self::ReuseIds { .. }
            | Self::OldAndFutureIds { .. }
            | Self::ShortenDeadlines { .. } => Vec::new(),
        }
    }

    /// Returns an error if the fault refers to a service that a cluster of this size does not have.
    pub(super) fn check_services(&self, count: usize) -> Option<SimError> {
        let service = self.services().into_iter().find(|service| *service >= count)?;
        Some(SimError::MissingService { fault: format!("{self:?}"), service, count })
    }

    /// Returns the service whose jobs the fault targets.
    pub(super) fn targets_jobs_of(&self) -> Option<usize> {
        match self {
            Self::FailJobs { service, .. } | Self::HangJobs { service, .. } => Some(*service),
            Self::CrashAt { service, point: CrashPoint::Job, .. } => Some(*service),
            _ => None,
        }
    }

    /// Returns whether the fault may delay all messages. A fault of user code may only delay the key or job that it hits, and a
    /// fault of a client only its command.
    pub(super) fn disturbs(&self) -> bool {
        let targets_code = matches!(self, Self::Panic { .. } | Self::FailJobs { .. } | Self::HangJobs { .. });
        let targets_key = matches!(self, Self::Poison { .. } | Self::BlockKey { .. } | Self::SecondNode { .. });
        !targets_code && !targets_key && !self.targets_client_commands()
    }

    /// Returns whether the fault targets messages between actors.
    pub(super) fn targets_actor_messages(&self) -> bool {
        matches!(self, Self::Poison { .. })
    }

    /// Returns whether the fault targets commands of clients, and needs some to hit.
    pub(super) fn targets_client_commands(&self) -> bool {
        let is_sent =
            matches!(self, Self::DuplicateCommands { .. } | Self::ReuseIds { .. } | Self::OldAndFutureIds { .. });
        is_sent || matches!(self, Self::ShortenDeadlines { .. })
    }
}

/// An injected fault.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InjectedFault {
    /// The fault.
    pub fault: Fault,
    /// The moment of injection, in virtual time since the start of the cluster.
    pub at: Duration,
    /// The number of hits so far.
    pub times: u64,
}
