//! A hostile client that publishes invalid messages to every address that a client without permissions can reach.
//!
//! Used by the [cases](super::cases) of the bridge suite, and by tests that run real nodes beside it. Its messages are drawn from a
//! seed: bytes that are not a message, messages that contradict their address or the owner's log, false notifications and
//! positions, reused ids, oversize messages. It never forges what only permissions can prevent: the next message of a shard, or a
//! valid command of an external caller.

use std::borrow::Cow;

use bytes::Bytes;

use whizbang_core::bridge::{Notification, Request};
use whizbang_core::clock::{Clock, Timestamp};
use whizbang_core::message::{
    Codec, Envelope, IdSource, Kind, MAX_PAYLOAD_BYTES, MessageId, Name, Origin, ReplyMode, ShardId,
};
use whizbang_wire::Packet;
use whizbang_wire::subject::Address;

/// A forged message.
#[derive(Clone, Debug)]
pub struct Forgery {
    /// The kind of forgery, for reports.
    pub kind: &'static str,
    /// The address it is published to.
    pub address: Address,
    /// The published packet.
    pub packet: Packet,
}

/// A domain under attack, with the names of its messages.
#[derive(Clone, Debug)]
pub struct Target {
    /// The domain.
    pub domain: Name,
    /// The number of its shards.
    pub shards: u16,
    /// A command that the domain handles.
    pub command: Name,
    /// An event that the domain records.
    pub event: Name,
    /// The actor that handles and records them.
    pub actor: Name,
    /// The logs have an event at position 1 and the outboxes an entry 1, which the client can contradict.
    pub has_begun: bool,
}

/// The bits that are set in the ids of all forged messages.
const FORGED_ID_BITS: u128 = 0xBAD << 116;
/// A position that no log reaches.
const UNREACHED_POSITION: u64 = 1 << 40;

/// A hostile client. Clients with the same seed and targets publish the same messages.
pub struct Hostile {
    /// The source of all choices, from the seed.
    random: IdSource,
    /// The domains that are attacked.
    targets: Vec<Target>,
    /// The number of packets so far.
    written: u64,
}

impl std::fmt::Debug for Hostile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hostile")
            .field("targets", &self.targets)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Hostile {
    /// Creates a client that attacks these domains.
    pub fn new(seed: u64, targets: Vec<Target>) -> Self {
        Self { random: IdSource::seeded(Clock::manual(Timestamp::default()).0, seed), targets, written: 0 }
    }

    /// Returns true if a hostile client has forged the message.
    pub fn is_forged(envelope: &Envelope) -> bool {
        envelope.id.as_u128() & (0xFFF << 116) == FORGED_ID_BITS
    }

    /// Returns the next forgery; `None` if there is no target.
    pub fn forge(&mut self) -> Option<Forgery> {
        self.written += 1;
        let target = self.pick_target()?;
        let other = self.pick_target()?;
        let (here, there) = (self.shard(&target), self.shard(&other));
        let (kind, address, packet) = match self.random.below(16) {
            0 => (
                "noise",
                self.address(&target, &here, &there),
                Packet { headers: Vec::new(), payload: self.noise(300) },
            ),
            1 => ("a corrupted message", self.address(&target, &here, &there), self.corrupted(&target, &here, &there)),
            2 => ("a frame with noise", self.address(&target, &here, &there), self.framed_noise()),
            3 => {
                let address = Address::Direct { to: here.clone(), from: None };
                (
                    "an unknown name",
                    address,
                    packet(&Envelope { name: self.unknown_name(&target), ..self.external_command(&target, &here) })?,
                )
            }
            4 => {
                let address = Address::Direct { to: here.clone(), from: None };
                (
                    "an undecodable payload",
                    address,
                    packet(&Envelope { payload: self.undecodable(), ..self.external_command(&target, &here) })?,
                )
            }
            5 => {
                let address = Address::Direct { to: here.clone(), from: None };
                let late = Some(Timestamp::from_millis(1));
                (
                    "an expired deadline",
                    address,
                    packet(&Envelope { deadline: late, ..self.external_command(&target, &here) })?,
                )
            }
            6 => {
                let address = Address::Direct { to: here.clone(), from: None };
                let more = usize::try_from(self.random.below(400 * 1024)).unwrap_or(0);
                let payload = vec![7; MAX_PAYLOAD_BYTES + 1 + more].into();
                ("an oversize message", address, Packet { payload, ..packet(&self.external_command(&target, &here))? })
            }
            7 => {
                let from = Some(there.clone());
                let sent = self.forged_command(&target, &other, &here, &there, UNREACHED_POSITION + self.written);
                ("a command ahead of its sequence", Address::Direct { to: here.clone(), from }, packet(&sent)?)
            }
            8 => {
                let sent = self.forged_command(&target, &other, &here, &there, UNREACHED_POSITION + self.written);
                // The subject contains another sender.
                let from = Some(ShardId::new(there.domain.clone(), (there.shard + 1) % other.shards.max(1)));
                ("a contradicting origin", Address::Direct { to: here.clone(), from }, packet(&sent)?)
            }
            9 => (
                "an event ahead of its position",
                event_address(&target, &here),
                packet(&self.forged_event(&target, &here, UNREACHED_POSITION + self.written))?,
            ),
            10 if target.has_begun => (
                "an event at a known position",
                event_address(&target, &here),
                packet(&self.forged_event(&target, &here, 1))?,
            ),
            11 => {
                let elsewhere = ShardId::new(here.domain.clone(), here.shard.wrapping_add(1) % target.shards.max(1));
                (
                    "an event of another shard",
                    event_address(&target, &elsewhere),
                    packet(&self.forged_event(&target, &here, UNREACHED_POSITION))?,
                )
            }
            12 => {
                let events = [
                    self.forged_event(&target, &here, UNREACHED_POSITION),
                    self.forged_event(&other, &there, UNREACHED_POSITION),
                ];
                ("a pack of two shards", Address::Events(here.clone()), Packet::from_events(&events))
            }
            13 => {
                let head = Notification::Head { shard: here.clone(), position: UNREACHED_POSITION };
                // At another address it is refused; at its own it makes subscribers ask the owner.
                ("a head of another shard", Address::Head(there.clone()), Packet::from_notification(&head))
            }
            14 => {
                let through = u64::MAX - self.written;
                let committed = Notification::Committed { from: here.clone(), to: there.clone(), through };
                (
                    "a watermark beyond the last sequence",
                    Address::Committed { from: here.clone(), to: there.clone() },
                    Packet::from_notification(&committed),
                )
            }
            _ => {
                let request = match self.random.below(3) {
                    0 => Request::Events { shard: here.clone(), after: self.random.next_u64(), limit: u32::MAX },
                    1 => Request::Outbox { from: here.clone(), to: there.clone(), after: 0, limit: u32::MAX },
                    _ => Request::Watermark { from: there.clone(), to: here.clone() },
                };
                ("a request", Address::for_request(&request), Packet::from_request(&request).ok()?)
            }
        };
        Some(Forgery { kind, address, packet })
    }

    /// Returns one of the attacked domains.
    fn pick_target(&self) -> Option<Target> {
        let at = usize::try_from(self.random.below((self.targets.len() as u64).max(1))).ok()?;
        self.targets.get(at).cloned()
    }

    /// Returns one of its shards.
    fn shard(&self, target: &Target) -> ShardId {
        let shard = self.random.below(u64::from(target.shards.max(1)));
        ShardId::new(target.domain.clone(), u16::try_from(shard).unwrap_or(0))
    }

    /// Returns a random address of a target.
    fn address(&self, target: &Target, here: &ShardId, there: &ShardId) -> Address {
        match self.random.below(8) {
            0 => Address::Direct { to: here.clone(), from: None },
            1 => Address::Direct { to: here.clone(), from: Some(there.clone()) },
            2 => event_address(target, here),
            3 => Address::Events(here.clone()),
            4 => Address::CommandRequest { domain: target.domain.clone(), shard: Some(here.shard) },
            5 => Address::EventsRequest(here.clone()),
            6 => Address::Committed { from: here.clone(), to: there.clone() },
            _ => Address::Head(here.clone()),
        }
    }

    /// Returns up to `most` random bytes.
    fn noise(&self, most: u64) -> Bytes {
        let length = self.random.below(most);
        (0..length).map(|_| self.random.next_u64().to_le_bytes()[0]).collect::<Vec<u8>>().into()
    }

    /// Returns bytes that no codec decodes: neither a bincode number nor a JSON text begins with them.
    fn undecodable(&self) -> Bytes {
        [&[0xFF; 9][..], &self.noise(40)].concat().into()
    }

    /// Returns a packet whose header announces a frame and whose payload is noise.
    fn framed_noise(&self) -> Packet {
        let kinds = [("whizbang-frame", "events"), ("whizbang-frame", "asked"), ("whizbang-frame", "tidings")];
        let at = usize::try_from(self.random.below(3)).unwrap_or(0);
        let headers = kinds.get(at).map(|(name, value)| (Cow::Borrowed(*name), (*value).to_owned()));
        let payload = [&[1][..], &self.noise(100)].concat().into();
        Packet { headers: headers.into_iter().collect(), payload }
    }

    /// Returns a message with one header removed, repeated or changed.
    fn corrupted(&self, target: &Target, here: &ShardId, there: &ShardId) -> Packet {
        let sent = self.forged_command(target, target, here, there, UNREACHED_POSITION);
        let mut packet = packet(&sent).unwrap_or_default();
        let at = usize::try_from(self.random.below(packet.headers.len() as u64)).unwrap_or(0);
        if at < packet.headers.len() {
            let (name, value) = packet.headers.remove(at);
            match self.random.below(3) {
                0 => {}
                1 => packet.headers.extend([(name.clone(), value.clone()), (name, value)]),
                _ => packet.headers.push((name, format!("{:x}/%{}", self.random.next_u64(), self.written))),
            }
        }
        packet
    }

    /// Returns a name that no message has.
    fn unknown_name(&self, target: &Target) -> Name {
        Name::new(&format!("Unknown{}", self.random.below(10_000))).unwrap_or_else(|_| target.event.clone())
    }

    /// Returns an id that [`is_forged`](Hostile::is_forged) recognizes and no honest message has.
    fn id(&self) -> MessageId {
        MessageId::from_u128(FORGED_ID_BITS | u128::from(self.random.next_u64()) << 32 | u128::from(self.written))
    }

    /// Returns a command of an external caller.
    fn external_command(&self, target: &Target, to: &ShardId) -> Envelope {
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

    /// Returns a command in the name of another service's actor.
    fn forged_command(
        &self,
        target: &Target,
        sender: &Target,
        to: &ShardId,
        from: &ShardId,
        sequence: u64,
    ) -> Envelope {
        let origin = Origin {
            shard: from.clone(),
            actor: sender.actor.clone(),
            key: "forged".to_owned(),
            sequence,
            version: 0,
            store: None,
        };
        Envelope { origin: Some(origin), ..self.external_command(target, to) }
    }

    /// Returns an event that its owner has never recorded.
    fn forged_event(&self, target: &Target, shard: &ShardId, position: u64) -> Envelope {
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
            ..self.external_command(target, shard)
        }
    }
}

/// Returns the address of an event of the domain.
fn event_address(target: &Target, shard: &ShardId) -> Address {
    Address::Event { shard: shard.clone(), name: target.event.clone() }
}

/// Encodes an envelope; `None` if it cannot be encoded.
fn packet(envelope: &Envelope) -> Option<Packet> {
    Packet::from_envelope(envelope).ok()
}
