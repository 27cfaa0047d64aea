//! What goes wrong in a simulated cluster, brought about.

use std::time::Duration;

use super::World;
use super::trouble::Trouble;
use super::weather::{Fault, Way, Weather};
use crate::actor::Trips;

impl World {
    /// Lets the weather begin, and the faults come when they are due.
    pub(super) fn rain(&self) -> Vec<tokio::sync::oneshot::Receiver<()>> {
        self.set_weather(self.0.sim.weather);
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
        let count = self.0.services.len();
        if let Some(error) = fault.impossible(count) {
            return self.violated(error);
        }
        let told = fault.told(&self.0.names);
        match fault {
            Fault::Crash { service, steps, down } => self.crash(*service, *steps, *down, &told).await,
            Fault::CrashIn { service, work, steps, down } => {
                let begun = self.0.broker.begun(*service);
                if tokio::time::timeout(Fault::PATIENCE, begun.next(*work)).await.is_ok() {
                    self.crash(*service, *steps, *down, &told).await;
                }
            }
            Fault::Jump { service, millis, lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                if let Some(service) = self.0.services.get(*service) {
                    service.jumps.jump(*millis);
                    self.0.tally.one(Trouble::ClockJumped);
                    tokio::time::sleep(*lasts).await;
                    service.jumps.jump(-*millis);
                }
            }
            Fault::Cut { from, to, lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.broker.cut(*from, *to);
                tokio::time::sleep(*lasts).await;
                self.0.broker.mend(*from, *to);
            }
            Fault::Isolate { service, way, lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.broker.isolate(*service, *way != Way::Out, *way != Way::In);
                tokio::time::sleep(*lasts).await;
                self.0.broker.connect(*service);
            }
            Fault::EmptyStreams => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.broker.empty();
            }
            Fault::LoseStreams => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.broker.lose_streams();
            }
            Fault::PauseBroker { lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.broker.pause(*lasts);
                tokio::time::sleep(*lasts).await;
            }
            Fault::ChangeLeader { lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.broker.elect(*lasts);
                tokio::time::sleep(*lasts).await;
            }
            Fault::DropRepeats { window, lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.broker.drop_repeats(*window, *lasts);
                tokio::time::sleep(*lasts).await;
            }
            Fault::FailToStore { lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.broker.fail_to_store(*lasts);
                tokio::time::sleep(*lasts).await;
            }
            Fault::HurryAcks { wait, lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.broker.set_ack_wait(Some(*wait));
                tokio::time::sleep(*lasts).await;
                self.0.broker.set_ack_wait(None);
            }
            Fault::FewInHand { most, lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.broker.set_in_hand(Some(usize::from(*most).max(1)));
                tokio::time::sleep(*lasts).await;
                self.0.broker.set_in_hand(None);
            }
            Fault::Slow { service, each, lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.broker.slow_down(*service, *each, *lasts);
                tokio::time::sleep(*lasts).await;
            }
            Fault::HandOver { service, cut_off, lingers } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.hand_over(*service, *cut_off, *lingers).await;
            }
            Fault::Panic { service, times } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                if let Some(service) = self.0.services.get(*service) {
                    let hosts = service.hosts.borrow();
                    for domain in hosts.iter().flat_map(|hosts| &hosts.domains) {
                        Trips::arm(&domain.name, u32::from(*times));
                    }
                }
            }
            Fault::FailCommits { service } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                let running = self.0.services.get(*service).filter(|service| service.node.borrow().is_some());
                if let Some(running) = running {
                    // Who opens its shards again takes them: an old node must not.
                    self.end_zombie(running);
                    running.disk.fail();
                }
            }
        }
    }

    /// Kills a node after some steps of others, and starts it again after a while.
    async fn crash(&self, service: usize, steps: u8, down: Duration, told: &str) {
        for _ in 0..steps {
            tokio::task::yield_now().await;
        }
        self.0.trace.add(format_args!("FAULT: {told}"));
        self.kill(service);
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
        self.0.calm.set(true);
        self.0.tally.add(Trouble::HandlerPanicked, Trips::tripped());
        Trips::clear();
        self.0.broker.calm();
        self.set_weather(Weather::FAIR);
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
