//! What goes wrong in a simulated cluster, brought about.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use super::clients::Mischief;
use super::crash_points::CrashPoint;
use super::fault_counts::FaultEvent;
use super::fault_profile::{Fault, FaultProfile, LinkDirection};
use super::known::StruckFault;
use super::{SimError, World};
use crate::actor::{Count, Failpoint, Failpoints};

impl World {
    /// Lets the weather begin, and the faults come when they are due.
    pub(super) fn rain(&self) -> Vec<tokio::sync::oneshot::Receiver<()>> {
        self.set_weather(self.0.sim.fault_profile);
        let lossy = self.0.sim.fault_profile.disturbs().then(|| self.seen().begin_disturbance());
        self.0.lossy.set(lossy);
        let mut ended = Vec::new();
        for (at, fault) in self.0.sim.faults.clone() {
            let (end, wait) = tokio::sync::oneshot::channel();
            let world = self.clone();
            let task = crate::spawn::local(async move {
                tokio::time::sleep(at).await;
                if !world.0.calm.get() {
                    world.strike(&fault).await;
                }
                let _ = end.send(());
            });
            self.0.tasks.borrow_mut().push(task);
            ended.push(wait);
        }
        ended
    }

    /// Lets something go wrong now. Ends when it is over.
    pub async fn strike(&self, fault: &Fault) {
        if let Some(error) = self.impossible(fault) {
            return self.violated(error);
        }
        let count = Count::default();
        let at = self.now();
        self.0.struck.borrow_mut().push((StruckFault { fault: fault.clone(), at, times: 0 }, Rc::clone(&count)));
        let told = fault.told(&self.0.names);
        let disturbance = fault.disturbs().then(|| self.seen().begin_disturbance());
        match fault {
            Fault::Crash { service, steps, down } => self.crash(*service, *steps, *down, &told, &count).await,
            Fault::CrashIn { service, work, steps, down } => {
                if self.begins(*service, *work).await {
                    // The job may be one of an old node, which does not know that it was taken over.
                    if let Some(service) = self.0.services.get(*service).filter(|_| *work == CrashPoint::Job) {
                        self.end_zombie(service);
                    }
                    self.crash(*service, *steps, *down, &told, &count).await;
                }
            }
            _ => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                if self.befall(fault, &count).await {
                    count.set(count.get() + 1);
                }
            }
        }
        if let Some(disturbance) = disturbance {
            self.seen().end_disturbance(disturbance);
        }
    }

    /// Why a fault cannot strike this cluster, if it cannot.
    fn impossible(&self, fault: &Fault) -> Option<SimError> {
        let missing = self.0.sim.impossible_fault(fault);
        let no_worker = || {
            let service = self.0.services.get(fault.strikes_jobs_of()?)?;
            let hosts = service.hosts.borrow();
            let mut actors = hosts.iter().flat_map(|hosts| &hosts.domains).flat_map(|domain| &domain.actors);
            let (fault, service) = (format!("{fault:?}"), service.name.clone());
            (!actors.any(|actor| actor.role == "worker")).then_some(SimError::NoWorker { fault, service })
        };
        missing.or_else(no_worker)
    }

    /// Waits until a node of the service begins some work. Returns whether it did within [`Fault::PATIENCE`].
    async fn begins(&self, service: usize, work: CrashPoint) -> bool {
        if work != CrashPoint::Job {
            let begun = self.0.broker.begun(service);
            return tokio::time::timeout(Fault::PATIENCE, begun.next(work)).await.is_ok();
        }
        // A job whose effect is done waits to be killed: nothing else could be sure to come before its commit.
        let (killer, armed) = (Rc::new(Notify::new()), Count::default());
        self.arm(service, &Failpoint::Kill(Rc::clone(&killer)), 1, &armed);
        let begun = tokio::time::timeout(Fault::PATIENCE, killer.notified()).await.is_ok();
        Failpoints::disarm(&armed);
        begun
    }

    /// Lets the next messages that the service's user code handles trip.
    pub(super) fn arm(&self, service: usize, trip: &Failpoint, times: u8, count: &Count) {
        if let Some(service) = self.0.services.get(service) {
            let hosts = service.hosts.borrow();
            for domain in hosts.iter().flat_map(|hosts| &hosts.domains) {
                Failpoints::arm(&domain.name, trip.clone(), times.into(), count);
            }
        }
    }

    /// Lets the clients of the next commands do something wrong.
    fn arm_clients(&self, mischief: Mischief, times: u8, count: &Count) -> bool {
        self.0.clients.arm(mischief, times, count);
        false
    }

    /// Brings a fault about and ends when it is over. Returns whether it has struck; what strikes later is counted then.
    async fn befall(&self, fault: &Fault, count: &Count) -> bool {
        let broker = &self.0.broker;
        match fault {
            Fault::Jump { service, millis, lasts } => {
                let Some(service) = self.0.services.get(*service) else { return false };
                service.jumps.jump(*millis);
                self.0.tally.one(FaultEvent::ClockJumped);
                tokio::time::sleep(*lasts).await;
                service.jumps.jump(-*millis);
            }
            Fault::Reboot { service, millis, lasts } => {
                let Some(of) = self.0.services.get(*service) else { return false };
                of.jumps.jump(*millis);
                self.0.tally.one(FaultEvent::ClockJumped);
                let killed = self.kill_if_there(*service);
                self.start_for_good(*service).await;
                tokio::time::sleep(*lasts).await;
                of.jumps.jump(-*millis);
                return killed;
            }
            Fault::Cut { from, to, lasts } => {
                broker.cut(*from, *to);
                tokio::time::sleep(*lasts).await;
                broker.mend(*from, *to);
            }
            Fault::Isolate { service, way, lasts } => {
                broker.isolate(*service, *way != LinkDirection::Out, *way != LinkDirection::In);
                tokio::time::sleep(*lasts).await;
                broker.connect(*service);
            }
            Fault::EmptyStreams => broker.empty(),
            Fault::Forge { seed, count } => return broker.attack(*seed, *count) > 0,
            Fault::LoseStreams => broker.lose_streams(),
            Fault::PauseBroker { lasts } => {
                broker.pause(*lasts);
                tokio::time::sleep(*lasts).await;
            }
            Fault::ChangeLeader { lasts } => {
                broker.elect(*lasts);
                tokio::time::sleep(*lasts).await;
            }
            Fault::DropRepeats { window, lasts } => {
                broker.drop_repeats(*window, *lasts);
                tokio::time::sleep(*lasts).await;
            }
            Fault::FailToStore { lasts } => {
                broker.fail_to_store(*lasts);
                tokio::time::sleep(*lasts).await;
            }
            Fault::HurryAcks { wait, lasts } => {
                broker.set_ack_wait(Some(*wait));
                tokio::time::sleep(*lasts).await;
                broker.set_ack_wait(None);
            }
            Fault::FewInHand { most, lasts } => {
                broker.set_in_hand(Some(usize::from(*most).max(1)));
                tokio::time::sleep(*lasts).await;
                broker.set_in_hand(None);
            }
            Fault::Slow { service, each, lasts } => {
                broker.slow_down(*service, *each, *lasts);
                tokio::time::sleep(*lasts).await;
            }
            Fault::HandOver { service, cut_off, lingers } => {
                return self.hand_over(*service, *cut_off, *lingers).await;
            }
            Fault::FailCommits { service } => {
                let running = self.0.services.get(*service).filter(|service| service.node.borrow().is_some());
                let Some(running) = running else { return false };
                // Who opens its shards again takes them: an old node must not.
                self.end_zombie(running);
                running.disk.fail();
            }
            Fault::Panic { service, times } => {
                self.arm(*service, &Failpoint::Panic, *times, count);
                return false;
            }
            Fault::FailJobs { service, times } => {
                self.arm(*service, &Failpoint::Fail, *times, count);
                return false;
            }
            Fault::HangJobs { service, times } => {
                self.arm(*service, &Failpoint::Hang, *times, count);
                return false;
            }
            Fault::SkewClients { millis, lasts } => {
                let jumps = &self.0.clients.jumps;
                jumps.jump(*millis);
                self.0.tally.one(FaultEvent::ClientSkewed);
                tokio::time::sleep(*lasts).await;
                jumps.jump(-*millis);
            }
            Fault::Poison { service, after, then } => {
                self.0.clients.operator(true);
                self.poison(*service, *after, *then, count).await;
                self.0.clients.operator(false);
                return false;
            }
            Fault::Rival { service } => return self.rival(*service).await,
            Fault::StickKey { service, lasts } => {
                let Some(service) = self.0.services.get(*service) else { return false };
                let jam = service.disk.jams().next(count);
                tokio::time::sleep(*lasts).await;
                service.disk.jams().end(jam);
                return false;
            }
            Fault::Upgrade { service, version, down } => {
                let Some(of) = self.0.services.get(*service) else { return false };
                of.version.set(*version);
                // A node of the version before must not go on beside it.
                self.end_zombie(of);
                let killed = self.kill_if_there(*service);
                tokio::time::sleep(*down).await;
                self.start_for_good(*service).await;
                self.hosted_once();
                self.0.tally.add(FaultEvent::Upgraded, u64::from(killed));
                return killed;
            }
            Fault::RepeatCommands { times } => return self.arm_clients(Mischief::Repeats, *times, count),
            Fault::ReuseIds { times } => return self.arm_clients(Mischief::Reuses, *times, count),
            Fault::OldAndFutureIds { times } => return self.arm_clients(Mischief::OutOfTime, *times, count),
            Fault::HurryClients { deadline, times } => {
                return self.arm_clients(Mischief::Hurries(*deadline), *times, count);
            }
            Fault::Crash { .. } | Fault::CrashIn { .. } => return false,
        }
        true
    }

    /// Kills a node after some steps of others, and starts it again after a while.
    async fn crash(&self, service: usize, steps: u8, down: Duration, told: &str, count: &Count) {
        for _ in 0..steps {
            tokio::task::yield_now().await;
        }
        self.0.trace.add(format_args!("FAULT: {told}"));
        if self.kill_if_there(service) {
            count.set(count.get() + 1);
        }
        tokio::time::sleep(down).await;
        self.start_with_bad_luck(service).await;
    }

    /// Starts a node again, which is killed once more, now and then, while it starts.
    async fn start_with_bad_luck(&self, service: usize) {
        let unlucky = self.below(4) == 0;
        let steps = self.below(10);
        let once_more = async {
            for _ in 0..steps {
                tokio::task::yield_now().await;
            }
            if unlucky {
                self.kill_if_it_starts(service);
            }
        };
        tokio::join!(self.restart(service), once_more);
        self.start_for_good(service).await;
    }

    /// Waits for the faults that have begun; those that have not do not come any more.
    pub(super) async fn settle_faults(&self, faults: Vec<tokio::sync::oneshot::Receiver<()>>) {
        for fault in faults {
            // Faults that lie behind the end of the story come all the same: the cluster has work left.
            drop(fault.await);
        }
        // What clients do beside the story needs the nodes that faults have started again.
        self.0.clients.probed().await;
        self.0.calm.set(true);
        self.0.clients.disarm();
        Failpoints::clear();
        self.0.broker.calm();
        self.set_weather(FaultProfile::FAIR);
        if let Some(lossy) = self.0.lossy.take() {
            self.seen().end_disturbance(lossy);
        }
        for service in &self.0.services {
            service.jumps.mend();
        }
        for service in 0..self.0.services.len() {
            self.restart(service).await;
        }
        for service in self.0.services.iter().filter(|service| service.node.borrow().is_none()) {
            let why = service.refused.borrow().clone().unwrap_or_default();
            self.violated(format!("{} cannot start again: {why}", service.name));
        }
        self.0.trace.add(format_args!("the faults have stopped"));
    }
}
