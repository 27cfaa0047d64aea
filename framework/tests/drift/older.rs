//! A bridge as an older version has it: it sends no fingerprints, passes on none, and does not know the question for shapes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use whizbang::bridge::{Answer, Asked, Bridge, BridgeError, Inbound, NodeCard, Page, Refusal, Settled, Tidings};
use whizbang::message::Envelope;

pub(crate) struct Older<B>(pub(crate) B);

fn without(envelope: Envelope) -> Envelope {
    Envelope { shape: None, ..envelope }
}

struct Door(Arc<dyn Inbound>);

impl Inbound for Door {
    fn direct(&self, envelope: Envelope) -> BoxFuture<'static, Settled> {
        self.0.direct(without(envelope))
    }

    fn event(&self, envelope: Envelope) -> BoxFuture<'static, Settled> {
        self.0.event(without(envelope))
    }

    fn asked(&self, asked: Asked) -> BoxFuture<'static, Answer> {
        let asked = match asked {
            Asked::Shape { .. } => {
                let unknown = Refusal::Undecodable("question 5 is not known".to_owned());
                return Box::pin(async { Answer::Refused(unknown) });
            }
            Asked::Command(envelope) => Asked::Command(without(envelope)),
            Asked::Query(envelope) => Asked::Query(without(envelope)),
            asked => asked,
        };
        let answer = self.0.asked(asked);
        Box::pin(async {
            match answer.await {
                Answer::Envelopes(page) => {
                    Answer::Envelopes(Page { envelopes: page.envelopes.into_iter().map(without).collect(), ..page })
                }
                answer => answer,
            }
        })
    }

    fn told(&self, tidings: Tidings) {
        self.0.told(tidings);
    }

    fn reconnected(&self) {
        self.0.reconnected();
    }

    fn room(&self) -> usize {
        self.0.room()
    }
}

impl<B: Bridge> Bridge for Older<B> {
    fn attach<'a>(&'a self, card: NodeCard, door: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        self.0.attach(card, Arc::new(Door(door)))
    }

    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.send(without(envelope))
    }

    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.publish(without(event))
    }

    fn ask(&self, to: Asked, deadline: Duration) -> BoxFuture<'_, Result<Answer, BridgeError>> {
        let to = match to {
            Asked::Command(envelope) => Asked::Command(without(envelope)),
            Asked::Query(envelope) => Asked::Query(without(envelope)),
            to => to,
        };
        self.0.ask(to, deadline)
    }

    fn tell(&self, tidings: Tidings) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.tell(tidings)
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
