//! Conversion of packets to NATS headers and back.
//!
//! Called by the publisher and the consumer. The wire encoding knows no broker, and this module knows no envelope.

use std::str::FromStr;

use async_nats::header::{HeaderMap, HeaderName, HeaderValue};

use whizbang_core::bridge::BridgeError;
use whizbang_wire::Packet;

/// Returns the headers of a packet. The wire encoding has validated every name and value, so none is invalid.
pub(super) fn to_nats(packet: &Packet) -> Result<HeaderMap, BridgeError> {
    let mut map = HeaderMap::new();
    for (name, value) in &packet.headers {
        let name = match name {
            std::borrow::Cow::Borrowed(name) => HeaderName::from_static(name),
            std::borrow::Cow::Owned(name) => HeaderName::from_str(name).map_err(|error| unusable(&error))?,
        };
        map.insert(name, HeaderValue::from_str(value).map_err(|error| unusable(&error))?);
    }
    Ok(map)
}

/// Returns the error for a header that NATS cannot carry.
fn unusable(error: &dyn std::fmt::Display) -> BridgeError {
    BridgeError::Malformed { reason: format!("invalid header: {error}") }
}

/// Returns the headers of a message; a repeated name occurs repeatedly.
pub(super) fn from_nats(map: Option<&HeaderMap>) -> impl Iterator<Item = (&str, &str)> {
    map.into_iter()
        .flat_map(HeaderMap::iter)
        .flat_map(|(name, values)| values.iter().map(move |value| (AsRef::<str>::as_ref(name), value.as_str())))
}
