//! A test node as a bridge sees it: a card and an [`Inbound`] that records everything it receives.
//!
//! A case starts nodes, calls their bridges directly, and waits until a node [has received](TestNode::wait_until) what must
//! arrive. [`NodeBehavior`] makes a node slow, full, or unwilling. No runtime, store or actor is involved, so a failure is
//! one of the bridge.
//!
//! Waiting is by condition: each arrival notifies the case, which reads [`Received`] again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::Fixture;
use whizbang_core::bridge::{
    AckOutcome, Bridge, BridgeError, Inbound, NodeCard, Notification, Request, RequestError, Response,
};
use whizbang_core::message::{Envelope, Name};

/// The time limit for a message that must arrive.
pub const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The messages that a test node has received.
#[derive(Debug, Default)]
pub struct Received {
    /// Commands and replies.
    pub direct: Vec<Envelope>,
    /// Events.
    pub events: Vec<Envelope>,
    /// Requests.
    pub requests: Vec<Request>,
    /// Notifications.
    pub notifications: Vec<Notification>,
    /// The number of reported reconnections.
    pub reconnected: usize,
    /// The reasons of lost claims.
    pub claims_lost: Vec<String>,
    /// The number of messages being handled now.
    pub handling: usize,
    /// The maximum number of messages that were handled at the same time.
    pub max_handling: usize,
}

/// Responds to a request.
pub type Responder = dyn Fn(Request) -> BoxFuture<'static, Response> + Send + Sync;
/// Returns the outcome of a message.
pub type OutcomeHandler = dyn Fn(&Envelope, &Received) -> AckOutcome + Send + Sync;

/// The [`Inbound`] of a test node.
pub struct TestInbound {
    /// Everything that arrived, in its order.
    received: Mutex<Received>,
    /// Notified with each arrival.
    changed: Notify,
    /// The number of messages that the node accepts at once.
    capacity: usize,
    /// Messages complete while it is true.
    open: watch::Sender<bool>,
    /// Answers requests.
    responder: Box<Responder>,
    /// Decides the outcome of messages and events.
    handler: Box<OutcomeHandler>,
    /// The node itself, for the futures that outlive a call.
    this: std::sync::Weak<TestInbound>,
}

impl std::fmt::Debug for TestInbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestInbound")
            .field("received", &self.received)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

/// The behavior of a test node.
pub struct NodeBehavior {
    /// The number of messages that it handles at once.
    pub capacity: usize,
    /// Messages complete immediately; otherwise first after [`open`](TestNode::open) is called.
    pub open: bool,
    /// The responses to requests.
    pub responder: Box<Responder>,
    /// The outcome of a message, given everything received before it.
    pub handler: Box<OutcomeHandler>,
}

impl std::fmt::Debug for NodeBehavior {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeBehavior")
            .field("capacity", &self.capacity)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Default for NodeBehavior {
    fn default() -> Self {
        Self {
            capacity: 1024,
            open: true,
            responder: Box::new(|_| Box::pin(async { Response::Refused(RequestError::NotHere) })),
            handler: Box::new(|_, _| AckOutcome::Ack),
        }
    }
}

impl TestInbound {
    /// Creates the inbound of one node.
    fn new(behavior: NodeBehavior) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            received: Mutex::default(),
            changed: Notify::new(),
            capacity: behavior.capacity,
            open: watch::channel(behavior.open).0,
            responder: behavior.responder,
            handler: behavior.handler,
            this: this.clone(),
        })
    }

    /// Records an arrival and notifies the waiting case.
    fn record<T>(&self, write: impl FnOnce(&mut Received) -> T) -> T {
        let result = write(&mut self.received.lock());
        self.changed.notify_waiters();
        result
    }

    /// Records an envelope in `list` and returns a future that is done when the node is open. It counts as being handled
    /// until then.
    fn handle(
        &self,
        envelope: Envelope,
        list: fn(&mut Received) -> &mut Vec<Envelope>,
    ) -> BoxFuture<'static, AckOutcome> {
        let outcome = self.record(|received| {
            let outcome = (self.handler)(&envelope, received);
            list(received).push(envelope);
            received.handling += 1;
            received.max_handling = received.max_handling.max(received.handling);
            outcome
        });
        let mut open = self.open.subscribe();
        let this = self.this.clone();
        Box::pin(async move {
            // The inbound exists as long as the test; without it the count is not read.
            let _ = open.wait_for(|open| *open).await;
            if let Some(inbound) = this.upgrade() {
                inbound.record(|received| received.handling -= 1);
            }
            outcome
        })
    }
}

impl Inbound for TestInbound {
    fn deliver(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        self.handle(envelope, |received| &mut received.direct)
    }

    fn event(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        self.handle(envelope, |received| &mut received.events)
    }

    fn request(&self, request: Request) -> BoxFuture<'static, Response> {
        self.record(|received| received.requests.push(request.clone()));
        (self.responder)(request)
    }

    fn notify(&self, notification: Notification) {
        self.record(|received| received.notifications.push(notification));
    }

    fn reconnected(&self) {
        self.record(|received| received.reconnected += 1);
    }

    fn claim_lost(&self, reason: String) {
        self.record(|received| received.claims_lost.push(reason));
    }

    fn capacity(&self) -> usize {
        self.capacity.saturating_sub(self.received.lock().handling)
    }
}

/// A node of a test.
pub struct TestNode {
    /// Its bridge.
    pub bridge: Arc<dyn Bridge>,
    /// Its record of arrivals.
    inbound: Arc<TestInbound>,
}

impl std::fmt::Debug for TestNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestNode").field("inbound", &self.inbound).finish_non_exhaustive()
    }
}

impl TestNode {
    /// Starts a node with the domains, subscriptions and queries on `card`.
    ///
    /// It acknowledges every message at once and refuses requests.
    pub async fn start(fixture: &dyn Fixture, card: NodeCard) -> Self {
        Self::start_with(fixture, card, NodeBehavior::default()).await
    }

    /// Starts a node with the given behavior.
    pub async fn start_with(fixture: &dyn Fixture, card: NodeCard, behavior: NodeBehavior) -> Self {
        Self::attach(fixture.bridge().await, card, behavior).await.expect("attaches")
    }

    /// Starts a node on the given bridge.
    ///
    /// # Errors
    /// The error of attaching.
    pub async fn attach(bridge: Arc<dyn Bridge>, card: NodeCard, behavior: NodeBehavior) -> Result<Self, BridgeError> {
        let node = Self { bridge, inbound: TestInbound::new(behavior) };
        node.bridge.attach(card, Arc::clone(&node.inbound) as Arc<dyn Inbound>).await?;
        Ok(node)
    }

    /// Reads the received messages.
    ///
    /// Holds the lock while `read` runs, so nothing arrives in between: all counts belong together.
    pub fn inspect<T>(&self, read: impl FnOnce(&Received) -> T) -> T {
        read(&self.inbound.received.lock())
    }

    /// Completes the messages that are being handled, and further ones immediately.
    pub fn open(&self) {
        self.inbound.open.send_replace(true);
    }

    /// Waits until `holds`; fails the test after [`ARRIVAL_TIMEOUT`].
    ///
    /// Returns at once if it holds already. `what` completes the text of a failure, such as "all commands".
    pub async fn wait_until(&self, what: &str, holds: impl Fn(&Received) -> bool) {
        let waiting = async {
            loop {
                let changed = self.inbound.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.inspect(&holds) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(ARRIVAL_TIMEOUT, waiting).await.is_err() {
            panic!("{what}: not within {ARRIVAL_TIMEOUT:?}; received {}", self.inspect(summary));
        }
    }

    /// Repeats `action` until `holds`, for messages that the broker may lose.
    pub async fn retry_until<F>(&self, what: &str, mut action: impl FnMut() -> F, holds: impl Fn(&Received) -> bool)
    where
        F: Future<Output = Result<(), BridgeError>>,
    {
        let waiting = async {
            while !self.inspect(&holds) {
                // Failures are expected; the loop retries.
                let _ = action().await;
                let changed = self.inbound.changed.notified();
                let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
            }
        };
        if tokio::time::timeout(ARRIVAL_TIMEOUT, waiting).await.is_err() {
            panic!("{what}: not within {ARRIVAL_TIMEOUT:?}; received {}", self.inspect(summary));
        }
    }

    /// Waits for the next message for at most `span`, between two attempts of an action that may fail.
    pub async fn wait_for_message(&self, span: Duration) {
        // A timeout is fine.
        let _ = tokio::time::timeout(span, self.inbound.changed.notified()).await;
    }

    /// Detaches the bridge.
    ///
    /// # Panics
    /// If the bridge reports an error.
    pub async fn stop(self) {
        self.bridge.detach().await.expect("detaches");
    }
}

/// Returns the counts of what has arrived, for the text of a failed case.
fn summary(received: &Received) -> String {
    format!(
        "{} commands, {} events, {} requests, {} notifications, {} reconnections, {} being handled",
        received.direct.len(),
        received.events.len(),
        received.requests.len(),
        received.notifications.len(),
        received.reconnected,
        received.handling
    )
}

/// Returns the card of a service without domains, subscriptions and queries.
pub fn service(name: &'static str) -> NodeCard {
    NodeCard::new(named(name))
}

/// Returns a name.
pub fn named(name: &'static str) -> Name {
    Name::from_static(name).expect("a name")
}
