//! The event types of a stream: their names, their shapes, and how they are decoded.
//!
//! Filled by the builder methods of a [stream](super::EventStream).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::client::Client;
use crate::router::{Judgment, LogPage, MessageCard, PeerShapes, ReadError};
use whizbang_core::clock::instant;
use whizbang_core::message::{CodecError, Envelope, Event, MessageFacts};
use whizbang_core::user_code::user_code;

/// Appends the parts of an event to a list.
type Decode<T> = Arc<dyn Fn(&Envelope, &mut VecDeque<T>) -> Result<(), CodecError> + Send + Sync>;

/// The event types of a stream.
pub(super) struct EventTypes<T> {
    decode: HashMap<&'static str, Decode<T>, FixedState>,
    cards: Vec<MessageCard>,
}

impl<T> Default for EventTypes<T> {
    fn default() -> Self {
        Self { decode: HashMap::default(), cards: Vec::new() }
    }
}

impl<T> EventTypes<T> {
    /// Adds an event type. The first one of a name counts.
    pub(super) fn add<E: Event>(&mut self, convert: impl Fn(E) -> T + Send + Sync + 'static) {
        let decode: Decode<T> = Arc::new(move |envelope, parts| {
            E::decode_each(envelope.version, envelope.codec, &envelope.payload, &mut |event| {
                parts.push_back(convert(event));
            })
        });
        self.cards.push(MessageCard::of::<E>());
        for name in MessageFacts::of::<E>().names() {
            self.decode.entry(name).or_insert_with(|| Arc::clone(&decode));
        }
    }

    /// Returns what the reading of pages has to know of the types.
    pub(super) fn taken(&self) -> TakenEvents {
        let names = self.decode.keys().copied().collect();
        TakenEvents { names, shapes: PeerShapes::of_types(&self.cards) }
    }

    /// Decodes an event, whose older version may have become several. On an error or a panic no part is appended.
    pub(super) fn decode(
        &self,
        taken: &TakenEvents,
        event: &Envelope,
        parts: &mut VecDeque<T>,
    ) -> Result<(), CodecError> {
        if let Some(error) = taken.shapes.refusal(event) {
            return Err(error);
        }
        let Some(decode) = self.decode.get(event.name.as_str()) else { return Ok(()) };
        let before = parts.len();
        // Upcasters and the conversion are code of the caller.
        let decoded = user_code(|| decode(event, parts))
            .unwrap_or_else(|panicked| Err(CodecError::Decode { reason: panicked.to_string() }));
        decoded.inspect_err(|_| parts.truncate(before))
    }
}

/// The names and shapes of the events of a stream. Independent of their types, so that the reading of pages is compiled once.
#[derive(Debug)]
pub(super) struct TakenEvents {
    names: HashSet<&'static str, FixedState>,
    shapes: PeerShapes,
}

impl TakenEvents {
    pub(super) fn includes(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Compares the shapes of the events of a page that another service has returned, requesting unknown ones from it. An event
    /// whose shape cannot be read here keeps its fingerprint, and is refused when it is decoded.
    pub(super) async fn judge(&self, client: &Client, page: &mut LogPage) -> Result<(), ReadError> {
        let marked = page.events.iter_mut().filter(|event| event.shape.is_some() && self.includes(&event.name));
        for event in marked {
            if self.shapes.judge(event, false, instant()) != Judgment::Unknown {
                continue;
            }
            let (Some(shape), Some(origin)) = (event.shape, &event.origin) else { continue };
            let shapes = client.remote().read_shapes(origin.shard.clone(), shape).await?;
            self.shapes.learn(event, shapes.as_deref());
            self.shapes.judge(event, false, instant());
        }
        Ok(())
    }
}
