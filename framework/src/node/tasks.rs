//! What works in the background on each thread: releasing commits, relaying, ringing timers, putting actors to rest.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::share::Share;
use crate::actor::{Host, ShardCell};
use crate::bridge::Tidings;
use crate::clock::{Timestamp, instant};
use crate::message::{Envelope, Kind, MessageId, Name, ShardId};
use crate::relay::{Onward, envelope_of};
use crate::router::{Outcome, Work};
use crate::store::{StoreError, Timer};
use crate::telemetry::TARGET;

/// How long another node is waited for when something is missing. Short: asking again costs little, waiting holds things up.
pub(super) const ASK: Duration = Duration::from_secs(1);
/// How many events are read and published at a time.
const PAGE: usize = 256;
/// How often the idle are looked for, as parts of the time they may be idle.
const SWEEPS: u32 = 8;

/// Releases what was committed; opens the shards again when commits have failed.
pub(super) async fn release(share: Weak<Share>) {
    loop {
        let Some(host) = share.upgrade().map(|share| Rc::clone(&share.host)) else { return };
        let error = host.release().await;
        let Some(share) = share.upgrade() else { return };
        tracing::error!(target: TARGET, %error, "commits have failed, opening the shards again");
        let mut failures = 0;
        loop {
            match share.recover().await {
                Ok(()) => break,
                Err(error @ (StoreError::Io { .. } | StoreError::Full { .. })) if failures < 8 => {
                    failures += 1;
                    let wait = host.settings.retry.all.wait(failures, &host.ids);
                    tracing::error!(target: TARGET, %error, ?wait, "the shards cannot be opened again yet");
                    tokio::time::sleep(wait).await;
                }
                Err(error) => {
                    tracing::error!(target: TARGET, %error, "the node can commit no more: start it again");
                    *share.spec.broken.lock() = Some(format!("the store failed: {error}"));
                    host.stopped.set(true);
                    return;
                }
            }
        }
    }
}

/// Moves what was committed to where it belongs.
pub(super) async fn relay(share: Weak<Share>) {
    let mut published: BTreeMap<ShardId, u64> = BTreeMap::new();
    if let Some(share) = share.upgrade() {
        // What was committed before is history: subscribers read it from the log.
        published.clone_from(&share.history);
    }
    let mut again: Option<Instant> = None;
    let mut heads = Heads::default();
    // Whoever missed the last events before this start is told how far the logs reach.
    let silent = cfg!(plant = "ends_of_logs_are_not_told_at_the_start");
    for (id, position) in published.iter().filter(|(_, position)| **position > 0 && !silent) {
        heads.grown(id, *position);
    }
    loop {
        let Some(host) = share.upgrade().map(|share| Rc::clone(&share.host)) else { return };
        let patience_ends = async {
            match again {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let all = tokio::select! {
            biased;
            () = host.relay.notified() => false,
            () = patience_ends => true,
        };
        let Some(share) = share.upgrade() else { return };
        if all {
            // Some lane has waited long enough; which one is found by looking at all.
            again = None;
            for (id, lanes) in &share.lanes {
                let (restarted, next) = lanes.impatience();
                if let Some(cell) = share.shards.get(id).filter(|_| restarted) {
                    cell.soil(&host);
                }
                again = earliest(again, next);
            }
            share.store_floors(1024);
        }
        share.relaying.set(true);
        let next = relay_once(&share, &mut published, &mut heads).await;
        again = earliest(earliest(again, next), heads.tell(&share).await);
        share.relaying.set(false);
        host.quiet.look();
    }
}

/// After what times without a new event subscribers are told how far a log reaches: whoever has lost the last events, and
/// the tidings before, notices by the next ones.
const HEADS: [Duration; 8] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(15),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(300),
];

/// The logs whose ends are to be told.
#[derive(Default)]
struct Heads(BTreeMap<ShardId, (u64, usize, Option<Instant>)>);

impl Heads {
    fn grown(&mut self, shard: &ShardId, position: u64) {
        self.0.insert(shard.clone(), (position, 0, HEADS.first().map(|wait| instant() + *wait)));
    }

    async fn tell(&mut self, share: &Share) -> Option<Instant> {
        let bridge = share.spec.bridge.as_ref()?;
        let now = instant();
        let mut next = None;
        for (shard, (position, told, at)) in &mut self.0 {
            if at.is_some_and(|at| at <= now) {
                if let Err(error) = bridge.tell(Tidings::Head { shard: shard.clone(), position: *position }).await {
                    tracing::debug!(target: TARGET, %error, "the end of a log was not told; it will be");
                }
                *told += 1;
                *at = HEADS.get(*told).map(|wait| now + *wait);
            }
            next = earliest(next, *at);
        }
        next
    }
}

async fn relay_once(share: &Rc<Share>, published: &mut BTreeMap<ShardId, u64>, heads: &mut Heads) -> Option<Instant> {
    let mut again = None;
    let outgoing: Rc<RefCell<Vec<Envelope>>> = Rc::default();
    let onward = onward(share, &outgoing);
    let mut grown = Vec::new();
    for cell in share.host.take_dirty() {
        let id = &cell.id;
        let lanes = share.lanes.get(id);
        let reader = cell.reader();
        if let Some(lanes) = lanes {
            if let Err(error) = lanes.pump(&reader, &onward).await {
                tracing::warn!(target: TARGET, shard = %id, %error, "the outbox cannot be read");
                retry(&share.host, &cell);
            }
            again = earliest(again, lanes.next_impatience());
        }
        let position = reader.position();
        let last = published.get(id).copied().unwrap_or(0);
        if position > last {
            heads.grown(id, position);
            if share.spec.sources.contains_key(&id.domain) {
                // Every thread may have somebody who takes them; each reads them from the log.
                let source = id.clone();
                share.links.run_all(move |share| share.head(&source, position));
            }
            grown.push((cell, last, position));
        }
    }
    // All shards' messages are under way together: the broker is waited for once, not shard by shard.
    let batch = std::mem::take(&mut *outgoing.borrow_mut());
    let publishing = grown.iter().map(|(cell, last, position)| publish(share, &cell.id, *last, *position));
    let (ends, ()) = tokio::join!(join_all(publishing), send(share, batch));
    for ((cell, _, position), end) in grown.into_iter().zip(ends) {
        published.insert(cell.id.clone(), end);
        if end < position {
            retry(&share.host, &cell);
        }
    }
    tell(share).await;
    again
}

/// Lets the relay look at a shard again after a while.
fn retry(host: &Rc<Host>, cell: &Rc<ShardCell>) {
    let (host, cell) = (Rc::clone(host), Rc::clone(cell));
    crate::spawn::detached(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cell.soil(&host);
    });
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Hands an outbox entry to its gate on this node, or puts it with what leaves the node.
fn onward(share: &Rc<Share>, outgoing: &Rc<RefCell<Vec<Envelope>>>) -> Onward {
    let (share, outgoing) = (Rc::clone(share), Rc::clone(outgoing));
    Rc::new(move |envelope| {
        let Some(to) = envelope.to.clone() else { return };
        if share.spec.owns(&to.domain).is_none() {
            outgoing.borrow_mut().push(envelope);
        } else if share.spec.home(to.shard) == share.index {
            share.direct(envelope, Box::new(|_| {}));
        } else {
            let home = share.spec.home(to.shard);
            share.links.run(home, Box::new(move |share| share.direct(envelope, Box::new(|_| {}))));
        }
    })
}

/// Sends what leaves the node. What does not get through stays in the outbox and is sent again.
async fn send(share: &Rc<Share>, batch: Vec<Envelope>) {
    let Some(bridge) = share.spec.bridge.as_ref().filter(|_| !batch.is_empty()) else { return };
    for result in join_all(batch.into_iter().map(|envelope| bridge.send(envelope))).await {
        if let Err(error) = result {
            tracing::debug!(target: TARGET, %error, "an outbox entry was not taken, it is sent again");
        }
    }
}

/// Publishes the events above `last` up to `position`, and says how far it has come.
async fn publish(share: &Rc<Share>, id: &ShardId, mut last: u64, position: u64) -> u64 {
    let (Some(bridge), Some(cell)) = (&share.spec.bridge, share.shards.get(id)) else { return position };
    let reader = cell.reader();
    while last < position {
        let mut events = match reader.events(last, PAGE).await {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!(target: TARGET, shard = %id, %error, "the log cannot be read");
                return last;
            }
        };
        // What has come since was told to nobody here: the next look at the shard tells and publishes it.
        if !cfg!(plant = "published_before_it_is_told") {
            events.retain(|event| event.position <= position);
        }
        let Some(end) = events.last().map(|event| event.position) else { return last };
        let count = events.len() as u64;
        let sent = join_all(events.into_iter().map(|event| bridge.publish(envelope_of(id, event)))).await;
        if let Some(Err(error)) = sent.into_iter().find(Result::is_err) {
            tracing::debug!(target: TARGET, shard = %id, %error, "events were not taken, they are published again");
            return last;
        }
        share.host.counts.sent.many(count);
        last = end;
    }
    last
}

/// Tells other services' shards how far this node has committed what they sent.
async fn tell(share: &Rc<Share>) {
    let told = std::mem::take(&mut *share.told.borrow_mut());
    let Some(bridge) = share.spec.bridge.as_ref().filter(|_| !told.is_empty()) else { return };
    for ((from, to), through) in told {
        if let Err(error) = bridge.tell(Tidings::Committed { from, to, through }).await {
            tracing::debug!(target: TARGET, %error, "a watermark was not told; the next one will be");
        }
    }
}

/// A timer that rings: actor type, key, name, and the turn that set it.
type Place = (Name, String, String, u64);
type Places = HashSet<Place, foldhash::fast::FixedState>;

/// The timers of a shard that ring, and those that were answered since the last look.
#[derive(Default)]
struct Ringing {
    under_way: Places,
    answered: Places,
}

fn place_of(timer: &Timer) -> Place {
    (timer.actor.clone(), timer.key.clone(), timer.name.clone(), timer.turn)
}

/// Rings timers when they are due.
pub(super) async fn timers(share: Weak<Share>) {
    let mut ringing: BTreeMap<ShardId, Rc<RefCell<Ringing>>> = BTreeMap::new();
    loop {
        let Some(host) = share.upgrade().map(|share| Rc::clone(&share.host)) else { return };
        let now = host.ids.clock().now();
        let wait = {
            let Some(share) = share.upgrade() else { return };
            let mut wait = Duration::from_secs(30);
            for (id, cell) in &share.shards {
                let reader = cell.reader();
                let ringing = ringing.entry(id.clone()).or_default();
                let answered = std::mem::take(&mut ringing.borrow_mut().answered);
                // Those that ring come first: asked for on top, so that however many they are the others ring as well.
                let rings = ringing.borrow().under_way.len();
                for timer in reader.timers_due(now, PAGE + rings) {
                    let place = place_of(&timer);
                    if !ringing.borrow_mut().under_way.insert(place.clone()) {
                        continue;
                    }
                    let (ringing, host) = (Rc::clone(ringing), Rc::clone(&host));
                    if answered.contains(&place) && !cfg!(plant = "timers_ring_in_circles") {
                        // Answered, and set all the same: another node has taken over what this one still holds and set it. It
                        // is not rung in circles until this one is told.
                        after_a_while(move || {
                            ringing.borrow_mut().under_way.remove(&place);
                            host.timers.notify_one();
                        });
                        continue;
                    }
                    ring(&share, id, timer, move || {
                        let mut ringing = ringing.borrow_mut();
                        ringing.under_way.remove(&place);
                        ringing.answered.insert(place);
                        host.timers.notify_one();
                    });
                }
                // Those that ring already will say when they are done; do not look again before.
                let rings = ringing.borrow().under_way.len();
                let next = match rings {
                    0 => reader.next_timer(),
                    rings => {
                        let timers = reader.timers_due(Timestamp::from_millis(u64::MAX), rings + 1);
                        let waits = |timer: &Timer| !ringing.borrow().under_way.contains(&place_of(timer));
                        timers.into_iter().find(waits).map(|timer| timer.due)
                    }
                };
                if let Some(next) = next {
                    wait = wait.min(next.since(now).max(Duration::from_millis(1)));
                }
            }
            wait
        };
        tokio::select! {
            biased;
            () = host.timers.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn ring(share: &Rc<Share>, id: &ShardId, timer: Timer, done: impl FnOnce() + 'static) {
    let label = format!("timer/{}/{}/{}/{}", timer.actor, timer.key, timer.name, timer.turn);
    let Ok(name) = Name::new(&timer.name) else { return done() };
    let message = MessageId::from_idempotency_key(&id.domain, &label);
    let envelope = Envelope {
        version: timer.version,
        to: Some(id.clone()),
        key: timer.key,
        actor: Some(timer.actor.clone()),
        correlation: timer.correlation,
        codec: timer.codec,
        payload: timer.payload,
        ..Envelope::new(message, Kind::Document, id.domain.clone(), name, timer.due)
    };
    let settle = Box::new(move |outcome| match outcome {
        Outcome::Done(..) | Outcome::DeadLetter(_) => done(),
        // The actor type is not hosted here any more. The timer stays set; it is not rung in circles.
        Outcome::Unhandled => tracing::warn!(target: TARGET, timer = %label, "nobody here takes this timer"),
        // The shard is being opened again, or the node stops: rung again after a while.
        _ => after_a_while(done),
    });
    share.inside(&timer.actor, Work::Wake { turn: timer.turn }, envelope, settle);
}

fn after_a_while(done: impl FnOnce() + 'static) {
    crate::spawn::detached(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        done();
    });
}

/// Puts idle actors to rest, and tells the store how far this thread has come.
pub(super) async fn sweep(share: Weak<Share>) {
    loop {
        let Some((every, cap)) =
            share.upgrade().map(|share| (share.spec.config.passivate_after / SWEEPS, share.spec.config.live_actors))
        else {
            return;
        };
        tokio::time::sleep(every).await;
        let Some(share) = share.upgrade() else { return };
        share.host.sweeps.set(share.host.sweeps.get() + 1);
        for door in share.doors.values() {
            door.sweep(u64::from(SWEEPS), cap);
        }
        share.store_floors(1);
    }
}
