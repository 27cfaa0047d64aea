//! The simulated broker: JetStream in memory, with latency, loss and other faults around it.
//!
//! Called by the [bridges](super::bridge) of simulated nodes and by the [fault scheduler](super::fault_scheduler). Streams and
//! consumers are those of the [model](whizbang_conformance::broker::model); this module adds transport, chance and partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::broker_names::{commands, events};
use super::crash_points::{CrashPoint, CrashPoints};
use super::fault_counts::{FaultCounts, FaultEvent};
use super::fault_profile::FaultProfile;
use super::link::SimLink;
use super::observed_messages::ObservedMessages;
use super::trace::Trace;
use whizbang_conformance::bridge::hostile::Hostile;
use whizbang_conformance::broker::model::{Delivery, Model, Next};
use whizbang_conformance::broker::{
    Acknowledgement, ConsumerSettings, Discard, PublishError, Retention, StreamSettings,
};
use whizbang_core::bridge::Claim;
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, IdSource, MessageId, Name, ShardId};
use whizbang_wire::Packet;

/// Time after which an unsettled message is redelivered. Shorter than a NATS server's, so that more happens.
pub(super) const ACK_WAIT: Duration = Duration::from_secs(5);
/// Maximum number of unsettled messages per consumer.
pub(super) const MAX_IN_FLIGHT: usize = 1000;
/// Default time for which the broker knows an id while it drops duplicates.
pub(super) const DEDUP_WINDOW: Duration = Duration::from_secs(120);

/// A packet in a stream, with the index of the sending service and the shard in its subject.
pub(super) struct StoredPacket {
    /// The service that has published it.
    pub(super) from: usize,
    /// The shard to which a direct message goes. `None` for an event.
    pub(super) to: Option<ShardId>,
    /// The packet as the wire has it.
    pub(super) packet: Packet,
}

/// The broker of one simulated cluster. Clones refer to the same broker.
#[derive(Clone)]
pub(super) struct Broker {
    /// Everything that changes.
    state: Arc<Mutex<State>>,
    /// The trace of the run, to which every delivery adds a line.
    pub(super) trace: Trace,
    /// The counters of faults that took effect.
    pub(super) fault_counts: FaultCounts,
}

/// The state of the broker. Invariant: it changes only under its lock, on the one thread of the simulation, so each run
/// changes it in the same order.
pub(super) struct State {
    /// The streams and consumers.
    pub(super) model: Model<Arc<StoredPacket>>,
    /// The links of attached nodes by their numbers.
    pub(super) links: BTreeMap<u64, Arc<SimLink>>,
    /// The number of the last link. Numbers are never reused.
    last_number: u64,
    /// The rates of faults at the moment.
    pub(super) profile: FaultProfile,
    /// The source of all decisions about faults and latency.
    pub(super) rng: IdSource,
    /// The pairs of services, from and to, between which no packet passes.
    pub(super) partitions: BTreeSet<(usize, usize)>,
    /// The services to which no packet passes.
    pub(super) inbound_blocked: BTreeSet<usize>,
    /// The services from which no packet passes.
    pub(super) outbound_blocked: BTreeSet<usize>,
    /// Incremented when all messages in transit are lost.
    pub(super) purge_epoch: u64,
    /// The number of messages on their way from or to a node.
    pub(super) in_transit: usize,
    /// The end of a pause.
    pub(super) paused_until: Option<Instant>,
    /// The end of a time without a leader.
    pub(super) no_leader_until: Option<Instant>,
    /// The end of a time in which messages carry ids and duplicates are dropped.
    pub(super) dedup_until: Option<Instant>,
    /// The end of a time in which storing may fail half-way.
    pub(super) store_fails_until: Option<Instant>,
    /// The duplicate window of new streams.
    pub(super) window: Duration,
    /// The settings of all consumers.
    pub(super) consumers: ConsumerSettings,
    /// Slow services: the end of the slowness and the delay per message. `busy` holds the end of their current work.
    pub(super) slow: BTreeMap<usize, (Instant, Duration)>,
    /// The end of the current work of each slow service, behind which its next message waits.
    pub(super) busy: BTreeMap<usize, Instant>,
    /// One notifier for each stream, for the consumers that wait for its messages.
    notifiers: BTreeMap<String, Arc<Notify>>,
    /// The crash points of each service.
    crash_points: BTreeMap<usize, CrashPoints>,
    /// The number of messages rejected because they could not be decoded or handled.
    pub(super) rejected: usize,
    /// Called for every message that a node has acknowledged.
    ack_observer: Option<AckObserver>,
    /// The acknowledged messages, which a hostile client replays and changes.
    pub(super) observed: ObservedMessages,
    /// The ids of published events, by their position in the log.
    pub(super) published: BTreeMap<(ShardId, u64), MessageId>,
    /// Commands of clients that the broker lost after accepting them, or that a node rejected.
    pub(super) lost: BTreeSet<MessageId>,
    /// The last moment at which all messages were lost.
    pub(super) purged_at: Option<Instant>,
    /// The store that owns each domain. A real broker also keeps claims apart from the streams.
    pub(super) claims: BTreeMap<Name, Claim>,
}

/// A callback with the service and the message that it has acknowledged.
pub(super) type AckObserver = Arc<dyn Fn(usize, &Envelope) + Send + Sync>;

/// The outcome of storing a message.
pub(super) enum StoreOutcome {
    /// The message is stored, or is a duplicate.
    Stored,
    /// The stream does not exist.
    NoStream,
    /// The broker refuses the message, and may have stored it.
    NoLeader,
    /// The broker failed while storing the message.
    Failed,
}

impl Broker {
    /// Creates a broker without streams, links and faults.
    pub(super) fn new(rng: IdSource, trace: Trace, fault_counts: FaultCounts) -> Self {
        let state = State {
            model: Model::default(),
            links: BTreeMap::new(),
            last_number: 0,
            profile: FaultProfile::NONE,
            rng,
            partitions: BTreeSet::new(),
            inbound_blocked: BTreeSet::new(),
            outbound_blocked: BTreeSet::new(),
            purge_epoch: 0,
            in_transit: 0,
            paused_until: None,
            no_leader_until: None,
            dedup_until: None,
            store_fails_until: None,
            window: DEDUP_WINDOW,
            consumers: ConsumerSettings { ack_wait: ACK_WAIT, max_ack_pending: MAX_IN_FLIGHT },
            slow: BTreeMap::new(),
            busy: BTreeMap::new(),
            notifiers: BTreeMap::new(),
            crash_points: BTreeMap::new(),
            rejected: 0,
            ack_observer: None,
            observed: ObservedMessages::default(),
            published: BTreeMap::new(),
            lost: BTreeSet::new(),
            purged_at: None,
            claims: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), trace, fault_counts }
    }

    /// Locks the state. Never held across an await.
    pub(super) fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Replaces the rates of faults from now on.
    pub(super) fn set_fault_profile(&self, profile: FaultProfile) {
        self.state().profile = profile;
    }

    /// Returns the crash points of a service.
    pub(super) fn crash_points(&self, service: usize) -> CrashPoints {
        self.state().crash_points.entry(service).or_default().clone()
    }

    /// Reports that a node of a service has reached a crash point.
    pub(super) fn reach_crash_point(&self, service: usize, point: CrashPoint) {
        if let Some(crash_points) = self.state().crash_points.get(&service) {
            crash_points.reach(point);
        }
    }

    /// Sets the function that sees every acknowledgement, for the rules.
    pub(super) fn observe_acks(&self, ack_observer: AckObserver) {
        self.state().ack_observer = Some(ack_observer);
    }

    /// Reports that a node of a service has acknowledged a message.
    pub(super) fn acked(&self, service: usize, envelope: &Envelope) {
        // Forged messages are acknowledged without a commit, because they are dropped.
        if Hostile::is_forged(envelope) {
            return;
        }
        let ack_observer = {
            let mut state = self.state();
            state.observed.add(service, envelope);
            state.ack_observer.clone()
        };
        if let Some(ack_observer) = ack_observer {
            ack_observer(service, envelope);
        }
    }

    /// Adds a node.
    pub(super) fn join(&self, link: impl FnOnce(u64) -> Arc<SimLink>) -> Arc<SimLink> {
        let mut state = self.state();
        state.last_number += 1;
        let link = link(state.last_number);
        state.links.insert(link.number, Arc::clone(&link));
        link
    }

    /// Returns the links of a service, in the order in which they were attached.
    pub(super) fn links_of(&self, service: usize) -> Vec<Arc<SimLink>> {
        self.state().links.values().filter(|link| link.service == service).cloned().collect()
    }

    /// Returns all links.
    pub(super) fn links(&self) -> Vec<Arc<SimLink>> {
        self.state().links.values().cloned().collect()
    }

    /// Removes a node that was killed or has detached.
    pub(super) fn leave(&self, link: &SimLink) {
        self.state().links.remove(&link.number);
        link.end();
        self.notify_all();
    }

    /// Returns the notifier for consumers that wait for a change of a stream.
    pub(super) fn notifier(&self, stream: &str) -> Arc<Notify> {
        Arc::clone(self.state().notifiers.entry(stream.to_owned()).or_default())
    }

    /// Wakes all consumers, so that they look at the state again.
    pub(super) fn notify_all(&self) {
        let notifiers: Vec<_> = self.state().notifiers.values().cloned().collect();
        notifiers.iter().for_each(|notifier| notifier.notify_waiters());
    }

    /// Returns true if a fault with an end is over, or if there is none.
    fn is_past(until: Option<Instant>) -> bool {
        until.is_none_or(|until| until <= instant())
    }

    /// Waits until the broker is not paused.
    pub(super) async fn wait_unpaused(&self) {
        let until = self.state().paused_until.filter(|until| *until > instant());
        if let Some(until) = until {
            self.fault_counts.one(FaultEvent::BrokerPaused);
            tokio::time::sleep_until(until).await;
        }
    }

    /// Draws the latency of one message.
    pub(super) fn latency(&self) -> Duration {
        let state = self.state();
        Duration::from_micros(state.rng.below(u64::from(state.profile.delay) * 1000 + 1))
    }

    /// Counts a message in transit to the broker or to a node.
    pub(super) fn start_transit(&self) -> InTransit {
        let mut state = self.state();
        state.in_transit += 1;
        InTransit(self.clone(), state.purge_epoch)
    }

    /// Decides whether an event with this rate, in thousandths, happens now. A rate of zero takes no random number.
    fn draws(&self, of_thousand: u16) -> bool {
        of_thousand > 0 && self.state().rng.below(1000) < u64::from(of_thousand)
    }

    /// Draws whether a message is lost.
    pub(super) fn draws_loss(&self) -> bool {
        let per_mille = self.state().profile.loss;
        self.draws(per_mille)
    }

    /// Draws whether a message is duplicated.
    pub(super) fn draws_duplicate(&self) -> bool {
        let per_mille = self.state().profile.duplication;
        self.draws(per_mille)
    }

    /// Draws a number in `0..count`.
    pub(super) fn draw(&self, count: u64) -> u64 {
        self.state().rng.below(count)
    }

    /// Returns whether messages from a node pass. Counts the loss if they do not.
    pub(super) fn is_outbound_open(&self, link: &SimLink) -> bool {
        let is_open = !link.is_outbound_cut() && !self.state().outbound_blocked.contains(&link.service);
        if !is_open {
            self.fault_counts.one(FaultEvent::OutboundBlocked);
        }
        is_open
    }

    /// Returns whether messages to a node pass. Counts the loss if they do not.
    pub(super) fn is_inbound_open(&self, link: &SimLink) -> bool {
        let is_inbound_open = !link.is_inbound_cut() && !self.state().inbound_blocked.contains(&link.service);
        if !is_inbound_open {
            self.fault_counts.one(FaultEvent::InboundBlocked);
        }
        is_inbound_open
    }

    /// Returns whether a node can pull messages.
    pub(super) fn can_pull(&self, link: &SimLink) -> bool {
        !link.is_outbound_cut() && !self.state().outbound_blocked.contains(&link.service)
    }

    /// Returns true if no packet passes from one service to the other, and counts the packet that is lost.
    pub(super) fn is_partitioned(&self, from: usize, to: usize) -> bool {
        let is_cut = self.state().partitions.contains(&(from, to));
        if is_cut {
            self.fault_counts.one(FaultEvent::Partitioned);
        }
        is_cut
    }

    /// Stores a message that has reached the broker.
    pub(super) fn store(&self, stream: &str, id: &str, message: &Arc<StoredPacket>) -> StoreOutcome {
        let now = instant();
        let has_no_leader = !Self::is_past(self.state().no_leader_until);
        if has_no_leader {
            self.fault_counts.one(FaultEvent::RefusedWithoutLeader);
            if self.draw(2) == 0 {
                return StoreOutcome::NoLeader;
            }
            self.fault_counts.one(FaultEvent::RefusedAndStored);
        }
        let twice = self.draws_duplicate() && self.draw(2) == 0;
        let stored = {
            let mut state = self.state();
            let id = Some(id).filter(|_| state.dedup_until.is_some_and(|until| until > now));
            if let Some(id) = id.filter(|id| state.model.has_orphaned_id(stream, id, now)) {
                self.fault_counts.one(FaultEvent::FalseDuplicate);
                self.trace.add(format_args!("  the broker drops it as a duplicate without having it: {id}"));
                state.record_lost(message);
            }
            let fails = state.store_fails_until.is_some_and(|until| until > now) && state.rng.below(2) == 0;
            if let Some(id) = id.filter(|_| fails) {
                if state.model.state(stream).is_none() {
                    return StoreOutcome::NoStream;
                }
                state.model.insert_id(stream, id, now);
                // A retry with this id counts as a duplicate.
                state.record_lost(message);
                self.trace.add(format_args!("  the broker fails to store it"));
                return StoreOutcome::Failed;
            }
            let stored = state.model.publish(stream, id, Arc::clone(message), now);
            if matches!(stored, Ok(stored) if twice && !stored.duplicate)
                && state.model.publish(stream, id, Arc::clone(message), now).is_ok_and(|again| !again.duplicate)
            {
                self.fault_counts.one(FaultEvent::StoredTwice);
                self.trace.add(format_args!("  the broker stores it twice"));
            }
            stored
        };
        match stored {
            Err(PublishError::NoStream) => return StoreOutcome::NoStream,
            Err(PublishError::Full) => return StoreOutcome::Failed,
            Ok(stored) if stored.duplicate => {
                self.fault_counts.one(FaultEvent::DuplicateDropped);
                self.trace.add(format_args!("  the broker already has it as {}", stored.sequence));
            }
            Ok(_) => self.notifier(stream).notify_waiters(),
        }
        if has_no_leader { StoreOutcome::NoLeader } else { StoreOutcome::Stored }
    }

    /// Returns the next message for a service, or the time of the next attempt.
    pub(super) fn next(&self, stream: &str, consumer: &str) -> Next<Arc<StoredPacket>> {
        let now = instant();
        let mut state = self.state();
        let still =
            [state.paused_until, state.no_leader_until].into_iter().flatten().filter(|until| *until > now).max();
        if let Some(until) = still {
            return Next::Empty(Some(until));
        }
        let next = state.model.next(stream, consumer, now);
        match &next {
            Next::Message(Delivery { is_late, is_overtaken, .. }) => {
                if *is_late {
                    self.fault_counts.one(FaultEvent::AckWaitExpired);
                }
                if *is_overtaken {
                    self.fault_counts.one(FaultEvent::RedeliveredOutOfOrder);
                }
            }
            Next::AtLimit(_) => self.fault_counts.one(FaultEvent::InFlightLimitReached),
            Next::Empty(_) | Next::Missing => {}
        }
        next
    }

    /// Applies a settlement that has reached the broker.
    pub(super) fn settle(&self, stream: &str, consumer: &str, sequence: u64, acknowledgement: Acknowledgement) {
        self.state().model.acknowledge(stream, consumer, sequence, acknowledgement, instant());
        self.notifier(stream).notify_waiters();
    }

    /// Creates the streams of a node, and its consumers on existing streams. Returns whether all consumers exist.
    pub(super) fn ensure_streams(&self, link: &SimLink) -> bool {
        let mut state = self.state();
        let (window, consumers) = (state.window, state.consumers);
        let service = link.card.service.as_str();
        for (domain, _) in &link.card.owns {
            let settings = |retention, discard| StreamSettings {
                duplicate_window: window,
                discard,
                ..StreamSettings::of(retention)
            };
            state.model.create_stream(&commands(domain), settings(Retention::WorkQueue, Discard::New));
            state.model.create_stream(&events(domain), settings(Retention::Limits, Discard::Old));
            if link.card.has_leased_shards {
                // An exclusive version of the service has left it behind.
                state.model.delete_consumer(&commands(domain), service);
            } else {
                state.model.create_consumer(&commands(domain), service, consumers);
            }
        }
        // A node with leased shards receives live events, without a consumer.
        let mut taken = link.card.subscribes.iter().filter(|_| !link.card.has_leased_shards);
        let all = taken
            .by_ref()
            .fold(true, |all, (domain, ..)| state.model.create_consumer(&events(domain), service, consumers) && all);
        drop(state);
        self.notify_all();
        all
    }
}

/// A message in transit. Dropping it ends the transit: messages of a killed node are lost.
pub(super) struct InTransit(Broker, u64);

impl InTransit {
    /// Ends the transit. Returns false if the streams were purged since its start.
    pub(super) fn arrives(self) -> bool {
        self.0.state().purge_epoch == self.1
    }
}

impl Drop for InTransit {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if state.purge_epoch == self.1 {
            state.in_transit -= 1;
        }
    }
}

impl State {
    /// Records a lost command of a client. Messages of actors and events are sent again from the log.
    pub(super) fn record_lost(&mut self, message: &StoredPacket) {
        if let Ok(envelope) = message.packet.envelope()
            && envelope.origin.is_none()
        {
            self.lost.insert(envelope.id);
        }
    }

    /// Applies the current settings to all consumers.
    pub(super) fn apply_consumer_settings(&mut self) {
        let wanted = self.consumers;
        self.model.reconfigure(|_, consumers| consumers.iter_mut().for_each(|consumer| **consumer = wanted));
        self.model.shorten_ack_deadlines(instant());
    }
}
