//! Acknowledgements of published messages by streams.
//!
//! Parsed by the publisher.
//!
//! A stream that is full, or that does not exist, answers at once. Silence means that the outcome is unknown, and the sender
//! repeats the message under the same id.

use std::sync::Arc;

use async_nats::{Message, StatusCode};
use serde::Deserialize;

/// The limit of the account, of the servers, and of the stream.
const FULL: [u64; 5] = [10002, 10023, 10028, 10047, 10077];

/// The reason for which a stream did not store a message.
#[derive(Clone, Debug)]
pub(super) enum PublishFailure {
    /// No stream takes the subject.
    NoStream,
    /// The stream rejected the message, or its acknowledgement is invalid.
    Rejected(Arc<dyn std::error::Error + Send + Sync>),
}

/// The acknowledgement of a stream. Unused fields are left out.
///
/// A duplicate counts as stored: the server reports it without an error.
#[derive(Deserialize)]
struct Acknowledgement {
    /// The error of the stream; `None` for a stored message or a duplicate.
    error: Option<StreamError>,
}

/// The error in an acknowledgement.
#[derive(Debug, Deserialize, thiserror::Error)]
#[error("{description} ({err_code})")]
struct StreamError {
    /// The error code of JetStream, which tells a full stream from other errors.
    #[serde(default)]
    err_code: u64,
    /// The text of the server, for people.
    #[serde(default)]
    description: String,
}

/// Parses the acknowledgement of a stream, or the status that the server returns in its place.
///
/// # Errors
/// [`PublishFailure::NoStream`] if no stream takes the subject, [`PublishFailure::Rejected`] if the stream is full or invalid.
pub(super) fn parse(reply: &Message) -> Result<(), PublishFailure> {
    if has_no_responder(reply) {
        return Err(PublishFailure::NoStream);
    }
    parse_payload(&reply.payload)
}

/// Parses the payload of an acknowledgement.
pub(super) fn parse_payload(payload: &[u8]) -> Result<(), PublishFailure> {
    match serde_json::from_slice::<Acknowledgement>(payload) {
        Ok(Acknowledgement { error: None }) => Ok(()),
        Ok(Acknowledgement { error: Some(error) }) => Err(PublishFailure::Rejected(Arc::new(error))),
        Err(error) => Err(PublishFailure::Rejected(Arc::new(error))),
    }
}

/// Returns true if a stream rejected a message because it, its account or its server is full.
pub(super) fn is_full(rejected: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    rejected.downcast_ref::<StreamError>().is_some_and(|error| FULL.contains(&error.err_code))
}

/// Returns true if no subscriber listens to the subject.
pub(super) fn has_no_responder(message: &Message) -> bool {
    message.status == Some(StatusCode::NO_RESPONDERS)
}
