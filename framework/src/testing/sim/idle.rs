//! How a simulated cluster comes to rest, and what is looked at then.

use std::time::Duration;

use super::delays::LONGEST_WAIT;
use super::world::Service;
use super::wrong::Wrong;
use super::{World, check};
use crate::clock::Timestamp;
use crate::message::Name;
use crate::node::Node;

/// How long nothing may be under way at the latest after the faults have stopped. Courier and relay wait up to minutes.
const SETTLED: Duration = Duration::from_secs(1200);
/// How long a node may take to say that it is at rest before all is looked at again.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long after its last change a view is saved, with something to spare.
const SAVED: Duration = Duration::from_secs(10);
/// How long timers are given to ring once they are due. A node looks for them every 30 s at the latest.
const LOOK: Duration = Duration::from_secs(1);
/// How long after it is due a timer has fired at the latest.
const OVERDUE: Duration = Duration::from_secs(60);
/// How many timers are waited for at the end.
const TIMERS: usize = 200;

impl World {
    /// Waits until nothing is under way any more; lets all timers ring; checks; kills all, starts them again and checks again.
    pub(super) async fn end(&self) -> Result<(), Wrong> {
        self.wait_idle().await?;
        let (mut before, mut patience) = (None, LOOK);
        for _ in 0..TIMERS {
            let next = self.next_timer();
            // A node counts time as it was at its start: one whose clock was wrong then takes longer than its clock says.
            patience = if next == before { patience * 2 } else { LOOK };
            before = next;
            let Some((service, due)) = next else { break };
            let Some(now) = self.0.services.get(service).map(|service| service.clock.now()) else { break };
            tokio::time::sleep(due.since(now).max(patience)).await;
            self.wait_idle().await?;
        }
        self.timers_fired()?;
        self.save_views().await;
        check::all(self)?;
        for service in 0..self.0.services.len() {
            self.kill_if_there(service);
        }
        tokio::task::yield_now().await;
        for service in 0..self.0.services.len() {
            self.restart(service).await;
        }
        self.wait_idle().await?;
        self.save_views().await;
        check::all(self)?;
        self.ask_again().await?;
        self.look();
        if let Some(wrong) = self.awaited() {
            return Err(wrong);
        }
        for (number, rule) in self.0.sim.at_end.iter().enumerate() {
            rule(self).map_err(|reason| Wrong::of_user("at the end", number, &reason))?;
        }
        self.missed()
    }

    /// Every timer that is due has fired, but for those of actor types that are not hosted.
    fn timers_fired(&self) -> Result<(), String> {
        for service in &self.0.services {
            let now = service.clock.now();
            for (shard, reader) in self.shards_of(service) {
                let overdue = reader
                    .timers_due(now, usize::MAX)
                    .into_iter()
                    .find(|timer| now.since(timer.due) > OVERDUE && service.hosts_actor(&shard.domain, &timer.actor));
                if let Some(timer) = overdue {
                    return Err(format!(
                        "timers: {} of {}.{} `{}` is due since {:?} and has not fired",
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

    fn next_timer(&self) -> Option<(usize, Timestamp)> {
        let services = self.0.services.iter().enumerate();
        let next = services.flat_map(|(at, service)| {
            self.shards_of(service).into_iter().filter_map(move |(_, reader)| reader.next_timer().map(|due| (at, due)))
        });
        next.min_by_key(|(at, due)| (*due, *at))
    }

    /// Waits until nothing is under way: no message, no commit, no outbox entry, no event that a subscriber lacks.
    ///
    /// Virtual time passes meanwhile; timers that are not due do not count.
    pub async fn settle(&self) {
        if let Err(reason) = self.wait_idle().await {
            self.violated(reason);
        }
    }

    pub(super) async fn wait_idle(&self) -> Result<(), String> {
        let begun = crate::clock::instant();
        let mut wait = Duration::from_millis(20);
        loop {
            let busy = match self.busy() {
                None => self.views_behind().await,
                busy => busy,
            };
            if begun.elapsed() > LONGEST_WAIT
                && let Some(late) = self.overdue()
            {
                return Err(late);
            }
            match busy {
                None => return Ok(()),
                Some(reason) if begun.elapsed() > SETTLED => {
                    return Err(format!("it never becomes quiet: {reason}"));
                }
                Some(_) => {}
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(10));
        }
    }

    /// A message or an event that waits for too long.
    fn overdue(&self) -> Option<String> {
        let event_overdue = |service: &Service| {
            self.shards_of(service).into_iter().find_map(|(shard, reader)| {
                check::events(&reader).iter().find_map(|event| {
                    let takers = self.takers(&shard, event);
                    let mut actors = takers.iter().filter(|(domain, actor, _)| !self.is_worker(domain, actor));
                    actors.find_map(|taker| self.0.seen.event_overdue((&shard, event.position), taker))
                })
            })
        };
        let overdue = self.0.seen.overdue(|domain| self.is_hosted(domain));
        overdue.or_else(|| self.0.services.iter().find_map(event_overdue))
    }

    /// Jobs wait for a slot of their worker, however long that takes.
    pub(super) fn is_worker(&self, domain: &Name, actor: &Name) -> bool {
        let is = |service: &Service| {
            let hosts = service.hosts.borrow();
            let domains = hosts.iter().flat_map(|hosts| &hosts.domains).filter(|of| of.name == domain.as_str());
            domains
                .flat_map(|of| &of.actors)
                .any(|of| of.role == "worker" && of.names().any(|name| name == actor.as_str()))
        };
        self.0.services.iter().any(is)
    }

    fn is_hosted(&self, domain: &Name) -> bool {
        let hosts = |service: &Service| {
            let hosts = service.hosts.borrow();
            hosts.iter().flat_map(|hosts| &hosts.domains).any(|of| of.name == domain.as_str())
        };
        self.0.services.iter().any(hosts)
    }

    /// Views are saved a while after their last change.
    async fn save_views(&self) {
        let has_views =
            |service: &Service| service.hosts.borrow().as_ref().is_some_and(|hosts| !hosts.projections.is_empty());
        if self.0.services.iter().any(has_views) {
            tokio::time::sleep(SAVED).await;
        }
    }

    /// Views are in no log: their nodes say whether they have followed.
    async fn views_behind(&self) -> Option<String> {
        for service in &self.0.services {
            if service.hosts.borrow().as_ref().is_none_or(|hosts| hosts.projections.is_empty()) {
                continue;
            }
            let quieted = service.node.borrow().as_ref().map(Node::idle);
            if let Some(quieted) = quieted
                && tokio::time::timeout(PATIENCE, quieted).await.is_err()
            {
                return Some(format!("{} has work left, or views that have not followed", service.name));
            }
        }
        None
    }

    fn busy(&self) -> Option<String> {
        if !self.0.broker.is_idle() {
            return Some("messages are under way".to_owned());
        }
        if let Some(service) = self.0.services.iter().find(|service| !service.disk.is_idle()) {
            return Some(format!("{} has uncommitted appends", service.name));
        }
        if let Some(line) = self.0.broker.lines().into_iter().find(|line| line.holds_deliveries()) {
            return Some(format!(
                "a node of {} has not settled everything that the broker brought it",
                line.card.service
            ));
        }
        if let Some((name, in_flight)) = self.in_flight() {
            return Some(format!("{in_flight} messages are in flight on {name}"));
        }
        check::unsettled(self)
    }

    /// A node that has something in flight. Whoever holds a place and never gives it back makes its node answer `Busy` one
    /// day (I13).
    fn in_flight(&self) -> Option<(&str, u64)> {
        let services = self.0.services.iter().map(|service| (service.name.as_str(), &service.node));
        let mut nodes = services.chain([("the clients' node", &self.0.client)]);
        nodes.find_map(|(name, node)| {
            let in_flight = node.borrow().as_ref().map_or(0, Node::in_flight);
            (in_flight > 0).then_some((name, in_flight))
        })
    }
}
