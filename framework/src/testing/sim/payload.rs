//! Messages as stories show them: the name, and the payload as JSON of a bounded length.
//!
//! Payloads are kept as bytes while a cluster runs and rendered when a story is told, which few runs need.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::message::{Codec, Envelope, Message};
use crate::router::{Manifest, MessageCard, PayloadTexts};
use crate::store::EventWrite;

/// How many characters of a payload are shown.
const SHOWN: usize = 80;

/// The payload of a message.
#[derive(Clone, Debug)]
pub(super) struct Payload {
    /// The message's name in its domain.
    pub(super) name: String,
    version: u32,
    codec: Codec,
    bytes: Bytes,
}

impl Payload {
    pub(super) fn new(name: &str, version: u32, codec: Codec, bytes: Bytes) -> Self {
        Self { name: name.to_owned(), version, codec, bytes }
    }

    pub(super) fn of(envelope: &Envelope) -> Self {
        Self::new(&envelope.name, envelope.version, envelope.codec, envelope.payload.clone())
    }

    /// The message, if it can be read as one of this type.
    pub(super) fn read<M: Message>(&self) -> Option<M> {
        M::decode(self.version, self.codec, &self.bytes).ok()
    }

    pub(super) fn of_event(event: &EventWrite<'_>) -> Self {
        Self::new(event.name, event.version, event.codec, Bytes::copy_from_slice(event.payload))
    }
}

/// Renders the payloads of the message types that a cluster's nodes list.
#[derive(Default)]
pub(super) struct Texts(BTreeMap<String, PayloadTexts>);

impl Texts {
    pub(super) fn of<'a>(manifests: impl Iterator<Item = &'a Manifest>) -> Self {
        let mut texts: BTreeMap<String, PayloadTexts> = BTreeMap::new();
        let mut add = |card: &MessageCard| {
            for name in card.names() {
                let text = texts.entry(format!("{}.{name}", card.domain)).or_insert(card.texts);
                // The same type is listed as a command here and as a message there.
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

    /// The payload of a message with a space before it; nothing if it has no fields, or if no node of the cluster lists it.
    pub(super) fn message(&self, full_name: &str, payload: &Payload) -> String {
        let texts = self.0.get(full_name);
        shown(texts.and_then(|texts| texts.message(payload.version, payload.codec, &payload.bytes)))
    }

    /// The payload of the reply to a command with a space before it; nothing if the reply is `()`.
    pub(super) fn reply(&self, command: &str, payload: &Payload) -> String {
        shown(self.0.get(command).and_then(|texts| texts.reply(payload.codec, &payload.bytes)))
    }
}

fn shown(text: Option<String>) -> String {
    match text {
        None => String::new(),
        Some(text) if text == "null" || text == "{}" => String::new(),
        Some(text) => match text.char_indices().nth(SHOWN) {
            None => format!(" {text}"),
            Some((end, _)) => format!(" {}…", text.get(..end).unwrap_or_default()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_payload_is_cut() {
        assert_eq!(shown(Some("{}".to_owned())), "");
        assert_eq!(shown(None), "");
        assert_eq!(shown(Some("7".to_owned())), " 7");
        let long = "ä".repeat(SHOWN + 1);
        assert_eq!(shown(Some(long.clone())).chars().count(), SHOWN + 2);
        assert!(!shown(Some("ä".repeat(SHOWN))).ends_with('…') && shown(Some(long)).ends_with('…'));
    }
}
