//! The task that gives received messages to the node: no more than the node has capacity for, and again if it asks for that.
//!
//! Started by the bridge when a node attaches. It ends when the node leaves.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use whizbang_core::bridge::{AckOutcome, BridgeError, RequestError, Response};
use whizbang_core::message::MAX_PAYLOAD_BYTES;
use whizbang_wire::Packet;
use whizbang_wire::subject::{Address, Namespace};

use crate::Session;
use crate::broker::{Broker, Content, Message};

/// The wait before a message is delivered again.
const REDELIVERY: Duration = Duration::from_millis(10);
/// The interval at which the capacity of a full node is read again. Its completed messages cause an earlier read.
const CAPACITY_POLL: Duration = Duration::from_millis(5);
/// The maximum size of a response in bytes.
const MAX_RESPONSE: usize = 2 * MAX_PAYLOAD_BYTES;

/// The end of something that the node was given.
enum Done {
    Handled,
    Again(Message),
}

type InFlight = FuturesUnordered<BoxFuture<'static, Done>>;

pub(crate) struct Delivery {
    broker: Broker,
    namespace: Namespace,
    session: Arc<Session>,
}

impl Delivery {
    pub(crate) fn new(broker: Broker, namespace: Namespace, session: Arc<Session>) -> Self {
        Self { broker, namespace, session }
    }

    pub(crate) async fn run(self, mut messages: mpsc::Receiver<Message>, mut requests: mpsc::Receiver<Message>) {
        let mut in_flight = InFlight::new();
        loop {
            let has_room = self.session.inbound.capacity() > 0;
            tokio::select! {
                biased;
                () = self.session.leaving.notified() => break,
                Some(done) = in_flight.next() => {
                    if let Done::Again(message) = done {
                        self.deliver(message, &in_flight);
                    }
                }
                Some(request) = requests.recv() => self.handle(request, &in_flight),
                Some(message) = messages.recv(), if has_room => self.deliver(message, &in_flight),
                () = pause(CAPACITY_POLL), if !has_room => {}
            }
        }
        // Senders must not find the node while it finishes the messages that it has.
        drop(self.session.connection.lock().take());
        while in_flight.next().await.is_some() {}
        self.session.left.notify_one();
    }

    fn deliver(&self, message: Message, in_flight: &InFlight) {
        match self.outcome(&message) {
            Ok(outcome) => {
                let broker = self.broker.clone();
                in_flight.push(Box::pin(async move {
                    match outcome.await {
                        AckOutcome::Ack => Done::Handled,
                        AckOutcome::Retry => {
                            pause(REDELIVERY).await;
                            Done::Again(message)
                        }
                        AckOutcome::Reject(_) => {
                            broker.refuse();
                            Done::Handled
                        }
                    }
                }));
            }
            Err(_) => self.broker.refuse(),
        }
    }

    fn address(&self, message: &Message) -> Result<Address, BridgeError> {
        let unknown = || BridgeError::Malformed { reason: "unknown topic".to_owned() };
        self.namespace.parse(&message.topic).ok_or_else(unknown)
    }

    /// Gives a command, a reply or an event to the node.
    fn outcome(&self, message: &Message) -> Result<BoxFuture<'static, AckOutcome>, BridgeError> {
        let (card, inbound) = (&self.session.card, &self.session.inbound);
        let address = self.address(message)?;
        let envelope = Packet::read_envelope(headers(message), message.payload.clone())?;
        if matches!(address, Address::Direct { .. }) {
            return Ok(inbound.deliver(address.accept_message(envelope, &card.owns)?));
        }
        address.accept_events(std::slice::from_ref(&envelope))?;
        Ok(inbound.event(envelope))
    }

    /// Gives a request or a notification to the node.
    fn handle(&self, mut message: Message, in_flight: &InFlight) {
        let respond = message.respond.take();
        let Ok(address) = self.address(&message) else { return self.broker.refuse() };
        let headers: Vec<_> = headers(&message).collect();
        if matches!(address, Address::Committed { .. } | Address::Head(_)) {
            let notification = Packet::read_notification(&headers, message.payload.clone());
            match notification.and_then(|read| address.accept_notification(&read).map(|()| read)) {
                Ok(notification) => self.session.inbound.notify(notification),
                Err(_) => self.broker.refuse(),
            }
            return;
        }
        let request = Packet::read_request(&headers, message.payload.clone())
            .and_then(|request| address.accept_request(request, &self.session.card.owns));
        let response: BoxFuture<'static, Response> = match request {
            Ok(request) => self.session.inbound.request(request),
            Err(error) => {
                self.broker.refuse();
                let refusal = Response::Refused(RequestError::Undecodable(error.to_string()));
                Box::pin(async move { refusal })
            }
        };
        in_flight.push(Box::pin(async move {
            let response = Packet::from_response(&response.await, MAX_RESPONSE);
            if let Some(respond) = respond {
                // The caller may have given up.
                let _: Result<(), Content> = respond.send(crate::parts(response));
            }
            Done::Handled
        }));
    }
}

#[expect(clippy::disallowed_methods, reason = "a bridge waits before it delivers a message again")]
async fn pause(span: Duration) {
    tokio::time::sleep(span).await;
}

fn headers(message: &Message) -> impl Iterator<Item = (&str, &str)> {
    message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}
