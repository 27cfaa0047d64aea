//! What one turn did, and how far it has been compared with what was expected.

use crate::clock::Timestamp;
use crate::message::{Codec, Envelope, Message, Rejection};
use crate::router::Outcome;
use crate::store::StoredTurn;

/// What one turn did.
pub(super) struct Step {
    pub(super) outcome: Outcome,
    /// What was stored of it; nothing if it was not taken.
    pub(super) turn: Option<StoredTurn>,
    /// What it sends, in the order in which it was asked for.
    pub(super) sent: Vec<Envelope>,
    /// The timers it sets, and when they are due.
    pub(super) set: Vec<(String, Timestamp)>,
    /// When it was taken.
    pub(super) time: Timestamp,
    pub(super) rejection: Option<Rejection>,
    /// The saga begins to undo its steps in it.
    pub(super) begins_undo: bool,
    pub(super) ended: bool,
    /// How many of its events have been compared; none means that nobody cares.
    pub(super) compared_events: Option<usize>,
    pub(super) compared_sent: Option<usize>,
}

impl Step {
    /// Why it was not taken, if it was not.
    pub(super) fn trouble(&self) -> Option<String> {
        match &self.outcome {
            Outcome::Done(..) => None,
            Outcome::DeadLetter(error) => Some(format!("the message became a dead letter: {error}")),
            Outcome::Late => Some("the deadline had passed".to_owned()),
            other => Some(format!("the message was not taken: {other:?}")),
        }
    }

    /// What nobody has expected, if anybody has begun to say what is.
    pub(super) fn rest(&self) -> Option<String> {
        let events = self.turn.as_ref().map_or(&[][..], |turn| &turn.events);
        let unexpected = |begun: Option<usize>, names: Vec<String>, verb: &str| {
            let rest: Vec<_> = names.into_iter().skip(begun?).collect();
            (!rest.is_empty()).then(|| format!("expected nothing else\nbut it {verb} also\n  {}\n", rest.join("\n  ")))
        };
        unexpected(self.compared_events, events.iter().map(|event| event.name.to_string()).collect(), "recorded")
            .or_else(|| unexpected(self.compared_sent, self.sent.iter().map(addressed).collect(), "sent"))
    }
}

/// A sent message by its name and whom it is for.
pub(super) fn addressed(envelope: &Envelope) -> String {
    format!("{}.{} to `{}`", envelope.domain, envelope.name, envelope.key)
}

/// A message by its name and content.
pub(super) fn named<M: Message>(message: &M) -> String {
    // JSON, because a message need not be `Debug`.
    let mut json = Vec::new();
    match message.encode(Codec::Json, &mut json) {
        Ok(()) => format!("{} {}", M::NAME, String::from_utf8_lossy(&json)),
        Err(_) => M::NAME.to_owned(),
    }
}

/// A stored message by its name and, if it is an `M`, its content.
pub(super) fn stored<M: Message>(name: &str, version: u32, codec: Codec, payload: &[u8]) -> String {
    match M::decode(version, codec, payload) {
        Ok(message) if name == M::NAME => named(&message),
        _ => format!("{name} ({} bytes)", payload.len()),
    }
}
