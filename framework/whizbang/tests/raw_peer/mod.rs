//! A service without actors that sends arbitrary messages, and a bridge that counts the requests of its node.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use whizbang::bridge::loopback::{LoopbackBridge, LoopbackHub};
use whizbang::bridge::{
    AckOutcome, Bridge, BridgeError, Inbound, NodeCard, Notification, Request, RequestError, Response,
};
use whizbang::message::{Codec, Envelope, Kind, MessageId, Name, Origin, ReplyMode, ShardId};

/// A service that acknowledges every message and handles none.
pub struct RawPeer;

impl Inbound for RawPeer {
    fn deliver(&self, _envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        ready(AckOutcome::Ack).boxed()
    }
    fn event(&self, _envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        ready(AckOutcome::Ack).boxed()
    }
    fn request(&self, _request: Request) -> BoxFuture<'static, Response> {
        ready(Response::Refused(RequestError::NotHere)).boxed()
    }
    fn notify(&self, _notification: Notification) {}
    fn reconnected(&self) {}
    fn capacity(&self) -> usize {
        1
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Connects a raw peer to the hub.
pub async fn connect_raw_peer(hub: &LoopbackHub) -> LoopbackBridge {
    let bridge = hub.bridge();
    bridge.attach(NodeCard::new(name("raw-peer")), Arc::new(RawPeer)).await.unwrap();
    bridge
}

/// Builds a message in the name of an actor of `from`: an event of its log, or with `to` a command of its outbox.
pub fn forged(id: u128, message: &str, from: &ShardId, sequence: u64, to: Option<ShardId>) -> Envelope {
    let id = MessageId::from_u128(id);
    let domain = to.as_ref().map_or(&from.domain, |to| &to.domain).clone();
    let (kind, key) = if to.is_some() { (Kind::Command, "ada") } else { (Kind::Event, "") };
    let origin = Origin {
        shard: from.clone(),
        actor: name("Actor"),
        key: "a".to_owned(),
        sequence,
        version: sequence,
        store: None,
    };
    Envelope {
        id,
        kind,
        name: name(message),
        version: 1,
        shape: None,
        domain,
        to,
        key: key.to_owned(),
        actor: None,
        origin: Some(origin),
        correlation: id,
        causation: None,
        time: whizbang::clock::Timestamp::from_millis(0),
        deadline: None,
        wants: ReplyMode::Nothing,
        traceparent: None,
        headers: Vec::new(),
        codec: Codec::Bincode,
        payload: Vec::new().into(),
    }
}

/// The number of requests of a node: all, the open ones, and the most open at once.
#[derive(Default)]
pub struct RequestCounts {
    pub asked: AtomicUsize,
    pub open: AtomicUsize,
    pub most: AtomicUsize,
}

/// A bridge that counts the requests of its node.
pub struct CountingBridge(pub LoopbackBridge, pub Arc<RequestCounts>);

impl Bridge for CountingBridge {
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        self.0.attach(card, inbound)
    }
    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.send(envelope)
    }
    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.publish(event)
    }
    fn request(&self, to: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        let counts = Arc::clone(&self.1);
        async move {
            counts.asked.fetch_add(1, Ordering::Relaxed);
            let open = counts.open.fetch_add(1, Ordering::Relaxed) + 1;
            counts.most.fetch_max(open, Ordering::Relaxed);
            let answer = self.0.request(to, deadline).await;
            counts.open.fetch_sub(1, Ordering::Relaxed);
            answer
        }
        .boxed()
    }
    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.notify(notification)
    }
    fn durability(&self) -> String {
        self.0.durability()
    }
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.detach()
    }
    fn abandon(&self) {
        self.0.abandon();
    }
}
