//! A hostile client: writes what no node would, wherever a program that reaches a broker without permissions can write.
//!
//! Used by the [cases](super::cases) of the bridge suite, and by tests that let real nodes work beside it. What it writes is drawn
//! from a seed: bytes that are no message, messages that contradict their place or the owner's log, notes and positions that are
//! not true, ids that were used before, messages that are too large. It never writes what only permissions keep from being
//! believed: the next message of a shard, or a command as any caller may send it.

use std::borrow::Cow;

use bytes::Bytes;

use crate::bridge::subject::Address;
use crate::bridge::wire::Packet;
use crate::bridge::{Notification, Request};
use crate::clock::{Clock, Timestamp};
use crate::message::{Codec, Envelope, IdSource, Kind, MAX_PAYLOAD_BYTES, MessageId, Name, Origin, ReplyMode, ShardId};

/// One thing that a hostile client writes.
#[derive(Clone, Debug)]
pub struct Forgery {
    /// What it is, in a word.
    pub what: &'static str,
    /// Where it is written.
    pub place: Address,
    /// What is written there.
    pub packet: Packet,
}

/// A domain under attack, and the names that its messages have.
#[derive(Clone, Debug)]
pub struct Target {
    /// The domain.
    pub domain: Name,
    /// How many shards it has.
    pub shards: u16,
    /// A command that it handles.
    pub command: Name,
    /// An event that it records.
    pub event: Name,
    /// The actor that does both.
    pub actor: Name,
    /// Whether its logs have an event at position 1 and its outboxes an entry 1 already, which can be contradicted.
    pub has_begun: bool,
}

/// The bits that are set in the ids of all forged messages.
const FORGED: u128 = 0xBAD << 116;
/// A position that no log reaches.
const FAR: u64 = 1 << 40;

/// A hostile client. Two with the same seed and targets write the same.
pub struct Hostile {
    chance: IdSource,
    targets: Vec<Target>,
    written: u64,
}

impl Hostile {
    /// A client that attacks these domains.
    pub fn new(seed: u64, targets: Vec<Target>) -> Self {
        Self { chance: IdSource::seeded(Clock::manual(Timestamp::default()).0, seed), targets, written: 0 }
    }

    /// Whether a message is one that a hostile client has written.
    pub fn is_forged(envelope: &Envelope) -> bool {
        envelope.id.as_u128() & (0xFFF << 116) == FORGED
    }

    /// What it writes next; nothing if it has no target.
    pub fn forge(&mut self) -> Option<Forgery> {
        self.written += 1;
        let target = self.draw()?;
        let other = self.draw()?;
        let (here, there) = (self.shard(&target), self.shard(&other));
        let (what, place, packet) = match self.chance.below(16) {
            0 => {
                ("noise", self.place(&target, &here, &there), Packet { headers: Vec::new(), payload: self.noise(300) })
            }
            1 => ("a spoilt message", self.place(&target, &here, &there), self.spoilt(&target, &here, &there)),
            2 => ("a frame of noise", self.place(&target, &here, &there), self.noise_in_a_frame()),
            3 => {
                let place = Address::Direct { to: here.clone(), from: None };
                (
                    "an unknown name",
                    place,
                    packet(&Envelope { name: self.unknown(&target), ..self.outside(&target, &here) })?,
                )
            }
            4 => {
                let place = Address::Direct { to: here.clone(), from: None };
                (
                    "an unreadable payload",
                    place,
                    packet(&Envelope { payload: self.unreadable(), ..self.outside(&target, &here) })?,
                )
            }
            5 => {
                let place = Address::Direct { to: here.clone(), from: None };
                let late = Some(Timestamp::from_millis(1));
                ("a deadline of long ago", place, packet(&Envelope { deadline: late, ..self.outside(&target, &here) })?)
            }
            6 => {
                let place = Address::Direct { to: here.clone(), from: None };
                let more = usize::try_from(self.chance.below(400 * 1024)).unwrap_or(0);
                let payload = vec![7; MAX_PAYLOAD_BYTES + 1 + more].into();
                ("an oversize message", place, Packet { payload, ..packet(&self.outside(&target, &here))? })
            }
            7 => {
                let from = Some(there.clone());
                let sent = self.sent(&target, &other, &here, &there, FAR + self.written);
                ("a command of the future", Address::Direct { to: here.clone(), from }, packet(&sent)?)
            }
            8 => {
                let sent = self.sent(&target, &other, &here, &there, FAR + self.written);
                // Its subject says that another one sends it.
                let from = Some(ShardId::new(there.domain.clone(), (there.shard + 1) % other.shards.max(1)));
                ("a contradicting origin", Address::Direct { to: here.clone(), from }, packet(&sent)?)
            }
            9 => (
                "an event of the future",
                event_place(&target, &here),
                packet(&self.event(&target, &here, FAR + self.written))?,
            ),
            10 if target.has_begun => (
                "an event under a known position",
                event_place(&target, &here),
                packet(&self.event(&target, &here, 1))?,
            ),
            11 => {
                let elsewhere = ShardId::new(here.domain.clone(), here.shard.wrapping_add(1) % target.shards.max(1));
                (
                    "an event of another shard",
                    event_place(&target, &elsewhere),
                    packet(&self.event(&target, &here, FAR))?,
                )
            }
            12 => {
                let events = [self.event(&target, &here, FAR), self.event(&other, &there, FAR)];
                ("a pack of two shards", Address::Events(here.clone()), Packet::from_events(&events))
            }
            13 => {
                let head = Notification::Head { shard: here.clone(), position: FAR };
                // In the wrong place it is refused; in the right one it makes subscribers ask the owner.
                ("a head of another shard", Address::Head(there.clone()), Packet::from_notification(&head))
            }
            14 => {
                let through = u64::MAX - self.written;
                let committed = Notification::Committed { from: here.clone(), to: there.clone(), through };
                (
                    "a note of what was never sent",
                    Address::Committed { from: here.clone(), to: there.clone() },
                    Packet::from_notification(&committed),
                )
            }
            _ => {
                let asked = match self.chance.below(3) {
                    0 => Request::Events { shard: here.clone(), after: self.chance.next_u64(), limit: u32::MAX },
                    1 => Request::Outbox { from: here.clone(), to: there.clone(), after: 0, limit: u32::MAX },
                    _ => Request::Watermark { from: there.clone(), to: here.clone() },
                };
                ("a question", Address::for_request(&asked), Packet::from_request(&asked).ok()?)
            }
        };
        Some(Forgery { what, place, packet })
    }

    fn draw(&self) -> Option<Target> {
        let at = usize::try_from(self.chance.below((self.targets.len() as u64).max(1))).ok()?;
        self.targets.get(at).cloned()
    }

    fn shard(&self, target: &Target) -> ShardId {
        let shard = self.chance.below(u64::from(target.shards.max(1)));
        ShardId::new(target.domain.clone(), u16::try_from(shard).unwrap_or(0))
    }

    /// Any place of a target.
    fn place(&self, target: &Target, here: &ShardId, there: &ShardId) -> Address {
        match self.chance.below(8) {
            0 => Address::Direct { to: here.clone(), from: None },
            1 => Address::Direct { to: here.clone(), from: Some(there.clone()) },
            2 => event_place(target, here),
            3 => Address::Events(here.clone()),
            4 => Address::CommandRequest { domain: target.domain.clone(), shard: Some(here.shard) },
            5 => Address::EventsRequest(here.clone()),
            6 => Address::Committed { from: here.clone(), to: there.clone() },
            _ => Address::Head(here.clone()),
        }
    }

    fn noise(&self, most: u64) -> Bytes {
        let length = self.chance.below(most);
        (0..length).map(|_| self.chance.next_u64().to_le_bytes()[0]).collect::<Vec<u8>>().into()
    }

    /// Bytes that no codec reads: a number in bincode does not begin so, and no text in JSON does.
    fn unreadable(&self) -> Bytes {
        [&[0xFF; 9][..], &self.noise(40)].concat().into()
    }

    /// A header that says what follows, and something else behind it.
    fn noise_in_a_frame(&self) -> Packet {
        let kinds = [("whizbang-frame", "events"), ("whizbang-frame", "asked"), ("whizbang-frame", "tidings")];
        let at = usize::try_from(self.chance.below(3)).unwrap_or(0);
        let headers = kinds.get(at).map(|(name, value)| (Cow::Borrowed(*name), (*value).to_owned()));
        let payload = [&[1][..], &self.noise(100)].concat().into();
        Packet { headers: headers.into_iter().collect(), payload }
    }

    /// A message with one header less, twice, or with another value.
    fn spoilt(&self, target: &Target, here: &ShardId, there: &ShardId) -> Packet {
        let sent = self.sent(target, target, here, there, FAR);
        let mut packet = packet(&sent).unwrap_or_default();
        let at = usize::try_from(self.chance.below(packet.headers.len() as u64)).unwrap_or(0);
        if at < packet.headers.len() {
            let (name, value) = packet.headers.remove(at);
            match self.chance.below(3) {
                0 => {}
                1 => packet.headers.extend([(name.clone(), value.clone()), (name, value)]),
                _ => packet.headers.push((name, format!("{:x}/%{}", self.chance.next_u64(), self.written))),
            }
        }
        packet
    }

    /// The name of no message.
    fn unknown(&self, target: &Target) -> Name {
        Name::new(&format!("Unknown{}", self.chance.below(10_000))).unwrap_or_else(|_| target.event.clone())
    }

    fn id(&self) -> MessageId {
        MessageId::from_u128(FORGED | u128::from(self.chance.next_u64()) << 32 | u128::from(self.written))
    }

    /// A command that no actor sends.
    fn outside(&self, target: &Target, to: &ShardId) -> Envelope {
        let id = self.id();
        Envelope {
            id,
            kind: Kind::Command,
            name: target.command.clone(),
            version: 1,
            domain: target.domain.clone(),
            to: Some(to.clone()),
            key: super::cases::sample::key_of(to.shard, target.shards, self.written),
            actor: None,
            origin: None,
            correlation: id,
            causation: None,
            time: Timestamp::from_millis(0),
            deadline: None,
            wants: ReplyMode::Nothing,
            traceparent: None,
            shape: None,
            headers: Vec::new(),
            codec: Codec::Bincode,
            payload: Bytes::new(),
        }
    }

    fn sent(&self, target: &Target, sender: &Target, to: &ShardId, from: &ShardId, sequence: u64) -> Envelope {
        let origin = Origin {
            shard: from.clone(),
            actor: sender.actor.clone(),
            key: "forged".to_owned(),
            sequence,
            version: 0,
            store: None,
        };
        Envelope { origin: Some(origin), ..self.outside(target, to) }
    }

    fn event(&self, target: &Target, shard: &ShardId, position: u64) -> Envelope {
        let version = position;
        let key = "forged".to_owned();
        let origin =
            Origin { shard: shard.clone(), actor: target.actor.clone(), key, sequence: position, version, store: None };
        Envelope {
            kind: Kind::Event,
            name: target.event.clone(),
            to: None,
            key: String::new(),
            origin: Some(origin),
            payload: self.noise(20),
            ..self.outside(target, shard)
        }
    }
}

fn event_place(target: &Target, shard: &ShardId) -> Address {
    Address::Event { shard: shard.clone(), name: target.event.clone() }
}

fn packet(envelope: &Envelope) -> Option<Packet> {
    Packet::from_envelope(envelope).ok()
}
