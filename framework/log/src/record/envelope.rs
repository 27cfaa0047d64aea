//! Encoding of an envelope inside a record.
//!
//! Fields that repeat the record around the envelope are left out, which halves the size of a typical entry. The bits say
//! which fields follow, in the order of the function that writes them. They are frozen.

use bytes::Bytes;

use super::decode::Decoder;
use super::{Malformed, Names, encode};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Envelope, Fingerprint, Kind, MessageId, Origin, ReplyMode, SHAPE, ShardId};
use whizbang_core::store::SentMessage;

/// The destination follows.
const TO: u16 = 1;
/// The destination is that of the outbox entry around the envelope.
const TO_GIVEN: u16 = 1 << 1;
/// The receiving actor follows.
const ACTOR: u16 = 1 << 2;
/// The id of the causing message follows.
const CAUSATION: u16 = 1 << 3;
/// The deadline of a command follows, in milliseconds since 1970.
const DEADLINE: u16 = 1 << 4;
/// The trace context follows.
const TRACEPARENT: u16 = 1 << 5;
/// The sender follows: shard, actor, key and sequence.
const ORIGIN: u16 = 1 << 6;
/// The number of headers and the headers follow.
const HEADERS: u16 = 1 << 7;
/// The correlation id follows. Without the bit it is that of the turn.
const CORRELATION: u16 = 1 << 8;
/// The domain follows. Without the bit it is that of the destination.
const DOMAIN: u16 = 1 << 9;

/// The header of an outbox entry in a record whose sender is not the key of its turn. The name is reserved on the wire, so
/// no header of a user has it.
const ORIGIN_KEY: &str = "ce-originkey";

/// The fields that are known from the record and omitted from the envelope.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    /// The destination.
    pub(super) to: Option<&'a ShardId>,
    /// The turn's correlation id.
    pub(super) correlation: MessageId,
    /// The key of the turn that sent it; `None` if it is not an outbox entry.
    pub(super) key: Option<&'a str>,
}

impl<'a> Given<'a> {
    /// Returns the key of an outbox entry's sender, if it is not the key of its turn: a worker records the jobs of all
    /// keys in one stream, and replies go to the key of the job.
    fn sender<'e>(&self, envelope: &'e Envelope) -> Option<&'e str> {
        let key = self.key?;
        envelope.origin.as_ref().map(|origin| origin.key.as_str()).filter(|sender| *sender != key)
    }
}

/// Returns an upper bound for the number of bytes that [`write`] appends, and for the other fields of the outbox entry or of the
/// dead letter around the envelope, without their texts.
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
    // Three ids, at most twenty-six numbers of ten bytes, a fingerprint, and the name of the header with the sender.
    414 + texts + headers + envelope.payload.len()
}

/// Appends an envelope. Its origin is included only if `origin` is given.
pub(super) fn write(into: &mut Vec<u8>, envelope: &Envelope, given: Given<'_>, origin: Option<&Origin>) {
    let mut flags = 0;
    let to_given = envelope.to.is_some() && envelope.to.as_ref() == given.to;
    let sender = given.sender(envelope);
    let more = usize::from(envelope.shape.is_some()) + usize::from(sender.is_some());
    let domain_given = given.to.is_some_and(|to| to.domain == envelope.domain);
    for (is, flag) in [
        (envelope.to.is_some() && !to_given, TO),
        (to_given, TO_GIVEN),
        (envelope.actor.is_some(), ACTOR),
        (envelope.causation.is_some(), CAUSATION),
        (envelope.deadline.is_some(), DEADLINE),
        (envelope.traceparent.is_some(), TRACEPARENT),
        (origin.is_some(), ORIGIN),
        (!envelope.headers.is_empty() || more > 0, HEADERS),
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
        encode::number(into, (envelope.headers.len() + more) as u64);
        for (name, value) in &envelope.headers {
            encode::text(into, name);
            encode::text(into, value);
        }
        if let Some(shape) = envelope.shape {
            encode::text(into, SHAPE);
            encode::text(into, &shape.to_string());
        }
        if let Some(sender) = sender {
            encode::text(into, ORIGIN_KEY);
            encode::text(into, sender);
        }
    }
    encode::bytes(into, &envelope.payload);
}

/// Removes the key of the sender from the headers of an outbox entry; `None` if it is the key of its turn.
pub(super) fn remove_sender(headers: &mut Vec<(String, String)>) -> Option<String> {
    let at = headers.iter().position(|(name, _)| name == ORIGIN_KEY)?;
    Some(headers.remove(at).1)
}

/// Reads only the id of an envelope written by [`write`].
pub(super) fn read_id(bytes: &[u8]) -> Result<MessageId, Malformed> {
    let mut decoder = Decoder(bytes);
    decoder.exactly(5)?;
    decoder.id()
}

/// Reads only the beginning of an envelope.
pub(super) fn read_sent(bytes: &[u8], names: &mut Names) -> Result<SentMessage, Malformed> {
    let mut decoder = Decoder(bytes);
    decoder.exactly(2)?;
    let kind = Kind::from_id(decoder.byte()?).ok_or(Malformed("unknown kind of message"))?;
    let wants = ReplyMode::from_id(decoder.byte()?).ok_or(Malformed("unknown reply mode"))?;
    decoder.codec()?;
    Ok(SentMessage { kind, wants, id: decoder.id()?, name: names.get(decoder.text()?)? })
}

/// Reads an envelope written by [`write`]. `bytes` are exactly the envelope and lie within `record`.
pub(super) fn read(bytes: &[u8], record: &Bytes, given: Given<'_>, names: &mut Names) -> Result<Envelope, Malformed> {
    let decoder = &mut Decoder(bytes);
    let flags = u16::from_le_bytes(decoder.array()?);
    let has = |flag: u16| flags & flag != 0;
    let kind = Kind::from_id(decoder.byte()?).ok_or(Malformed("unknown kind of message"))?;
    let wants = ReplyMode::from_id(decoder.byte()?).ok_or(Malformed("unknown reply mode"))?;
    let codec = decoder.codec()?;
    let id = decoder.id()?;
    let name = names.get(decoder.text()?)?;
    let version = decoder.small()?;
    let key = decoder.text()?.to_owned();
    let time = Timestamp::from_millis(decoder.number()?);
    let to = match (has(TO), has(TO_GIVEN)) {
        (true, _) => Some(ShardId::new(names.get(decoder.text()?)?, decoder.shard()?)),
        (_, true) => Some(given.to.ok_or(Malformed("an envelope omits its destination outside of an outbox"))?.clone()),
        _ => None,
    };
    let domain = if has(DOMAIN) {
        names.get(decoder.text()?)?
    } else {
        given.to.ok_or(Malformed("an envelope omits its domain outside of an outbox"))?.domain.clone()
    };
    let correlation = if has(CORRELATION) { decoder.id()? } else { given.correlation };
    let actor = if has(ACTOR) { Some(names.get(decoder.text()?)?) } else { None };
    let causation = if has(CAUSATION) { Some(decoder.id()?) } else { None };
    let deadline = if has(DEADLINE) { Some(Timestamp::from_millis(decoder.number()?)) } else { None };
    let traceparent = if has(TRACEPARENT) { Some(decoder.text()?.to_owned()) } else { None };
    let origin = if has(ORIGIN) { Some(read_origin(decoder, names)?) } else { None };
    let mut headers = Vec::new();
    if has(HEADERS) {
        // Each header has at least two lengths, which bounds the reserved memory by the remaining bytes.
        let count = decoder.count()?;
        headers.reserve_exact(count.min(decoder.0.len() / 2));
        for _ in 0..count {
            headers.push((decoder.text()?.to_owned(), decoder.text()?.to_owned()));
        }
    }
    let shape = Fingerprint::remove_from(&mut headers);
    let payload = record.slice_ref(decoder.bytes()?);
    if !decoder.is_empty() {
        return Err(Malformed("trailing bytes after an envelope"));
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

/// Reads the sender of a message.
fn read_origin(decoder: &mut Decoder<'_>, names: &mut Names) -> Result<Origin, Malformed> {
    Ok(Origin {
        shard: ShardId::new(names.get(decoder.text()?)?, decoder.shard()?),
        actor: names.get(decoder.text()?)?,
        key: decoder.text()?.to_owned(),
        sequence: decoder.number()?,
        version: decoder.number()?,
        // The origin's store is the sender's own store.
        store: None,
    })
}

#[cfg(test)]
mod tests;
