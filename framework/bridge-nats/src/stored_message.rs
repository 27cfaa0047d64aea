//! A message that a stream holds, as the JetStream API returns it.
//!
//! Read for the claims of stores and for the last published event of a shard. Messages that consumers deliver arrive in
//! another form: see `decode`.

use bytes::Bytes;
use serde_json::Value;

/// A message as a stream holds it.
pub(super) struct StoredMessage {
    /// The sequence in the stream.
    pub(super) number: u64,
    /// The headers as text; a repeated name occurs repeatedly.
    pub(super) headers: Vec<(String, String)>,
    /// The payload after base64 decoding.
    pub(super) payload: Bytes,
}

impl StoredMessage {
    /// Parses a stored message from the response of the API, which has headers and payload in base64. Returns `None` if a part
    /// is malformed.
    pub(super) fn read(answer: &Value) -> Option<Self> {
        let part = |name: &str| {
            let text = answer.pointer(name).and_then(Value::as_str).unwrap_or_default();
            data_encoding::BASE64.decode(text.as_bytes()).ok()
        };
        let headers = String::from_utf8(part("/message/hdrs")?).ok()?;
        let lines = headers.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        let headers = lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        let number = answer.pointer("/message/seq").and_then(Value::as_u64)?;
        Some(Self { number, headers, payload: Bytes::from(part("/message/data")?) })
    }
}
