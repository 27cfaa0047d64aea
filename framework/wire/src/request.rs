//! Requests, responses and notifications as packets.
//!
//! Called by bridges. A JSON command or query is the packet of its envelope, and its reply is a payload behind a short header, so
//! that clients in any language can send requests. The rest are frames, marked by the header `whizbang-frame`: a frame costs a
//! tenth of the headers of an envelope, for the sender, the broker and the receiver.

use std::borrow::Cow;

use bytes::Bytes;

use super::frame::{Reader, Writer};
use super::headers::{STORE, read_number};
use super::{BridgeError, Packet, excerpt, malformed};
use whizbang_core::bridge::{Notification, Page, Request, RequestError, Response};
use whizbang_core::message::{Codec, Envelope, Fingerprint, Kind, MAX_PAYLOAD_BYTES, MAX_SHAPES_BYTES, StoreId};

/// The header that marks a payload as a frame; its value is the kind of frame.
pub(super) const FRAME: &str = "whizbang-frame";
/// The header with the kind of response.
const RESPONSE: &str = "whizbang-answer";
/// The header with the last sequence that the destination of an outbox has committed.
const COMMITTED: &str = "whizbang-committed";

/// Returns the packet of a frame. Its one header has the kind of content.
pub(super) fn framed(kind: &'static str, frame: Writer) -> Packet {
    Packet { headers: vec![(Cow::Borrowed(FRAME), kind.to_owned())], payload: frame.finish() }
}

/// Returns the only value of `name`; more than one is malformed.
pub(super) fn single_header<'a>(headers: &[(&'a str, &'a str)], name: &str) -> Result<Option<&'a str>, BridgeError> {
    let mut found = headers.iter().filter(|(known, _)| *known == name).map(|(_, value)| value.trim());
    let first = found.next();
    if found.next().is_some() {
        return Err(malformed(format!("header `{name}` occurs twice")));
    }
    Ok(first)
}

/// Returns the store in the headers of a packet.
pub(super) fn read_store(headers: &[(&str, &str)]) -> Result<Option<StoreId>, BridgeError> {
    let invalid = |text: &str| malformed(format!("invalid header `{STORE}`: `{}`", excerpt(text)));
    single_header(headers, STORE)?.map(|text| StoreId::parse(text).ok_or_else(|| invalid(text))).transpose()
}

impl Packet {
    /// Adds the store to the headers.
    pub(super) fn with_store(mut self, store: Option<StoreId>) -> Self {
        self.headers.extend(store.map(|store| (Cow::Borrowed(STORE), store.to_string())));
        self
    }

    fn header_pairs(&self) -> Vec<(&str, &str)> {
        self.headers.iter().map(|(name, value)| (name.as_ref(), value.as_str())).collect()
    }

    /// Encodes a request.
    ///
    /// # Errors
    /// As for [`from_envelope`](Self::from_envelope).
    pub fn from_request(request: &Request) -> Result<Self, BridgeError> {
        let mut frame = Writer::new();
        let mut store = None;
        match request {
            Request::Command(envelope) | Request::Query(envelope) if envelope.codec == Codec::Json => {
                return Self::from_envelope(envelope);
            }
            Request::Command(envelope) | Request::Query(envelope) => {
                Self::check(envelope)?;
                store = envelope.origin.as_ref().and_then(|origin| origin.store);
                frame.byte(6);
                frame.envelope(envelope);
            }
            Request::Events { shard, after, limit } => {
                frame.byte(1);
                frame.shard(shard);
                frame.number(*after);
                frame.number(u64::from(*limit));
            }
            Request::Outbox { from, to, after, limit } => {
                frame.byte(2);
                frame.shard(from);
                frame.shard(to);
                frame.number(*after);
                frame.number(u64::from(*limit));
            }
            Request::Watermark { from, to } => {
                frame.byte(3);
                frame.shard(from);
                frame.shard(to);
            }
            Request::Sent { from, to, through } => {
                frame.byte(4);
                frame.shard(from);
                frame.shard(to);
                frame.number(*through);
            }
            Request::Shape { from, to, shape } => {
                frame.byte(5);
                frame.shard(from);
                frame.option(to.as_ref(), Writer::shard);
                frame.number(shape.as_u64());
            }
        }
        Ok(framed("asked", frame).with_store(store))
    }

    /// Decodes the request in a packet.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] or [`BridgeError::Oversize`].
    pub fn request(&self) -> Result<Request, BridgeError> {
        Self::read_request(&self.header_pairs(), self.payload.clone())
    }

    /// Decodes a request from headers and a payload.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] or [`BridgeError::Oversize`].
    pub fn read_request(headers: &[(&str, &str)], payload: Bytes) -> Result<Request, BridgeError> {
        match single_header(headers, FRAME)? {
            None => request_of(Self::read_envelope(headers.iter().copied(), payload)?),
            Some("asked") => {
                let mut frame = Reader::new(payload)?;
                let request = match frame.byte()? {
                    1 => Request::Events { shard: frame.shard()?, after: frame.number()?, limit: frame.u32()? },
                    2 => Request::Outbox {
                        from: frame.shard()?,
                        to: frame.shard()?,
                        after: frame.number()?,
                        limit: frame.u32()?,
                    },
                    3 => Request::Watermark { from: frame.shard()?, to: frame.shard()? },
                    4 => Request::Sent { from: frame.shard()?, to: frame.shard()?, through: frame.number()? },
                    5 => Request::Shape {
                        from: frame.shard()?,
                        to: frame.option(Reader::shard)?,
                        shape: Fingerprint::from_u64(frame.number()?),
                    },
                    6 => {
                        let mut envelope = frame.envelope()?;
                        if let Some(origin) = &mut envelope.origin {
                            origin.store = read_store(headers)?;
                        }
                        request_of(envelope)?
                    }
                    other => return Err(malformed(format!("unknown request {other}"))),
                };
                frame.finish()?;
                Ok(request)
            }
            Some(other) => Err(malformed(format!("frame `{}` is not a request", excerpt(other)))),
        }
    }

    /// Encodes a response. A list of envelopes is truncated so that the packet has at most `max_bytes`; the caller requests the rest.
    pub fn from_response(response: &Response, max_bytes: usize) -> Self {
        let mut frame = Writer::new();
        let (mut store, mut committed) = (None, None);
        let (kind, payload) = match response {
            Response::Reply(reply) => ("reply", reply.clone()),
            Response::Envelopes(page) => {
                store = page.store;
                committed = page.committed;
                frame.number(page.last);
                // Reserve space for the headers and for the bytes that a broker adds.
                frame.envelopes(&page.envelopes, max_bytes.saturating_sub(192));
                ("envelopes", frame.finish())
            }
            Response::Watermark { through, store: of } => {
                store = *of;
                frame.number(*through);
                ("watermark", frame.finish())
            }
            Response::Shape(text) => ("shape-text", Bytes::copy_from_slice(text.as_bytes())),
            Response::Refused(error) => error_parts(error),
        };
        let mut headers = vec![(Cow::Borrowed(RESPONSE), kind.to_owned())];
        headers.extend(committed.map(|committed| (Cow::Borrowed(COMMITTED), committed.to_string())));
        Self { headers, payload }.with_store(store)
    }

    /// Decodes the response in a packet.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] or [`BridgeError::Oversize`].
    pub fn response(&self) -> Result<Response, BridgeError> {
        Self::read_response(&self.header_pairs(), self.payload.clone())
    }

    /// Decodes a response from headers and a payload.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] or [`BridgeError::Oversize`].
    pub fn read_response(headers: &[(&str, &str)], payload: Bytes) -> Result<Response, BridgeError> {
        let kind =
            single_header(headers, RESPONSE)?.ok_or_else(|| malformed(format!("header `{RESPONSE}` is missing")))?;
        match kind {
            "reply" if payload.len() > MAX_PAYLOAD_BYTES => {
                Err(BridgeError::Oversize { bytes: payload.len(), limit: MAX_PAYLOAD_BYTES })
            }
            "reply" => Ok(Response::Reply(payload)),
            "envelopes" => {
                let mut frame = Reader::new(payload)?;
                let last = frame.number()?;
                let envelopes = frame.envelopes()?;
                frame.finish()?;
                let committed = single_header(headers, COMMITTED)?.map(|text| {
                    read_number(text)
                        .ok_or_else(|| malformed(format!("invalid header `{COMMITTED}`: `{}`", excerpt(text))))
                });
                let (committed, store) = (committed.transpose()?, read_store(headers)?);
                Ok(Response::Envelopes(Page::new(envelopes, last).committed(committed).store(store).of_store()))
            }
            "watermark" => {
                let mut frame = Reader::new(payload)?;
                let through = frame.number()?;
                frame.finish()?;
                Ok(Response::Watermark { through, store: read_store(headers)? })
            }
            "shape-text" if payload.len() > MAX_SHAPES_BYTES => {
                Err(BridgeError::Oversize { bytes: payload.len(), limit: MAX_SHAPES_BYTES })
            }
            "shape-text" => {
                String::from_utf8(payload.to_vec()).map(Response::Shape).map_err(|_| malformed("shapes are not UTF-8"))
            }
            other => {
                let text = || String::from_utf8_lossy(&payload).into_owned();
                Ok(Response::Refused(match other {
                    "busy" => RequestError::Busy,
                    "not-here" => RequestError::NotHere,
                    "full" => RequestError::Full,
                    "unhandled" => RequestError::Unhandled(text()),
                    "undecodable" => RequestError::Undecodable(text()),
                    "shape" => RequestError::Shape(text()),
                    "unknown-shape" => RequestError::UnknownShape,
                    "conflict" => RequestError::Conflict,
                    "expired" => RequestError::Expired,
                    "id-in-future" => RequestError::IdInFuture,
                    "late" => RequestError::Late,
                    "dead-letter" => RequestError::DeadLetter(text()),
                    "failed" => RequestError::Failed(text()),
                    "unknown" => RequestError::Unknown(text()),
                    other => return Err(malformed(format!("unknown response `{}`", excerpt(other)))),
                }))
            }
        }
    }

    /// Encodes a notification.
    pub fn from_notification(notification: &Notification) -> Self {
        let mut frame = Writer::new();
        match notification {
            Notification::Committed { from, to, through } => {
                frame.byte(1);
                frame.shard(from);
                frame.shard(to);
                frame.number(*through);
            }
            Notification::Head { shard, position } => {
                frame.byte(2);
                frame.shard(shard);
                frame.number(*position);
            }
        }
        framed("tidings", frame)
    }

    /// Decodes the notification in a packet.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`].
    pub fn notification(&self) -> Result<Notification, BridgeError> {
        Self::read_notification(&self.header_pairs(), self.payload.clone())
    }

    /// Decodes a notification from headers and a payload.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`].
    pub fn read_notification(headers: &[(&str, &str)], payload: Bytes) -> Result<Notification, BridgeError> {
        if single_header(headers, FRAME)? != Some("tidings") {
            return Err(malformed("the frame is not a notification"));
        }
        let mut frame = Reader::new(payload)?;
        let notification = match frame.byte()? {
            1 => Notification::Committed { from: frame.shard()?, to: frame.shard()?, through: frame.number()? },
            2 => Notification::Head { shard: frame.shard()?, position: frame.number()? },
            other => return Err(malformed(format!("unknown notification {other}"))),
        };
        frame.finish()?;
        Ok(notification)
    }
}

/// Returns the request that an envelope is.
fn request_of(envelope: Envelope) -> Result<Request, BridgeError> {
    match envelope.kind {
        Kind::Command => Ok(Request::Command(envelope)),
        Kind::Query => Ok(Request::Query(envelope)),
        other => Err(malformed(format!("kind `{}` is not a request", other.as_str()))),
    }
}

/// Returns the code of an error in a response and its text.
fn error_parts(error: &RequestError) -> (&'static str, Bytes) {
    let (code, text) = error.code_and_text();
    (code, Bytes::copy_from_slice(text.as_bytes()))
}
