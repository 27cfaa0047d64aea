//! What is looked at while a simulated cluster runs: after each commit, after each settled message, and once all nodes have started.

use super::world::Service;
use super::wrong::Wrong;
use super::{SimError, World};
use crate::actor::ReplayChecker;
use crate::message::{Envelope, Kind};

impl World {
    /// Passivates the idle actors after every commit, so that nearly every turn begins with a state rebuilt from the log.
    pub(super) fn reload_actors(&self) {
        let world = self.clone();
        let task = crate::spawn::local(async move {
            loop {
                world.0.committed.notified().await;
                // The turn is settled, and its actor is idle, a few steps after its commit.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
                for service in &world.0.services {
                    if let Some(node) = &*service.node.borrow() {
                        node.passivate_idle();
                    }
                }
            }
        });
        self.0.tasks.borrow_mut().push(task);
    }

    /// A node has told the broker that a message is done. Then its effect is committed: the broker forgets it now.
    ///
    /// Events are left out: a subscriber that lacks one reads it from its owner's log, so they may be settled at once.
    pub(super) fn settled(&self, service: usize, envelope: &Envelope) {
        let (Some(origin), Some(service)) = (&envelope.origin, self.0.services.get(service)) else { return };
        let to = envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain);
        if envelope.kind != Kind::Event && !self.0.seen.has_taken(to, &origin.shard, origin.sequence) {
            self.violated(format!(
                "settled: {} acknowledged {} {} for `{}` before its turn was committed",
                service.name, envelope.name, envelope.id, envelope.key
            ));
        }
    }

    /// Checks what must always hold, and whether what must come to hold does.
    pub(super) fn look(&self) {
        if self.0.broken.borrow().is_some() || self.0.watching.replace(true) {
            return;
        }
        if let Some(difference) = ReplayChecker::take_found() {
            self.violated(format!("state: {difference}"));
        }
        let failure = |service: &Service| service.node.try_borrow().ok()?.as_ref()?.failed_task();
        if let Some(failure) = self.0.services.iter().find_map(failure) {
            self.violated(format!("task: {failure}"));
        }
        if let Some(wrong) = self.0.seen.take_wrong() {
            self.violated(wrong);
        }
        for (number, rule) in self.0.sim.always.iter().enumerate() {
            if let Err(reason) = rule(self) {
                self.violated(Wrong::of_user("always", number, &reason));
                break;
            }
        }
        self.0.awaited.borrow_mut().retain_mut(|(number, reason)| match self.0.sim.eventually.get(*number) {
            Some(rule) => match rule(self) {
                Ok(()) => false,
                Err(why) => {
                    *reason = why;
                    true
                }
            },
            None => false,
        });
        self.0.watching.set(false);
    }

    /// What should have come to hold and never did.
    pub(super) fn awaited(&self) -> Option<Wrong> {
        self.0.awaited.borrow().first().map(|(number, reason)| Wrong::of_user("eventually", *number, reason))
    }

    pub(super) fn violated(&self, wrong: impl Into<Wrong>) {
        let wrong = wrong.into();
        self.0.trace.add(format_args!("VIOLATED: {}", wrong.reason));
        self.0.broken.borrow_mut().get_or_insert(wrong);
    }

    pub(super) fn broken(&self) -> Option<Wrong> {
        self.0.broken.borrow().clone()
    }

    /// Ends the run if another service hosts one of these domains. A domain has one owner: two would both answer, each from its
    /// own log.
    pub(super) fn is_hosted_twice(&self, at: usize, domains: &[String]) -> bool {
        let services = &self.0.services;
        let Some(second) = services.get(at) else { return false };
        for first in services.iter().take(at) {
            let hosts = first.hosts.borrow();
            let theirs = hosts.iter().flat_map(|hosts| &hosts.domains);
            if let Some(domain) = theirs.map(|domain| &domain.name).find(|name| domains.contains(name)) {
                self.violated(SimError::HostedTwice {
                    domain: domain.clone(),
                    first: first.name.clone(),
                    second: second.name.clone(),
                });
                return true;
            }
        }
        false
    }

    /// Ends the run if two services host one domain.
    pub(super) fn hosted_once(&self) {
        for (at, service) in self.0.services.iter().enumerate() {
            let hosts = service.hosts.borrow().clone();
            let domains: Vec<String> =
                hosts.into_iter().flat_map(|hosts| hosts.domains).map(|domain| domain.name).collect();
            if self.is_hosted_twice(at, &domains) {
                return;
            }
        }
    }
}
