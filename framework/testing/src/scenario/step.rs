//! The effects of one turn, and the part of them that was compared with expectations.

use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, Envelope, Message, Rejection};
use whizbang_core::store::StoredTurn;
use whizbang_runtime::router::{DelayedMessage, Outcome};

/// The effects of one turn.
pub(super) struct Step {
    /// The outcome that a caller or the sender would learn.
    pub(super) outcome: Outcome,
    /// The stored turn; `None` if the message was not handled.
    pub(super) turn: Option<StoredTurn>,
    /// The sent commands, in order.
    pub(super) sent: Vec<Envelope>,
    /// The timers it sets, with their due times.
    pub(super) set: Vec<(String, Timestamp)>,
    /// The time of the turn.
    pub(super) time: Timestamp,
    /// The rejection of the command; `None` if it was accepted.
    pub(super) rejection: Option<Rejection>,
    /// The saga begins its compensation in this turn.
    pub(super) begins_compensation: bool,
    /// The saga has ended with this turn.
    pub(super) ended: bool,
    /// The number of compared events; `None` if events are not compared.
    pub(super) compared_events: Option<usize>,
    /// The number of compared commands; `None` if commands are not compared.
    pub(super) compared_sent: Option<usize>,
}

impl Step {
    /// Returns the reason for which the message was not handled, if there is one.
    pub(super) fn failure(&self) -> Option<String> {
        match &self.outcome {
            Outcome::Done(..) => None,
            Outcome::DeadLetter(error) => Some(format!("the message became a dead letter: {error}")),
            Outcome::Late => Some("the deadline had passed".to_owned()),
            other => Some(format!("the message was not handled: {other:?}")),
        }
    }

    /// Returns the unexpected effects, if expectations about that kind of effect exist.
    pub(super) fn unexpected_effects(&self) -> Option<String> {
        let events = self.turn.as_ref().map_or(&[][..], |turn| &turn.events);
        let unexpected = |begun: Option<usize>, names: Vec<String>, verb: &str| {
            let rest: Vec<_> = names.into_iter().skip(begun?).collect();
            (!rest.is_empty()).then(|| format!("expected nothing else\nbut it also {verb}\n  {}\n", rest.join("\n  ")))
        };
        unexpected(self.compared_events, events.iter().map(|event| event.name.to_string()).collect(), "recorded")
            .or_else(|| unexpected(self.compared_sent, self.sent.iter().map(describe_sent).collect(), "sent"))
    }
}

/// Formats a sent message as its name and destination.
pub(super) fn describe_sent(envelope: &Envelope) -> String {
    let (later, when) = match DelayedMessage::of(envelope) {
        Some((delayed, _)) => (Some(delayed), ", later"),
        None => (None, ""),
    };
    let envelope = later.as_ref().unwrap_or(envelope);
    format!("{}.{} to `{}`{when}", envelope.domain, envelope.name, envelope.key)
}

/// Formats a message as its name and content.
pub(super) fn describe<M: Message>(message: &M) -> String {
    // JSON, because a message need not be `Debug`.
    let mut json = Vec::new();
    match message.encode(Codec::Json, &mut json) {
        Ok(()) => format!("{} {}", M::NAME, String::from_utf8_lossy(&json)),
        Err(_) => M::NAME.to_owned(),
    }
}

/// Formats a stored message as its name and, if it is an `M`, its content.
pub(super) fn describe_stored<M: Message>(name: &str, version: u32, codec: Codec, payload: &[u8]) -> String {
    match M::decode(version, codec, payload) {
        Ok(message) if name == M::NAME => describe(&message),
        _ => format!("{name} ({} bytes)", payload.len()),
    }
}
