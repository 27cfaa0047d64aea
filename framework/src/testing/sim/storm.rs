//! What goes wrong in a simulated cluster, brought about.

use super::World;
use super::weather::{Fault, Weather};
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
        let count = self.0.services.len().max(1);
        let told = fault.told(&self.0.names);
        match fault {
            Fault::Crash { service, steps, down } => {
                for _ in 0..*steps {
                    tokio::task::yield_now().await;
                }
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.kill(service % count);
                tokio::time::sleep(*down).await;
                self.restart(service % count).await;
            }
            Fault::Jump { service, millis, lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                if let Some(service) = self.0.services.get(service % count) {
                    service.jumps.jump(*millis);
                    tokio::time::sleep(*lasts).await;
                    service.jumps.jump(-*millis);
                }
            }
            Fault::Cut { from, to, lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.courier.cut(from % count, to % count);
                tokio::time::sleep(*lasts).await;
                self.0.courier.mend(from % count, to % count);
            }
            Fault::EmptyCourier => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.courier.empty();
            }
            Fault::PauseCourier { lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.courier.pause(*lasts);
            }
            Fault::RefuseSends { lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.courier.refuse(*lasts);
            }
            Fault::Panic { service, times } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                if let Some(service) = self.0.services.get(service % count) {
                    let hosts = service.hosts.borrow();
                    for domain in hosts.iter().flat_map(|hosts| &hosts.domains) {
                        Trips::arm(&domain.name, u32::from(*times));
                    }
                }
            }
            Fault::FailCommits { service } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                if let Some(service) =
                    self.0.services.get(service % count).filter(|service| service.node.borrow().is_some())
                {
                    service.disk.fail();
                }
            }
        }
    }

    /// Waits for the faults that have begun; those that have not do not come any more.
    pub(super) async fn settle_faults(&self, faults: Vec<tokio::sync::oneshot::Receiver<()>>) {
        for fault in faults {
            // Faults that lie behind the end of the story come all the same: the cluster has work left.
            drop(fault.await);
        }
        self.0.calm.set(true);
        Trips::clear();
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
