//! Queries of a run for the rules of a flow: the time, the faults and their effects, and the commands sent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::sent_command::{SentCommand, SentOutcome};
use super::violation::Violation;
use super::{Fault, FaultEvent, FaultProfile, InjectedFault, World};
use whizbang_core::message::{Command, Domain, MessageId};
use whizbang_runtime::worker::Attempt;

impl World {
    /// Returns the virtual time since the start of the cluster.
    ///
    /// It is the time of the simulation, not of the test: an hour passes in milliseconds.
    pub fn now(&self) -> Duration {
        self.step_log().started_at().elapsed()
    }

    /// Returns the fault profile of this run. It ends when the faults stop.
    ///
    /// A rule may read it to expect more of a run in which, for example, no packet is lost.
    pub fn fault_profile(&self) -> FaultProfile {
        self.0.sim.fault_profile
    }

    /// Returns the faults injected so far, in order, with the number of hits.
    ///
    /// Faults that were injected through [`World::inject`] are included, faults of the profile are not.
    pub fn faults(&self) -> Vec<InjectedFault> {
        let injected = self.0.injected.borrow();
        injected.iter().map(|(fault, count)| InjectedFault { times: count.get(), ..fault.clone() }).collect()
    }

    /// Returns the events caused by faults so far, with the number of occurrences.
    ///
    /// Those caused by the fault profile are included. An event that has not occurred has no entry.
    pub fn fault_events(&self) -> BTreeMap<FaultEvent, u64> {
        let mut events = self.0.fault_counts.counts();
        let mut add = |event, times| {
            if times > 0 {
                *events.entry(event).or_default() += times;
            }
        };
        for injected in self.faults() {
            match injected.fault {
                Fault::Panic { .. } => add(FaultEvent::HandlerPanicked, injected.times),
                Fault::FailJobs { .. } => add(FaultEvent::JobFailed, injected.times),
                Fault::HangJobs { .. } => add(FaultEvent::JobHung, injected.times),
                _ => {}
            }
        }
        let mut done = BTreeSet::new();
        for attempt in Attempt::recorded().iter().filter(|attempt| attempt.effect.is_some()) {
            add(FaultEvent::EffectRepeated, u64::from(!done.insert(attempt.message.id)));
            add(FaultEvent::CrashDuringJob, u64::from(attempt.end.is_none()));
        }
        events
    }

    /// Returns whether this run has no fault profile and no fault has hit anything. A rule may expect more of such a run, for
    /// example that nothing is sent twice or arrives late.
    pub fn is_undisturbed(&self) -> bool {
        self.fault_profile() == FaultProfile::NONE && self.faults().iter().all(|injected| injected.times == 0)
    }

    /// Returns the commands of a type sent so far, in order. Commands of actors count once their turn is committed; commands of
    /// clients count once, regardless of retries.
    ///
    /// Commands that cannot be decoded as `C` are left out: those of an older version without an upcaster.
    pub fn sent<C: Command>(&self) -> Vec<SentCommand<C>> {
        let step_log = self.step_log();
        let decided: BTreeMap<MessageId, SentOutcome> = step_log.outcomes();
        let sent = step_log.sent(C::Domain::NAME, C::NAME);
        let read = sent.into_iter().filter_map(|(id, from, at, payload)| {
            let outcome = decided.get(&id).cloned().unwrap_or(SentOutcome::Open);
            Some(SentCommand { from, command: payload.read()?, at, outcome })
        });
        read.collect()
    }

    /// Returns a violation if a fault hit nothing, unless that is allowed.
    pub(super) fn check_missed_faults(&self) -> Result<(), Violation> {
        let missed = self.faults().into_iter().find(|injected| injected.times == 0);
        match missed.filter(|_| !self.0.sim.allow_missed_faults) {
            None => Ok(()),
            Some(InjectedFault { fault, at, .. }) => Err(Violation::from(format!(
                "fault: {fault:?} was injected at {at:?} and hit nothing: {}; change its moment or call \
                 `allow_missed_faults`",
                fault.miss_reason()
            ))),
        }
    }
}
