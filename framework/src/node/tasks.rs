//! What works in the background on each thread: releasing commits, relaying, ringing timers, putting actors to rest.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::abroad::{self, earliest, until};
use super::share::Share;
use crate::clock::Timestamp;
use crate::message::{Envelope, Kind, MessageId, Name, ShardId};
use crate::relay::Onward;
use crate::router::{Outcome, Work};
use crate::store::{StoreError, Timer};
use crate::telemetry::TARGET;

/// How long another node is waited for when something is missing. Short: asking again costs little, waiting holds things up.
pub(super) const ASK: Duration = Duration::from_secs(1);
/// How many timers are looked at at a time.
const PAGE: usize = 256;
/// How often the idle are looked for, as parts of the time they may be idle.
const SWEEPS: u32 = 8;

/// Releases what was committed; opens the shards again when commits have failed.
pub(super) async fn release(share: Weak<Share>) {
    loop {
        let Some(host) = share.upgrade().map(|share| Rc::clone(&share.host)) else { return };
        let error = host.release().await;
        let Some(share) = share.upgrade() else { return };
        if let StoreError::Fenced { .. } = error {
            tracing::error!(target: TARGET, %error, "another node has taken over: this one serves no more");
            return share.spec.retire(&share.links, &error);
        }
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

/// Moves what was committed to where it belongs inside this node, and has the rest [carried](abroad::carry): a broker that
/// takes its time holds up nothing in here.
pub(super) async fn relay(share: Weak<Share>) {
    let mut told: BTreeMap<ShardId, u64> = BTreeMap::new();
    if let Some(share) = share.upgrade() {
        // What was committed before is history: it is read from the log.
        told.clone_from(&share.history);
    }
    let mut again: Option<Instant> = None;
    loop {
        let Some(host) = share.upgrade().map(|share| Rc::clone(&share.host)) else { return };
        let impatient = tokio::select! {
            biased;
            () = host.relay.notified() => false,
            () = until(again) => true,
        };
        let Some(share) = share.upgrade() else { return };
        share.relaying.set(true);
        if impatient {
            again = abroad::impatience(&share, |to| share.owns(to));
            share.store_floors(1024);
        }
        let next = relay_once(&share, &mut told).await;
        again = earliest(again, next);
        share.relaying.set(false);
        host.quiet.look();
    }
}

async fn relay_once(share: &Rc<Share>, told: &mut BTreeMap<ShardId, u64>) -> Option<Instant> {
    let mut again = None;
    let onward = onward(share);
    for cell in share.host.take_dirty() {
        let (id, reader) = (&cell.id, cell.reader());
        if let Some(lanes) = share.lanes.get(id) {
            if let Err(error) = lanes.pump(&reader, &onward, |to| share.owns(to)).await {
                tracing::warn!(target: TARGET, shard = %id, %error, "the outbox cannot be read");
                abroad::retry(&share.host, &cell);
            }
            again = earliest(again, lanes.next_impatience(|to| share.owns(to)));
        }
        let position = reader.position();
        if told.insert(id.clone(), position).unwrap_or(0) < position && share.spec.sources.contains_key(&id.domain) {
            // Every thread may have somebody who takes them; each reads them from the log.
            let source = id.clone();
            share.links.run_all(move |share| share.head(&source, position));
        }
        if share.spec.bridge.is_some() {
            share.abroad.look_at(&cell);
        }
    }
    again
}

/// Hands an outbox entry to its gate on this node.
fn onward(share: &Rc<Share>) -> Onward {
    let share = Rc::clone(share);
    Rc::new(move |envelope| {
        let Some(to) = &envelope.to else { return };
        let home = share.spec.home(to.shard);
        if home == share.index {
            share.direct(envelope, Box::new(|_| {}));
        } else {
            share.links.run(home, Box::new(move |share| share.direct(envelope, Box::new(|_| {}))));
        }
    })
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
                    if answered.contains(&place) {
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
