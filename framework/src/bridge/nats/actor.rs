//! The actor that owns the bridge's loops: what goes out, what comes in, and what the server denies.
//!
//! Started by attach on the node's `LocalSet`; ended by detach, or where it stands by abandon. Its mailbox is for what happens to the bridge as a whole;
//! messages do not pass through it, because the two loops bound what is under way by windows of their own.

use std::pin::pin;
use std::sync::Arc;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, ResponseFuture, WrapFuture};
use async_nats::{Client, Subscriber};
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, broadcast, oneshot};

use super::Report;
use super::connection::round_trip;
use super::consumer::ConsumerLoop;
use super::publisher::PublisherLoop;
use crate::spawn::contained;
use crate::telemetry::TARGET;

pub(super) struct NatsActor {
    pub(super) client: Client,
    pub(super) publisher: Arc<PublisherLoop>,
    /// What is given to the loops at start.
    pub(super) loops: Option<Loops>,
    /// Tells the intake to end.
    pub(super) closing: Option<oneshot::Sender<()>>,
    /// Ends both loops where they stand.
    abandoned: Arc<Notify>,
    /// Fires when both loops have ended.
    ended: Option<oneshot::Receiver<()>>,
}

/// What the loops take with them.
pub(super) struct Loops {
    pub(super) replies: Subscriber,
    pub(super) consumer: ConsumerLoop,
    pub(super) denials: broadcast::Receiver<String>,
    /// Keeps the claims on this node's domains.
    pub(super) claim_renewal: BoxFuture<'static, ()>,
    /// Where it is said that the loops have failed.
    pub(super) report: Arc<Report>,
}

impl NatsActor {
    pub(super) fn new(
        client: Client,
        outgoing: Arc<PublisherLoop>,
        loops: Loops,
        closing: oneshot::Sender<()>,
        abandoned: Arc<Notify>,
    ) -> Self {
        Self { client, publisher: outgoing, loops: Some(loops), closing: Some(closing), abandoned, ended: None }
    }
}

impl Actor for NatsActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        let Some(Loops { replies: answers, consumer: intake, mut denials, claim_renewal: renewing, report }) =
            self.loops.take()
        else {
            return;
        };
        let (end, ended) = oneshot::channel();
        self.ended = Some(ended);
        let outgoing = Arc::clone(&self.publisher);
        let client = self.client.clone();
        let both = async move {
            let mut working = pin!(async { tokio::join!(intake.run(), outgoing.run(client.clone(), answers)) });
            tokio::select! {
                biased;
                _ = &mut working => {}
                () = renewing => drop(working.await),
            }
            // Tidings and acknowledgements that were written last must leave before the connection ends.
            round_trip(&client).await;
            // Nobody may be waiting for it.
            let _ = end.send(());
        };
        let abandoned = Arc::clone(&self.abandoned);
        let until_abandoned = async move {
            tokio::select! {
                biased;
                () = abandoned.notified() => {}
                worked = contained(both) => if let Err(error) = worked {
                    tracing::error!(target: TARGET, error, "the bridge failed: start the node again");
                    report.issues.open("loops", || format!("the bridge has failed, start the node again: it {error}"));
                },
            }
        };
        context.spawn(until_abandoned.into_actor(self).map(|(), _, context| context.stop()));
        let outgoing = Arc::clone(&self.publisher);
        let denied = async move {
            loop {
                match denials.recv().await {
                    Ok(subject) => outgoing.fail_denied(&subject),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                }
            }
        };
        context.spawn(denied.into_actor(self));
    }
}

/// Takes nothing more in, sends what is still held, and ends.
pub(super) struct Detach;

impl Message for Detach {
    type Result = ();
}

impl Handler<Detach> for NatsActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Detach: Detach, _: &mut Self::Context) -> Self::Result {
        self.publisher.close();
        if let Some(closing) = self.closing.take() {
            // The intake may have ended with the client.
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
