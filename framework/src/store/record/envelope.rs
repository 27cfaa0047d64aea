//! An envelope inside a record.

use bytes::Bytes;

use super::decode::Decoder;
use super::stored::Names;
use super::{Malformed, encode};
use crate::clock::Timestamp;
use crate::message::{Envelope, Fingerprint, Kind, MessageId, Origin, ReplyMode, SHAPE, ShardId};
use crate::store::SentMessage;

const TO: u16 = 1;
const TO_GIVEN: u16 = 1 << 1;
const ACTOR: u16 = 1 << 2;
const CAUSATION: u16 = 1 << 3;
const DEADLINE: u16 = 1 << 4;
const TRACEPARENT: u16 = 1 << 5;
const ORIGIN: u16 = 1 << 6;
const HEADERS: u16 = 1 << 7;
const CORRELATION: u16 = 1 << 8;
const DOMAIN: u16 = 1 << 9;

/// What the record says already and the envelope need not repeat.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    /// The destination.
    pub(super) to: Option<&'a ShardId>,
    /// The turn's correlation id.
    pub(super) correlation: MessageId,
}

/// A bound for the bytes that [`write`] appends.
pub(super) fn bound(envelope: &Envelope) -> usize {
    let headers: usize = envelope.headers.iter().map(|(name, value)| name.len() + value.len() + 20).sum();
    let texts = envelope.name.len()
        + envelope.domain.len()
        + envelope.key.len()
        + envelope.to.as_ref().map_or(0, |to| to.domain.len())
        + envelope.actor.as_ref().map_or(0, |actor| actor.len())
        + envelope
            .origin
            .as_ref()
            .map_or(0, |origin| origin.shard.domain.len() + origin.actor.len() + origin.key.len())
        + envelope.traceparent.as_ref().map_or(0, String::len);
    // Three ids, at most twenty numbers of ten bytes, and a fingerprint.
    320 + texts + headers + envelope.payload.len()
}

/// Appends an envelope; with its origin only if `origin` is to be kept.
pub(super) fn write(into: &mut Vec<u8>, envelope: &Envelope, given: Given<'_>, origin: Option<&Origin>) {
    let mut flags = 0;
    let to_given = envelope.to.is_some() && envelope.to.as_ref() == given.to;
    let domain_given = given.to.is_some_and(|to| to.domain == envelope.domain);
    for (is, flag) in [
        (envelope.to.is_some() && !to_given, TO),
        (to_given, TO_GIVEN),
        (envelope.actor.is_some(), ACTOR),
        (envelope.causation.is_some(), CAUSATION),
        (envelope.deadline.is_some(), DEADLINE),
        (envelope.traceparent.is_some(), TRACEPARENT),
        (origin.is_some(), ORIGIN),
        (!envelope.headers.is_empty() || envelope.shape.is_some(), HEADERS),
        (envelope.correlation != given.correlation, CORRELATION),
        (!domain_given, DOMAIN),
    ] {
        if is {
            flags |= flag;
        }
    }
    into.extend_from_slice(&u16::to_le_bytes(flags));
    into.extend_from_slice(&[envelope.kind.id(), envelope.wants.id(), envelope.codec.id()]);
    encode::id(into, envelope.id);
    encode::text(into, &envelope.name);
    encode::number(into, u64::from(envelope.version));
    encode::text(into, &envelope.key);
    encode::number(into, envelope.time.as_millis());
    if let (Some(to), false) = (&envelope.to, to_given) {
        encode::text(into, &to.domain);
        encode::number(into, u64::from(to.shard));
    }
    if !domain_given {
        encode::text(into, &envelope.domain);
    }
    if flags & CORRELATION != 0 {
        encode::id(into, envelope.correlation);
    }
    if let Some(actor) = &envelope.actor {
        encode::text(into, actor);
    }
    if let Some(id) = envelope.causation {
        encode::id(into, id);
    }
    if let Some(deadline) = envelope.deadline {
        encode::number(into, deadline.as_millis());
    }
    if let Some(traceparent) = &envelope.traceparent {
        encode::text(into, traceparent);
    }
    if let Some(origin) = origin {
        encode::text(into, &origin.shard.domain);
        encode::number(into, u64::from(origin.shard.shard));
        encode::text(into, &origin.actor);
        encode::text(into, &origin.key);
        encode::number(into, origin.sequence);
        encode::number(into, origin.version);
    }
    if flags & HEADERS != 0 {
        encode::number(into, envelope.headers.len() as u64 + u64::from(envelope.shape.is_some()));
        for (name, value) in &envelope.headers {
            encode::text(into, name);
            encode::text(into, value);
        }
        if let Some(shape) = envelope.shape {
            encode::text(into, SHAPE);
            encode::text(into, &shape.to_string());
        }
    }
    encode::bytes(into, &envelope.payload);
}

/// Only the id of the envelope that [`write`] has put there.
pub(super) fn read_id(bytes: &[u8]) -> Result<MessageId, Malformed> {
    let mut take = Decoder(bytes);
    take.exactly(5)?;
    take.id()
}

/// Only its beginning.
pub(super) fn read_sent(bytes: &[u8], names: &mut Names) -> Result<SentMessage, Malformed> {
    let mut take = Decoder(bytes);
    take.exactly(2)?;
    let kind = Kind::from_id(take.byte()?).ok_or(Malformed("a kind of message is unknown"))?;
    let wants = ReplyMode::from_id(take.byte()?).ok_or(Malformed("what the sender wants is unknown"))?;
    take.codec()?;
    Ok(SentMessage { kind, wants, id: take.id()?, name: names.get(take.text()?)? })
}

/// Reads what [`write`] has put there; all of `bytes`, which lie in `record`.
pub(super) fn read(bytes: &[u8], record: &Bytes, given: Given<'_>, names: &mut Names) -> Result<Envelope, Malformed> {
    let take = &mut Decoder(bytes);
    let flags = u16::from_le_bytes(take.array()?);
    let has = |flag: u16| flags & flag != 0;
    let kind = Kind::from_id(take.byte()?).ok_or(Malformed("a kind of message is unknown"))?;
    let wants = ReplyMode::from_id(take.byte()?).ok_or(Malformed("what the sender wants is unknown"))?;
    let codec = take.codec()?;
    let id = take.id()?;
    let name = names.get(take.text()?)?;
    let version = take.small()?;
    let key = take.text()?.to_owned();
    let time = Timestamp::from_millis(take.number()?);
    let to = match (has(TO), has(TO_GIVEN)) {
        (true, _) => Some(ShardId::new(names.get(take.text()?)?, take.shard()?)),
        (_, true) => Some(given.to.ok_or(Malformed("an envelope leaves out a destination that nobody gives"))?.clone()),
        _ => None,
    };
    let domain = if has(DOMAIN) {
        names.get(take.text()?)?
    } else {
        given.to.ok_or(Malformed("an envelope leaves out a domain that nobody gives"))?.domain.clone()
    };
    let correlation = if has(CORRELATION) { take.id()? } else { given.correlation };
    let actor = if has(ACTOR) { Some(names.get(take.text()?)?) } else { None };
    let causation = if has(CAUSATION) { Some(take.id()?) } else { None };
    let deadline = if has(DEADLINE) { Some(Timestamp::from_millis(take.number()?)) } else { None };
    let traceparent = if has(TRACEPARENT) { Some(take.text()?.to_owned()) } else { None };
    let origin = if has(ORIGIN) { Some(read_origin(take, names)?) } else { None };
    let mut headers = Vec::new();
    if has(HEADERS) {
        // Each header is two lengths at least; what is reserved stays in proportion to what is there.
        let count = take.count()?;
        headers.reserve_exact(count.min(take.0.len() / 2));
        for _ in 0..count {
            headers.push((take.text()?.to_owned(), take.text()?.to_owned()));
        }
    }
    let shape = Fingerprint::remove_from(&mut headers);
    let payload = record.slice_ref(take.bytes()?);
    if !take.is_empty() {
        return Err(Malformed("bytes are left over behind an envelope"));
    }
    Ok(Envelope {
        id,
        kind,
        name,
        version,
        shape,
        domain,
        to,
        key,
        actor,
        origin,
        correlation,
        causation,
        time,
        deadline,
        wants,
        traceparent,
        headers,
        codec,
        payload,
    })
}

fn read_origin(take: &mut Decoder<'_>, names: &mut Names) -> Result<Origin, Malformed> {
    Ok(Origin {
        shard: ShardId::new(names.get(take.text()?)?, take.shard()?),
        actor: names.get(take.text()?)?,
        key: take.text()?.to_owned(),
        sequence: take.number()?,
        version: take.number()?,
        // Its store is the sender's, and holds nothing else.
        store: None,
    })
}
