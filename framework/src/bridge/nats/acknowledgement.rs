//! What a stream answers to a message that was published to it.
//!
//! Read once by what goes out, though the answer to a pack is for many.

use std::sync::Arc;

use async_nats::{Message, StatusCode};
use serde::Deserialize;

/// Why a stream did not take a message.
#[derive(Clone, Debug)]
pub(super) enum PublishFailure {
    /// There is no such stream.
    NoStream,
    /// What it says, or why that cannot be read.
    Rejected(Arc<dyn std::error::Error + Send + Sync>),
}

/// What a stream says to a message. Fields that are not needed are left out.
#[derive(Deserialize)]
struct Acknowledgement {
    error: Option<StreamError>,
}

/// Why a stream does not take a message, in its words.
#[derive(Debug, Deserialize, thiserror::Error)]
#[error("{description} ({err_code})")]
struct StreamError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Reads what a stream, or the server in its place, says.
pub(super) fn parse(answer: &Message) -> Result<(), PublishFailure> {
    if has_no_responder(answer) {
        return Err(PublishFailure::NoStream);
    }
    parse_payload(&answer.payload)
}

/// Reads the payload of an answer.
pub(super) fn parse_payload(payload: &[u8]) -> Result<(), PublishFailure> {
    match serde_json::from_slice::<Acknowledgement>(payload) {
        Ok(Acknowledgement { error: None }) => Ok(()),
        Ok(Acknowledgement { error: Some(error) }) => Err(PublishFailure::Rejected(Arc::new(error))),
        Err(error) => Err(PublishFailure::Rejected(Arc::new(error))),
    }
}

/// Whether nobody listens to the subject.
pub(super) fn has_no_responder(message: &Message) -> bool {
    message.status == Some(StatusCode::NO_RESPONDERS)
}
