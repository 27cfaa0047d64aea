//! A bridge of an older version: it sends no fingerprints, forwards none, and does not know the request for shapes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use whizbang::bridge::{
    AckOutcome, Bridge, BridgeError, Inbound, NodeCard, Notification, Request, RequestError, Response,
};
use whizbang::message::Envelope;

pub(crate) struct Older<B>(pub(crate) B);

fn without(envelope: Envelope) -> Envelope {
    Envelope { shape: None, ..envelope }
}

struct OlderInbound(Arc<dyn Inbound>);

impl Inbound for OlderInbound {
    fn deliver(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        self.0.deliver(without(envelope))
    }

    fn event(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        self.0.event(without(envelope))
    }

    fn request(&self, asked: Request) -> BoxFuture<'static, Response> {
        let asked = match asked {
            Request::Shape { .. } => {
                let unknown = RequestError::Undecodable("question 5 is not known".to_owned());
                return Box::pin(async { Response::Refused(unknown) });
            }
            Request::Command(envelope) => Request::Command(without(envelope)),
            Request::Query(envelope) => Request::Query(without(envelope)),
            asked => asked,
        };
        let answer = self.0.request(asked);
        Box::pin(async {
            match answer.await {
                Response::Envelopes(mut page) => {
                    page.envelopes = page.envelopes.into_iter().map(without).collect();
                    Response::Envelopes(page)
                }
                answer => answer,
            }
        })
    }

    fn notify(&self, notification: Notification) {
        self.0.notify(notification);
    }

    fn reconnected(&self) {
        self.0.reconnected();
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl<B: Bridge> Bridge for Older<B> {
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        self.0.attach(card, Arc::new(OlderInbound(inbound)))
    }

    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.send(without(envelope))
    }

    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.publish(without(event))
    }

    fn request(&self, to: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        let to = match to {
            Request::Command(envelope) => Request::Command(without(envelope)),
            Request::Query(envelope) => Request::Query(without(envelope)),
            to => to,
        };
        self.0.request(to, deadline)
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
