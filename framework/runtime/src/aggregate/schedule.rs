//! Schedule: sends a command at each occurrence of a cron expression.
//!
//! Hosted by the node for each of its domains. A schedule is an actor like an aggregate; its key is its name. It has one timer,
//! for the next occurrence, which is stored as a time: nodes whose time zones differ agree on it. The turn of the timer sends
//! the command and sets the timer again, so an occurrence is handled once.

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use crate::actor::{
    Effects, Plan, RequestedEffects, Role, Snapshots, Stateful, TimerSlot, record_own, typed, typed_state,
};
use crate::router::SCHEDULES;
use crate::schedule::{
    ActiveSchedule, OCCURRENCE, Overlap, REMOVE_SCHEDULE, SET_SCHEDULE, SetSchedule, occurrence_id, rfc3339,
};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, CodecError, Domain, Envelope, MessageId, Rejection, ReplyMode, StateCoding};
use whizbang_core::store::MAX_TURN_BYTES;

/// The timer of the next occurrence.
const OCCURS: &str = "whizbang-occurs";
/// The event of a schedule.
const CHANGED: &str = "whizbang-schedule-changed";
/// Room for an outbox entry besides its payload, in bytes.
const ENTRY: usize = 1024;

/// A schedule of a domain.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct Schedule<D> {
    set: Option<SetSchedule>,
    /// The next occurrence.
    next: Option<u64>,
    /// The command that was sent and is not answered, unless occurrences may overlap.
    running: Option<MessageId>,
    /// The occurrence that waits for that answer.
    waiting: Option<u64>,
    domain: PhantomData<fn() -> D>,
}

/// The change of a schedule by one turn. Frozen: it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Change {
    Set { set: SetSchedule, next: u64 },
    Removed,
    Ran { running: Option<MessageId>, waiting: Option<u64>, next: Option<u64> },
}

impl<D: Domain> Stateful for Schedule<D> {
    type Domain = D;
    const NAME: &'static str = SCHEDULES;
    const ROLE: Role = Role::Aggregate;
    const SNAPSHOTS: Snapshots = Snapshots::Given { every: 100, schema: 1 };

    fn initial() -> Self {
        Self { set: None, next: None, running: None, waiting: None, domain: PhantomData }
    }

    fn coding() -> Option<StateCoding<Self>> {
        Some(StateCoding::of())
    }

    fn wire(plan: &mut Plan<Self>) {
        let own = plan.own();
        own.add_own_apply(CHANGED, |state, _, codec, bytes| {
            typed_state::<Self>(state)?.apply(&codec.decode(bytes)?);
            Ok(())
        });
        own.add_own_command(SET_SCHEDULE, |state, envelope, effects| {
            let (state, effects) = typed::<Self>(state, effects)?;
            let reply = state.set(envelope.codec.decode(&envelope.payload)?, effects)?;
            drop(effects.requested.set_reply::<()>(D::CODEC, reply));
            Ok(())
        });
        own.add_own_command(REMOVE_SCHEDULE, |state, _, effects| {
            let (state, effects) = typed::<Self>(state, effects)?;
            let was_set = state.set.is_some();
            if was_set {
                record(effects, Change::Removed)?;
                effects.requested.timers.push(TimerSlot::Clear { name: OCCURS.into() });
            }
            drop(effects.requested.set_reply::<bool>(D::CODEC, Ok(was_set)));
            Ok(())
        });
        own.add_own_timer(OCCURS, |state, _, effects| {
            let (state, effects) = typed::<Self>(state, effects)?;
            state.occur(effects)
        });
        own.add_own_reply(|state, envelope, effects| {
            let (state, effects) = typed::<Self>(state, effects)?;
            state.answered(envelope, effects)
        });
    }
}

/// Records a change.
fn record<D: Domain>(effects: &mut Effects<Schedule<D>>, change: Change) -> Result<(), CodecError> {
    let requested = &mut effects.requested;
    let start = requested.payloads.len();
    D::CODEC.encode(&change, &mut requested.payloads)?;
    record_own(requested, CHANGED, start, change, apply::<D>);
    Ok(())
}

fn apply<D: Domain>(change: &Change, state: &mut Schedule<D>) {
    state.apply(change);
}

impl<D: Domain> Schedule<D> {
    fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::Set { set, next } => (self.set, self.next) = (Some(set), Some(next)),
            Change::Removed => (self.set, self.next, self.waiting) = (None, None, None),
            Change::Ran { running, waiting, next } => {
                (self.running, self.waiting, self.next) = (running, waiting, next);
            }
        }
    }

    /// Sets the schedule. One that is the same keeps its next occurrence, so that every start of a service may set it.
    fn set(&self, mut set: SetSchedule, effects: &mut Effects<Self>) -> Result<Result<(), Rejection>, CodecError> {
        if let Err(refused) = set.check(D::NAME, D::SHARDS) {
            return Ok(Err(refused));
        }
        if self.next.is_some() && self.set.as_ref() == Some(&set) {
            return Ok(Ok(()));
        }
        let Some(next) = set.cron.next_after(effects.now()) else {
            return Ok(Err(Rejection::new("whizbang.schedule", "the schedule has no occurrence")));
        };
        start_timer(&set, next, &mut effects.requested)?;
        record(effects, Change::Set { set, next: next.as_millis() })?;
        Ok(Ok(()))
    }

    /// Sends the commands of the occurrences that are due.
    fn occur(&self, effects: &mut Effects<Self>) -> Result<(), CodecError> {
        let (Some(set), Some(next)) = (&self.set, self.next) else { return Ok(()) };
        let due = set.cron.due(Timestamp::from_millis(next), effects.now());
        let mut occurrences = due.sent;
        // A turn that is too large would fail in each attempt.
        let most = (MAX_TURN_BYTES / 2 / (set.message.payload.len() + ENTRY)).max(1);
        while occurrences.len() > most {
            occurrences.pop_front();
        }
        let (mut running, mut waiting) = (self.running, self.waiting);
        match set.cron.overlaps() {
            Overlap::Allow => {
                for occurrence in occurrences {
                    send(set, occurrence, ReplyMode::Nothing, &mut effects.requested);
                }
                (running, waiting) = (None, None);
            }
            overlap => {
                if running.is_none()
                    && let Some(first) = occurrences.pop_front()
                {
                    running = Some(send(set, first, ReplyMode::Reply, &mut effects.requested));
                }
                if overlap == Overlap::Wait {
                    waiting = occurrences.pop_back().or(waiting);
                }
            }
        }
        if let Some(next) = due.next {
            start_timer(set, Timestamp::from_millis(next), &mut effects.requested)?;
        }
        record(effects, Change::Ran { running, waiting, next: due.next })
    }

    /// Continues after the command of an occurrence was answered: handled, rejected, or discarded as a dead letter.
    fn answered(&self, reply: &Envelope, effects: &mut Effects<Self>) -> Result<(), CodecError> {
        if self.running.is_none() || reply.causation != self.running {
            return Ok(());
        }
        let waits = self.set.as_ref().zip(self.waiting);
        let running = waits.map(|(set, occurrence)| send(set, occurrence, ReplyMode::Reply, &mut effects.requested));
        record(effects, Change::Ran { running, waiting: None, next: self.next })
    }
}

/// Sends the command of an occurrence. Returns its id.
fn send(set: &SetSchedule, occurrence: u64, wants: ReplyMode, requested: &mut RequestedEffects) -> MessageId {
    let id = occurrence_id(&set.message.domain, &requested.turn.key, occurrence);
    let headers = vec![(OCCURRENCE.to_owned(), rfc3339(occurrence))];
    requested.send_under(id, set.message.clone(), wants, headers);
    id
}

/// Sets the timer of the next occurrence.
fn start_timer(set: &SetSchedule, next: Timestamp, requested: &mut RequestedEffects) -> Result<(), CodecError> {
    let due = requested.after_wall_time(next);
    let start = requested.payloads.len();
    let shown = ActiveSchedule::stored(set, next);
    Codec::Bincode.encode(&shown, &mut requested.payloads)?;
    let payload = start..requested.payloads.len();
    requested.timers.push(TimerSlot::Set { name: OCCURS.into(), due, version: 1, codec: Codec::Bincode, payload });
    Ok(())
}

#[cfg(test)]
mod golden;
