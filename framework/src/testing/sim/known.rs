//! What the rules of a flow may know of a run: the time, what went wrong, and who sent what to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::wrong::Wrong;
use super::{Fault, FaultEvent, FaultProfile, World};
use crate::message::{Command, Domain, MessageId};
use crate::worker::Attempt;

/// A fault that has begun in this run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StruckFault {
    /// The fault.
    pub fault: Fault,
    /// When it began, in virtual time since the start of the cluster.
    pub at: Duration,
    /// How often it has struck so far: 0 if there was nothing to strike.
    pub times: u64,
}

/// A command that an actor or a client has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SentCommand<C> {
    /// What sent it; `None` for a client.
    pub from: Option<Sender>,
    /// The command, with the key that it was sent to.
    pub command: C,
    /// When it was sent, in virtual time since the start of the cluster.
    pub at: Duration,
    /// What became of it so far.
    pub outcome: SentOutcome,
}

/// An actor that has sent a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sender {
    /// Its domain.
    pub domain: String,
    /// Its name in the domain.
    pub actor: String,
    /// Its key.
    pub key: String,
}

/// What has become of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SentOutcome {
    /// It is not decided, or it is a dead letter.
    Open,
    /// It was accepted, and that is committed.
    Accepted,
    /// It was rejected with this code, and that is committed.
    Rejected(String),
}

impl World {
    /// The virtual time since the start of the cluster.
    pub fn now(&self) -> Duration {
        self.seen().began().elapsed()
    }

    /// The weather as this run was described or drawn. It is fair again once the faults have stopped.
    pub fn weather(&self) -> FaultProfile {
        self.0.sim.fault_profile
    }

    /// The faults that have begun in this run, in their order, with how often each has struck.
    pub fn faults(&self) -> Vec<StruckFault> {
        let struck = self.0.struck.borrow();
        struck.iter().map(|(fault, count)| StruckFault { times: count.get(), ..fault.clone() }).collect()
    }

    /// What has gone wrong in this run so far, and how often.
    pub fn fault_events(&self) -> BTreeMap<FaultEvent, u64> {
        let mut troubles = self.0.tally.counts();
        let mut add = |trouble, times| {
            if times > 0 {
                *troubles.entry(trouble).or_default() += times;
            }
        };
        for struck in self.faults() {
            match struck.fault {
                Fault::Panic { .. } => add(FaultEvent::HandlerPanicked, struck.times),
                Fault::FailJobs { .. } => add(FaultEvent::JobFailed, struck.times),
                Fault::HangJobs { .. } => add(FaultEvent::JobHung, struck.times),
                _ => {}
            }
        }
        let mut done = BTreeSet::new();
        for attempt in Attempt::recorded().iter().filter(|attempt| attempt.effect.is_some()) {
            add(FaultEvent::EffectRepeated, u64::from(!done.insert(attempt.message.id)));
            add(FaultEvent::CrashInAJob, u64::from(attempt.end.is_none()));
        }
        troubles
    }

    /// Returns whether this run is undisturbed: the weather is fair, and no fault has struck. A rule may expect more then, for
    /// example that nothing was sent twice or came late.
    pub fn is_undisturbed(&self) -> bool {
        self.weather() == FaultProfile::FAIR && self.faults().iter().all(|struck| struck.times == 0)
    }

    /// The commands of a type that were sent so far, in the order in which they were: by actors once their turn is committed, and
    /// by clients, each once however often it asked again.
    pub fn sent<C: Command>(&self) -> Vec<SentCommand<C>> {
        let seen = self.seen();
        let decided: BTreeMap<MessageId, SentOutcome> = seen.decided();
        let sent = seen.sent(C::Domain::NAME, C::NAME);
        let read = sent.into_iter().filter_map(|(id, from, at, payload)| {
            let outcome = decided.get(&id).cloned().unwrap_or(SentOutcome::Open);
            Some(SentCommand { from, command: payload.read()?, at, outcome })
        });
        read.collect()
    }

    /// What was asked for and has not struck, if misses are not allowed.
    pub(super) fn missed(&self) -> Result<(), Wrong> {
        let missed = self.faults().into_iter().find(|struck| struck.times == 0);
        match missed.filter(|_| !self.0.sim.misses) {
            None => Ok(()),
            Some(StruckFault { fault, at, .. }) => Err(Wrong::from(format!(
                "fault: {fault:?} was asked for at {at:?} and struck nothing: {}; change its moment, or allow it with \
                 `faults_may_miss`",
                fault.missed()
            ))),
        }
    }
}
