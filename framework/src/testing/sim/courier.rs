//! A courier that loses, repeats, delays and reorders, and may lose all it has: the bridge of simulated nodes.
//!
//! Called by nodes as their [`Bridge`]; calls their doors. Everything goes through the encoding of the wire. What a door does not
//! settle is brought again for a while; then it is given up, as a broker whose limits are reached would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::trace::Trace;
use super::weather::Weather;
use crate::bridge::wire::Packet;
use crate::bridge::{Answer, Asked, Bridge, BridgeError, Inbound, NodeCard, Refusal, Settled, Tidings};
use crate::clock::instant;
use crate::message::{Envelope, IdSource, MAX_PAYLOAD_BYTES, MessageId, Name, ShardId};

/// How often a message is brought before the courier gives it up.
const DELIVERIES: u32 = 6;
/// How long a door may take to settle a message before it is brought again.
const ACK_WAIT: Duration = Duration::from_secs(5);

/// The courier of one simulated cluster. Clones are the same.
#[derive(Clone)]
pub(super) struct Courier(Arc<Mutex<State>>, Trace);

struct State {
    members: BTreeMap<u64, Member>,
    last: u64,
    weather: Weather,
    cuts: BTreeSet<(usize, usize)>,
    dice: IdSource,
    /// Rises when everything under way is lost.
    age: u64,
    under_way: usize,
    /// Until when nothing is brought.
    paused: Option<Instant>,
    /// Until when nothing is taken in for sure.
    refusing: Option<Instant>,
    /// The events that were published: where they stand in their log, and which they are.
    published: BTreeMap<(ShardId, u64), MessageId>,
}

#[derive(Clone)]
struct Member {
    service: usize,
    card: NodeCard,
    door: Arc<dyn Inbound>,
}

/// What is under way one way.
#[derive(Clone, Copy)]
enum What {
    Direct,
    Event,
}

/// Whom a message is for, by name: a node that has started again gets what was meant for the one before.
#[derive(Clone)]
enum To {
    Owner(Name),
    Subscriber(Name, usize),
}

impl Courier {
    pub(super) fn new(dice: IdSource, trace: Trace) -> Self {
        let state = State {
            members: BTreeMap::new(),
            last: 0,
            weather: Weather::FAIR,
            cuts: BTreeSet::new(),
            dice,
            age: 0,
            under_way: 0,
            paused: None,
            refusing: None,
            published: BTreeMap::new(),
        };
        Self(Arc::new(Mutex::new(state)), trace)
    }

    pub(super) fn bridge(&self, service: usize) -> SimBridge {
        SimBridge { courier: self.clone(), service, member: Mutex::new(None) }
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.0.lock().weather = weather;
    }

    pub(super) fn cut(&self, from: usize, to: usize) {
        self.0.lock().cuts.insert((from, to));
    }

    /// Opens a way again; the nodes are told, as a client library would tell them.
    pub(super) fn mend(&self, from: usize, to: usize) {
        if self.0.lock().cuts.remove(&(from, to)) {
            self.reconnected(from);
            self.reconnected(to);
        }
    }

    fn reconnected(&self, service: usize) {
        let doors: Vec<_> = {
            let state = self.0.lock();
            state
                .members
                .values()
                .filter(|member| member.service == service)
                .map(|member| Arc::clone(&member.door))
                .collect()
        };
        for door in doors {
            door.reconnected();
        }
    }

    /// Brings nothing for a while, and then everything.
    pub(super) fn pause(&self, lasts: Duration) {
        self.0.lock().paused = Some(instant() + lasts);
    }

    /// Takes nothing in for a while; what it refuses it may bring all the same.
    pub(super) fn refuse(&self, lasts: Duration) {
        self.0.lock().refusing = Some(instant() + lasts);
    }

    /// The pause is over.
    async fn resumed(&self) {
        let until = self.0.lock().paused;
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
    }

    /// Whether something is taken in, and with what the sender is answered.
    fn takes_in(&self) -> (bool, Result<(), BridgeError>) {
        let state = self.0.lock();
        if state.refusing.is_none_or(|until| until <= instant()) {
            return (true, Ok(()));
        }
        let reason = "its leader changes".to_owned();
        (state.dice.below(2) == 1, Err(BridgeError::Unreachable { broker: "the simulated courier".to_owned(), reason }))
    }

    /// Loses everything under way. Nobody is told: the numbers must show it.
    pub(super) fn empty(&self) {
        let mut state = self.0.lock();
        state.age += 1;
        state.under_way = 0;
    }

    /// The node has died.
    pub(super) fn leave(&self, service: usize) {
        self.0.lock().members.retain(|_, member| member.service != service);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.0.lock().under_way == 0
    }

    pub(super) fn published(&self) -> Vec<(ShardId, u64, MessageId)> {
        let state = self.0.lock();
        state.published.iter().map(|((shard, position), id)| (shard.clone(), *position, *id)).collect()
    }

    /// The way each copy of a message takes: how long. No copy means it is lost.
    fn throw(&self) -> Vec<Duration> {
        let state = self.0.lock();
        let weather = state.weather;
        let of_thousand = |chance: u16| state.dice.below(1000) < u64::from(chance);
        if of_thousand(weather.lose) {
            return Vec::new();
        }
        let copies = if of_thousand(weather.repeat) { 2 } else { 1 };
        (0..copies).map(|_| Duration::from_micros(state.dice.below(u64::from(weather.delay) * 1000 + 1))).collect()
    }

    fn find(&self, to: &To) -> Option<Member> {
        let state = self.0.lock();
        let mut members = state.members.values();
        match to {
            To::Owner(domain) => members.find(|member| member.card.owns.iter().any(|(owned, _)| owned == domain)),
            To::Subscriber(domain, service) => members.find(|member| {
                member.service == *service && member.card.subscribes.iter().any(|(taken, ..)| taken == domain)
            }),
        }
        .cloned()
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.0.lock().cuts.contains(&(from, to))
    }

    /// Sends the copies of one message on their way.
    fn post(&self, from: usize, what: What, to: To, packet: &Packet) {
        let ways = self.throw();
        if ways.is_empty() {
            self.1.add(format_args!("  the courier loses it"));
        }
        if ways.len() > 1 {
            self.1.add(format_args!("  the courier will bring it twice"));
        }
        for way in ways {
            let age = {
                let mut state = self.0.lock();
                state.under_way += 1;
                state.age
            };
            let (courier, to, packet) = (self.clone(), to.clone(), packet.clone());
            crate::spawn::detached(async move {
                courier.bring(from, what, &to, &packet, way, age).await;
                let mut state = courier.0.lock();
                if state.age == age {
                    state.under_way -= 1;
                }
            });
        }
    }

    async fn bring(&self, from: usize, what: What, to: &To, packet: &Packet, way: Duration, age: u64) {
        pause(way).await;
        self.resumed().await;
        for delivery in 1..=DELIVERIES {
            if self.0.lock().age != age {
                return;
            }
            let Some(member) = self.find(to) else { return };
            if self.is_cut(from, member.service) {
                return;
            }
            let Ok(envelope) = packet.envelope() else { return };
            if delivery > 1 {
                self.1.add(format_args!(
                    "delivery {delivery} of {} {} to {}",
                    envelope.name, envelope.id, member.card.service
                ));
            }
            let settled = match what {
                What::Direct => member.door.direct(envelope),
                What::Event => member.door.event(envelope),
            };
            if let Ok(Settled::Done | Settled::Refused(_)) = tokio::time::timeout(ACK_WAIT, settled).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10 << delivery)).await;
        }
    }
}

/// Even a message that takes no time takes its turn.
async fn pause(way: Duration) {
    if way.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(way).await;
    }
}

/// One simulated node's connection to the courier.
pub(super) struct SimBridge {
    courier: Courier,
    service: usize,
    member: Mutex<Option<u64>>,
}

impl SimBridge {
    /// A bridge whose node has died sends nothing any more.
    fn alive(&self) -> Result<(), BridgeError> {
        let member = *self.member.lock();
        match member {
            Some(member) if self.courier.0.lock().members.contains_key(&member) => Ok(()),
            _ => Err(BridgeError::Closed),
        }
    }

    async fn asked(&self, to: Asked, deadline: Duration) -> Result<Answer, BridgeError> {
        self.alive()?;
        let packet = Packet::from_asked(&to)?;
        let domain = to.domain().clone();
        let courier = &self.courier;
        let no_answer = || BridgeError::NoAnswer { domain: domain.to_string(), deadline };
        if let Asked::Command(envelope) = &to {
            courier.1.add(format_args!("asks {} {} of `{}`: {}", domain, envelope.name, envelope.key, envelope.id));
        }
        let owner = To::Owner(domain.clone());
        let member = courier.find(&owner).ok_or_else(|| BridgeError::NoOwner { domain: domain.to_string() })?;
        let whole = async {
            let way = courier.throw().first().copied()?;
            pause(way).await;
            courier.resumed().await;
            if courier.is_cut(self.service, member.service) {
                return None;
            }
            let asked = match packet.asked() {
                Ok(asked) => asked,
                Err(error) => return Some(Ok(Answer::Refused(Refusal::Undecodable(error.to_string())))),
            };
            let answer = Packet::from_answer(&member.door.asked(asked).await, 2 * MAX_PAYLOAD_BYTES);
            // An answer of a node that has died meanwhile does not come.
            let way = courier.throw().first().copied()?;
            pause(way).await;
            let lives = courier.0.lock().members.values().any(|other| Arc::ptr_eq(&other.door, &member.door));
            if !lives || courier.is_cut(member.service, self.service) {
                return None;
            }
            Some(answer.answer())
        };
        match tokio::time::timeout(deadline, whole).await {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                tokio::time::sleep(deadline).await;
                Err(no_answer())
            }
            Err(_) => Err(no_answer()),
        }
    }
}

impl Bridge for SimBridge {
    fn attach<'a>(&'a self, card: NodeCard, door: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        Box::pin(async move {
            let mut state = self.courier.0.lock();
            state.last += 1;
            let number = state.last;
            state.members.insert(number, Member { service: self.service, card, door });
            *self.member.lock() = Some(number);
            Ok(())
        })
    }

    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            self.alive()?;
            let packet = Packet::from_envelope(&envelope)?;
            let domain = envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain).clone();
            let courier = &self.courier;
            let Some(owner) = courier.find(&To::Owner(domain.clone())) else {
                return Err(BridgeError::NoOwner { domain: domain.to_string() });
            };
            let from = envelope
                .origin
                .as_ref()
                .map_or_else(String::new, |origin| format!("{} {}", origin.shard, origin.sequence));
            courier.1.add(format_args!(
                "{from} sends {} {} {} to {}",
                envelope.kind.as_str(),
                envelope.name,
                envelope.id,
                owner.card.service
            ));
            let (taken, answer) = courier.takes_in();
            if taken {
                courier.post(self.service, What::Direct, To::Owner(domain), &packet);
            }
            answer
        })
    }

    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            self.alive()?;
            let packet = Packet::from_envelope(&event)?;
            let courier = &self.courier;
            let Some(origin) = &event.origin else { return Ok(()) };
            courier
                .1
                .add(format_args!("{} {} is published: {} {}", origin.shard, origin.sequence, event.name, event.id));
            let (taken, answer) = courier.takes_in();
            let subscribers: Vec<usize> = {
                let mut state = courier.0.lock();
                state.published.insert((origin.shard.clone(), origin.sequence), event.id);
                let takes =
                    |member: &&Member| member.card.subscribes.iter().any(|(domain, ..)| *domain == event.domain);
                state.members.values().filter(takes).map(|member| member.service).collect()
            };
            for subscriber in subscribers.into_iter().filter(|_| taken) {
                courier.post(self.service, What::Event, To::Subscriber(event.domain.clone(), subscriber), &packet);
            }
            answer
        })
    }

    fn ask(&self, to: Asked, deadline: Duration) -> BoxFuture<'_, Result<Answer, BridgeError>> {
        Box::pin(self.asked(to, deadline))
    }

    fn tell(&self, tidings: Tidings) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            self.alive()?;
            let packet = Packet::from_tidings(&tidings);
            let courier = &self.courier;
            let members: Vec<Member> = match &tidings {
                Tidings::Committed { from, .. } => courier.find(&To::Owner(from.domain.clone())).into_iter().collect(),
                Tidings::Head { shard, .. } => {
                    let state = courier.0.lock();
                    let takes =
                        |member: &&Member| member.card.subscribes.iter().any(|(domain, ..)| *domain == shard.domain);
                    state.members.values().filter(takes).cloned().collect()
                }
            };
            for member in members {
                for way in courier.throw() {
                    let (courier, member, packet, from) =
                        (courier.clone(), member.clone(), packet.clone(), self.service);
                    crate::spawn::detached(async move {
                        pause(way).await;
                        if let Ok(tidings) = packet.tidings()
                            && !courier.is_cut(from, member.service)
                        {
                            member.door.told(tidings);
                        }
                    });
                }
            }
            Ok(())
        })
    }

    fn durability(&self) -> String {
        "simulated: anything may be lost".to_owned()
    }

    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            if let Some(member) = self.member.lock().take() {
                self.courier.0.lock().members.remove(&member);
            }
            Ok(())
        })
    }
}
