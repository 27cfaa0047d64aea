//! Waiting times of messages: a key that is stuck or parked must not delay messages for other keys.
//!
//! Called when turns are committed. The waiting time is the virtual time from the commit that sends a message, or from a client's
//! first attempt, to the commit of the turn that handles it; for a worker it ends with the first attempt of the job. Disturbances
//! of the whole cluster delay all messages, so only undisturbed ones count. Failing user code is not a disturbance: it is what
//! makes keys stuck.
//!
//! # What counts
//! A waiting time is a violation if it exceeds [`MAX_WAIT`], the key of the message is not stuck, and no disturbance overlaps
//! it. A partition, a pause or a crash is a disturbance, from its beginning until a minute after its end. A message that was
//! never handled is found at the end of the run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::owned_turn::{MarkedAs, OwnedTurn};
use whizbang_core::clock::instant;
use whizbang_core::message::{Kind, MessageId, Name, ShardId};
use whizbang_core::store::{Note, SourceKind};
use whizbang_runtime::worker::Attempt;

/// Maximum waiting time of an undisturbed message whose key is not stuck. Far above the cost of a fault profile (some tenths of a
/// second) and below the backoff of a message that has failed several times (30 s).
pub(super) const MAX_WAIT: Duration = Duration::from_secs(5);
/// Time after a disturbance in which messages do not count: lost messages are sent again with growing delays.
const DISTURBANCE_GRACE: Duration = Duration::from_secs(60);

/// Waiting times of the undisturbed messages of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaitTimes {
    /// The number of measured messages.
    pub measured: u64,
    /// The number of those that were handled after another key had become stuck.
    pub beside_stuck: u64,
    /// The longest waiting time.
    pub longest: Duration,
}

impl WaitTimes {
    /// Adds the waiting times of another run.
    pub(super) fn merge(&mut self, other: &Self) {
        self.measured += other.measured;
        self.beside_stuck += other.beside_stuck;
        self.longest = self.longest.max(other.longest);
    }
}

/// The messages of one run.
#[derive(Default)]
pub(super) struct Delays {
    /// The time at which each message was sent.
    sent: BTreeMap<MessageId, Instant>,
    /// Messages of actors that are not handled: the time, the domain, the key and the name.
    open: BTreeMap<MessageId, (Instant, Name, String, Name)>,
    /// The time at which each event was committed.
    event_times: BTreeMap<(ShardId, u64), Instant>,
    /// Handled events, by domain and actor.
    handled_events: BTreeSet<(Name, Name, ShardId, u64)>,
    /// All keys that were stuck at some time: domain, actor and key.
    stuck: BTreeSet<(Name, Name, String)>,
    /// Disturbances, from start to end.
    disturbed: Vec<(Instant, Option<Instant>)>,
    /// The result so far.
    waits: WaitTimes,
}

impl Delays {
    /// Returns the waiting times that were measured so far.
    pub(super) fn wait_times(&self) -> WaitTimes {
        self.waits
    }

    /// Starts a disturbance. Returns the number for [`end_disturbance`](Self::end_disturbance).
    pub(super) fn begin_disturbance(&mut self) -> usize {
        self.disturbed.push((instant(), None));
        self.disturbed.len() - 1
    }

    /// Ends a disturbance. Messages count again after [`DISTURBANCE_GRACE`].
    pub(super) fn end_disturbance(&mut self, number: usize) {
        if let Some((_, end)) = self.disturbed.get_mut(number) {
            *end = Some(instant());
        }
    }

    /// Records the first attempt of a client.
    pub(super) fn client_sent(&mut self, id: MessageId) {
        self.sent.entry(id).or_insert_with(instant);
    }

    /// Records a committed turn whose events start at position `first`. Returns a violation if its message has waited too long.
    pub(super) fn committed(&mut self, shard: &ShardId, turn: &OwnedTurn, first: u64) -> Option<String> {
        let now = instant();
        for note in &turn.notes {
            match note {
                Note::DeadLetter(dead_letter) => {
                    self.open.remove(&dead_letter.envelope.id);
                    self.mark_stuck(shard, &dead_letter.actor, &dead_letter.key);
                }
                Note::Attempt { .. } => self.mark_stuck(shard, &turn.actor, &turn.key),
                _ => {}
            }
        }
        let violation = self.record_handled(shard, turn, now);
        let sent = turn.outbox.iter().filter(|sent| matches!(sent.kind, Kind::Command | Kind::Reply));
        for sent in sent {
            self.sent.insert(sent.id, now);
            let domain = sent.to.as_ref().map_or(&sent.domain, |to| &to.domain);
            self.open.insert(sent.id, (now, domain.clone(), sent.key.clone(), sent.name.clone()));
        }
        let positions = turn.events.iter().zip(first..);
        self.event_times.extend(positions.map(|(_, position)| ((shard.clone(), position), now)));
        violation
    }

    /// Records that a key is stuck: a message of it has failed and is tried again later.
    pub(super) fn mark_stuck(&mut self, shard: &ShardId, actor: &Name, key: &str) {
        self.stuck.insert((shard.domain.clone(), actor.clone(), key.to_owned()));
    }

    /// Returns a violation if a message for a hosted domain has been waiting for too long.
    pub(super) fn overdue(&self, is_hosted: impl Fn(&Name) -> bool) -> Option<String> {
        let now = instant();
        let stuck = |domain: &Name, key: &str| self.stuck.iter().any(|(of, _, stuck)| of == domain && stuck == key);
        let mut open = self.open.values().filter(|(sent, ..)| now - *sent > MAX_WAIT);
        let (sent, domain, key, name) = open.find(|(sent, domain, key, _)| {
            is_hosted(domain) && !stuck(domain, key) && !self.is_disturbed(*sent, now)
        })?;
        Some(self.overdue_text(name, domain, key, now - *sent))
    }

    /// Returns a violation if an event has been waiting for too long for a subscriber.
    pub(super) fn event_overdue(
        &self,
        (shard, position): (&ShardId, u64),
        subscriber: &(Name, Name, String),
    ) -> Option<String> {
        let (now, sent) = (instant(), *self.event_times.get(&(shard.clone(), position))?);
        let (domain, actor, key) = subscriber;
        let is_late = now - sent > MAX_WAIT && !self.stuck.contains(subscriber) && !self.is_disturbed(sent, now);
        if !is_late || self.handled_events.contains(&(domain.clone(), actor.clone(), shard.clone(), position)) {
            return None;
        }
        Some(self.overdue_text(&format!("event {position} of {shard}"), domain, key, now - sent))
    }

    /// Returns the text of a violation: a message waits too long, beside the keys that are stuck.
    fn overdue_text(&self, what: &str, domain: &Name, key: &str, waits: Duration) -> String {
        format!(
            "delay: {what} for `{key}` of {domain} was not handled within {waits:?} without a disturbance; at \
             most {MAX_WAIT:?} is allowed. Stuck keys: [{}]",
            self.stuck_keys()
        )
    }

    /// Returns the stuck keys for a failure, separated by commas.
    fn stuck_keys(&self) -> String {
        let keys = self.stuck.iter().map(|(domain, actor, key)| format!("{domain}.{actor} `{key}`"));
        keys.collect::<Vec<_>>().join(", ")
    }

    /// Records the turn that handles a message. Returns a violation if the message has waited too long.
    fn record_handled(&mut self, shard: &ShardId, turn: &OwnedTurn, now: Instant) -> Option<String> {
        if !matches!(turn.mark, MarkedAs::Not) {
            self.open.remove(&turn.id);
        }
        let sent = match &turn.mark {
            MarkedAs::From(source, position) if matches!(source.kind, SourceKind::Events { .. }) => {
                let (domain, actor) = (shard.domain.clone(), turn.actor.clone());
                self.handled_events.insert((domain, actor, source.shard.clone(), *position));
                *self.event_times.get(&(source.shard.clone(), *position))?
            }
            MarkedAs::From(..) | MarkedAs::Outside => *self.sent.get(&turn.id)?,
            MarkedAs::Timer(_) | MarkedAs::Not => return None,
        };
        let is_direct = matches!(&turn.mark, MarkedAs::From(source, _) if source.kind == SourceKind::Direct);
        let handled_at = match Attempt::first_begun(turn.id) {
            // Jobs for callers and events may wait for a slot of their worker.
            Some(_) if !is_direct => return None,
            handled_at => handled_at.unwrap_or(now),
        };
        let (key, waited) = ((shard.domain.clone(), turn.actor.clone(), turn.key.clone()), handled_at - sent);
        if self.stuck.contains(&key) || self.is_disturbed(sent, now) {
            return None;
        }
        self.waits.measured += 1;
        self.waits.beside_stuck += u64::from(!self.stuck.is_empty());
        self.waits.longest = self.waits.longest.max(waited);
        if waited <= MAX_WAIT {
            return None;
        }
        Some(format!(
            "delay: turn {} of {}.{} `{}` was handled {waited:?} after its message was sent, without a disturbance; \
             at most {MAX_WAIT:?} is allowed. Stuck keys: [{}]",
            turn.number,
            shard.domain,
            turn.actor,
            turn.key,
            self.stuck_keys()
        ))
    }

    /// Returns whether the cluster was disturbed at any time between two moments.
    fn is_disturbed(&self, from: Instant, to: Instant) -> bool {
        let overlaps = |(begin, end): &(Instant, Option<Instant>)| {
            *begin <= to && end.is_none_or(|end| end + DISTURBANCE_GRACE >= from)
        };
        self.disturbed.iter().any(overlaps)
    }
}
