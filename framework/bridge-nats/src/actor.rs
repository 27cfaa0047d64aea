//! The actor that owns the loops of the bridge: publishing, consuming, claims, and the denials of the server.
//!
//! Started by `attach` on the node's `LocalSet`. Stopped in order by `detach`, or immediately by `abandon`. Its mailbox carries
//! lifecycle messages only. Other messages do not pass through it, because the two loops have windows of their own. A loop that
//! panics is [restarted](super::restart).

use std::pin::pin;
use std::sync::Arc;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, ResponseFuture, WrapFuture};
use async_nats::{Client, Subscriber};
use futures_util::stream::SelectAll;
use tokio::sync::{Notify, broadcast, oneshot};

use super::claims::{ClaimWatch, Claims};
use super::connection::round_trip;
use super::consumer::ConsumerLoop;
use super::publisher::PublisherLoop;
use super::report::Report;
use super::restart::run_restarting;
use whizbang_core::spawn::{contained, is_unwinding};
use whizbang_core::telemetry::TARGET;

/// The owner of the loops. They end with it, so that nothing of a dropped bridge keeps running.
pub(super) struct NatsActor {
    /// The connection, for the last round trip before the end.
    pub(super) client: Client,
    /// The loop that writes; its state is shared with the threads that send.
    pub(super) publisher: Arc<PublisherLoop>,
    /// The inputs of the loops, moved into them at start.
    pub(super) loops: Option<Loops>,
    /// Stops the consumer loop.
    pub(super) closing: Option<oneshot::Sender<()>>,
    /// Stops both loops immediately.
    abandoned: Arc<Notify>,
    /// Resolves when both loops have ended.
    ended: Option<oneshot::Receiver<()>>,
    /// The report of failures.
    report: Arc<Report>,
}

/// The inputs of the loops.
pub(super) struct Loops {
    /// The inboxes for acknowledgements and responses.
    pub(super) replies: SelectAll<Subscriber>,
    /// The loop that receives.
    pub(super) consumer: ConsumerLoop,
    /// The subjects that the server has denied this user. They fail the messages that wait for a reply.
    pub(super) denials: broadcast::Receiver<String>,
    /// The claims on this node's domains, which are renewed.
    pub(super) claims: Option<(Arc<Claims>, ClaimWatch)>,
}

impl NatsActor {
    /// Returns the actor of an attached bridge. Its loops start with the actor, on the `LocalSet` of the node.
    pub(super) fn new(
        client: Client,
        publisher: Arc<PublisherLoop>,
        loops: Loops,
        closing: oneshot::Sender<()>,
        abandoned: Arc<Notify>,
        report: Arc<Report>,
    ) -> Self {
        Self { client, publisher, loops: Some(loops), closing: Some(closing), abandoned, ended: None, report }
    }
}

/// The loops restart by themselves. A panic that ends the actor nevertheless is shown in the node's health.
fn report_end(report: &Report, error: &str) {
    tracing::error!(target: TARGET, error, "bridge failed: restart the node");
    report.issues.open("loops", || format!("bridge failed, restart the node: it {error}"));
}

/// actix drops an actor whose context has panicked without logging it.
impl Drop for NatsActor {
    fn drop(&mut self) {
        if is_unwinding() {
            report_end(&self.report, "panicked");
        }
    }
}

impl Actor for NatsActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        let Some(Loops { mut replies, consumer, mut denials, claims }) = self.loops.take() else { return };
        let (end, ended) = oneshot::channel();
        self.ended = Some(ended);
        let (publisher, client, report) = (Arc::clone(&self.publisher), self.client.clone(), Arc::clone(&self.report));
        let loops = async move {
            let report = &*report;
            let in_flight = consumer.start();
            let mut consuming = (consumer, in_flight);
            let consuming = run_restarting(
                "consumer loop",
                report,
                &mut consuming,
                async |(consumer, in_flight)| consumer.run(in_flight).await,
                |(consumer, in_flight)| *in_flight = consumer.restart(in_flight),
            );
            let publishing = run_restarting(
                "publisher loop",
                report,
                &mut replies,
                async |replies| publisher.run(&client, replies).await,
                |_| publisher.restart(),
            );
            let renewal = async {
                if let Some((claims, mut watch)) = claims {
                    run_restarting("claims", report, &mut watch, async |watch| claims.run(watch).await, |_| {}).await;
                }
            };
            let mut working = pin!(async { tokio::join!(consuming, publishing) });
            tokio::select! {
                biased;
                _ = &mut working => {}
                () = renewal => drop(working.await),
            }
            // Notifications and acknowledgements written last must leave before the connection ends.
            round_trip(&client).await;
            // The receiver exists only after `Detach`.
            let _ = end.send(());
        };
        let (abandoned, report) = (Arc::clone(&self.abandoned), Arc::clone(&self.report));
        let until_abandoned = async move {
            tokio::select! {
                biased;
                () = abandoned.notified() => {}
                worked = contained(loops) => if let Err(error) = worked {
                    report_end(&report, &error);
                },
            }
        };
        context.spawn(until_abandoned.into_actor(self).map(|(), _, context| context.stop()));
        let (publisher, report) = (Arc::clone(&self.publisher), Arc::clone(&self.report));
        let denied = async move {
            let fail_denied = async |denials: &mut broadcast::Receiver<String>| {
                loop {
                    match denials.recv().await {
                        Ok(subject) => publisher.fail_denied(&subject),
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => break,
                    }
                }
            };
            run_restarting("denials", &report, &mut denials, fail_denied, |_| {}).await;
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
