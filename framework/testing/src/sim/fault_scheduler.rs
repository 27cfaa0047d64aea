//! Injection of faults into a simulated cluster.
//!
//! Called at the start of a run, and by scenarios through [`World::inject`].

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use super::clients::ClientFault;
use super::crash_points::CrashPoint;
use super::fault_counts::FaultEvent;
use super::fault_profile::{Fault, FaultProfile, InjectedFault, LinkDirection};
use super::service::Seat;
use super::{SimError, World};
use whizbang_runtime::actor::{Count, Failpoint, Failpoints};

/// The maximum time after which a store fails again, in milliseconds: about as long as its shards take to reopen.
const MAX_RECOVERY: u64 = 300;

impl World {
    /// Applies the fault profile and schedules the faults of the run.
    pub(super) fn start_faults(&self) -> Vec<tokio::sync::oneshot::Receiver<()>> {
        self.set_fault_profile(self.0.sim.fault_profile);
        let profile_disturbance = self.0.sim.fault_profile.disturbs().then(|| self.step_log().begin_disturbance());
        self.0.profile_disturbance.set(profile_disturbance);
        let mut ended = Vec::new();
        for (at, fault) in self.0.sim.faults.clone() {
            let (end, wait) = tokio::sync::oneshot::channel();
            let world = self.clone();
            let task = whizbang_core::spawn::local(async move {
                tokio::time::sleep(at).await;
                if !world.0.faults_stopped.get() {
                    world.inject(&fault).await;
                }
                let _ = end.send(());
            });
            self.0.tasks.borrow_mut().push(task);
            ended.push(wait);
        }
        ended
    }

    /// Injects a fault now. Completes when the fault is over.
    ///
    /// The time of the fault passes during the call: a node that crashes for 2 s is up again when this completes. A fault
    /// that waits for its target, such as [`Fault::CrashAt`], waits until it hits, or for [`Fault::MAX_WAIT`].
    pub async fn inject(&self, fault: &Fault) {
        if let Some(error) = self.setup_error(fault) {
            return self.report_violation(error);
        }
        let count = Count::default();
        let at = self.now();
        self.0.injected.borrow_mut().push((InjectedFault { fault: fault.clone(), at, times: 0 }, Rc::clone(&count)));
        let description = fault.describe(&self.0.names);
        let disturbance = fault.disturbs().then(|| self.step_log().begin_disturbance());
        match fault {
            Fault::Crash { service, steps, down } => {
                let seat = self.pick_seat(*service, Seat::is_running).unwrap_or(0);
                self.crash((*service, Some(seat)), *steps, *down, &description, &count).await;
            }
            Fault::CrashAt { service, point, steps, down } => {
                if self.wait_crash_point(*service, *point).await {
                    // A job does not tell its node.
                    let node = self.0.broker.crash_points(*service).last_node();
                    let seat = Some(node).filter(|_| *point != CrashPoint::Job);
                    // The job may run on an old node that does not know about the takeover.
                    if let Some(service) = self.0.services.get(*service).filter(|_| *point == CrashPoint::Job) {
                        self.kill_zombie(service);
                    }
                    self.crash((*service, seat), *steps, *down, &description, &count).await;
                }
            }
            _ => {
                self.0.trace.add(format_args!("FAULT: {description}"));
                if self.apply_fault(fault, &count).await {
                    count.set(count.get() + 1);
                }
            }
        }
        if let Some(disturbance) = disturbance {
            self.step_log().end_disturbance(disturbance);
        }
    }

    /// Returns an error if the fault cannot be injected into this cluster.
    fn setup_error(&self, fault: &Fault) -> Option<SimError> {
        let missing = self.0.sim.check_fault(fault);
        let no_worker = || {
            let service = self.0.services.get(fault.targets_jobs_of()?)?;
            let manifest = service.manifest.borrow();
            let mut actors = manifest.iter().flat_map(|manifest| &manifest.domains).flat_map(|domain| &domain.actors);
            let (fault, service) = (format!("{fault:?}"), service.name.clone());
            (!actors.any(|actor| actor.role == "worker")).then_some(SimError::NoWorker { fault, service })
        };
        missing.or_else(no_worker)
    }

    /// Waits until a node of the service reaches a crash point. Returns whether it did within [`Fault::MAX_WAIT`].
    async fn wait_crash_point(&self, service: usize, point: CrashPoint) -> bool {
        if point != CrashPoint::Job {
            let points = self.0.broker.crash_points(service);
            return tokio::time::timeout(Fault::MAX_WAIT, points.wait_for(point)).await.is_ok();
        }
        // The job blocks after its effect until it is killed: otherwise the crash could come after its commit.
        let (killer, armed) = (Rc::new(Notify::new()), Count::default());
        self.arm(service, &Failpoint::Kill(Rc::clone(&killer)), 1, &armed);
        let reached = tokio::time::timeout(Fault::MAX_WAIT, killer.notified()).await.is_ok();
        Failpoints::disarm(&armed);
        reached
    }

    /// Arms a failpoint for the next messages that the service's user code handles.
    pub(super) fn arm(&self, service: usize, failpoint: &Failpoint, times: u8, count: &Count) {
        if let Some(service) = self.0.services.get(service) {
            let manifest = service.manifest.borrow();
            for domain in manifest.iter().flat_map(|manifest| &manifest.domains) {
                Failpoints::arm(&domain.name, failpoint.clone(), times.into(), count);
            }
        }
    }

    /// Arms a fault for the next commands of clients. Returns false: its hits are counted later.
    fn arm_clients(&self, fault: ClientFault, times: u8, count: &Count) -> bool {
        self.0.clients.arm(fault, times, count);
        false
    }

    /// Applies a fault and completes when it is over. Returns whether it hit something now; later hits are counted by `count`.
    async fn apply_fault(&self, fault: &Fault, count: &Count) -> bool {
        let broker = &self.0.broker;
        match fault {
            Fault::ClockJump { service, millis, duration } => {
                let Some(service) = self.0.services.get(*service) else { return false };
                service.jumps.jump(*millis);
                self.0.fault_counts.one(FaultEvent::ClockJumped);
                tokio::time::sleep(*duration).await;
                service.jumps.jump(-*millis);
            }
            Fault::Reboot { service, millis, duration } => {
                let Some(target) = self.0.services.get(*service) else { return false };
                target.jumps.jump(*millis);
                self.0.fault_counts.one(FaultEvent::ClockJumped);
                let killed = self.try_kill(*service);
                self.ensure_started(*service).await;
                tokio::time::sleep(*duration).await;
                target.jumps.jump(-*millis);
                return killed;
            }
            Fault::Partition { from, to, duration } => {
                broker.partition(*from, *to);
                tokio::time::sleep(*duration).await;
                broker.heal(*from, *to);
            }
            Fault::Isolate { service, direction, duration } => {
                broker.isolate(*service, *direction != LinkDirection::Outbound, *direction != LinkDirection::Inbound);
                tokio::time::sleep(*duration).await;
                broker.connect(*service);
            }
            Fault::PurgeStreams => broker.purge(),
            Fault::Forge { seed, count } => return broker.attack(*seed, *count) > 0,
            Fault::LoseStreams => broker.lose_streams(),
            Fault::PauseBroker { duration } => {
                broker.pause(*duration);
                tokio::time::sleep(*duration).await;
            }
            Fault::ChangeLeader { duration } => {
                broker.drop_leader(*duration);
                tokio::time::sleep(*duration).await;
            }
            Fault::DropDuplicates { window, duration } => {
                broker.drop_duplicates(*window, *duration);
                tokio::time::sleep(*duration).await;
            }
            Fault::FailToStore { duration } => {
                broker.fail_to_store(*duration);
                tokio::time::sleep(*duration).await;
            }
            Fault::ShortenAckWait { wait, duration } => {
                broker.set_ack_wait(Some(*wait));
                tokio::time::sleep(*duration).await;
                broker.set_ack_wait(None);
            }
            Fault::LimitInFlight { limit, duration } => {
                broker.set_max_in_flight(Some(usize::from(*limit).max(1)));
                tokio::time::sleep(*duration).await;
                broker.set_max_in_flight(None);
            }
            Fault::SlowHandlers { service, per_message, duration } => {
                broker.slow_handlers(*service, *per_message, *duration);
                tokio::time::sleep(*duration).await;
            }
            Fault::HandOver { service, cut_off, lingers } => {
                return self.hand_over(*service, *cut_off, *lingers).await;
            }
            Fault::FailCommits { service } => {
                let running = self.0.services.get(*service).filter(|service| service.is_running());
                let Some(running) = running else { return false };
                // Reopening shards takes ownership, and an old node must not do that.
                self.kill_zombie(running);
                running.store.fail();
                // In every second case again, while the shards are reopened.
                if self.below(2) == 0 {
                    tokio::time::sleep(Duration::from_millis(self.below(MAX_RECOVERY))).await;
                    if running.is_running() && !self.0.faults_stopped.get() {
                        self.kill_zombie(running);
                        running.store.fail();
                    }
                }
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
            Fault::SkewClientClocks { millis, duration } => {
                let jumps = &self.0.clients.jumps;
                jumps.jump(*millis);
                self.0.fault_counts.one(FaultEvent::ClientClockSkewed);
                tokio::time::sleep(*duration).await;
                jumps.jump(-*millis);
            }
            Fault::SkewOneClient { millis, duration } => {
                self.skew_one_client(*millis, *duration).await;
            }
            Fault::Poison { service, after, action } => {
                self.0.clients.operator(true);
                self.poison(*service, *after, *action, count).await;
                self.0.clients.operator(false);
                return false;
            }
            Fault::SecondNode { service } => return self.start_second_node(*service).await,
            Fault::BlockKey { service, duration } => {
                let Some(service) = self.0.services.get(*service) else { return false };
                let block = service.store.unreadable_keys().block_next(count);
                tokio::time::sleep(*duration).await;
                service.store.unreadable_keys().unblock(block);
                return false;
            }
            Fault::Upgrade { service, version, down } => {
                let Some(target) = self.0.services.get(*service) else { return false };
                target.version.set(*version);
                // A node of the previous version must not run beside the new one.
                self.kill_zombie(target);
                let killed = self.try_kill_all(*service);
                tokio::time::sleep(*down).await;
                self.ensure_started(*service).await;
                self.check_domains_hosted_once();
                self.0.fault_counts.add(FaultEvent::Upgraded, u64::from(killed));
                return killed;
            }
            Fault::PauseNode { service, duration } => return self.pause_node(*service, *duration).await,
            Fault::StopNode { service, down } => return self.stop_node(*service, *down).await,
            Fault::CutStore { service, direction, duration } => {
                return self.cut_store(*service, *direction, *duration).await;
            }
            Fault::CutBroker { service, direction, duration } => {
                return self.cut_broker(*service, *direction, *duration).await;
            }
            Fault::DuplicateCommands { times } => return self.arm_clients(ClientFault::Duplicate, *times, count),
            Fault::ReuseIds { times } => return self.arm_clients(ClientFault::ReuseId, *times, count),
            Fault::OldAndFutureIds { times } => return self.arm_clients(ClientFault::WrongTimeIds, *times, count),
            Fault::ShortenDeadlines { deadline, times } => {
                return self.arm_clients(ClientFault::ShortDeadline(*deadline), *times, count);
            }
            Fault::Crash { .. } | Fault::CrashAt { .. } => return false,
        }
        true
    }

    /// Kills the node of a seat, or all nodes of the service, after some steps of other tasks. Restarts them later.
    async fn crash(
        &self,
        (service, seat): (usize, Option<usize>),
        steps: u8,
        down: Duration,
        description: &str,
        count: &Count,
    ) {
        for _ in 0..steps {
            tokio::task::yield_now().await;
        }
        self.0.trace.add(format_args!("FAULT: {description}"));
        let killed = match seat {
            Some(seat) => self.try_kill_seat(service, seat),
            None => self.try_kill_all(service),
        };
        if killed {
            count.set(count.get() + 1);
        }
        tokio::time::sleep(down).await;
        self.restart_unreliably(service, seat).await;
    }

    /// Restarts a node, or all nodes of the service. One time in four it is killed again during its start.
    async fn restart_unreliably(&self, service: usize, seat: Option<usize>) {
        let kill_again = self.below(4) == 0;
        let steps = self.below(10);
        let once_more = async {
            for _ in 0..steps {
                tokio::task::yield_now().await;
            }
            if kill_again {
                self.try_kill_starting(service, seat.unwrap_or(0));
            }
        };
        let restart = async {
            match seat {
                Some(seat) => self.restart_seat(service, seat).await,
                None => self.restart(service).await,
            }
        };
        tokio::join!(restart, once_more);
        self.ensure_started(service).await;
    }

    /// Waits for the faults that have started, then clears all faults and restarts all nodes.
    pub(super) async fn stop_faults(&self, faults: Vec<tokio::sync::oneshot::Receiver<()>>) {
        for fault in faults {
            // Faults that are scheduled after the end of the scenario still run: the cluster has work left.
            drop(fault.await);
        }
        // Background attempts of clients need the nodes that faults have restarted.
        self.0.clients.wait_background().await;
        self.0.faults_stopped.set(true);
        self.0.clients.disarm();
        Failpoints::clear();
        self.0.broker.clear_faults();
        self.set_fault_profile(FaultProfile::NONE);
        if let Some(profile_disturbance) = self.0.profile_disturbance.take() {
            self.step_log().end_disturbance(profile_disturbance);
        }
        for service in &self.0.services {
            service.jumps.undo();
        }
        for service in 0..self.0.services.len() {
            self.restart(service).await;
        }
        for service in self.0.services.iter().filter(|service| !service.seats.iter().all(Seat::is_running)) {
            let reason = service.start_error.borrow().clone().unwrap_or_default();
            self.report_violation(format!("{} failed to restart: {reason}", service.name));
        }
        self.0.trace.add(format_args!("faults stopped"));
    }
}
