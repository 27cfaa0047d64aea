//! Payloads of messages, kept as bytes and rendered as JSON of limited length.
//!
//! Used by the [failure report](super::failure_report). Rendering waits until a report is printed, which few runs need.

use std::collections::BTreeMap;

use bytes::Bytes;

use whizbang_core::message::{Codec, Envelope, Message};
use whizbang_core::store::EventWrite;
use whizbang_runtime::router::{Manifest, MessageCard, PayloadTexts};

/// Maximum number of characters shown.
const MAX_CHARS: usize = 80;

/// The payload of a message.
#[derive(Clone, Debug)]
pub(super) struct Payload {
    /// The name of the message in its domain.
    pub(super) name: String,
    /// The schema version.
    version: u32,
    /// The codec.
    codec: Codec,
    /// The encoded message.
    bytes: Bytes,
}

impl Payload {
    /// Creates a payload of parts.
    pub(super) fn new(name: &str, version: u32, codec: Codec, bytes: Bytes) -> Self {
        Self { name: name.to_owned(), version, codec, bytes }
    }

    /// Returns the payload of an envelope.
    pub(super) fn of(envelope: &Envelope) -> Self {
        Self::new(&envelope.name, envelope.version, envelope.codec, envelope.payload.clone())
    }

    /// Decodes the message. `None` if it is not of this type.
    pub(super) fn read<M: Message>(&self) -> Option<M> {
        M::decode(self.version, self.codec, &self.bytes).ok()
    }

    /// Returns the payload of an event that is written.
    pub(super) fn of_event(event: &EventWrite<'_>) -> Self {
        Self::new(event.name, event.version, event.codec, Bytes::copy_from_slice(event.payload))
    }
}

/// Renders payloads of the message types that the manifests of a cluster list.
#[derive(Default)]
pub(super) struct PayloadRenderer(BTreeMap<String, PayloadTexts>);

impl PayloadRenderer {
    /// Collects the functions that render the messages of all services.
    pub(super) fn of<'a>(manifests: impl Iterator<Item = &'a Manifest>) -> Self {
        let mut texts: BTreeMap<String, PayloadTexts> = BTreeMap::new();
        let mut add = |card: &MessageCard| {
            for name in card.names() {
                let text = texts.entry(format!("{}.{name}", card.domain)).or_insert(card.texts);
                // A type may be listed as a command by one actor and as a message by another.
                if card.texts.has_replies() {
                    *text = card.texts;
                }
            }
        };
        for manifest in manifests {
            for actor in manifest.domains.iter().flat_map(|domain| &domain.actors).chain(&manifest.projections) {
                [&actor.handles, &actor.records, &actor.takes, &actor.replies].into_iter().flatten().for_each(&mut add);
            }
        }
        Self(texts)
    }

    /// Returns the payload with a leading space. Empty if the message has no fields or is not listed.
    pub(super) fn message(&self, full_name: &str, payload: &Payload) -> String {
        let texts = self.0.get(full_name);
        shorten(texts.and_then(|texts| texts.message(payload.version, payload.codec, &payload.bytes)))
    }

    /// Returns the reply to a command with a leading space. Empty if the reply is `()`.
    pub(super) fn reply(&self, command: &str, payload: &Payload) -> String {
        shorten(self.0.get(command).and_then(|texts| texts.reply(payload.codec, &payload.bytes)))
    }
}

/// Cuts a text to its maximal length. A message without fields gives nothing.
fn shorten(text: Option<String>) -> String {
    match text {
        None => String::new(),
        Some(text) if text == "null" || text == "{}" => String::new(),
        Some(text) => match text.char_indices().nth(MAX_CHARS) {
            None => format!(" {text}"),
            Some((end, _)) => format!(" {}…", text.get(..end).unwrap_or_default()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_payload_is_shortened() {
        assert_eq!(shorten(Some("{}".to_owned())), "");
        assert_eq!(shorten(None), "");
        assert_eq!(shorten(Some("7".to_owned())), " 7");
        let long = "ä".repeat(MAX_CHARS + 1);
        assert_eq!(shorten(Some(long.clone())).chars().count(), MAX_CHARS + 2);
        assert!(!shorten(Some("ä".repeat(MAX_CHARS))).ends_with('…') && shorten(Some(long)).ends_with('…'));
    }
}
