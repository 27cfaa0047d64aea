//! A node as a bridge sees it: a card and a door that writes down what comes in.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::Fixture;
use crate::bridge::{
    AckOutcome, Bridge, BridgeError, Inbound, NodeCard, Notification, Request, RequestError, Response,
};
use crate::message::{Envelope, Name};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What has come in at a door.
#[derive(Debug, Default)]
pub struct Seen {
    /// Commands and replies.
    pub direct: Vec<Envelope>,
    /// Events.
    pub events: Vec<Envelope>,
    /// Questions.
    pub asked: Vec<Request>,
    /// Tidings.
    pub told: Vec<Notification>,
    /// How often the connection was said to be back.
    pub reconnected: usize,
    /// How many messages are being handled now.
    pub handling: usize,
    /// How many messages were being handled at most.
    pub most: usize,
}

/// Answers a question.
pub type Answering = dyn Fn(Request) -> BoxFuture<'static, Response> + Send + Sync;
/// Decides what becomes of a message.
pub type Settling = dyn Fn(&Envelope, &Seen) -> AckOutcome + Send + Sync;

/// The door of a test's node.
pub struct TestInbound {
    seen: Mutex<Seen>,
    changed: Notify,
    room: usize,
    /// Messages are settled while it is open.
    gate: watch::Sender<bool>,
    answering: Box<Answering>,
    settling: Box<Settling>,
    this: std::sync::Weak<TestInbound>,
}

/// How a node of a test behaves.
pub struct NodeBehavior {
    /// How many messages it takes at once.
    pub room: usize,
    /// Whether it settles what it takes at once, or first when it is [opened](TestNode::open).
    pub open: bool,
    /// What it answers.
    pub answering: Box<Answering>,
    /// What becomes of a message, given what was seen before it.
    pub settling: Box<Settling>,
}

impl Default for NodeBehavior {
    fn default() -> Self {
        Self {
            room: 1024,
            open: true,
            answering: Box::new(|_| Box::pin(async { Response::Refused(RequestError::NotHere) })),
            settling: Box::new(|_, _| AckOutcome::Ack),
        }
    }
}

impl TestInbound {
    fn new(manners: NodeBehavior) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            seen: Mutex::default(),
            changed: Notify::new(),
            room: manners.room,
            gate: watch::channel(manners.open).0,
            answering: manners.answering,
            settling: manners.settling,
            this: this.clone(),
        })
    }

    fn note<T>(&self, write: impl FnOnce(&mut Seen) -> T) -> T {
        let written = write(&mut self.seen.lock());
        self.changed.notify_waiters();
        written
    }

    fn take(&self, envelope: Envelope, list: fn(&mut Seen) -> &mut Vec<Envelope>) -> BoxFuture<'static, AckOutcome> {
        let settled = self.note(|seen| {
            let settled = (self.settling)(&envelope, seen);
            list(seen).push(envelope);
            seen.handling += 1;
            seen.most = seen.most.max(seen.handling);
            settled
        });
        let mut gate = self.gate.subscribe();
        let this = self.this.clone();
        Box::pin(async move {
            // The door lives as long as the test; without it nobody looks at the outcome.
            let _ = gate.wait_for(|open| *open).await;
            if let Some(door) = this.upgrade() {
                door.note(|seen| seen.handling -= 1);
            }
            settled
        })
    }
}

impl Inbound for TestInbound {
    fn deliver(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        self.take(envelope, |seen| &mut seen.direct)
    }

    fn event(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        self.take(envelope, |seen| &mut seen.events)
    }

    fn request(&self, asked: Request) -> BoxFuture<'static, Response> {
        self.note(|seen| seen.asked.push(asked.clone()));
        (self.answering)(asked)
    }

    fn notify(&self, tidings: Notification) {
        self.note(|seen| seen.told.push(tidings));
    }

    fn reconnected(&self) {
        self.note(|seen| seen.reconnected += 1);
    }

    fn capacity(&self) -> usize {
        self.room.saturating_sub(self.seen.lock().handling)
    }
}

/// One node of a test.
pub struct TestNode {
    /// Its bridge.
    pub bridge: Arc<dyn Bridge>,
    door: Arc<TestInbound>,
}

impl TestNode {
    /// A node of `service` that owns, subscribes and answers as `card` says.
    pub async fn start(fixture: &dyn Fixture, card: NodeCard) -> Self {
        Self::start_with(fixture, card, NodeBehavior::default()).await
    }

    /// A node that behaves as `manners` say.
    pub async fn start_with(fixture: &dyn Fixture, card: NodeCard, manners: NodeBehavior) -> Self {
        Self::attach(fixture.bridge().await, card, manners).await.expect("attaches")
    }

    /// A node with a bridge of its own making.
    ///
    /// # Errors
    /// What attaching says.
    pub async fn attach(bridge: Arc<dyn Bridge>, card: NodeCard, manners: NodeBehavior) -> Result<Self, BridgeError> {
        let node = Self { bridge, door: TestInbound::new(manners) };
        node.bridge.attach(card, Arc::clone(&node.door) as Arc<dyn Inbound>).await?;
        Ok(node)
    }

    /// Looks at what has come in.
    pub fn look<T>(&self, at: impl FnOnce(&Seen) -> T) -> T {
        at(&self.door.seen.lock())
    }

    /// Lets the door settle what it has taken and will take.
    pub fn open(&self) {
        self.door.gate.send_replace(true);
    }

    /// Waits until `holds`; fails the test if it does not within [`PATIENCE`].
    pub async fn until(&self, what: &str, holds: impl Fn(&Seen) -> bool) {
        let waiting = async {
            loop {
                let changed = self.door.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.look(&holds) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{what}: not within {PATIENCE:?}; seen {}", self.look(summary));
        }
    }

    /// Repeats `deed` until `holds`: for what a courier may lose.
    pub async fn insist<F>(&self, what: &str, mut deed: impl FnMut() -> F, holds: impl Fn(&Seen) -> bool)
    where
        F: Future<Output = Result<(), BridgeError>>,
    {
        let waiting = async {
            while !self.look(&holds) {
                // What goes wrong on the way is what is insisted against.
                let _ = deed().await;
                let changed = self.door.changed.notified();
                let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{what}: not within {PATIENCE:?}; seen {}", self.look(summary));
        }
    }

    /// Waits until something comes in, `span` at most: between two tries of what may fail.
    pub async fn insist_once(&self, span: Duration) {
        // Either is fine.
        let _ = tokio::time::timeout(span, self.door.changed.notified()).await;
    }

    /// Detaches its bridge.
    pub async fn stop(self) {
        self.bridge.detach().await.expect("detaches");
    }
}

fn summary(seen: &Seen) -> String {
    format!(
        "{} commands, {} events, {} questions, {} tidings, {} reconnections, {} in hand",
        seen.direct.len(),
        seen.events.len(),
        seen.asked.len(),
        seen.told.len(),
        seen.reconnected,
        seen.handling
    )
}

/// A card of a service that does nothing yet.
pub fn service(name: &'static str) -> NodeCard {
    NodeCard { service: named(name), owns: Vec::new(), subscribes: Vec::new(), answers: Vec::new(), store: None }
}

/// A name.
pub fn named(name: &'static str) -> Name {
    Name::from_static(name).expect("a name")
}

impl NodeCard {
    /// Owns a domain as well.
    pub fn owning(mut self, domain: &'static str) -> Self {
        self.owns.push((named(domain), super::SHARDS));
        self
    }

    /// Takes the events of a domain as well.
    pub fn taking(mut self, domain: &'static str) -> Self {
        self.subscribes.push((named(domain), super::SHARDS, vec![named("Happened")]));
        self
    }

    /// Answers a query as well.
    pub fn answering(mut self, domain: &'static str, query: &'static str) -> Self {
        self.answers.push((named(domain), named(query)));
        self
    }
}
