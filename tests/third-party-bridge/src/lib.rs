//! A bridge as a third party writes it: on a broker with topics, with the public items of `whizbang-core` and `whizbang-wire` only.
//!
//! It shows the least that a bridge needs. [`TopicBridge`] publishes and subscribes; `delivery` gives received messages to the node.
//! The suite of bridges in `tests/suite.rs` proves that nodes can rely on it.

mod broker;
mod delivery;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use whizbang_core::bridge::{Bridge, BridgeError, Inbound, NodeCard, Notification, Request, RequestError, Response};
use whizbang_core::message::{Envelope, Name};
use whizbang_wire::Packet;
use whizbang_wire::subject::{Address, Namespace};

pub use broker::Broker;

use broker::{Connection, Content, Message, Published};
use delivery::Delivery;

static MEMBERS: AtomicU64 = AtomicU64::new(0);

/// A bridge to a [`Broker`].
#[derive(Debug)]
pub struct TopicBridge {
    broker: Broker,
    namespace: Namespace,
    session: Mutex<Option<Arc<Session>>>,
}

/// The attached node.
pub(crate) struct Session {
    card: NodeCard,
    inbound: Arc<dyn Inbound>,
    /// Taken when the node leaves, which ends its subscriptions.
    connection: Mutex<Option<Connection>>,
    leaving: Notify,
    left: Notify,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("card", &self.card).finish_non_exhaustive()
    }
}

impl TopicBridge {
    /// Creates a bridge, not attached.
    pub fn new(broker: &Broker) -> Self {
        Self { broker: broker.clone(), namespace: Namespace::default(), session: Mutex::new(None) }
    }

    /// Returns the topic of an address.
    pub fn topic(address: &Address) -> String {
        Namespace::default().subject(address)
    }

    /// Ends the connection and opens it again, as a failure of the network does.
    pub fn interrupt(&self) {
        if let Some(session) = &*self.session.lock() {
            session.inbound.reconnected();
        }
    }

    fn publish(
        &self,
        address: &Address,
        packet: Packet,
        respond: Option<oneshot::Sender<Content>>,
    ) -> Result<Published, BridgeError> {
        if self.session.lock().is_none() {
            return Err(BridgeError::Closed);
        }
        let (headers, payload) = parts(packet);
        Ok(self.broker.publish(Message { topic: self.namespace.subject(address), headers, payload, respond }))
    }
}

/// Splits a packet into the headers and the payload of the broker.
fn parts(packet: Packet) -> Content {
    (packet.headers.into_iter().map(|(name, value)| (name.into_owned(), value)).collect(), packet.payload)
}

fn no_owner(domain: &Name) -> BridgeError {
    BridgeError::NoOwner { domain: domain.to_string() }
}

/// The queue of a receiver is full: nothing was sent.
const BUSY: BridgeError = BridgeError::Busy { waiting: 0 };

impl Bridge for TopicBridge {
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        let mut own = self.session.lock();
        if own.is_some() {
            return ready(Err(BridgeError::Closed)).boxed();
        }
        let connection = self.broker.connect(MEMBERS.fetch_add(1, Ordering::Relaxed));
        let ((messages, received), (requests, requested)) = (Broker::queue(), Broker::queue());
        let group = card.service.as_str();
        for (domain, _) in &card.owns {
            connection.subscribe("owner", self.namespace.direct_filter(domain), &messages);
            connection.subscribe("owner", self.namespace.request_filter(domain), &requests);
            connection.subscribe("owner", self.namespace.committed_filter(domain), &requests);
        }
        for (domain, _, _) in &card.subscribes {
            connection.subscribe(group, self.namespace.event_filter(domain), &messages);
            // The filter of the framework ends with `*`; this broker knows only prefixes.
            let heads = self.namespace.head_filter(domain).replace('*', ">");
            connection.subscribe(group, heads, &requests);
        }
        for (domain, query) in &card.answers {
            connection.subscribe("owner", self.namespace.query_subject(domain, query), &requests);
        }
        let session = Arc::new(Session {
            card,
            inbound,
            connection: Mutex::new(Some(connection)),
            leaving: Notify::new(),
            left: Notify::new(),
        });
        *own = Some(Arc::clone(&session));
        // `detach` waits for the task; `abandon` and the end of the node's thread drop it.
        let delivery = Delivery::new(self.broker.clone(), self.namespace.clone(), session);
        drop(tokio::task::spawn_local(delivery.run(received, requested)));
        ready(Ok(())).boxed()
    }

    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        // The place in the queue is that of the call, so that calls keep their order if they are awaited later.
        let sent = Packet::from_envelope(&envelope).and_then(|packet| {
            let address = Address::for_message(&envelope).ok_or_else(|| no_owner(&envelope.domain))?;
            match self.publish(&address, packet, None)? {
                Published::Accepted => Ok(()),
                Published::Full => Err(BUSY),
                Published::Unheard => Err(no_owner(envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain))),
            }
        });
        ready(sent).boxed()
    }

    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        let published = Packet::from_envelope(&event).and_then(|packet| {
            // A test of the node may publish an event without a log; no service can subscribe to it.
            let Some(address) = Address::for_event(&event) else { return Ok(()) };
            match self.publish(&address, packet, None)? {
                // A subscriber that is not there reads the event from the log later.
                Published::Accepted | Published::Unheard => Ok(()),
                Published::Full => Err(BUSY),
            }
        });
        ready(published).boxed()
    }

    fn request(&self, request: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        async move {
            let (respond, response) = oneshot::channel();
            let packet = Packet::from_request(&request)?;
            match self.publish(&Address::for_request(&request), packet, Some(respond))? {
                Published::Accepted => {}
                Published::Full => return Ok(Response::Refused(RequestError::Busy)),
                Published::Unheard => return Err(no_owner(request.domain())),
            }
            match tokio::time::timeout(deadline, response).await {
                Ok(Ok((headers, payload))) => {
                    let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
                    Packet::read_response(&headers, payload).map_err(|error| error.in_response(request.domain()))
                }
                // The owner has left, or does not respond: the request may have been handled.
                Ok(Err(_)) | Err(_) => Err(BridgeError::NoResponse { domain: request.domain().to_string(), deadline }),
            }
        }
        .boxed()
    }

    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        let packet = Packet::from_notification(&notification);
        // A notification may be lost: the next one replaces it.
        ready(self.publish(&Address::for_notification(&notification), packet, None).map(drop)).boxed()
    }

    fn durability(&self) -> String {
        "topics: messages exist in this process only; lost messages are sent again from the logs".to_owned()
    }

    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        async move {
            let session = self.session.lock().take().ok_or(BridgeError::Closed)?;
            session.leaving.notify_one();
            session.left.notified().await;
            Ok(())
        }
        .boxed()
    }

    fn abandon(&self) {
        if let Some(session) = self.session.lock().take() {
            drop(session.connection.lock().take());
            session.leaving.notify_one();
        }
    }
}
