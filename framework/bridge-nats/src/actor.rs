//! The actor that owns the loops of the bridge: publishing, consuming, and the denials of the server.
//!
//! Started by `attach` on the node's `LocalSet`. Stopped in order by `detach`, or immediately by `abandon`. Its mailbox carries
//! lifecycle messages only. Other messages do not pass through it, because the two loops have windows of their own.

use std::pin::pin;
use std::sync::Arc;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, ResponseFuture, WrapFuture};
use async_nats::{Client, Subscriber};
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, broadcast, oneshot};

use super::connection::round_trip;
use super::consumer::ConsumerLoop;
use super::publisher::PublisherLoop;
use super::session::Report;
use whizbang_core::spawn::contained;
use whizbang_core::telemetry::TARGET;

pub(super) struct NatsActor {
    pub(super) client: Client,
    pub(super) publisher: Arc<PublisherLoop>,
    /// The inputs of the loops, moved into them at start.
    pub(super) loops: Option<Loops>,
    /// Stops the consumer loop.
    pub(super) closing: Option<oneshot::Sender<()>>,
    /// Stops both loops immediately.
    abandoned: Arc<Notify>,
    /// Resolves when both loops have ended.
    ended: Option<oneshot::Receiver<()>>,
}

/// The inputs of the loops.
pub(super) struct Loops {
    pub(super) replies: Subscriber,
    pub(super) consumer: ConsumerLoop,
    pub(super) denials: broadcast::Receiver<String>,
    /// Renews the claims on this node's domains.
    pub(super) claim_renewal: BoxFuture<'static, ()>,
    /// The report of a failure of the loops.
    pub(super) report: Arc<Report>,
}

impl NatsActor {
    pub(super) fn new(
        client: Client,
        publisher: Arc<PublisherLoop>,
        loops: Loops,
        closing: oneshot::Sender<()>,
        abandoned: Arc<Notify>,
    ) -> Self {
        Self { client, publisher, loops: Some(loops), closing: Some(closing), abandoned, ended: None }
    }
}

impl Actor for NatsActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        let Some(Loops { replies, consumer, mut denials, claim_renewal, report }) = self.loops.take() else { return };
        let (end, ended) = oneshot::channel();
        self.ended = Some(ended);
        let publisher = Arc::clone(&self.publisher);
        let client = self.client.clone();
        let both = async move {
            let mut working = pin!(async { tokio::join!(consumer.run(), publisher.run(client.clone(), replies)) });
            tokio::select! {
                biased;
                _ = &mut working => {}
                () = claim_renewal => drop(working.await),
            }
            // Notifications and acknowledgements written last must leave before the connection ends.
            round_trip(&client).await;
            // The receiver exists only after `Detach`.
            let _ = end.send(());
        };
        let abandoned = Arc::clone(&self.abandoned);
        let until_abandoned = async move {
            tokio::select! {
                biased;
                () = abandoned.notified() => {}
                worked = contained(both) => if let Err(error) = worked {
                    tracing::error!(target: TARGET, error, "bridge failed: restart the node");
                    report.issues.open("loops", || format!("bridge failed, restart the node: it {error}"));
                },
            }
        };
        context.spawn(until_abandoned.into_actor(self).map(|(), _, context| context.stop()));
        let publisher = Arc::clone(&self.publisher);
        let denied = async move {
            loop {
                match denials.recv().await {
                    Ok(subject) => publisher.fail_denied(&subject),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                }
            }
        };
        context.spawn(denied.into_actor(self));
    }
}

/// Stops receiving, sends the queued messages and stops the actor.
pub(super) struct Detach;

impl Message for Detach {
    type Result = ();
}

impl Handler<Detach> for NatsActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Detach: Detach, _: &mut Self::Context) -> Self::Result {
        self.publisher.close();
        if let Some(closing) = self.closing.take() {
            // The consumer loop may have ended with the client.
            let _ = closing.send(());
        }
        let ended = self.ended.take();
        Box::pin(async move {
            if let Some(ended) = ended {
                let _ = ended.await;
            }
        })
    }
}
