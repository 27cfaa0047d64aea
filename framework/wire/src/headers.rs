//! One envelope as CloudEvents 1.0 headers and a payload, and back.
//!
//! Called by [`Packet`]. The table of headers is in docs/wire.md; a header occurs at most once.
//! Unknown headers pass through. Headers that command the broker (`Nats-…`) are dropped on receipt and rejected on sending.

use std::borrow::Cow;

use bytes::Bytes;

use super::{BridgeError, Packet, excerpt, malformed, percent};
use whizbang_core::clock::{Timestamp, rfc3339};
use whizbang_core::message::{
    Codec, Envelope, Fingerprint, Key, Kind, MAX_HEADER_BYTES, MAX_HEADERS, MAX_PAYLOAD_BYTES, MessageId, Name, Origin,
    ReplyMode, SHAPE, ShardId, StoreId, is_header_name, is_header_value,
};
use whizbang_core::telemetry::passes;

/// The version of CloudEvents, `1.0`. Another major version is refused.
const SPECVERSION: &str = "ce-specversion";
/// The id of the message. Duplicates of clients are recognized by it.
const ID: &str = "ce-id";
/// The domain and the name of the message: `bank.Deposit`.
const TYPE: &str = "ce-type";
/// The sending shard and actor: `/shop/3/Order`, or [`NO_ACTOR`].
const SOURCE: &str = "ce-source";
/// The time at which the message was created, in RFC 3339.
const TIME: &str = "ce-time";
/// The key, percent-encoded: of the destination for a command, of the stream for an event.
const SUBJECT: &str = "ce-subject";
/// The shard within which the message is ordered: of an event's log, otherwise of the destination. `bank/3`.
const PARTITION_KEY: &str = "ce-partitionkey";
/// The position of an event, or the sequence of a command or reply between two shards.
const SEQUENCE: &str = "ce-sequence";
/// The codec of the payload.
const CONTENT_TYPE: &str = "ce-datacontenttype";
/// The kind of message: a command, an event, a reply.
const KIND: &str = "ce-kind";
/// The domain of `ce-type` again, so that subscribers can filter by it.
const DOMAIN: &str = "ce-domain";
/// The version of the message type. Missing means 1.
const SCHEMA_VERSION: &str = "ce-schemaversion";
/// The id of the message that began the conversation. Missing means the message itself.
const CORRELATION: &str = "ce-correlationid";
/// The id of the message whose handling sent this one.
const CAUSATION: &str = "ce-causationid";
/// The actor type of the destination, where the name of the message does not determine it.
const ACTOR: &str = "ce-actor";
/// The key of the sending actor, percent-encoded. An event has it in `ce-subject`.
const ORIGIN_KEY: &str = "ce-originkey";
/// The version of an event in the stream of its key.
const STREAM_VERSION: &str = "ce-streamversion";
/// The time after which a command is not begun. Only its distance from `ce-time` counts, because clocks differ.
const DEADLINE: &str = "ce-deadline";
/// The result that is recorded for the sending actor: `reply` or `rejection`. Missing means none.
const WANTS: &str = "ce-wants";
/// The trace that the message belongs to, as W3C Trace Context defines it.
const TRACEPARENT: &str = "traceparent";
/// The store that holds the log of the sender.
pub(super) const STORE: &str = "whizbang-store";

/// The `ce-source` of a message that no actor sent.
const NO_ACTOR: &str = "/";

/// Encodes an envelope. Headers that have their default value are left out.
pub(super) fn write(envelope: &Envelope) -> Result<Packet, BridgeError> {
    check(envelope)?;
    passes!("bridge", envelope.name, envelope.id, envelope.correlation);
    let mut headers = Headers(Vec::with_capacity(19 + envelope.headers.len()));
    headers.put(SPECVERSION, "1.0");
    headers.put(ID, envelope.id.to_string());
    headers.put(TYPE, format!("{}.{}", envelope.domain, envelope.name));
    headers.put(TIME, rfc3339::write(envelope.time));
    headers.put(CONTENT_TYPE, envelope.codec.media_type());
    headers.put(KIND, envelope.kind.as_str());
    headers.put(DOMAIN, envelope.domain.as_str());
    headers.put(SCHEMA_VERSION, envelope.version.to_string());
    if let Some(shape) = envelope.shape {
        headers.put(SHAPE, shape.to_string());
    }
    headers.put(CORRELATION, envelope.correlation.to_string());
    if let Some(causation) = envelope.causation {
        headers.put(CAUSATION, causation.to_string());
    }
    let mut subject = envelope.key.as_str();
    let mut shard = envelope.to.as_ref();
    match &envelope.origin {
        None => headers.put(SOURCE, NO_ACTOR),
        Some(origin) => {
            headers.put(SOURCE, format!("/{}/{}/{}", origin.shard.domain, origin.shard.shard, origin.actor));
            // Twenty digits, so that text order equals numeric order, as the CloudEvents sequence extension requires.
            headers.put(SEQUENCE, format!("{:020}", origin.sequence));
            if let Some(store) = origin.store {
                headers.put(STORE, store.to_string());
            }
            if origin.version > 0 {
                headers.put(STREAM_VERSION, origin.version.to_string());
            }
            if is_plain_event(envelope) {
                subject = &origin.key;
                shard = Some(&origin.shard);
            } else {
                headers.put(ORIGIN_KEY, percent::encode(&origin.key));
            }
        }
    }
    if !subject.is_empty() {
        headers.put(SUBJECT, percent::encode(subject));
    }
    if let Some(shard) = shard {
        headers.put(PARTITION_KEY, shard.to_string());
    }
    if let Some(actor) = &envelope.actor {
        headers.put(ACTOR, actor.as_str());
    }
    if let Some(deadline) = envelope.deadline {
        headers.put(DEADLINE, rfc3339::write(deadline));
    }
    match envelope.wants {
        ReplyMode::Nothing => {}
        ReplyMode::Rejection => headers.put(WANTS, "rejection"),
        ReplyMode::Reply => headers.put(WANTS, "reply"),
    }
    // An invalid trace context is left out: a message must not fail because of a trace.
    if let Some(traceparent) = envelope.traceparent.as_deref().filter(|text| is_traceparent(text)) {
        headers.put(TRACEPARENT, traceparent.to_owned());
    }
    for (name, value) in &envelope.headers {
        headers.0.push((Cow::Owned(name.clone()), value.clone()));
    }
    Ok(Packet { headers: headers.0, payload: envelope.payload.clone() })
}

/// The headers of a packet, in the order in which they are written.
struct Headers(Vec<(Cow<'static, str>, String)>);

impl Headers {
    fn put(&mut self, name: &'static str, value: impl Into<String>) {
        self.0.push((Cow::Borrowed(name), value.into()));
    }
}

/// Returns true for an event as a log holds it: identified by its stream, without a destination.
fn is_plain_event(envelope: &Envelope) -> bool {
    envelope.kind == Kind::Event && envelope.key.is_empty() && envelope.to.is_none()
}

/// Checks the limits that hold for every transferred envelope, in either encoding.
pub(super) fn check(envelope: &Envelope) -> Result<(), BridgeError> {
    if envelope.payload.len() > MAX_PAYLOAD_BYTES {
        return Err(BridgeError::Oversize { bytes: envelope.payload.len(), limit: MAX_PAYLOAD_BYTES });
    }
    if envelope.key.len() > Key::MAX_BYTES {
        return Err(malformed(format!("key of {} bytes exceeds the limit of {}", envelope.key.len(), Key::MAX_BYTES)));
    }
    if let Some(origin) = &envelope.origin {
        if origin.key.is_empty() || origin.key.len() > Key::MAX_BYTES {
            return Err(malformed(format!("origin key has an invalid length of {} bytes", origin.key.len())));
        }
        if origin.sequence == 0 {
            return Err(malformed("origin sequence is 0"));
        }
    }
    if envelope.headers.len() > MAX_HEADERS {
        let count = envelope.headers.len();
        return Err(malformed(format!("{count} extra headers exceed the limit of {MAX_HEADERS}")));
    }
    let bytes: usize = envelope.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MAX_HEADER_BYTES {
        return Err(BridgeError::Oversize { bytes, limit: MAX_HEADER_BYTES });
    }
    for (index, (name, value)) in envelope.headers.iter().enumerate() {
        if !is_header_name(name) || is_known(name) || is_broker_command(name) {
            return Err(malformed(format!("invalid header name `{}`", excerpt(name))));
        }
        if !is_header_value(value) {
            return Err(malformed(format!("header `{name}` contains control characters or surrounding spaces")));
        }
        if envelope.headers.iter().take(index).any(|(other, _)| other == name) {
            return Err(malformed(format!("header `{name}` occurs twice")));
        }
    }
    Ok(())
}

/// Returns true for a header that the broker interprets. `Nats-Rollup` purges a stream, `Nats-Msg-Id` turns another message into a
/// duplicate: a sender must not be able to pass them on.
fn is_broker_command(name: &str) -> bool {
    name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"))
}

/// Returns true for a W3C `traceparent` of version 00.
fn is_traceparent(text: &str) -> bool {
    text.len() == 55
        && text.bytes().enumerate().all(|(index, byte)| match index {
            2 | 35 | 52 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

/// The values of the known headers of one packet.
#[derive(Default)]
struct KnownHeaders<'a> {
    slots: [Option<&'a str>; 22],
}

/// The known headers; the index of a name is its index in [`KnownHeaders::slots`].
const NAMES: [&str; 22] = [
    SPECVERSION,
    ID,
    TYPE,
    SOURCE,
    TIME,
    SUBJECT,
    PARTITION_KEY,
    SEQUENCE,
    CONTENT_TYPE,
    KIND,
    DOMAIN,
    SCHEMA_VERSION,
    SHAPE,
    CORRELATION,
    CAUSATION,
    ACTOR,
    ORIGIN_KEY,
    STREAM_VERSION,
    DEADLINE,
    WANTS,
    TRACEPARENT,
    STORE,
];

/// Returns the index of a known header.
fn slot(name: &str) -> Option<usize> {
    NAMES.iter().position(|known| *known == name)
}

/// Returns true for a header that has a meaning here, so that a sender cannot set it as an extra header.
fn is_known(name: &str) -> bool {
    slot(name).is_some()
}

impl<'a> KnownHeaders<'a> {
    /// Returns the value of a known header.
    fn get(&self, name: &'static str) -> Option<&'a str> {
        slot(name).and_then(|index| self.slots.get(index).copied().flatten())
    }

    /// Returns the value of a header that every message has.
    fn require(&self, name: &'static str) -> Result<&'a str, BridgeError> {
        self.get(name).ok_or_else(|| malformed(format!("header `{name}` is missing")))
    }

    /// Parses a header. `None` if it is missing; an error if it is invalid.
    fn read<T>(&self, name: &'static str, read: impl FnOnce(&'a str) -> Option<T>) -> Result<Option<T>, BridgeError> {
        self.get(name).map(|value| read(value).ok_or_else(|| invalid_header(name, value))).transpose()
    }
}

/// Returns the error for a header, with an excerpt of its value.
fn invalid_header(name: &str, value: &str) -> BridgeError {
    malformed(format!("invalid header `{name}`: `{}`", excerpt(value)))
}

/// Decodes an envelope. A header that occurs twice is an error, because two readers might choose different ones.
pub(super) fn read<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    payload: Bytes,
) -> Result<Envelope, BridgeError> {
    let mut known = KnownHeaders::default();
    let mut unknown: Vec<(String, String)> = Vec::new();
    for (name, value) in headers {
        let value = value.trim();
        if let Some(slot) = slot(name).and_then(|index| known.slots.get_mut(index)) {
            if slot.replace(value).is_some() {
                return Err(malformed(format!("header `{name}` occurs twice")));
            }
        } else if !is_broker_command(name) {
            // Limit the count before storing anything; the rest is checked with the whole envelope.
            if unknown.len() == MAX_HEADERS || name.len() + value.len() > MAX_HEADER_BYTES {
                return Err(malformed("too many headers, or a header is too long"));
            }
            unknown.push((name.to_owned(), value.to_owned()));
        }
    }

    if known.require(SPECVERSION)? != "1.0" {
        return Err(invalid_header(SPECVERSION, known.require(SPECVERSION)?));
    }
    let id = known.read(ID, MessageId::parse)?.ok_or_else(|| malformed("header `ce-id` is missing"))?;
    let (domain, name) = read_type(known.require(TYPE)?)?;
    if known.get(DOMAIN).is_some_and(|text| text != domain.as_str()) {
        return Err(malformed("headers `ce-domain` and `ce-type` contain different domains"));
    }
    let kind = known.read(KIND, read_kind)?.ok_or_else(|| malformed("header `ce-kind` is missing"))?;
    let codec = known
        .read(CONTENT_TYPE, Codec::from_media_type)?
        .ok_or_else(|| malformed("header `ce-datacontenttype` is missing"))?;
    let mut key = known.read(SUBJECT, percent::decode)?.unwrap_or_default().into_owned();
    let mut to = known.read(PARTITION_KEY, read_shard)?;
    let source = known.require(SOURCE)?;
    let origin = match known.read(SEQUENCE, read_number)? {
        None => None,
        Some(sequence) => {
            let (shard, actor) = read_source(source).ok_or_else(|| invalid_header(SOURCE, source))?;
            let version = known.read(STREAM_VERSION, read_number)?.unwrap_or(0);
            let key = match known.read(ORIGIN_KEY, percent::decode)? {
                Some(key) => key.into_owned(),
                None if kind == Kind::Event => {
                    if to.take().is_some_and(|named| named != shard) {
                        return Err(malformed("headers `ce-source` and `ce-partitionkey` contain different shards"));
                    }
                    std::mem::take(&mut key)
                }
                None => return Err(malformed("header `ce-originkey` is missing")),
            };
            Some(Origin { shard, actor, key, sequence, version, store: known.read(STORE, StoreId::parse)? })
        }
    };
    // Brokers do not preserve the order of headers. Sorting makes a message equal to itself over every route.
    unknown.sort_unstable();
    let envelope = Envelope {
        id,
        kind,
        name,
        version: known.read(SCHEMA_VERSION, |text| text.parse().ok())?.unwrap_or(1),
        shape: known.read(SHAPE, Fingerprint::parse)?,
        domain,
        to,
        key,
        actor: known.read(ACTOR, |text| Name::new(text).ok())?,
        origin,
        correlation: known.read(CORRELATION, MessageId::parse)?.unwrap_or(id),
        causation: known.read(CAUSATION, MessageId::parse)?,
        time: known.read(TIME, rfc3339::read)?.or_else(|| id.time()).unwrap_or(Timestamp::from_millis(0)),
        deadline: known.read(DEADLINE, rfc3339::read)?,
        wants: known.read(WANTS, read_wants)?.unwrap_or_default(),
        traceparent: known.get(TRACEPARENT).filter(|text| is_traceparent(text)).map(str::to_owned),
        headers: unknown,
        codec,
        payload,
    };
    check(&envelope)?;
    Ok(envelope)
}

fn read_type(text: &str) -> Result<(Name, Name), BridgeError> {
    let (domain, name) = text.split_once('.').ok_or_else(|| invalid_header(TYPE, text))?;
    let read = |part| Name::new(part).map_err(|_| invalid_header(TYPE, text));
    Ok((read(domain)?, read(name)?))
}

fn read_kind(text: &str) -> Option<Kind> {
    [Kind::Command, Kind::Event, Kind::Query, Kind::Document, Kind::Reply]
        .into_iter()
        .find(|kind| kind.as_str() == text)
}

fn read_wants(text: &str) -> Option<ReplyMode> {
    match text {
        "nothing" => Some(ReplyMode::Nothing),
        "rejection" => Some(ReplyMode::Rejection),
        "reply" => Some(ReplyMode::Reply),
        _ => None,
    }
}

/// Parses a decimal number without a sign; `str::parse` alone would accept `+1`.
pub(super) fn read_number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Parses `domain/shard`.
fn read_shard(text: &str) -> Option<ShardId> {
    let (domain, shard) = text.split_once('/')?;
    Some(ShardId::new(Name::new(domain).ok()?, u16::try_from(read_number(shard)?).ok()?))
}

/// Parses `/domain/shard/actor`.
fn read_source(text: &str) -> Option<(ShardId, Name)> {
    let (shard, actor) = text.strip_prefix('/')?.rsplit_once('/')?;
    Some((read_shard(shard)?, Name::new(actor).ok()?))
}
