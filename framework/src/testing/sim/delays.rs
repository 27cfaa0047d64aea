//! How long messages wait: a key that is stuck or parked must not delay the messages of other keys.
//!
//! Called when turns are committed. Measured is the virtual time from the commit that sends a command, a reply or an event, or from
//! a client's first try, to the commit of the turn that takes it; a job of a worker counts from there to its first attempt. What
//! disturbs the cluster as a whole delays everything, so only undisturbed messages count. User code that panics or fails does not
//! disturb: that is what makes keys stuck.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::turn::{MarkedAs, OwnedTurn};
use crate::clock::instant;
use crate::message::{Kind, MessageId, Name, ShardId};
use crate::store::{Note, SourceKind};
use crate::worker::Attempt;

/// The longest time that an undisturbed message waits for its key, unless that key is stuck itself. Far above what the weather
/// costs (some tenths of a second), and below the back-off of a message that has failed some times (30 s).
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// For so long after a disturbance messages do not count: what was lost in it is sent again later and later.
const GRACE: Duration = Duration::from_secs(60);

/// How long the messages of a run have waited, as far as nothing disturbed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waits {
    /// How many messages were measured.
    pub measured: u64,
    /// How many of them came after some other key had been stuck.
    pub beside_stuck: u64,
    /// The longest time that one of them waited.
    pub longest: Duration,
}

impl Waits {
    pub(super) fn merge(&mut self, other: &Self) {
        self.measured += other.measured;
        self.beside_stuck += other.beside_stuck;
        self.longest = self.longest.max(other.longest);
    }
}

/// What is known of the messages of one run.
#[derive(Default)]
pub(super) struct Delays {
    sent: BTreeMap<MessageId, Instant>,
    /// What actors have sent and nothing has taken: when, to which domain and key, and its name.
    open: BTreeMap<MessageId, (Instant, Name, String, Name)>,
    recorded: BTreeMap<(ShardId, u64), Instant>,
    /// The events that were taken, by domain and actor.
    events_taken: BTreeSet<(Name, Name, ShardId, u64)>,
    /// The keys that were stuck at some time: domain, actor and key.
    stuck: BTreeSet<(Name, Name, String)>,
    /// From when to when the cluster was disturbed.
    disturbed: Vec<(Instant, Option<Instant>)>,
    waits: Waits,
}

impl Delays {
    pub(super) fn waits(&self) -> Waits {
        self.waits
    }

    /// Something disturbs the cluster from now on. Returns the number to end it with.
    pub(super) fn begin(&mut self) -> usize {
        self.disturbed.push((instant(), None));
        self.disturbed.len() - 1
    }

    pub(super) fn end(&mut self, number: usize) {
        if let Some((_, end)) = self.disturbed.get_mut(number) {
            *end = Some(instant());
        }
    }

    /// A client asks for the first time.
    pub(super) fn asked(&mut self, id: MessageId) {
        self.sent.entry(id).or_insert_with(instant);
    }

    /// A turn was committed, and its events have the positions from `first` on. What is wrong, if the message has waited too long.
    pub(super) fn committed(&mut self, shard: &ShardId, turn: &OwnedTurn, first: u64) -> Option<String> {
        let now = instant();
        for note in &turn.notes {
            match note {
                Note::DeadLetter(letter) => {
                    self.open.remove(&letter.envelope.id);
                    self.is_stuck(shard, &letter.actor, &letter.key);
                }
                Note::Attempt { .. } => self.is_stuck(shard, &turn.actor, &turn.key),
                _ => {}
            }
        }
        let wrong = self.taken(shard, turn, now);
        let sent = turn.outbox.iter().filter(|sent| matches!(sent.kind, Kind::Command | Kind::Reply));
        for sent in sent {
            self.sent.insert(sent.id, now);
            let domain = sent.to.as_ref().map_or(&sent.domain, |to| &to.domain);
            self.open.insert(sent.id, (now, domain.clone(), sent.key.clone(), sent.name.clone()));
        }
        let positions = turn.events.iter().zip(first..);
        self.recorded.extend(positions.map(|(_, position)| ((shard.clone(), position), now)));
        wrong
    }

    pub(super) fn is_stuck(&mut self, shard: &ShardId, actor: &Name, key: &str) {
        self.stuck.insert((shard.domain.clone(), actor.clone(), key.to_owned()));
    }

    /// What is wrong, if a message of an actor to a hosted domain waits for too long now.
    pub(super) fn overdue(&self, is_hosted: impl Fn(&Name) -> bool) -> Option<String> {
        let now = instant();
        let stuck = |domain: &Name, key: &str| self.stuck.iter().any(|(of, _, stuck)| of == domain && stuck == key);
        let mut open = self.open.values().filter(|(sent, ..)| now - *sent > LONGEST_WAIT);
        let (sent, domain, key, name) = open.find(|(sent, domain, key, _)| {
            is_hosted(domain) && !stuck(domain, key) && !self.is_disturbed(*sent, now)
        })?;
        Some(self.told_overdue(name, domain, key, now - *sent))
    }

    /// The same for an event and a key that takes it.
    pub(super) fn event_overdue(
        &self,
        (shard, position): (&ShardId, u64),
        taker: &(Name, Name, String),
    ) -> Option<String> {
        let (now, sent) = (instant(), *self.recorded.get(&(shard.clone(), position))?);
        let (domain, actor, key) = taker;
        let is_late = now - sent > LONGEST_WAIT && !self.stuck.contains(taker) && !self.is_disturbed(sent, now);
        if !is_late || self.events_taken.contains(&(domain.clone(), actor.clone(), shard.clone(), position)) {
            return None;
        }
        Some(self.told_overdue(&format!("event {position} of {shard}"), domain, key, now - sent))
    }

    fn told_overdue(&self, what: &str, domain: &Name, key: &str, waits: Duration) -> String {
        format!(
            "delay: {what} for `{key}` of {domain} is not taken {waits:?} after it was sent, though nothing disturbed the cluster; at \
             most {LONGEST_WAIT:?} are allowed. Keys that were stuck: [{}]",
            self.stuck_keys()
        )
    }

    fn stuck_keys(&self) -> String {
        let keys = self.stuck.iter().map(|(domain, actor, key)| format!("{domain}.{actor} `{key}`"));
        keys.collect::<Vec<_>>().join(", ")
    }

    fn taken(&mut self, shard: &ShardId, turn: &OwnedTurn, now: Instant) -> Option<String> {
        if !matches!(turn.mark, MarkedAs::Not) {
            self.open.remove(&turn.id);
        }
        let sent = match &turn.mark {
            MarkedAs::From(source, place) if matches!(source.kind, SourceKind::Events { .. }) => {
                let (domain, actor) = (shard.domain.clone(), turn.actor.clone());
                self.events_taken.insert((domain, actor, source.shard.clone(), *place));
                *self.recorded.get(&(source.shard.clone(), *place))?
            }
            MarkedAs::From(..) | MarkedAs::Outside => *self.sent.get(&turn.id)?,
            MarkedAs::Timer(_) | MarkedAs::Not => return None,
        };
        let is_direct = matches!(&turn.mark, MarkedAs::From(source, _) if source.kind == SourceKind::Direct);
        let begun = match Attempt::first_begun(turn.id) {
            // Jobs for callers and events wait for a slot of their worker: that is no fault of a key.
            Some(_) if !is_direct => return None,
            begun => begun.unwrap_or(now),
        };
        let (key, waited) = ((shard.domain.clone(), turn.actor.clone(), turn.key.clone()), begun - sent);
        if self.stuck.contains(&key) || self.is_disturbed(sent, now) {
            return None;
        }
        self.waits.measured += 1;
        self.waits.beside_stuck += u64::from(!self.stuck.is_empty());
        self.waits.longest = self.waits.longest.max(waited);
        if waited <= LONGEST_WAIT {
            return None;
        }
        Some(format!(
            "delay: turn {} of {}.{} `{}` was taken {waited:?} after its message was sent, though nothing disturbed the cluster; \
             at most {LONGEST_WAIT:?} are allowed. Keys that were stuck: [{}]",
            turn.number,
            shard.domain,
            turn.actor,
            turn.key,
            self.stuck_keys()
        ))
    }

    fn is_disturbed(&self, from: Instant, to: Instant) -> bool {
        let overlaps =
            |(begin, end): &(Instant, Option<Instant>)| *begin <= to && end.is_none_or(|end| end + GRACE >= from);
        self.disturbed.iter().any(overlaps)
    }
}
