//! What a node knows of the shapes that other services have of the messages which it takes.
//!
//! Called by the node's door for what comes over the bridge, by actors, workers and projections before they read a message, and by
//! what leaves the node. Calls nothing but messages. It compares and remembers; the node asks other services.
//!
//! A message from another service bears the fingerprint of its type as the sender has it. At the door it is compared with the
//! receiver's own: one look-up by name and one comparison of eight bytes. A different one is judged once. If the message can be
//! read, the fingerprint is taken off. If it stays on, nothing behind the door reads the message.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use foldhash::fast::FixedState;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Manifest, MessageCard};
use crate::message::{
    Codec, CodecError, Difference, Envelope, Fingerprint, Kind, MAX_SHAPES_BYTES, MessageShapes, ReplyMode,
};

/// The header with the shapes themselves, where the receiver cannot ask for them: from callers that are no actors.
const SHAPES: &str = "whizbang-shapes";
/// For how long none may have been refused before messages of a type count as readable again. While services are upgraded, both kinds
/// come by turns.
const QUIET: Duration = Duration::from_secs(1);
/// How many different fingerprints are remembered for one message type. A sender may name as many as it likes.
const MOST: usize = 64;

/// The message types of a node that other services send, or are sent.
#[derive(Debug, Default)]
pub(crate) struct PeerShapes {
    /// The node's own domains; `None` if it has no bridge.
    domains: Option<HashSet<String>>,
    own: HashMap<String, HashMap<String, Own, FixedState>, FixedState>,
    /// Messages that were refused because of their shape.
    pub(crate) refused: AtomicU64,
}

/// What is known of one message type.
#[derive(Debug)]
struct Own {
    codec: Codec,
    /// Its versions from 1 on; none where the shape is not known.
    versions: Vec<Option<(Fingerprint, MessageShapes)>>,
    /// By version and fingerprint, what was found about those of other services.
    judged: Mutex<HashMap<(u32, Fingerprint), Verdict, FixedState>>,
    /// Messages of this type are refused.
    is_refused: AtomicBool,
    /// When one was refused last.
    last: Mutex<Option<Instant>>,
}

/// What was found about a fingerprint of another service.
#[derive(Clone, Debug, Default)]
struct Verdict {
    /// Why the message cannot be read here.
    message: Option<Arc<str>>,
    /// Why the reply could not be read there.
    reply: Option<Arc<str>>,
}

impl Verdict {
    /// Why the message is refused; `reads_reply` says whether its reply will be read.
    fn reason(&self, reads_reply: bool) -> Option<&Arc<str>> {
        self.message.as_ref().or(self.reply.as_ref().filter(|_| reads_reply))
    }
}

/// What becomes of a message, as far as shapes are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judgment {
    /// It can be read. `resumes` if it is the first one after others that could not.
    Fits {
        /// Whether messages of its type were refused before.
        resumes: bool,
    },
    /// It cannot be read, for this reason. `is_news` for the first one.
    Differs {
        /// The type, the difference and the remedy.
        reason: Arc<str>,
        /// Whether no message of its type was refused before.
        is_news: bool,
    },
    /// The shapes behind its fingerprint are not known.
    Unknown,
}

impl PeerShapes {
    /// What a node with a bridge knows at its start: its own types.
    pub(crate) fn of(manifest: &Manifest) -> Self {
        let domains = manifest.domains.iter().map(|domain| domain.name.clone()).collect();
        let mut shapes = Self { domains: Some(domains), ..Self::default() };
        let actors = manifest.domains.iter().flat_map(|domain| &domain.actors).chain(&manifest.projections);
        for card in actors.flat_map(|actor| [&actor.handles, &actor.records, &actor.takes, &actor.answers]).flatten() {
            shapes.add(card);
        }
        shapes
    }

    /// Returns whether a command to a domain leaves the node, so that it is to bear the fingerprint of its type.
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
            let own = Own {
                codec: card.codec,
                versions: versions.clone(),
                judged: Mutex::default(),
                is_refused: AtomicBool::new(false),
                last: Mutex::default(),
            };
            self.own.entry(card.domain.clone()).or_default().entry(name.to_owned()).or_insert(own);
        }
    }

    fn own(&self, envelope: &Envelope) -> Option<&Own> {
        self.own.get(envelope.domain.as_str())?.get(envelope.name.as_str())
    }

    /// Marks a message that leaves the node with the fingerprint of its type.
    pub(crate) fn mark(&self, mut envelope: Envelope) -> Envelope {
        let own = self.own(&envelope).and_then(|own| own.version(envelope.version));
        envelope.shape = own.map(|(fingerprint, _)| *fingerprint);
        envelope
    }

    /// Judges a message that came in. The fingerprint of one that can be read is taken off; `asks` says that its sender waits for
    /// the reply.
    pub(crate) fn judge(&self, envelope: &mut Envelope, asks: bool, now: Instant) -> Judgment {
        let told = take_shapes(envelope);
        let Some(fingerprint) = envelope.shape else { return Judgment::Fits { resumes: false } };
        let reads_reply = asks || envelope.wants == ReplyMode::Reply;
        let Some(own) = self.own(envelope) else {
            // Not taken here at all; that is said elsewhere.
            envelope.shape = None;
            return Judgment::Fits { resumes: false };
        };
        let Some((mine, shapes)) = own.version(envelope.version) else {
            // Of a newer version: reading it says so.
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

    /// Notes what another service says its fingerprint stands for; `None` if it does not know.
    pub(crate) fn learn(&self, envelope: &Envelope, text: Option<&str>) {
        let (Some(own), Some(fingerprint)) = (self.own(envelope), envelope.shape) else { return };
        let Some((_, shapes)) = own.version(envelope.version) else { return };
        own.compare(envelope, shapes, text.and_then(|text| MessageShapes::read(fingerprint, text)));
    }

    /// Why a message must not be read; `None` if it may. All that costs, for messages that were judged as readable or come from
    /// this node, is to look whether they have a fingerprint.
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

impl Own {
    /// Returns whether a message that can be read is the first one after others that could not.
    fn resumes(&self, now: Instant) -> bool {
        let is_quiet = || self.last.lock().is_none_or(|last| now.saturating_duration_since(last) >= QUIET);
        self.is_refused.load(Ordering::Relaxed) && is_quiet() && self.is_refused.swap(false, Ordering::Relaxed)
    }

    fn version(&self, version: u32) -> Option<&(Fingerprint, MessageShapes)> {
        self.versions.get(usize::try_from(version).ok()?.checked_sub(1)?)?.as_ref()
    }

    /// Compares the shapes of a sender, if it knows them, and remembers the result.
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

/// A part of a shape, short enough and harmless enough for logs: another service has made it up.
fn shown(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

/// Adds the shapes of a message to it, for a receiver that cannot ask for them.
pub(crate) fn tell_shapes(envelope: &mut Envelope) {
    let shapes = envelope.shape.and_then(Fingerprint::shapes);
    if let Some(shapes) = shapes.filter(|shapes| shapes.len() <= MAX_SHAPES_BYTES) {
        envelope.headers.push((SHAPES.to_owned(), shapes.to_string()));
    }
}

fn take_shapes(envelope: &mut Envelope) -> Option<String> {
    let at = envelope.headers.iter().position(|(name, _)| name == SHAPES)?;
    Some(envelope.headers.swap_remove(at).1)
}

/// Returns whether another service can be asked for the shapes of a message: an actor sent it.
pub(crate) fn can_be_asked(envelope: &Envelope) -> bool {
    envelope.origin.is_some() && matches!(envelope.kind, Kind::Command | Kind::Event)
}
