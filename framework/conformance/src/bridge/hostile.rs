//! A hostile client that publishes invalid messages to every address that a client without permissions can reach.
//!
//! Used by the [cases](super::cases) of the bridge suite, and by tests that run real nodes beside it. Its messages are drawn from a
//! seed: bytes that are not a message, messages that contradict their address or the owner's log, false notifications and
//! positions, oversize messages, packets of other nodes that are replayed and changed. It never forges what only permissions can
//! prevent: the next message of a shard, a valid command of an external caller, or a valid claim.

mod observed;

use std::borrow::Cow;

use bytes::Bytes;

use self::observed::Observed;
use whizbang_core::bridge::{Notification, Request};
use whizbang_core::clock::{Clock, Timestamp};
use whizbang_core::message::{
    Codec, Envelope, Fingerprint, IdSource, Kind, MAX_PAYLOAD_BYTES, MessageId, Name, Origin, ReplyMode, ShardId,
    StoreId,
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
    /// The domain and the name of a query.
    pub query: (Name, Name),
}

/// The bits that are set in the ids of all forged messages.
const FORGED_ID_BITS: u128 = 0xBAD << 116;
/// A position that no log reaches.
const UNREACHED_POSITION: u64 = 1 << 40;
/// The identity of a store that holds no claim.
const FOREIGN_STORE: StoreId = StoreId::from_u128(0xBAD);
/// The maximum number of kinds that are drawn for one forgery.
const MAX_DRAWS: usize = 1000;

/// The addresses of one forgery: two domains and a shard of each.
struct Places {
    /// The domain under attack.
    target: Target,
    /// The domain in whose name it is attacked.
    other: Target,
    /// A shard of the target.
    here: ShardId,
    /// A shard of the other domain.
    there: ShardId,
}

impl Places {
    /// Returns the address of external commands for the shard under attack.
    fn outside(&self) -> Address {
        Address::Direct { to: self.here.clone(), from: None }
    }

    /// Returns the address of messages from the other shard.
    fn direct(&self) -> Address {
        Address::Direct { to: self.here.clone(), from: Some(self.there.clone()) }
    }

    /// Returns another shard of the target; the same if it has one only.
    fn elsewhere(&self) -> ShardId {
        ShardId::new(self.here.domain.clone(), self.here.shard.wrapping_add(1) % self.target.shards.max(1))
    }
}

/// Returns a forgery of one kind; `None` if it is impossible so far.
type Forge = fn(&Hostile, &Places) -> Option<(Address, Packet)>;

/// The kinds of forgeries.
const KINDS: [(&str, Forge); 29] = [
    ("noise", |of, at| Some((of.address(at), Packet { headers: Vec::new(), payload: of.noise(300) }))),
    ("a corrupted message", |of, at| Some((of.address(at), of.corrupted(at)))),
    ("a frame with noise", |of, at| Some((of.address(at), of.framed_noise()))),
    ("an unknown name", |of, at| {
        let sent = Envelope { name: of.unknown_name(&at.target), ..of.external_command(at) };
        Some((at.outside(), packet(&sent)?))
    }),
    ("an undecodable payload", |of, at| Some((at.outside(), packet(&of.external_command(at))?))),
    ("an undecodable document", |of, at| {
        Some((at.outside(), packet(&Envelope { kind: Kind::Document, ..of.external_command(at) })?))
    }),
    ("an expired deadline", |of, at| {
        let late = Some(Timestamp::from_millis(1));
        Some((at.outside(), packet(&Envelope { deadline: late, ..of.external_command(at) })?))
    }),
    ("an oversize message", |of, at| {
        let more = usize::try_from(of.random.below(400 * 1024)).unwrap_or(0);
        let payload = vec![7; MAX_PAYLOAD_BYTES + 1 + more].into();
        Some((at.outside(), Packet { payload, ..packet(&of.external_command(at))? }))
    }),
    ("a command ahead of its sequence", |of, at| {
        Some((at.direct(), packet(&of.forged_command(at, UNREACHED_POSITION + of.written))?))
    }),
    ("a command at a known sequence", |of, _| of.at_known_sequence(Kind::Command)),
    ("a command of a foreign store", |of, at| {
        // Only the identity of the store distinguishes it from the next true one.
        let sent = of.forged_command(at, of.plausible_number());
        Some((at.direct(), packet(&of_foreign_store(sent))?))
    }),
    ("a contradicting origin", |of, at| {
        let sent = of.forged_command(at, UNREACHED_POSITION + of.written);
        // The subject contains another sender.
        let from = ShardId::new(at.there.domain.clone(), (at.there.shard + 1) % at.other.shards.max(1));
        Some((Address::Direct { to: at.here.clone(), from: Some(from) }, packet(&sent)?))
    }),
    ("a reply ahead of its sequence", |of, at| {
        Some((at.direct(), packet(&of.forged_reply(at, UNREACHED_POSITION + of.written))?))
    }),
    ("a reply at a known sequence", |of, _| of.at_known_sequence(Kind::Reply)),
    ("an event ahead of its position", |of, at| {
        let event = of.forged_event(&at.target, &at.here, UNREACHED_POSITION + of.written);
        Some((event_address(&at.target, &at.here), packet(&event)?))
    }),
    ("an event at a known position", |of, _| of.at_known_sequence(Kind::Event)),
    ("an event of a foreign store", |of, at| {
        let event = of.forged_event(&at.target, &at.here, of.plausible_number());
        Some((event_address(&at.target, &at.here), packet(&of_foreign_store(event))?))
    }),
    ("an event of another shard", |of, at| {
        let event = of.forged_event(&at.target, &at.here, UNREACHED_POSITION);
        Some((event_address(&at.target, &at.elsewhere()), packet(&event)?))
    }),
    ("a pack of two shards", |of, at| {
        let events = [
            of.forged_event(&at.target, &at.here, UNREACHED_POSITION),
            of.forged_event(&at.other, &at.there, UNREACHED_POSITION),
        ];
        Some((Address::Events(at.here.clone()), Packet::from_events(&events)))
    }),
    ("a replayed packet", |of, _| of.observed.replay(&of.random)),
    ("a known id with another payload", |of, _| of.observed.another_payload(&of.random)),
    ("an unknown shape", |of, at| {
        let shape = Some(Fingerprint::from_u64(of.random.next_u64()));
        let headers = vec![("whizbang-shapes".to_owned(), format!("{:x} u64", of.random.next_u64()))];
        let command = Envelope { shape, headers, ..of.external_command(at) };
        asked(Request::Command(command))
    }),
    ("a head of another shard", |_, at| {
        let head = Notification::Head { shard: at.here.clone(), position: UNREACHED_POSITION };
        Some((Address::Head(at.elsewhere()), Packet::from_notification(&head)))
    }),
    ("a head beyond the last position", |of, at| {
        // At its own address it makes subscribers ask the owner.
        let position = if of.random.below(2) == 0 { u64::MAX } else { UNREACHED_POSITION };
        let head = Notification::Head { shard: at.here.clone(), position };
        Some((Address::for_notification(&head), Packet::from_notification(&head)))
    }),
    ("a watermark beyond the last sequence", |of, at| Some(committed(at, u64::MAX - of.written))),
    ("a plausible watermark", |of, at| Some(committed(at, of.plausible_number()))),
    ("a query", |of, at| {
        let (domain, known) = at.target.query.clone();
        let name = if of.random.below(2) == 0 { of.unknown_name(&at.target) } else { known };
        asked(Request::Query(Envelope { kind: Kind::Query, domain, name, to: None, ..of.external_command(at) }))
    }),
    ("a request for a log", |of, at| {
        let (from, to) = (at.here.clone(), at.there.clone());
        asked(match of.random.below(2) {
            0 => Request::Events { shard: from, after: of.random.next_u64(), limit: u32::MAX },
            _ => Request::Outbox { from, to, after: 0, limit: u32::MAX },
        })
    }),
    ("a request about the other side", |of, at| {
        let (from, to) = (at.there.clone(), at.here.clone());
        asked(match of.random.below(4) {
            0 => Request::Watermark { from, to },
            1 => Request::Sent { from, to, through: u64::MAX },
            2 => Request::Sent { from, to, through: of.plausible_number() },
            _ => Request::Shape { from, to: Some(to), shape: Fingerprint::from_u64(of.random.next_u64()) },
        })
    }),
];

/// A hostile client. Clients with the same seed, targets and observed packets publish the same messages.
pub struct Hostile {
    /// The source of all choices, from the seed.
    random: IdSource,
    /// The domains that are attacked.
    targets: Vec<Target>,
    /// The packets of other nodes that are replayed and changed.
    observed: Observed,
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
        let random = IdSource::seeded(Clock::manual(Timestamp::default()).0, seed);
        Self { random, targets, observed: Observed::default(), written: 0 }
    }

    /// Returns true if a hostile client has forged the message.
    pub fn is_forged(envelope: &Envelope) -> bool {
        envelope.id.as_u128() & (0xFFF << 116) == FORGED_ID_BITS
    }

    /// Returns the kinds of forgeries, in no particular order.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        KINDS.iter().map(|(kind, _)| *kind)
    }

    /// Adds a packet of another node, which later forgeries replay and change. Its receivers must have handled it: a changed
    /// copy that arrives before the original cannot be told from it.
    pub fn observe(&mut self, address: Address, packet: Packet) {
        self.observed.add(address, packet);
    }

    /// Returns the next forgery; `None` if there is no target. Some kinds need [observed](Self::observe) packets.
    pub fn forge(&mut self) -> Option<Forgery> {
        // A kind that is impossible so far is replaced by another.
        (0..MAX_DRAWS).find_map(|_| {
            self.written += 1;
            let (target, other) = (self.pick_target()?, self.pick_target()?);
            let (here, there) = (self.shard(&target), self.shard(&other));
            let at = usize::try_from(self.random.below(KINDS.len() as u64)).ok()?;
            let (kind, make) = KINDS.get(at)?;
            let (address, packet) = make(self, &Places { target, other, here, there })?;
            Some(Forgery { kind, address, packet })
        })
    }

    /// Returns a domain and a message for the subject of its claim that is not a claim; `None` if there is no target. A valid claim
    /// is not forged: only permissions can prevent it.
    pub fn forge_claim(&mut self) -> Option<(Name, Bytes)> {
        self.written += 1;
        let content = match self.random.below(4) {
            0 => self.noise(300),
            1 => Bytes::new(),
            2 => Bytes::from_static(b"[]"),
            // A service with permissions can direct a response of JetStream here.
            _ => Bytes::from_static(br#"{"stream":"whizbang_claims","seq":7}"#),
        };
        Some((self.pick_target()?.domain, content))
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

    /// Returns a number that an outbox or a log may have reached, or may reach next.
    fn plausible_number(&self) -> u64 {
        1 + self.random.below(8)
    }

    /// Returns a random address of a target.
    fn address(&self, at: &Places) -> Address {
        let (domain, here) = (&at.target.domain, &at.here);
        match self.random.below(9) {
            0 => at.outside(),
            1 => at.direct(),
            2 => event_address(&at.target, here),
            3 => Address::Events(here.clone()),
            4 => Address::CommandRequest { domain: domain.clone(), shard: Some(here.shard) },
            5 => {
                let (domain, name) = at.target.query.clone();
                Address::QueryRequest { domain, name }
            }
            6 => Address::EventsRequest(here.clone()),
            7 => Address::Committed { from: here.clone(), to: at.there.clone() },
            _ => Address::Head(here.clone()),
        }
    }

    /// Returns an observed message of a kind with another id and payload.
    fn at_known_sequence(&self, kind: Kind) -> Option<(Address, Packet)> {
        self.observed.another_id(&self.random, kind, self.id(), self.noise(20))
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
    fn corrupted(&self, at: &Places) -> Packet {
        let sent = self.forged_command(at, UNREACHED_POSITION);
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

    /// Returns an id that [`is_forged`](Hostile::is_forged) recognizes and no other message has.
    fn id(&self) -> MessageId {
        MessageId::from_u128(FORGED_ID_BITS | u128::from(self.random.next_u64()) << 32 | u128::from(self.written))
    }

    /// Returns a command of an external caller with a payload that cannot be decoded.
    fn external_command(&self, at: &Places) -> Envelope {
        let (id, target) = (self.id(), &at.target);
        Envelope {
            id,
            kind: Kind::Command,
            name: target.command.clone(),
            version: 1,
            domain: target.domain.clone(),
            to: Some(at.here.clone()),
            key: super::cases::sample::key_of(at.here.shard, target.shards, self.written),
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
            payload: self.undecodable(),
        }
    }

    /// Returns a command in the name of an actor of the other shard.
    fn forged_command(&self, at: &Places, sequence: u64) -> Envelope {
        let origin = Origin {
            shard: at.there.clone(),
            actor: at.other.actor.clone(),
            key: "forged".to_owned(),
            sequence,
            version: 0,
            store: None,
        };
        Envelope { origin: Some(origin), payload: Bytes::new(), ..self.external_command(at) }
    }

    /// Returns a reply in the name of the other shard to a command that was never sent.
    fn forged_reply(&self, at: &Places, sequence: u64) -> Envelope {
        Envelope {
            kind: Kind::Reply,
            name: at.other.command.clone(),
            domain: at.there.domain.clone(),
            actor: Some(at.target.actor.clone()),
            causation: Some(self.id()),
            ..self.forged_command(at, sequence)
        }
    }

    /// Returns an event that its owner has never recorded.
    fn forged_event(&self, target: &Target, shard: &ShardId, position: u64) -> Envelope {
        let (id, key) = (self.id(), "forged".to_owned());
        let (actor, shard) = (target.actor.clone(), shard.clone());
        let origin = Origin { shard, actor, key, sequence: position, version: position, store: None };
        let time = Timestamp::from_millis(0);
        Envelope {
            origin: Some(origin),
            payload: self.noise(20),
            ..Envelope::new(id, Kind::Event, target.domain.clone(), target.event.clone(), time)
        }
    }
}

/// Returns the message as one of a store without a claim.
fn of_foreign_store(mut envelope: Envelope) -> Envelope {
    if let Some(origin) = &mut envelope.origin {
        origin.store = Some(FOREIGN_STORE);
    }
    envelope
}

/// Returns the claim of the other shard that it has committed messages of the shard under attack, with its address.
fn committed(at: &Places, through: u64) -> (Address, Packet) {
    let committed = Notification::Committed { from: at.here.clone(), to: at.there.clone(), through };
    (Address::for_notification(&committed), Packet::from_notification(&committed))
}

/// Returns a request with its own address.
fn asked(request: Request) -> Option<(Address, Packet)> {
    Some((Address::for_request(&request), Packet::from_request(&request).ok()?))
}

/// Returns the address of an event of the domain.
fn event_address(target: &Target, shard: &ShardId) -> Address {
    Address::Event { shard: shard.clone(), name: target.event.clone() }
}

/// Encodes an envelope; `None` if it cannot be encoded.
fn packet(envelope: &Envelope) -> Option<Packet> {
    Packet::from_envelope(envelope).ok()
}
