//! The broker of a simulated cluster: a JetStream in memory, and everything that may go wrong around it.
//!
//! Called by the [bridges](super::link) of simulated nodes, and by what [brings faults about](super::fault_scheduler). Streams and consumers are
//! those of the [model](crate::testing::broker::model); here are the ways to it, the chance, and who is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::crash_points::{CrashPoint, CrashPoints};
use super::fault_counts::{FaultCounts, FaultEvent};
use super::fault_profile::FaultProfile;
use super::link::{SimLink, SimulatedBridge};
use super::trace::Trace;
use crate::bridge::wire::Packet;
use crate::bridge::{BridgeError, Claim, NodeCard};
use crate::clock::instant;
use crate::message::{Envelope, IdSource, MessageId, Name, ShardId};
use crate::testing::bridge::hostile::Hostile;
use crate::testing::broker::model::{Delivery, Model, Next};
use crate::testing::broker::{Acknowledgement, ConsumerSettings, Discard, PublishError, Retention, StreamSettings};

/// How long a message may be in hand before it comes again. As a NATS server's, but shorter: more happens.
pub(super) const ACK_WAIT: Duration = Duration::from_secs(5);
/// How many messages of a consumer may be in hand.
pub(super) const IN_HAND: usize = 1000;
/// For how long ids are known, while the broker drops repeats and nothing else is said.
pub(super) const WINDOW: Duration = Duration::from_secs(120);

/// A message in a stream, and who sent it.
pub(super) struct Parcel {
    pub(super) from: usize,
    pub(super) packet: Packet,
}

/// The broker of one simulated cluster. Clones are the same.
#[derive(Clone)]
pub(super) struct Broker(Arc<Mutex<State>>, pub(super) Trace, pub(super) FaultCounts);

pub(super) struct State {
    pub(super) model: Model<Arc<Parcel>>,
    pub(super) lines: BTreeMap<u64, Arc<SimLink>>,
    last: u64,
    pub(super) weather: FaultProfile,
    pub(super) dice: IdSource,
    pub(super) cuts: BTreeSet<(usize, usize)>,
    /// Services that hear nothing, and such that are not heard.
    pub(super) deaf: BTreeSet<usize>,
    pub(super) mute: BTreeSet<usize>,
    /// Rises when everything under way is lost.
    pub(super) age: u64,
    /// How much is on its way from or to a node.
    pub(super) under_way: usize,
    /// Until when the broker stands still.
    pub(super) paused: Option<Instant>,
    /// Until when it has no leader.
    pub(super) electing: Option<Instant>,
    /// Until when messages have ids, which the broker knows for a while.
    pub(super) naming: Option<Instant>,
    /// Until when storing may fail in the middle.
    pub(super) failing: Option<Instant>,
    pub(super) window: Duration,
    pub(super) consumers: ConsumerSettings,
    /// Until when handlers of a service take how long for each message, and until when they are busy.
    pub(super) slow: BTreeMap<usize, (Instant, Duration)>,
    pub(super) busy: BTreeMap<usize, Instant>,
    bells: BTreeMap<String, Arc<Notify>>,
    begun: BTreeMap<usize, CrashPoints>,
    /// How many messages were put aside because they were none.
    pub(super) refused: usize,
    /// Told whenever a node of a service says that a message is done.
    witness: Option<Witness>,
    /// The events that were published: where they stand in their log, and which they are.
    published: BTreeMap<(ShardId, u64), MessageId>,
    /// Commands of clients that it has taken and lost, or that a node has put aside.
    lost: BTreeSet<MessageId>,
    /// When everything was lost.
    pub(super) emptied: Option<Instant>,
    /// Which store's node speaks for each domain. A real broker keeps that apart from the streams.
    claims: BTreeMap<Name, Claim>,
}

/// Told which service has settled which message as done.
pub(super) type Witness = Arc<dyn Fn(usize, &Envelope) + Send + Sync>;

/// What becomes of a message that has reached the broker.
pub(super) enum Reached {
    /// It is stored, or known.
    Taken,
    /// There is no such stream.
    NoStream,
    /// The broker refuses it; it may be stored all the same.
    NoLeader,
    /// The broker has failed while storing it.
    Failed,
}

impl Broker {
    pub(super) fn new(dice: IdSource, trace: Trace, tally: FaultCounts) -> Self {
        let state = State {
            model: Model::default(),
            lines: BTreeMap::new(),
            last: 0,
            weather: FaultProfile::FAIR,
            dice,
            cuts: BTreeSet::new(),
            deaf: BTreeSet::new(),
            mute: BTreeSet::new(),
            age: 0,
            under_way: 0,
            paused: None,
            electing: None,
            naming: None,
            failing: None,
            window: WINDOW,
            consumers: ConsumerSettings { ack_wait: ACK_WAIT, max_ack_pending: IN_HAND },
            slow: BTreeMap::new(),
            busy: BTreeMap::new(),
            bells: BTreeMap::new(),
            begun: BTreeMap::new(),
            refused: 0,
            witness: None,
            published: BTreeMap::new(),
            lost: BTreeSet::new(),
            emptied: None,
            claims: BTreeMap::new(),
        };
        Self(Arc::new(Mutex::new(state)), trace, tally)
    }

    pub(super) fn bridge(&self, service: usize) -> SimulatedBridge {
        SimulatedBridge::new(self.clone(), service)
    }

    pub(super) fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.0.lock()
    }

    pub(super) fn set_weather(&self, weather: FaultProfile) {
        self.state().weather = weather;
    }

    /// What the nodes of a service begin.
    pub(super) fn begun(&self, service: usize) -> CrashPoints {
        self.state().begun.entry(service).or_default().clone()
    }

    /// A node of a service begins something.
    pub(super) fn begins(&self, service: usize, work: CrashPoint) {
        if let Some(begun) = self.state().begun.get(&service) {
            begun.tell(work);
        }
    }

    pub(super) fn witness(&self, witness: Witness) {
        self.state().witness = Some(witness);
    }

    /// A node of a service has said that a message is done.
    pub(super) fn settled(&self, service: usize, envelope: &Envelope) {
        let witness = self.state().witness.clone();
        // A forged message is done once it is dropped: nothing is committed for it.
        if let Some(witness) = witness.filter(|_| !Hostile::is_forged(envelope)) {
            witness(service, envelope);
        }
    }

    /// Claims the domains of a node for its store, all or none, as the bridge to a real broker does.
    pub(super) fn claim(&self, card: &NodeCard) -> Result<(), BridgeError> {
        let Some(store) = &card.store else { return Ok(()) };
        let claims = &mut self.state().claims;
        for (domain, _) in &card.owns {
            if let Some(found) = claims.get(domain) {
                found.admits(card, store, domain)?;
            }
        }
        claims.extend(card.owns.iter().map(|(domain, _)| (domain.clone(), Claim::of(card, store))));
        Ok(())
    }

    /// Adds a node.
    pub(super) fn join(&self, line: impl FnOnce(u64) -> Arc<SimLink>) -> Arc<SimLink> {
        let mut state = self.state();
        state.last += 1;
        let line = line(state.last);
        state.lines.insert(line.number, Arc::clone(&line));
        line
    }

    /// The nodes of a service, in the order in which they came.
    pub(super) fn lines_of(&self, service: usize) -> Vec<Arc<SimLink>> {
        self.state().lines.values().filter(|line| line.service == service).cloned().collect()
    }

    /// All nodes that are connected.
    pub(super) fn lines(&self) -> Vec<Arc<SimLink>> {
        self.state().lines.values().cloned().collect()
    }

    /// The node has died.
    pub(super) fn leave(&self, line: &SimLink) {
        self.state().lines.remove(&line.number);
        line.end();
        self.ring_all();
    }

    /// Whoever waits for something in a stream looks again.
    pub(super) fn bell(&self, stream: &str) -> Arc<Notify> {
        Arc::clone(self.state().bells.entry(stream.to_owned()).or_default())
    }

    pub(super) fn ring_all(&self) {
        let bells: Vec<_> = self.state().bells.values().cloned().collect();
        bells.iter().for_each(|bell| bell.notify_waiters());
    }

    fn is_over(until: Option<Instant>) -> bool {
        until.is_none_or(|until| until <= instant())
    }

    /// Waits until the broker does not stand still.
    pub(super) async fn resumed(&self) {
        let until = self.state().paused.filter(|until| *until > instant());
        if let Some(until) = until {
            self.2.one(FaultEvent::BrokerStoodStill);
            tokio::time::sleep_until(until).await;
        }
    }

    /// How long a way takes.
    pub(super) fn way(&self) -> Duration {
        let state = self.state();
        Duration::from_micros(state.dice.below(u64::from(state.weather.delay) * 1000 + 1))
    }

    /// Something sets out for the broker or for a node.
    pub(super) fn sets_out(&self) -> Flight {
        let mut state = self.state();
        state.under_way += 1;
        Flight(self.clone(), state.age)
    }

    fn happens(&self, of_thousand: u16) -> bool {
        of_thousand > 0 && self.state().dice.below(1000) < u64::from(of_thousand)
    }

    /// Whether something is lost on its way.
    pub(super) fn loses(&self) -> bool {
        let lose = self.state().weather.lose;
        self.happens(lose)
    }

    /// Whether something happens twice.
    pub(super) fn repeats(&self) -> bool {
        let repeat = self.state().weather.repeat;
        self.happens(repeat)
    }

    /// One of `count` ways in which something goes wrong.
    pub(super) fn draw(&self, count: u64) -> u64 {
        self.state().dice.below(count)
    }

    /// Whether what a node says is heard.
    pub(super) fn is_heard(&self, line: &SimLink) -> bool {
        let heard = !line.is_isolated() && !self.state().mute.contains(&line.service);
        if !heard {
            self.2.one(FaultEvent::Unsaid);
        }
        heard
    }

    /// Whether a node hears what is said.
    pub(super) fn hears(&self, line: &SimLink) -> bool {
        let hears = !line.is_isolated() && !self.state().deaf.contains(&line.service);
        if !hears {
            self.2.one(FaultEvent::Unheard);
        }
        hears
    }

    /// Whether a node can ask for messages at all.
    pub(super) fn can_pull(&self, line: &SimLink) -> bool {
        !line.is_isolated() && !self.state().mute.contains(&line.service)
    }

    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        let cut = self.state().cuts.contains(&(from, to));
        if cut {
            self.2.one(FaultEvent::CutOff);
        }
        cut
    }

    /// Stores what has reached the broker.
    pub(super) fn store(&self, stream: &str, id: &str, parcel: &Arc<Parcel>) -> Reached {
        let now = instant();
        let electing = !Self::is_over(self.state().electing);
        if electing {
            self.2.one(FaultEvent::RefusedByTheLeader);
            if self.draw(2) == 0 {
                return Reached::NoLeader;
            }
            self.2.one(FaultEvent::RefusedAndStored);
        }
        let twice = self.repeats() && self.draw(2) == 0;
        let stored = {
            let mut state = self.state();
            let id = Some(id).filter(|_| state.naming.is_some_and(|until| until > now));
            if let Some(id) = id.filter(|id| state.model.has_orphaned_id(stream, id, now)) {
                self.2.one(FaultEvent::FalseDuplicate);
                self.1.add(format_args!("  the broker takes it for a duplicate, and has not got it: {id}"));
                state.notes_lost(parcel);
            }
            let failing = state.failing.is_some_and(|until| until > now) && state.dice.below(2) == 0;
            if let Some(id) = id.filter(|_| failing) {
                if state.model.state(stream).is_none() {
                    return Reached::NoStream;
                }
                state.model.insert_id(stream, id, now);
                // Sent again with this id it is a duplicate.
                state.notes_lost(parcel);
                self.1.add(format_args!("  the broker fails while it stores it"));
                return Reached::Failed;
            }
            let stored = state.model.publish(stream, id, Arc::clone(parcel), now);
            if matches!(stored, Ok(stored) if twice && !stored.duplicate)
                && state.model.publish(stream, id, Arc::clone(parcel), now).is_ok_and(|again| !again.duplicate)
            {
                self.2.one(FaultEvent::StoredTwice);
                self.1.add(format_args!("  the broker stores it twice"));
            }
            stored
        };
        match stored {
            Err(PublishError::NoStream) => return Reached::NoStream,
            Err(PublishError::Full) => return Reached::Failed,
            Ok(stored) if stored.duplicate => {
                self.2.one(FaultEvent::RepeatDropped);
                self.1.add(format_args!("  the broker has it as {} already", stored.sequence));
            }
            Ok(_) => self.bell(stream).notify_waiters(),
        }
        if electing { Reached::NoLeader } else { Reached::Taken }
    }

    /// The next message for a service, or when to look again.
    pub(super) fn next(&self, stream: &str, consumer: &Name) -> Next<Arc<Parcel>> {
        let now = instant();
        let mut state = self.state();
        let still = [state.paused, state.electing].into_iter().flatten().filter(|until| *until > now).max();
        if let Some(until) = still {
            return Next::Empty(Some(until));
        }
        let next = state.model.next(stream, consumer.as_str(), now);
        match &next {
            Next::Message(Delivery { is_late, is_overtaken, .. }) => {
                if *is_late {
                    self.2.one(FaultEvent::AckWaitOver);
                }
                if *is_overtaken {
                    self.2.one(FaultEvent::Overtaken);
                }
            }
            Next::AtLimit(_) => self.2.one(FaultEvent::HandsFull),
            Next::Empty(_) | Next::Missing => {}
        }
        next
    }

    /// A word about a message has reached the broker.
    pub(super) fn settle(&self, stream: &str, consumer: &Name, sequence: u64, word: Acknowledgement) {
        self.state().model.acknowledge(stream, consumer.as_str(), sequence, word, instant());
        self.bell(stream).notify_waiters();
    }

    /// Makes the streams of a node, and its consumers as far as their streams are there. Whether all of them are.
    pub(super) fn ensure(&self, line: &SimLink) -> bool {
        let mut state = self.state();
        let (window, consumers) = (state.window, state.consumers);
        let service = line.card.service.as_str();
        for (domain, _) in &line.card.owns {
            let settings = |retention, discard| StreamSettings {
                duplicate_window: window,
                discard,
                ..StreamSettings::of(retention)
            };
            state.model.create_stream(&commands(domain), settings(Retention::WorkQueue, Discard::New));
            state.model.create_stream(&events(domain), settings(Retention::Limits, Discard::Old));
            state.model.create_consumer(&commands(domain), service, consumers);
        }
        let mut taken = line.card.subscribes.iter();
        let all = taken
            .by_ref()
            .fold(true, |all, (domain, ..)| state.model.create_consumer(&events(domain), service, consumers) && all);
        drop(state);
        self.ring_all();
        all
    }

    pub(super) fn note_published(&self, shard: &ShardId, position: u64, id: MessageId) {
        self.state().published.insert((shard.clone(), position), id);
    }

    /// A message was put aside with a reason.
    pub(super) fn put_aside(&self, envelope: &Envelope) {
        self.state().lost.insert(envelope.id);
    }

    /// Returns whether a command that was handed over at `crash_points` may be lost or was put aside.
    pub(super) fn has_lost(&self, id: MessageId, begun: Instant) -> bool {
        let state = self.state();
        state.lost.contains(&id) || state.emptied.is_some_and(|emptied| emptied >= begun)
    }

    pub(super) fn published(&self) -> Vec<(ShardId, u64, MessageId)> {
        let state = self.state();
        state.published.iter().map(|((shard, position), id)| (shard.clone(), *position, *id)).collect()
    }

    /// Whether nothing is under way, in hand or still to be delivered.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state();
        // A version of a service may take no longer what the one before took: that stays with the broker.
        let is_taken = |stream: &str, service: &str| {
            let mut lines = state.lines.values().filter(|line| line.card.service.as_str() == service).peekable();
            let takes = |line: &Arc<SimLink>| {
                let mut domains = line.card.subscribes.iter().map(|(domain, ..)| events(domain));
                let mut owned = line.card.owns.iter().map(|(domain, _)| commands(domain));
                domains.any(|of| of == stream) || owned.any(|of| of == stream)
            };
            lines.peek().is_none() || lines.any(takes)
        };
        state.under_way == 0 && state.model.unfinished_consumer(is_taken).is_none()
    }
}

/// Something that is on its way, until it is dropped: with a node that dies its messages are gone.
pub(super) struct Flight(Broker, u64);

impl Flight {
    /// Whether it arrives: what was under way when the streams were emptied does not.
    pub(super) fn arrives(self) -> bool {
        self.0.state().age == self.1
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if state.age == self.1 {
            state.under_way -= 1;
        }
    }
}

impl State {
    /// A message is lost. What an actor has sent is sent again, and so is what its log holds.
    pub(super) fn notes_lost(&mut self, parcel: &Parcel) {
        if let Ok(envelope) = parcel.packet.envelope()
            && envelope.origin.is_none()
        {
            self.lost.insert(envelope.id);
        }
    }

    /// Sets all consumers as they are to be set now.
    pub(super) fn retune(&mut self) {
        let wanted = self.consumers;
        self.model.reconfigure(|_, consumers| consumers.iter_mut().for_each(|consumer| **consumer = wanted));
        self.model.shorten_ack_deadlines(instant());
    }
}

/// The stream of what is sent to a domain.
pub(super) fn commands(domain: &Name) -> String {
    format!("commands_{domain}")
}

/// The stream of a domain's events.
pub(super) fn events(domain: &Name) -> String {
    format!("events_{domain}")
}
