//! Rules that are checked during a run: after each commit, after each acknowledgement, and once all nodes have started.

use super::service::Seat;
use super::violation::Violation;
use super::{SimError, World};
use whizbang_core::message::{Envelope, Kind};
use whizbang_runtime::actor::ReplayChecker;

impl World {
    /// Passivates idle actors after every commit, so that nearly every turn starts from a state rebuilt from the log.
    pub(super) fn reload_actors(&self) {
        let world = self.clone();
        let task = whizbang_core::spawn::local(async move {
            loop {
                world.0.committed.notified().await;
                // The actor is idle a few polls after its commit.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
                for service in &world.0.services {
                    service.each_node(whizbang_runtime::node::Node::passivate_idle);
                }
            }
        });
        self.0.tasks.borrow_mut().push(task);
    }

    /// Checks that an acknowledged message has a committed effect, because the broker deletes it now.
    ///
    /// Events are exempt: a subscriber reads missing events from the log of their owner, so they may be acknowledged at once.
    pub(super) fn on_acked(&self, service: usize, envelope: &Envelope) {
        let Some(service) = self.0.services.get(service) else { return };
        let to = envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain);
        let is_committed = match &envelope.origin {
            Some(origin) => self.0.step_log.has_handled(to, &origin.shard, origin.sequence),
            // A command that a client has posted. A duplicate is acknowledged after the commit of the original.
            None => self.0.step_log.has_settled_call(to, envelope.id),
        };
        if envelope.kind != Kind::Event && !is_committed {
            self.report_violation(format!(
                "settled: {} acknowledged {} {} for `{}` before its turn was committed",
                service.name, envelope.name, envelope.id, envelope.key
            ));
        }
    }

    /// Checks the `always` rules and those `eventually` rules that have not held yet.
    pub(super) fn check_rules(&self) {
        if self.0.violation.borrow().is_some() || self.0.checking.replace(true) {
            return;
        }
        if let Some(difference) = ReplayChecker::take_found() {
            self.report_violation(format!("state: {difference}"));
        }
        let failed_task = |seat: &Seat| seat.node.try_borrow().ok()?.as_ref()?.failed_task();
        if let Some(failed_task) = self.0.services.iter().flat_map(|service| &service.seats).find_map(failed_task) {
            self.report_violation(format!("task: {failed_task}"));
        }
        if let Some(violation) = self.0.step_log.take_violation() {
            self.report_violation(violation);
        }
        for (number, rule) in self.0.sim.always.iter().enumerate() {
            if let Err(reason) = rule(self) {
                self.report_violation(Violation::of_user("always", number, &reason));
                break;
            }
        }
        self.0.pending_eventually.borrow_mut().retain_mut(|(number, reason)| {
            match self.0.sim.eventually.get(*number) {
                Some(rule) => match rule(self) {
                    Ok(()) => false,
                    Err(new_reason) => {
                        *reason = new_reason;
                        true
                    }
                },
                None => false,
            }
        });
        self.0.checking.set(false);
    }

    /// Returns the first `eventually` rule that never held.
    pub(super) fn unmet_eventually(&self) -> Option<Violation> {
        self.0
            .pending_eventually
            .borrow()
            .first()
            .map(|(number, reason)| Violation::of_user("eventually", *number, reason))
    }

    /// Records a violation. The first one is the result of the run.
    pub(super) fn report_violation(&self, violation: impl Into<Violation>) {
        let violation = violation.into();
        self.0.trace.add(format_args!("VIOLATED: {}", violation.reason));
        self.0.violation.borrow_mut().get_or_insert(violation);
    }

    /// Returns the first violation so far.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.0.violation.borrow().clone()
    }

    /// Reports a violation if another service hosts one of these domains. A domain has one owner; two would both reply, each from
    /// its own log.
    pub(super) fn is_hosted_twice(&self, at: usize, domains: &[String]) -> bool {
        let services = &self.0.services;
        let Some(second) = services.get(at) else { return false };
        for first in services.iter().take(at) {
            let manifest = first.manifest.borrow();
            let hosted = manifest.iter().flat_map(|manifest| &manifest.domains);
            if let Some(domain) = hosted.map(|domain| &domain.name).find(|name| domains.contains(name)) {
                self.report_violation(SimError::HostedTwice {
                    domain: domain.clone(),
                    first: first.name.clone(),
                    second: second.name.clone(),
                });
                return true;
            }
        }
        false
    }

    /// Reports a violation if two services host the same domain.
    pub(super) fn check_domains_hosted_once(&self) {
        for (at, service) in self.0.services.iter().enumerate() {
            let manifest = service.manifest.borrow().clone();
            let domains: Vec<String> =
                manifest.into_iter().flat_map(|manifest| manifest.domains).map(|domain| domain.name).collect();
            if self.is_hosted_twice(at, &domains) {
                return;
            }
        }
    }
}
