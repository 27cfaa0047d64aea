//! Fingerprints of message types: eight bytes by which two services detect that they have different shapes of a
//! message.
//!
//! Called when a message is sent to another service, and by the receiver's dispatcher. Calls the
//! [shapes](super::Shape). A fingerprint is a stable hash of shapes. It shows whether two programs have the same types;
//! comparing the shapes shows whether a difference matters.

use std::any::TypeId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use foldhash::fast::FixedState;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Codec, Coded, Command, Difference, Domain, Event, Message, Query, Shape, stable_hash};

/// The largest size of shapes that are sent to, or accepted from, another service. Larger ones are compared by their
/// fingerprints only.
pub const MAX_SHAPES_BYTES: usize = 12 * 1024;

/// The header of the fingerprint on the wire. In records and frames it is among the pass-through headers, so that
/// versions without this feature preserve it.
pub const SHAPE: &str = "ce-shape";

/// The fingerprint of one version of a message type: a hash of its shape and that of its reply. Displayed as 16
/// hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// Creates a fingerprint from its number.
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Parses the output of `Display`.
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| is_plain).map(Self)
    }

    /// Removes the fingerprint from the headers of a record or a frame. An invalid one is dropped.
    pub fn remove_from(headers: &mut Vec<(String, String)>) -> Option<Self> {
        let at = headers.iter().position(|(name, _)| name == SHAPE)?;
        Self::parse(&headers.remove(at).1)
    }

    /// Returns the fingerprint of a command type in this program, or `None` if its shape is not known.
    ///
    /// The first call for a type traces it; later calls cost one lookup.
    pub fn of_command<C: Command>() -> Option<Self> {
        Self::of::<C>(Some(ReplyShape(C::Reply::shape)))
    }

    /// Returns the fingerprint of a query type, like [`of_command`](Self::of_command).
    pub fn of_query<Q: Query>() -> Option<Self> {
        Self::of::<Q>(Some(ReplyShape(Q::Reply::shape)))
    }

    /// Returns the fingerprint of an event type that is published, like [`of_command`](Self::of_command).
    pub fn of_event<E: Event>() -> Option<Self> {
        Self::of::<E>(None)
    }

    fn of<M: Message>(reply: Option<ReplyShape>) -> Option<Self> {
        Self::known(TypeId::of::<M>(), M::WRITES, M::Domain::CODEC, M::shape, reply)
    }

    fn known(
        of: TypeId,
        version: u32,
        codec: Codec,
        shape: fn(u32, Codec) -> Option<Arc<Shape>>,
        reply: Option<ReplyShape>,
    ) -> Option<Self> {
        thread_local! {
            static KNOWN: RefCell<HashMap<TypeId, Option<Fingerprint>, FixedState>> = const {
                RefCell::new(HashMap::with_hasher(FixedState::with_seed(0)))
            };
        }
        if let Some(known) = KNOWN.with_borrow(|known| known.get(&of).copied()) {
            return known;
        }
        // Not while borrowed: the type's `Deserialize` is user code.
        let shapes = shape(version, codec).map(|shape| MessageShapes::new(&shape, reply, codec));
        let fingerprint = shapes.map(|shapes| shapes.register());
        KNOWN.with_borrow_mut(|known| known.insert(of, fingerprint));
        fingerprint
    }

    /// Returns the shapes with this fingerprint as text, if they are those of a type of this program.
    pub fn shapes(self) -> Option<Arc<str>> {
        OWN_SHAPES.lock().as_ref()?.get(&self).cloned()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The shapes of this program's types as text, sent to services that request them. A cache of a pure function.
static OWN_SHAPES: Mutex<Option<HashMap<Fingerprint, Arc<str>, FixedState>>> = Mutex::new(None);

/// A function that returns the shape of a command's or query's reply.
#[derive(Clone, Copy, Debug)]
pub struct ReplyShape(pub fn(Codec) -> Arc<Shape>);

impl ReplyShape {
    /// Returns the shape in a codec.
    pub fn of(self, codec: Codec) -> Arc<Shape> {
        (self.0)(codec)
    }
}

/// Shapes follow from the Rust type, which is compared by its name.
impl PartialEq for ReplyShape {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for ReplyShape {}

/// The shapes of one version of a message type: its own and, for a command or a query, that of its reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageShapes {
    codec: u8,
    message: Shape,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply: Option<Shape>,
}

impl MessageShapes {
    #[doc(hidden)]
    pub fn new(message: &Shape, reply: Option<ReplyShape>, codec: Codec) -> Self {
        let reply = reply.map(|reply| (*reply.of(codec)).clone());
        Self { codec: codec.id(), message: message.clone(), reply }
    }

    fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Registers the shapes of a type of this program for requests of other services, and returns their fingerprint.
    pub fn register(&self) -> Fingerprint {
        let text = self.text();
        let fingerprint = Fingerprint(stable_hash(&text));
        OWN_SHAPES.lock().get_or_insert_default().entry(fingerprint).or_insert_with(|| text.into());
        fingerprint
    }

    /// Parses the shapes that another service returned for a fingerprint; `None` if they do not match it.
    pub fn read(fingerprint: Fingerprint, text: &str) -> Option<Self> {
        let is_it = text.len() <= MAX_SHAPES_BYTES && stable_hash(text) == fingerprint.0;
        serde_json::from_str(text).ok().filter(|_| is_it)
    }

    /// Compares with the shapes of a sender. Returns the first difference that prevents decoding the sender's message
    /// here, and the first that prevents the sender from decoding the reply.
    pub fn differences(&self, sent: &Self, codec: Codec) -> (Option<Difference>, Option<Difference>) {
        let message = sent.message.difference_received(&self.message, codec);
        let replies = self.reply.as_ref().zip(sent.reply.as_ref());
        (message, replies.and_then(|(own, theirs)| own.difference_received(theirs, codec)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_never_change() {
        let shapes = MessageShapes {
            codec: Codec::Bincode.id(),
            message: Shape::of::<(u64, String)>(Codec::Bincode).as_ref().clone(),
            reply: Some(Shape::of::<Option<i8>>(Codec::Bincode).as_ref().clone()),
        };
        let fingerprint = shapes.register();
        assert_eq!(shapes.text(), r#"{"codec":1,"message":{"tuple":["u64","text"]},"reply":{"option":"i8"}}"#);
        assert_eq!(fingerprint.to_string(), "5c120bf7a29724dc");
        assert_eq!(Fingerprint::parse(&fingerprint.to_string()), Some(fingerprint));
        let text = fingerprint.shapes().unwrap();
        assert_eq!(MessageShapes::read(fingerprint, &text), Some(shapes));
        assert_eq!(MessageShapes::read(Fingerprint(1), &text), None, "shapes must match the requested fingerprint");
        for text in ["", "12", "+000000000000001", "gggggggggggggggg"] {
            assert_eq!(Fingerprint::parse(text), None, "{text}");
        }
    }

    #[test]
    fn reply_is_read_by_the_sender() {
        let shapes = |reply: Arc<Shape>| MessageShapes {
            codec: Codec::Json.id(),
            message: Shape::Recursion,
            reply: Some((*reply).clone()),
        };
        let (sure, maybe) = (Shape::of::<u64>(Codec::Json), Shape::of::<Option<u64>>(Codec::Json));
        let (owner, sender) = (shapes(maybe), shapes(sure));
        assert!(owner.differences(&sender, Codec::Json).1.is_some(), "the sender cannot read what is absent");
        assert_eq!(sender.differences(&owner, Codec::Json), (None, None));
    }
}
