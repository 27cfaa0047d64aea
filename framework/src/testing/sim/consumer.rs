//! How messages of one stream come to a simulated node: taken as far as it has room, handed to its door, settled after the commit.
//!
//! Started when a node attaches. Calls the node's door, and says to the [broker](super::broker) what becomes of each message.
//! What is no message is put aside and does not come again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::broker::Parcel;
use super::crash_points::CrashPoint;
use super::fault_counts::FaultEvent;
use super::link::{DELETION, SimLink, Stand, pause};
use crate::bridge::AckOutcome;
use crate::clock::instant;
use crate::testing::broker::Acknowledgement;
use crate::testing::broker::model::{Delivery, Next};

/// A node without room is asked again after this time.
const NO_ROOM: Duration = Duration::from_millis(5);
/// How often the broker hears that a message is still in hand.
const KEEP: Duration = Duration::from_millis(1600);
/// A message that a node did not take comes again after this time, doubled each time up to [`LATEST`].
const SOONEST: Duration = Duration::from_millis(50);
const LATEST: Duration = Duration::from_secs(5);
/// A stream that is missing is looked for again after this time at the latest.
const LOOK: Duration = Duration::from_secs(5);

/// What a stream carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cargo {
    Direct,
    Events,
}

struct SimConsumer {
    line: Arc<SimLink>,
    cargo: Cargo,
    stream: String,
}

/// Begins to take from a stream, until the node leaves.
pub(super) fn begin(line: &Arc<SimLink>, cargo: Cargo, stream: String) {
    let lane = Arc::new(SimConsumer { line: Arc::clone(line), cargo, stream });
    crate::spawn::alone("simulated broker", lane.run());
}

impl SimConsumer {
    async fn run(self: Arc<Self>) {
        let line = &self.line;
        let bell = line.broker.bell(&self.stream);
        let mut stand = line.stand.subscribe();
        while line.is_here() {
            let rung = bell.notified();
            tokio::pin!(rung);
            rung.as_mut().enable();
            let again = match self.next() {
                Ok(delivery) => {
                    self.take(delivery);
                    continue;
                }
                Err(Again::At(again)) => again,
                Err(Again::Missing) => {
                    if self.found_again().await {
                        continue;
                    }
                    Some(instant() + LOOK)
                }
            };
            tokio::select! {
                biased;
                _ = stand.changed() => {}
                () = rung => {}
                () = sleep_until(again) => {}
            }
        }
    }

    fn next(&self) -> Result<Delivery<Arc<Parcel>>, Again> {
        let line = &self.line;
        if !line.broker.can_pull(line) {
            // Whoever connects the node again rings.
            return Err(Again::At(None));
        }
        if line.door.capacity() <= line.reserved.load(Ordering::Relaxed) {
            return Err(Again::At(Some(instant() + NO_ROOM)));
        }
        match line.broker.next(&self.stream, &line.card.service) {
            Next::Message(delivery) => Ok(delivery),
            Next::Empty(due) | Next::AtLimit(due) => Err(Again::At(due)),
            Next::Missing => Err(Again::Missing),
        }
    }

    /// The stream or the consumer is gone: whose it is makes it again after a while.
    async fn found_again(&self) -> bool {
        let line = &self.line;
        tokio::time::sleep(DELETION).await;
        if !line.is_here() || !line.broker.can_pull(line) {
            return false;
        }
        line.broker.ensure(line);
        let found = line.broker.state().model.has_consumer(&self.stream, line.card.service.as_str());
        if found {
            line.broker.1.add(format_args!("{} is back for {}", self.stream, line.card.service));
            line.door.reconnected();
        }
        found
    }

    /// A message is on its way to the node.
    fn take(self: &Arc<Self>, delivery: Delivery<Arc<Parcel>>) {
        let line = &self.line;
        let broker = &line.broker;
        if delivery.deliveries > 1 {
            let (stream, service) = (&self.stream, &line.card.service);
            broker
                .1
                .add(format_args!("delivery {} of {stream} {} to {service}", delivery.deliveries, delivery.sequence));
        }
        if broker.loses() && broker.draw(2) == 0 {
            broker.2.one(FaultEvent::LostOnTheWayOut);
            broker.1.add(format_args!(
                "  {} {} is lost on its way to {}",
                self.stream, delivery.sequence, line.card.service
            ));
            return;
        }
        let copies = if broker.repeats() { 2 } else { 1 };
        for copy in 0..copies {
            if copy > 0 {
                broker.2.one(FaultEvent::BroughtTwice);
                broker.1.add(format_args!("  {} {} is brought twice", self.stream, delivery.sequence));
            }
            line.reserved.fetch_add(1, Ordering::Relaxed);
            line.in_hand.fetch_add(1, Ordering::Relaxed);
            let way = broker.way() + broker.handlers_take(line.service);
            if way.is_zero() {
                // In this call, so that what comes in order is handed over in order.
                self.hand_over(&delivery);
                continue;
            }
            let flight = broker.sets_out();
            let (lane, delivery) = (Arc::clone(self), delivery.clone());
            crate::spawn::alone("simulated broker", async move {
                tokio::time::sleep(way).await;
                if flight.arrives() {
                    lane.hand_over(&delivery);
                } else {
                    lane.drop_it();
                }
            });
        }
    }

    /// It does not reach the node.
    fn drop_it(&self) {
        self.line.less(&self.line.reserved);
        self.line.less(&self.line.in_hand);
    }

    fn hand_over(self: &Arc<Self>, delivery: &Delivery<Arc<Parcel>>) {
        let line = &self.line;
        let broker = &line.broker;
        if line.is_gone() || !broker.hears(line) || broker.is_cut(delivery.payload.from, line.service) {
            return self.drop_it();
        }
        let (sequence, deliveries) = (delivery.sequence, delivery.deliveries);
        let envelope = match delivery.payload.packet.envelope() {
            Ok(envelope) => envelope,
            Err(error) => {
                line.less(&line.reserved);
                return self.put_aside(sequence, &error.to_string());
            }
        };
        broker.begins(line.service, CrashPoint::Delivery);
        let message = envelope.clone();
        let settled = match self.cargo {
            Cargo::Direct => line.door.deliver(envelope),
            Cargo::Events => line.door.event(envelope),
        };
        line.less(&line.reserved);
        let lane = Arc::clone(self);
        crate::spawn::alone("simulated broker", async move {
            let mut stand = lane.line.stand.subscribe();
            tokio::pin!(settled);
            let settled = loop {
                tokio::select! {
                    biased;
                    settled = &mut settled => break settled,
                    _ = stand.wait_for(|stand| *stand == Stand::Gone) => return lane.line.less(&lane.line.in_hand),
                    () = tokio::time::sleep(KEEP) => lane.say(sequence, Acknowledgement::InProgress),
                }
            };
            match settled {
                AckOutcome::Ack => {
                    lane.line.broker.settled(lane.line.service, &message);
                    lane.say(sequence, Acknowledgement::Ack);
                }
                AckOutcome::Retry => {
                    let doubled = SOONEST.saturating_mul(1 << deliveries.saturating_sub(1).min(10)).min(LATEST);
                    lane.say(sequence, Acknowledgement::Nak(doubled));
                }
                AckOutcome::Reject(reason) => {
                    lane.line.broker.put_aside(&message);
                    lane.put_aside(sequence, &reason);
                }
            }
        });
    }

    fn put_aside(self: &Arc<Self>, sequence: u64, reason: &str) {
        let broker = &self.line.broker;
        broker.1.add(format_args!("{} puts {} {sequence} aside: {reason}", self.line.card.service, self.stream));
        broker.state().refused += 1;
        self.say(sequence, Acknowledgement::Term);
    }

    /// Says something about a message. The last word ends what the node has to do with it.
    fn say(self: &Arc<Self>, sequence: u64, word: Acknowledgement) {
        let line = &self.line;
        let is_last = word != Acknowledgement::InProgress;
        let broker = &line.broker;
        if is_last {
            line.words.fetch_add(1, Ordering::Relaxed);
            broker.begins(line.service, CrashPoint::Acknowledgement);
        }
        let is_lost = broker.loses() && broker.draw(2) == 0;
        let (lane, way) = (Arc::clone(self), broker.way());
        crate::spawn::alone("simulated broker", async move {
            pause(way).await;
            let line = &lane.line;
            if is_lost {
                line.broker.2.one(FaultEvent::WordLost);
            } else if !line.is_gone() && line.broker.is_heard(line) {
                line.broker.settle(&lane.stream, &line.card.service, sequence, word);
            }
            if is_last {
                line.less(&line.words);
                line.less(&line.in_hand);
            }
        });
    }
}

/// When to look again.
enum Again {
    /// Then, or when somebody rings.
    At(Option<Instant>),
    Missing,
}

async fn sleep_until(again: Option<Instant>) {
    match again {
        Some(again) => tokio::time::sleep_until(again).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::{BoxFuture, FutureExt, ready};

    use super::super::broker::{Broker, Reached, commands};
    use super::super::fault_counts::FaultCounts;
    use super::super::trace::Trace;
    use super::Parcel;
    use crate::bridge::Bridge;
    use crate::bridge::wire::Packet;
    use crate::clock::{Clock, Timestamp};
    use crate::message::{IdSource, ShardId};
    use crate::testing::bridge::Fixture;
    use crate::testing::bridge::hostile::Forgery;
    use std::sync::Arc;

    struct Simulated(Broker);

    impl Simulated {
        fn new() -> Self {
            let dice = IdSource::seeded(Clock::manual(Timestamp::from_millis(0)).0, 1);
            Self(Broker::new(dice, Trace::new(), FaultCounts::default()))
        }
    }

    impl Fixture for Simulated {
        fn bridge(&self) -> BoxFuture<'_, Arc<dyn Bridge>> {
            ready(Arc::new(self.0.bridge(0)) as Arc<dyn Bridge>).boxed()
        }

        fn interrupt(&self) -> BoxFuture<'_, ()> {
            self.0.isolate(0, true, true);
            self.0.connect(0);
            ready(()).boxed()
        }

        fn inject(&self, to: ShardId, packet: Packet) -> BoxFuture<'_, ()> {
            let stored = self.0.store(&commands(&to.domain), "injected", &Arc::new(Parcel { from: 0, packet }));
            assert!(matches!(stored, Reached::Taken));
            ready(()).boxed()
        }

        fn forge(&self, forgery: Forgery) -> BoxFuture<'_, ()> {
            self.0.forge(&forgery);
            ready(()).boxed()
        }

        fn refused(&self) -> BoxFuture<'_, usize> {
            ready(self.0.state().refused).boxed()
        }
    }

    crate::bridge_suite!(Simulated::new());
}
