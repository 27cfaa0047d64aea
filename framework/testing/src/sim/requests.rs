//! Requests and notifications between simulated nodes, which pass through the broker.
//!
//! Called by nodes through their [bridge](super::bridge). A request is handled even if its caller stops waiting or is paused.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::bridge::SimulatedBridge;
use super::fault_counts::FaultEvent;
use super::link::{SimLink, pause};
use super::node_tasks::spawn_outside;
use whizbang_core::bridge::{BridgeError, Notification, Request, RequestError, Response};
use whizbang_core::message::{MAX_PAYLOAD_BYTES, MessageId, ShardId};
use whizbang_wire::Packet;

impl SimulatedBridge {
    /// Sends a request through the broker and waits for its response.
    ///
    /// # Errors
    /// [`BridgeError::NoOwner`] if no node answers such requests, and [`BridgeError::NoResponse`] at the deadline: the
    /// request may have been handled.
    pub(super) async fn ask(&self, to: Request, deadline: Duration) -> Result<Response, BridgeError> {
        let link = self.link()?;
        let packet = Packet::from_request(&to)?;
        let domain = to.domain().clone();
        let broker = &self.broker;
        if let Request::Command(envelope) = &to {
            broker.trace.add(format_args!("asks {} {} of `{}`: {}", domain, envelope.name, envelope.key, envelope.id));
        }
        let no_answer = || BridgeError::NoResponse { domain: domain.to_string(), deadline };
        let answers: Vec<Arc<SimLink>> = {
            let state = broker.state();
            let answers = |link: &&Arc<SimLink>| match &to {
                Request::Query(query) => {
                    link.card.answers.iter().any(|(domain, name)| *domain == query.domain && *name == query.name)
                }
                request => link.responds_to(request),
            };
            state.links.values().filter(|link| link.is_attached()).filter(answers).cloned().collect()
        };
        // One of the nodes that can reply receives the request.
        let chosen = if answers.len() > 1 { broker.draw(answers.len() as u64) } else { 0 };
        let other = answers.get(usize::try_from(chosen).unwrap_or(0)).cloned();
        let other = other.ok_or_else(|| BridgeError::NoOwner { domain: domain.to_string() })?;
        let (broker, service) = (broker.clone(), self.service);
        let exchange = async move {
            let lost = || {
                let lost = broker.draws_loss();
                if lost {
                    broker.fault_counts.one(FaultEvent::RequestLost);
                }
                lost
            };
            if lost() {
                return None;
            }
            pause(broker.latency()).await;
            broker.wait_unpaused().await;
            if !broker.is_outbound_open(&link)
                || !broker.is_inbound_open(&other)
                || broker.is_partitioned(service, other.service)
            {
                return None;
            }
            let handler_delay = broker.handler_delay(other.service);
            if !handler_delay.is_zero() {
                tokio::time::sleep(handler_delay).await;
            }
            let request = match packet.request() {
                Ok(request) => other.with_shard(request),
                Err(error) => return Some(Ok(Response::Refused(RequestError::Undecodable(error.to_string())))),
            };
            let (what, asked) = describe(&request);
            let response = other.inbound.request(request).await;
            other.check_answer(&what, asked.as_ref(), &response);
            let answer = Packet::from_response(&response, 2 * MAX_PAYLOAD_BYTES);
            // The response of a node that was killed is lost.
            if other.is_gone() || lost() {
                return None;
            }
            pause(broker.latency()).await;
            if !broker.is_outbound_open(&other)
                || !broker.is_inbound_open(&link)
                || broker.is_partitioned(other.service, service)
            {
                return None;
            }
            Some(answer.response())
        };
        // The request is delivered even if the caller stops waiting.
        let (answer, answered) = oneshot::channel();
        spawn_outside("simulated broker", async move {
            if let Some(exchange) = exchange.await {
                let _ = answer.send(exchange);
            }
        });
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                tokio::time::sleep(deadline).await;
                Err(no_answer())
            }
            Err(_) => Err(no_answer()),
        }
    }

    /// Sends a notification to all nodes that it concerns. It may be lost on the way to each of them.
    pub(super) async fn send_notification(&self, notification: Notification) -> Result<(), BridgeError> {
        let link = self.link()?;
        let packet = Packet::from_notification(&notification);
        let broker = &self.broker;
        let listens = |link: &&Arc<SimLink>| match &notification {
            Notification::Committed { from, .. } => link.receives_shard(from),
            Notification::Head { shard, .. } => link.card.subscribes.iter().any(|(domain, ..)| *domain == shard.domain),
        };
        let listeners: Vec<Arc<SimLink>> = broker.state().links.values().filter(listens).cloned().collect();
        for other in listeners {
            if broker.draws_loss() {
                continue;
            }
            let (latency, broker, packet, link) = (broker.latency(), broker.clone(), packet.clone(), Arc::clone(&link));
            spawn_outside("simulated broker", async move {
                pause(latency).await;
                if let Ok(notification) = packet.notification()
                    && !other.is_gone()
                    && broker.is_outbound_open(&link)
                    && broker.is_inbound_open(&other)
                    && !broker.is_partitioned(link.service, other.service)
                {
                    other.inbound.notify(notification);
                }
            });
        }
        Ok(())
    }
}

/// Describes a request, and returns the id and the shard of a command. The reply to a command comes from a commit, which only the owner can
/// write; everything else is answered from what the node has read. The query of a key travels like a command and has no commit.
fn describe(request: &Request) -> (String, Option<(MessageId, ShardId)>) {
    match request {
        Request::Command(envelope) => {
            let asked = envelope.to.as_ref().map(|to| (envelope.id, to.clone()));
            (format!("the query {}", envelope.name), asked)
        }
        Request::Query(query) => (format!("the query {}", query.name), None),
        Request::Events { shard, .. } => (format!("a request for the events of {shard}"), None),
        request => (format!("a request to {}", request.domain()), None),
    }
}
