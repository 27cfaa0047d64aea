//! The end of a run: waiting until the cluster is idle, firing all timers, and running the final checks.
//!
//! Called by [`Sim::run`](super::Sim::run), and by scenarios through [`World::wait_idle`].
//!
//! # The end of a run
//! 1. All faults have ended, and the cluster becomes idle.
//! 2. Time advances to the next timer until none is left, and the cluster becomes idle after each.
//! 3. The [store checks](super::store_checks) compare the stores of all services.
//! 4. All nodes are killed and started again, and everything is checked once more: recovery must find the same.
//! 5. Acknowledged commands are sent again, and must get the same replies.
//!
//! The cluster is idle if no message is in transit, no append is pending and no node has anything in flight. Each leased
//! shard must have one owner. An idle limit that is exceeded names the first of these that is not so.

use std::time::Duration;

use super::delays::MAX_WAIT;
use super::service::Service;
use super::violation::Violation;
use super::{World, store_checks};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::Name;
use whizbang_runtime::node::Node;

/// Time until the cluster must be idle after the faults have stopped. Bridge and relay back off for up to minutes.
const IDLE_LIMIT: Duration = Duration::from_secs(1200);
/// Time for a node to report that it is idle before all is inspected again.
const NODE_IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Upper bound for the time between the last change of a view and its save.
const VIEW_SAVE_DELAY: Duration = Duration::from_secs(10);
/// Time for due timers to fire. A node looks for due timers at least every 30 s.
const TIMER_GRACE: Duration = Duration::from_secs(1);
/// Time after which a due timer that has not fired is a violation.
const TIMER_OVERDUE: Duration = Duration::from_secs(60);
/// Maximum number of rounds that wait for a timer at the end.
const MAX_TIMER_ROUNDS: usize = 200;

impl World {
    /// Finishes a run: waits until the cluster is idle, lets all timers fire, checks, kills and restarts all nodes, and checks
    /// again.
    pub(super) async fn finish(&self) -> Result<(), Violation> {
        self.try_wait_idle().await?;
        let (mut last_timer, mut grace) = (None, TIMER_GRACE);
        for _ in 0..MAX_TIMER_ROUNDS {
            let next = self.next_timer();
            // A node measures time from its start. With a clock that was wrong then, a timer takes longer than the wall clock
            // shows.
            grace = if next == last_timer { grace * 2 } else { TIMER_GRACE };
            last_timer = next;
            let Some((service, due)) = next else { break };
            let Some(now) = self.0.services.get(service).map(|service| service.clock.now()) else { break };
            tokio::time::sleep(due.since(now).max(grace)).await;
            self.try_wait_idle().await?;
        }
        self.timers_fired()?;
        self.wait_views_saved().await;
        store_checks::all(self)?;
        for service in 0..self.0.services.len() {
            self.try_kill_all(service);
        }
        tokio::task::yield_now().await;
        for service in 0..self.0.services.len() {
            self.restart(service).await;
        }
        self.try_wait_idle().await?;
        self.wait_views_saved().await;
        store_checks::all(self)?;
        self.recheck_replies().await?;
        self.check_rules();
        if let Some(violation) = self.unmet_eventually() {
            return Err(violation);
        }
        for (number, rule) in self.0.sim.at_end.iter().enumerate() {
            rule(self).map_err(|reason| Violation::of_user("at the end", number, &reason))?;
        }
        self.check_missed_faults()
    }

    /// Checks that every due timer has fired, except those of actor types that are not hosted.
    fn timers_fired(&self) -> Result<(), String> {
        for service in &self.0.services {
            let now = service.clock.now();
            for (shard, reader) in self.shards_of(service) {
                let overdue = reader.timers_due(now, usize::MAX).into_iter().find(|timer| {
                    now.since(timer.due) > TIMER_OVERDUE && service.hosts_actor(&shard.domain, &timer.actor)
                });
                if let Some(timer) = overdue {
                    return Err(format!(
                        "timers: {} of {}.{} `{}` is overdue by {:?}",
                        timer.name,
                        shard.domain,
                        timer.actor,
                        timer.key,
                        now.since(timer.due)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Returns the time of the next timer of all services, with the index of its service.
    fn next_timer(&self) -> Option<(usize, Timestamp)> {
        let services = self.0.services.iter().enumerate();
        let next = services.flat_map(|(at, service)| {
            self.shards_of(service).into_iter().filter_map(move |(_, reader)| reader.next_timer().map(|due| (at, due)))
        });
        next.min_by_key(|(at, due)| (*due, *at))
    }

    /// Waits until no work is in flight: no message, commit or outbox entry, and no event that a subscriber has not handled.
    ///
    /// Virtual time passes. Does not wait for timers in the future.
    pub async fn wait_idle(&self) {
        if let Err(reason) = self.try_wait_idle().await {
            self.report_violation(reason);
        }
    }

    /// Waits until nothing is left to do, or until the limit.
    ///
    /// # Errors
    /// The work that is left at the limit.
    pub(super) async fn try_wait_idle(&self) -> Result<(), String> {
        let started = whizbang_core::clock::instant();
        let mut wait = Duration::from_millis(20);
        loop {
            let pending_work = match self.pending_work() {
                None => self.views_behind().await,
                pending_work => pending_work,
            };
            if started.elapsed() > MAX_WAIT
                && let Some(late) = self.overdue()
            {
                return Err(late);
            }
            match pending_work {
                None => return Ok(()),
                Some(reason) if started.elapsed() > IDLE_LIMIT => {
                    return Err(format!("the cluster does not become idle: {reason}{}", self.unwell_nodes()));
                }
                Some(_) => {}
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(10));
        }
    }

    /// Returns the state of each node that is not well, or does not run, for a report.
    fn unwell_nodes(&self) -> String {
        let mut text = String::new();
        for service in &self.0.services {
            let nodes = service.each_node(|node| (node.health(), node.ended()));
            if nodes.is_empty() {
                text += &format!("; no node of {} runs", service.name);
            }
            for (health, ended) in nodes.into_iter().filter(|(health, ended)| !health.ready || ended.is_some()) {
                let end = ended.map_or(String::new(), |end| format!(" (ended: {end:?})"));
                text += &format!("; {}{end}: {}", service.name, health.reasons.join(", "));
            }
        }
        text
    }

    /// Returns a violation if a message or event has waited for too long.
    fn overdue(&self) -> Option<String> {
        let event_overdue = |service: &Service| {
            self.shards_of(service).into_iter().find_map(|(shard, reader)| {
                store_checks::events(&reader).iter().find_map(|event| {
                    let subscribers = self.subscribers(&shard, event);
                    let mut actors = subscribers.iter().filter(|(domain, actor, _)| !self.is_worker(domain, actor));
                    actors.find_map(|subscriber| self.0.step_log.event_overdue((&shard, event.position), subscriber))
                })
            })
        };
        let overdue = self.0.step_log.overdue(|domain| self.is_hosted(domain));
        overdue.or_else(|| self.0.services.iter().find_map(event_overdue))
    }

    /// Returns whether the actor is a worker. Its jobs may wait for a slot for any time.
    pub(super) fn is_worker(&self, domain: &Name, actor: &Name) -> bool {
        let is = |service: &Service| {
            let manifest = service.manifest.borrow();
            let domains =
                manifest.iter().flat_map(|manifest| &manifest.domains).filter(|of| of.name == domain.as_str());
            domains
                .flat_map(|of| &of.actors)
                .any(|of| of.role == "worker" && of.names().any(|name| name == actor.as_str()))
        };
        self.0.services.iter().any(is)
    }

    /// Returns true if a service of the cluster owns the domain.
    fn is_hosted(&self, domain: &Name) -> bool {
        let manifest = |service: &Service| {
            let manifest = service.manifest.borrow();
            manifest.iter().flat_map(|manifest| &manifest.domains).any(|of| of.name == domain.as_str())
        };
        self.0.services.iter().any(manifest)
    }

    /// Waits until changed views are saved.
    async fn wait_views_saved(&self) {
        let has_views = |service: &Service| {
            service.manifest.borrow().as_ref().is_some_and(|manifest| !manifest.projections.is_empty())
        };
        if self.0.services.iter().any(has_views) {
            tokio::time::sleep(VIEW_SAVE_DELAY).await;
        }
    }

    /// Returns a service whose views lag behind. Views are not in the log, so their nodes must report it.
    async fn views_behind(&self) -> Option<String> {
        for service in &self.0.services {
            if service.manifest.borrow().as_ref().is_none_or(|manifest| manifest.projections.is_empty()) {
                continue;
            }
            for idle in service.each_node(Node::idle) {
                if tokio::time::timeout(NODE_IDLE_LIMIT, idle).await.is_err() {
                    return Some(format!("{} is not idle, or its views lag behind", service.name));
                }
            }
        }
        None
    }

    /// Returns what is left to do, in words. `None` if the cluster is idle, apart from its views.
    fn pending_work(&self) -> Option<String> {
        if !self.0.broker.is_idle() {
            return Some("messages are in transit".to_owned());
        }
        if let Some(service) = self.0.services.iter().find(|service| !service.store.is_idle()) {
            return Some(format!("{} has uncommitted appends", service.name));
        }
        if let Some(link) = self.0.broker.links().into_iter().find(|link| link.holds_deliveries()) {
            return Some(format!("a node of {} has unsettled deliveries", link.card.service));
        }
        if let Some(unowned) = self.0.services.iter().find_map(|service| self.shard_without_owner(service)) {
            return Some(unowned);
        }
        if let Some((name, in_flight)) = self.in_flight() {
            return Some(format!("{in_flight} messages are in flight on {name}"));
        }
        store_checks::pending_work(self)
    }

    /// Returns a node with messages in flight. A permit that is never released would exhaust the node's capacity (I13).
    fn in_flight(&self) -> Option<(&str, u64)> {
        let seats = self
            .0
            .services
            .iter()
            .flat_map(|service| service.seats.iter().map(move |seat| (service.name.as_str(), &seat.node)));
        let mut nodes = seats.chain([("the clients' node", &self.0.client)]);
        nodes.find_map(|(name, node)| {
            let in_flight = node.borrow().as_ref().map_or(0, Node::in_flight);
            (in_flight > 0).then_some((name, in_flight))
        })
    }

    /// Returns a description of a shard that no node receives, or more than one, in a service with several nodes.
    fn shard_without_owner(&self, service: &Service) -> Option<String> {
        let at = self.0.services.iter().position(|other| std::ptr::eq(other, service))?;
        let links = self.0.broker.links_of(at);
        let shards = self.shards_of(service).into_iter().filter(|_| service.has_several_nodes());
        let counted = shards.map(|(shard, _)| {
            let owners = links.iter().filter(|link| link.epoch_of(&shard).is_some()).count();
            (shard, owners)
        });
        let (shard, owners) = counted.into_iter().find(|(_, owners)| *owners != 1)?;
        Some(format!("{owners} nodes of {} receive for {shard}", service.name))
    }
}
