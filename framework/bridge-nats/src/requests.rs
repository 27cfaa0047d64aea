//! Requests of callers: commands whose caller waits, queries, and pages of logs and outboxes.
//!
//! Called by the [consumer loop](super::consumer). The number of requests and of pages at once is bounded; beyond it a caller is
//! answered `Busy`, so that it retries instead of waiting for its deadline.

use std::sync::atomic::Ordering;

use async_nats::{Message, Subject};
use futures_util::FutureExt;

use super::consumer::{ConsumerLoop, MAX_IN_FLIGHT};
use super::decode;
use super::denied_inboxes::is_inbox;
use super::excerpt::excerpt;
use super::headers;
use super::in_flight::{Completed, InFlightMessages, OutboundMessage, RequestContext};
use super::json_request;
use whizbang_core::bridge::{Request, RequestError, Response};
use whizbang_core::clock::monotonic;
use whizbang_core::telemetry::{LogLimit, error_chain};
use whizbang_wire::Packet;

/// The maximum number of pages that are read or written at once as responses. A page has up to the server's `max_payload` bytes
/// (1 MiB by default) and its request has forty, so this bounds the memory.
const MAX_PAGES: usize = 8;

impl ConsumerLoop {
    /// Passes a request to the node, or answers it at once: [`Busy`](RequestError::Busy) beyond the limits, an error if it
    /// cannot be decoded. A request without an inbox, or with one that the server denies, is dropped.
    pub(super) fn receive_request(&mut self, in_flight: &mut InFlightMessages, message: &Message) {
        // Reply only to inbox subjects, so a caller cannot make this node publish with its permissions (confused deputy).
        let Some(reply) = message.reply.clone().filter(|reply| is_inbox(reply)) else {
            if self.refuse_request(&self.report.log_limits.missing_inboxes) {
                tracing::warn!(
                    subject = excerpt(&message.subject),
                    "dropped a request without an inbox for its response"
                );
            }
            return;
        };
        if self.report.denied_inboxes.drops(&reply, monotonic()) {
            return;
        }
        let request = match json_request::request(&self.namespace, message) {
            Some(request) => request.map(|(request, names)| (request, Some(names))),
            None => decode::request(&self.namespace, &self.owns, message).map(|request| (request, None)),
        };
        match request {
            Ok(_) if in_flight.requests >= MAX_IN_FLIGHT => {
                self.respond(in_flight, reply, &Response::Refused(RequestError::Busy));
            }
            Ok((Request::Events { .. } | Request::Outbox { .. }, _)) if in_flight.pages >= MAX_PAGES => {
                self.respond(in_flight, reply, &Response::Refused(RequestError::Busy));
            }
            // The owner of the key's shard receives the request as well, and responds.
            Ok((Request::Command(command), _)) if self.is_for_another_node(message, &command) => {}
            Ok((request, names)) => {
                let is_page = matches!(request, Request::Events { .. } | Request::Outbox { .. });
                let after = if let Request::Events { after, .. } = &request { *after } else { 0 };
                let context = RequestContext { reply, is_page, json: names.map(|names| (after, names)) };
                in_flight.requests += 1;
                in_flight.pages += usize::from(is_page);
                let response = self.inbound.request(request);
                in_flight.tasks.push(response.map(move |response| Completed::Responded(context, response)).boxed());
            }
            Err(error) => {
                if self.refuse_request(&self.report.log_limits.refused_requests) {
                    tracing::warn!(
                        subject = excerpt(&message.subject), error = %error_chain(&error),
                        "refused a request",
                    );
                }
                self.respond(in_flight, reply, &Response::Refused(RequestError::Undecodable(error.to_string())));
            }
        }
    }

    /// Counts a request or another message outside of a stream that is refused or dropped. Returns whether a line is logged for it.
    pub(super) fn refuse_request(&self, limit: &LogLimit) -> bool {
        self.report.refused_requests.fetch_add(1, Ordering::Relaxed);
        limit.admits(monotonic())
    }

    /// Queues a response. One that exceeds the limit of the server is replaced by an error, so that the caller need not wait
    /// for its deadline.
    pub(super) fn respond(&self, in_flight: &mut InFlightMessages, reply: Subject, response: &Response) {
        let limit = self.client.max_payload();
        let mut packet = Packet::from_response(response, limit);
        if packet.size() > limit {
            let reason = format!("response of {} bytes exceeds the broker's limit of {limit}", packet.size());
            packet = Packet::from_response(&Response::Refused(RequestError::Unknown(reason)), limit);
        }
        self.queue_reply(in_flight, reply, packet);
    }

    /// Queues an encoded response for an inbox.
    pub(super) fn queue_reply(&self, in_flight: &mut InFlightMessages, reply: Subject, packet: Packet) {
        match headers::to_nats(&packet) {
            Ok(headers) => {
                in_flight.outgoing.push_back(OutboundMessage {
                    subject: reply,
                    reply: None,
                    headers,
                    payload: packet.payload,
                });
            }
            Err(error) if self.report.log_limits.unwritten.admits(monotonic()) => {
                tracing::error!(error = %error_chain(&error), "failed to encode a response");
            }
            Err(_) => {}
        }
    }
}
