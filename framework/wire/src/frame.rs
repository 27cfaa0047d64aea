//! The compact encoding of traffic between nodes: requests, responses, notifications, lists of envelopes.
//!
//! Called by [`Packet`](super::Packet) and by bridges. A frame is a version byte, then fields in a fixed order: numbers as LEB128,
//! texts and bytes with their length in front, options behind a byte 0 or 1. A length never causes an allocation that the received
//! bytes do not justify.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::{BridgeError, headers, malformed};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{
    Codec, Envelope, Fingerprint, Kind, MAX_HEADERS, MessageId, Name, Origin, ReplyMode, SHAPE, ShardId,
};

/// The only version of frames that this program writes and reads.
const VERSION: u8 = 1;

/// The minimum size of an encoded envelope. A claimed count of envelopes is checked against it.
const MIN_ENVELOPE_BYTES: usize = 48;

/// Writes the fields of a frame.
pub(crate) struct Writer(BytesMut);

impl Writer {
    /// Begins a frame with its version.
    pub(crate) fn new() -> Self {
        let mut bytes = BytesMut::with_capacity(64);
        bytes.put_u8(VERSION);
        Self(bytes)
    }

    /// Returns the bytes of the frame.
    pub(crate) fn finish(self) -> Bytes {
        self.0.freeze()
    }

    /// Returns the number of bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends one byte.
    pub(crate) fn byte(&mut self, byte: u8) {
        self.0.put_u8(byte);
    }

    /// Writes a number in groups of seven bits, the lowest first. Small numbers take one byte.
    pub(crate) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.put_u8((number & 0x7F) as u8 | 0x80);
            number >>= 7;
        }
        self.0.put_u8(number as u8);
    }

    /// Writes bytes with their count in front.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.put_slice(bytes);
    }

    /// Appends the length of a text and its bytes.
    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Writes an id as 16 bytes, the highest first.
    pub(crate) fn id(&mut self, id: MessageId) {
        self.0.put_u128(id.as_u128());
    }

    /// Writes the domain and the number of a shard.
    pub(crate) fn shard(&mut self, shard: &ShardId) {
        self.text(&shard.domain);
        self.number(u64::from(shard.shard));
    }

    /// Writes 0 for a missing value, otherwise 1 and the value.
    pub(crate) fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.byte(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    /// Writes all fields of an envelope in a fixed order. A new field can only be a header: older readers ignore unknown ones.
    pub(crate) fn envelope(&mut self, envelope: &Envelope) {
        self.id(envelope.id);
        self.byte(envelope.kind.id());
        self.text(&envelope.name);
        self.number(u64::from(envelope.version));
        self.text(&envelope.domain);
        self.option(envelope.to.as_ref(), Self::shard);
        self.text(&envelope.key);
        self.option(envelope.actor.as_ref(), |to, actor| to.text(actor));
        self.option(envelope.origin.as_ref(), |to, origin| {
            to.shard(&origin.shard);
            to.text(&origin.actor);
            to.text(&origin.key);
            to.number(origin.sequence);
            to.number(origin.version);
        });
        self.id(envelope.correlation);
        self.option(envelope.causation, Self::id);
        self.number(envelope.time.as_millis());
        self.option(envelope.deadline, |to, deadline| to.number(deadline.as_millis()));
        self.byte(envelope.wants.id());
        self.option(envelope.traceparent.as_deref(), Self::text);
        // The shape is one of the headers, because readers that do not know it ignore unknown headers.
        self.number(envelope.headers.len() as u64 + u64::from(envelope.shape.is_some()));
        for (name, value) in &envelope.headers {
            self.text(name);
            self.text(value);
        }
        if let Some(shape) = envelope.shape {
            self.text(SHAPE);
            self.text(&shape.to_string());
        }
        self.byte(envelope.codec.id());
        self.bytes(&envelope.payload);
    }

    /// Writes the first envelopes of the list, as many as fit into `max_bytes` for the whole frame, and returns their number.
    pub(crate) fn envelopes(&mut self, envelopes: &[Envelope], max_bytes: usize) -> usize {
        let mut list = Writer(BytesMut::with_capacity(envelopes.len().min(1024) * 256));
        let mut count = 0;
        // The count in front of the list takes at most ten bytes.
        let limit = max_bytes.saturating_sub(self.len() + 10);
        for envelope in envelopes {
            let before = list.len();
            list.envelope(envelope);
            if list.len() > limit {
                list.0.truncate(before);
                break;
            }
            count += 1;
        }
        self.number(count as u64);
        self.0.unsplit(list.0);
        count
    }
}

/// Reads the fields of a frame. Payloads are slices of the frame and are not copied.
pub(crate) struct Reader {
    /// The received frame.
    bytes: Bytes,
    /// The number of bytes that are read.
    position: usize,
    /// The first names of the frame. Envelopes of a list repeat their names, and a clone is cheaper than a validation.
    names: Vec<Name>,
}

/// The maximum number of cached names.
const NAME_CACHE_SIZE: usize = 8;

impl Reader {
    /// Begins to read a frame.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] for a frame of another version.
    pub(crate) fn new(bytes: Bytes) -> Result<Self, BridgeError> {
        let mut reader = Self { bytes, position: 0, names: Vec::new() };
        match reader.byte()? {
            VERSION => Ok(reader),
            other => Err(malformed(format!("unknown frame version {other}, expected {VERSION}"))),
        }
    }

    /// Checks that the frame has no further bytes.
    pub(crate) fn finish(self) -> Result<(), BridgeError> {
        let count = self.remaining();
        if count == 0 { Ok(()) } else { Err(malformed(format!("{count} bytes follow the frame"))) }
    }

    /// Returns the number of bytes that were not read.
    fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.position)
    }

    /// Returns the next bytes, which share the memory of the frame.
    fn read_slice(&mut self, count: usize) -> Result<Bytes, BridgeError> {
        if count > self.remaining() {
            return Err(malformed("frame is truncated"));
        }
        let slice = self.bytes.slice(self.position..self.position + count);
        self.position += count;
        Ok(slice)
    }

    /// Reads one byte.
    pub(crate) fn byte(&mut self) -> Result<u8, BridgeError> {
        let byte = self.bytes.get(self.position).copied().ok_or_else(|| malformed("frame is truncated"))?;
        self.position += 1;
        Ok(byte)
    }

    /// Reads a number of at most 64 bits.
    pub(crate) fn number(&mut self) -> Result<u64, BridgeError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            // The tenth byte holds a single bit.
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(malformed("number in the frame exceeds 64 bits"))
    }

    /// Reads a number that must fit into a smaller type.
    fn narrow_number<T: TryFrom<u64>>(&mut self) -> Result<T, BridgeError> {
        T::try_from(self.number()?).map_err(|_| malformed("number in the frame is out of range"))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, BridgeError> {
        self.narrow_number()
    }

    /// Reads a length and as many bytes, which share the memory of the frame.
    pub(crate) fn bytes(&mut self) -> Result<Bytes, BridgeError> {
        let count = self.narrow_number()?;
        self.read_slice(count)
    }

    /// Returns the range of the text at the current position and skips it.
    fn span(&mut self) -> Result<Range<usize>, BridgeError> {
        let count: usize = self.narrow_number()?;
        if count > self.remaining() {
            return Err(malformed("frame is truncated"));
        }
        let start = self.position;
        self.position += count;
        Ok(start..self.position)
    }

    /// Reads a text.
    ///
    /// # Errors
    /// The bytes end, or are not UTF-8.
    pub(crate) fn text(&mut self) -> Result<String, BridgeError> {
        let span = self.span()?;
        let text = std::str::from_utf8(self.bytes.get(span).unwrap_or_default());
        text.map(str::to_owned).map_err(|_| malformed("text in the frame is not UTF-8"))
    }

    /// Reads a valid name.
    pub(crate) fn name(&mut self) -> Result<Name, BridgeError> {
        let span = self.span()?;
        let bytes = self.bytes.get(span).unwrap_or_default();
        if let Some(known) = self.names.iter().find(|known| known.as_bytes() == bytes) {
            return Ok(known.clone());
        }
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("name in the frame is not UTF-8"))?;
        let name = Name::new(text).map_err(|error| malformed(error.to_string()))?;
        if self.names.len() < NAME_CACHE_SIZE {
            self.names.push(name.clone());
        }
        Ok(name)
    }

    pub(crate) fn id(&mut self) -> Result<MessageId, BridgeError> {
        let bytes = self.read_slice(16)?;
        let bytes: [u8; 16] = bytes.as_ref().try_into().map_err(|_| malformed("frame is truncated"))?;
        Ok(MessageId::from_u128(u128::from_be_bytes(bytes)))
    }

    pub(crate) fn shard(&mut self) -> Result<ShardId, BridgeError> {
        Ok(ShardId::new(self.name()?, self.narrow_number()?))
    }

    /// Reads a value that may be missing. A byte other than 0 and 1 is an error.
    pub(crate) fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, BridgeError>,
    ) -> Result<Option<T>, BridgeError> {
        match self.byte()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            other => Err(malformed(format!("invalid option byte {other} in the frame"))),
        }
    }

    /// Reads a byte that stands for one of a few values.
    fn code<T>(&mut self, what: &str, decode: impl FnOnce(u8) -> Option<T>) -> Result<T, BridgeError> {
        let number = self.byte()?;
        decode(number).ok_or_else(|| malformed(format!("unknown {what} {number} in the frame")))
    }

    /// Reads a message and checks it as one that came in headers.
    pub(crate) fn envelope(&mut self) -> Result<Envelope, BridgeError> {
        let mut envelope = Envelope {
            id: self.id()?,
            kind: self.code("kind", Kind::from_id)?,
            name: self.name()?,
            version: self.u32()?,
            shape: None,
            domain: self.name()?,
            to: self.option(Self::shard)?,
            key: self.text()?,
            actor: self.option(Self::name)?,
            origin: self.option(|from| {
                Ok(Origin {
                    shard: from.shard()?,
                    actor: from.name()?,
                    key: from.text()?,
                    sequence: from.number()?,
                    version: from.number()?,
                    // The store is in the header of the packet, once for all envelopes.
                    store: None,
                })
            })?,
            correlation: self.id()?,
            causation: self.option(Self::id)?,
            time: Timestamp::from_millis(self.number()?),
            deadline: self.option(Self::number)?.map(Timestamp::from_millis),
            wants: self.code("reply mode", ReplyMode::from_id)?,
            traceparent: self.option(Self::text)?,
            headers: {
                let count: usize = self.narrow_number()?;
                if count > MAX_HEADERS + 1 {
                    return Err(malformed(format!("{count} extra headers exceed the limit of {}", MAX_HEADERS)));
                }
                (0..count).map(|_| Ok((self.text()?, self.text()?))).collect::<Result<_, BridgeError>>()?
            },
            codec: self.code("codec", Codec::from_id)?,
            payload: self.bytes()?,
        };
        envelope.shape = Fingerprint::remove_from(&mut envelope.headers);
        headers::check(&envelope)?;
        Ok(envelope)
    }

    /// Reads a count and as many messages. A count that the bytes cannot hold is refused before memory is reserved.
    pub(crate) fn envelopes(&mut self) -> Result<Vec<Envelope>, BridgeError> {
        let count: usize = self.narrow_number()?;
        if count > self.remaining() / MIN_ENVELOPE_BYTES {
            return Err(malformed(format!("frame claims {count} envelopes in {} bytes", self.remaining())));
        }
        (0..count).map(|_| self.envelope()).collect()
    }
}
