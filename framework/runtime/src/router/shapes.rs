//! Shapes of peers: compares the types of messages between services.
//!
//! Called by the bridge handler for received messages, by actors, workers and projections before they decode a
//! message, and by the publisher. Calls only the message module. Compares and remembers; the node requests shapes
//! from other services.
//!
//! A message from another service contains the fingerprint of its type at the sender. The bridge handler compares it
//! with the receiver's own: one lookup by name and one comparison of eight bytes. A different fingerprint is judged
//! once. If the message can be decoded, its fingerprint is removed. A message that still has one is decoded by no
//! actor.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use foldhash::fast::FixedState;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Manifest, MessageCard};
use whizbang_core::message::{
    Codec, CodecError, Difference, Envelope, Fingerprint, Kind, MAX_SHAPES_BYTES, MessageShapes, ReplyMode,
};

/// Header with the shapes themselves, for receivers that cannot request them because the caller is not an actor.
const SHAPES: &str = "whizbang-shapes";
/// Time without a refusal after which messages of a type count as readable again. During a rolling upgrade, both
/// kinds arrive alternately.
const RESUME_AFTER: Duration = Duration::from_secs(1);
/// Most fingerprints remembered for one message type. A sender may invent any number of them.
const MOST: usize = 64;

/// Message types that a node exchanges with other services.
#[derive(Debug, Default)]
pub struct PeerShapes {
    /// The node's own domains; `None` without a bridge.
    domains: Option<HashSet<String>>,
    own: HashMap<String, HashMap<String, OwnType, FixedState>, FixedState>,
    /// Number of messages refused because of their shape.
    pub(crate) refused: AtomicU64,
}

/// One message type, as this node knows it.
#[derive(Debug)]
struct OwnType {
    codec: Codec,
    /// Versions from 1 on; `None` where the shape is unknown.
    versions: Vec<Option<(Fingerprint, MessageShapes)>>,
    /// Verdicts about the fingerprints of other services, by version and fingerprint.
    judged: Mutex<HashMap<(u32, Fingerprint), Verdict, FixedState>>,
    /// Messages of this type are being refused.
    is_refused: AtomicBool,
    /// Time of the last refusal.
    last: Mutex<Option<Instant>>,
}

/// Verdict about a fingerprint of another service.
#[derive(Clone, Debug, Default)]
struct Verdict {
    /// Reason why the message cannot be decoded here.
    message: Option<Arc<str>>,
    /// Reason why the reply could not be decoded there.
    reply: Option<Arc<str>>,
}

impl Verdict {
    /// Returns the reason for refusing the message; `reads_reply` tells whether the sender will decode the reply.
    fn reason(&self, reads_reply: bool) -> Option<&Arc<str>> {
        self.message.as_ref().or(self.reply.as_ref().filter(|_| reads_reply))
    }
}

/// Judgment about the shape of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judgment {
    /// It can be decoded.
    Fits {
        /// It is the first readable message after refused ones of its type.
        resumes: bool,
    },
    /// It cannot be decoded.
    Differs {
        /// The type, the difference and the remedy.
        reason: Arc<str>,
        /// It is the first refused message of its type.
        is_news: bool,
    },
    /// The shapes behind its fingerprint are unknown.
    Unknown,
}

impl PeerShapes {
    /// Creates the state of a node with a bridge at its start: its own types.
    pub(crate) fn of(manifest: &Manifest) -> Self {
        let domains = manifest.domains.iter().map(|domain| domain.name.clone()).collect();
        let mut shapes = Self { domains: Some(domains), ..Self::default() };
        let actors = manifest.domains.iter().flat_map(|domain| &domain.actors).chain(&manifest.projections);
        for card in actors.flat_map(|actor| [&actor.handles, &actor.records, &actor.takes, &actor.answers]).flatten() {
            shapes.add(card);
        }
        shapes
    }

    /// Creates the state of a reader of these types.
    pub(crate) fn of_types(cards: &[MessageCard]) -> Self {
        let mut shapes = Self::default();
        cards.iter().for_each(|card| shapes.add(card));
        shapes
    }

    /// Returns whether a command to a domain leaves the node and must contain its fingerprint.
    pub(crate) fn leaves(&self, domain: &str) -> bool {
        self.domains.as_ref().is_some_and(|domains| !domains.contains(domain))
    }

    fn add(&mut self, card: &MessageCard) {
        let versions = (1..=card.version).map(|version| {
            let shape = card.shapes.of(version, card.codec)?;
            let shapes = MessageShapes::new(&shape, card.reply, card.codec);
            Some((shapes.register(), shapes))
        });
        let versions: Vec<_> = versions.collect();
        for name in card.names() {
            let own = OwnType {
                codec: card.codec,
                versions: versions.clone(),
                judged: Mutex::default(),
                is_refused: AtomicBool::new(false),
                last: Mutex::default(),
            };
            self.own.entry(card.domain.clone()).or_default().entry(name.to_owned()).or_insert(own);
        }
    }

    fn own(&self, envelope: &Envelope) -> Option<&OwnType> {
        self.own.get(envelope.domain.as_str())?.get(envelope.name.as_str())
    }

    /// Adds the fingerprint of its type to a message that leaves the node.
    pub(crate) fn mark(&self, mut envelope: Envelope) -> Envelope {
        let own = self.own(&envelope).and_then(|own| own.version(envelope.version));
        envelope.shape = own.map(|(fingerprint, _)| *fingerprint);
        envelope
    }

    /// Judges a received message, and removes the fingerprint of a readable one. `asks` tells that the sender waits
    /// for the reply.
    pub(crate) fn judge(&self, envelope: &mut Envelope, asks: bool, now: Instant) -> Judgment {
        let told = detach_shapes(envelope);
        let Some(fingerprint) = envelope.shape else { return Judgment::Fits { resumes: false } };
        let reads_reply = asks || envelope.wants == ReplyMode::Reply;
        let Some(own) = self.own(envelope) else {
            // Not handled here at all, which is reported elsewhere.
            envelope.shape = None;
            return Judgment::Fits { resumes: false };
        };
        let Some((mine, shapes)) = own.version(envelope.version) else {
            // Of a newer version: decoding it reports that.
            envelope.shape = None;
            return Judgment::Fits { resumes: false };
        };
        if *mine == fingerprint {
            envelope.shape = None;
            return Judgment::Fits { resumes: own.resumes(now) };
        }
        let place = (envelope.version, fingerprint);
        let known = own.judged.lock().get(&place).cloned();
        let verdict = match (known, told) {
            (Some(verdict), _) => verdict,
            (None, Some(text)) => own.compare(envelope, shapes, MessageShapes::read(fingerprint, &text)),
            (None, None) => return Judgment::Unknown,
        };
        match verdict.reason(reads_reply) {
            None => {
                envelope.shape = None;
                Judgment::Fits { resumes: own.resumes(now) }
            }
            Some(reason) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                *own.last.lock() = Some(now);
                Judgment::Differs { reason: Arc::clone(reason), is_news: !own.is_refused.swap(true, Ordering::Relaxed) }
            }
        }
    }

    /// Records the shapes that another service reports for its fingerprint; `None` if it does not know them.
    pub(crate) fn learn(&self, envelope: &Envelope, text: Option<&str>) {
        let (Some(own), Some(fingerprint)) = (self.own(envelope), envelope.shape) else { return };
        let Some((_, shapes)) = own.version(envelope.version) else { return };
        own.compare(envelope, shapes, text.and_then(|text| MessageShapes::read(fingerprint, text)));
    }

    /// Returns the error for a message that must not be decoded; `None` if it may be. For readable and local messages
    /// this costs one check for a fingerprint.
    pub(crate) fn refusal(&self, envelope: &Envelope) -> Option<CodecError> {
        let fingerprint = envelope.shape?;
        let own = self.own(envelope)?;
        let (mine, _) = own.version(envelope.version)?;
        if *mine == fingerprint {
            return None;
        }
        let judged = own.judged.lock().get(&(envelope.version, fingerprint)).cloned().unwrap_or_default();
        let reason = judged.reason(true).cloned().unwrap_or_else(|| own.unknown(envelope));
        Some(CodecError::Shape { reason: reason.to_string() })
    }
}

impl OwnType {
    /// Returns whether a readable message is the first one after refused ones.
    fn resumes(&self, now: Instant) -> bool {
        let is_quiet = || self.last.lock().is_none_or(|last| now.saturating_duration_since(last) >= RESUME_AFTER);
        self.is_refused.load(Ordering::Relaxed) && is_quiet() && self.is_refused.swap(false, Ordering::Relaxed)
    }

    fn version(&self, version: u32) -> Option<&(Fingerprint, MessageShapes)> {
        self.versions.get(usize::try_from(version).ok()?.checked_sub(1)?)?.as_ref()
    }

    /// Compares the sender's shapes, if known, and remembers the verdict.
    fn compare(&self, envelope: &Envelope, own: &MessageShapes, sent: Option<MessageShapes>) -> Verdict {
        let verdict = match sent {
            None => Verdict { message: Some(self.unknown(envelope)), reply: None },
            Some(sent) => {
                let (message, reply) = own.differences(&sent, self.codec);
                Verdict {
                    message: message.map(|difference| self.differs(envelope, "", "sender", "receiver", &difference)),
                    reply: reply
                        .map(|difference| self.differs(envelope, "reply to ", "receiver", "sender", &difference)),
                }
            }
        };
        if let (Some(fingerprint), mut judged) = (envelope.shape, self.judged.lock()) {
            if judged.len() >= MOST {
                judged.clear();
            }
            judged.insert((envelope.version, fingerprint), verdict.clone());
        }
        verdict
    }

    fn differs(
        &self,
        envelope: &Envelope,
        what: &str,
        writer: &str,
        reader: &str,
        difference: &Difference,
    ) -> Arc<str> {
        let field = match &*difference.field {
            "" => "it".to_owned(),
            field => format!("`{}`", shown(field)),
        };
        format!(
            "the {what}`{}.{}` version {} has another shape at its {writer}: {field} is `{}` there and `{}` at the {reader}; \
             raise `version` and add `upcast(… = OldType)` where it was changed, or restore the shape",
            envelope.domain, envelope.name, envelope.version, shown(&difference.stored), shown(&difference.found),
        )
        .into()
    }

    fn unknown(&self, envelope: &Envelope) -> Arc<str> {
        let fingerprint = envelope.shape.map_or_else(String::new, |shape| shape.to_string());
        format!(
            "`{}.{}` version {} has another shape at its sender, which cannot be compared (fingerprint {fingerprint}); \
             raise `version` and add `upcast(… = OldType)` where it was changed, or restore the shape",
            envelope.domain, envelope.name, envelope.version,
        )
        .into()
    }
}

/// Returns a part of a shape, shortened and escaped for logs: it is input from another service.
fn shown(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

/// Attaches the shapes of a message, for a receiver that cannot request them.
pub(crate) fn attach_shapes(envelope: &mut Envelope) {
    let shapes = envelope.shape.and_then(Fingerprint::shapes);
    if let Some(shapes) = shapes.filter(|shapes| shapes.len() <= MAX_SHAPES_BYTES) {
        envelope.headers.push((SHAPES.to_owned(), shapes.to_string()));
    }
}

fn detach_shapes(envelope: &mut Envelope) -> Option<String> {
    let at = envelope.headers.iter().position(|(name, _)| name == SHAPES)?;
    Some(envelope.headers.swap_remove(at).1)
}

/// Returns whether an actor sent the message, so that its service can be asked for shapes.
pub(crate) fn is_from_actor(envelope: &Envelope) -> bool {
    envelope.origin.is_some() && matches!(envelope.kind, Kind::Command | Kind::Event)
}
