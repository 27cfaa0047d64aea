//! A hostile client in a simulated cluster: what it writes into the broker's streams, and what it tells and asks the nodes.
//!
//! Called by the [storm](super::fault_scheduler) and by the bridge suite over the simulated broker. As a real broker does, it refuses nothing:
//! the nodes do.

use std::sync::Arc;

use super::broker::{Broker, Parcel, commands, events};
use super::fault_counts::FaultEvent;
use super::link::SimLink;
use crate::bridge::NodeCard;
use crate::bridge::subject::Address;
use crate::message::{Name, ShardId};
use crate::testing::bridge::hostile::{Forgery, Hostile, Target};

/// The number of no service: it is cut off from none.
const STRANGER: usize = usize::MAX;

impl Broker {
    /// Writes what a hostile client draws from a seed, against all domains that nodes own now. Returns how much of it has arrived.
    pub(super) fn attack(&self, seed: u64, count: u16) -> usize {
        let mut targets: Vec<Target> = Vec::new();
        let Ok(forged) = Name::from_static("Forged") else { return 0 };
        for line in self.lines() {
            for (domain, shards) in &line.card.owns {
                if targets.iter().all(|target| target.domain != *domain) {
                    let (command, event, actor) = (forged.clone(), forged.clone(), forged.clone());
                    // Nobody knows here whether its subscribers have taken a position before it is contradicted.
                    let (domain, shards, has_begun) = (domain.clone(), *shards, false);
                    targets.push(Target { domain, shards, command, event, actor, has_begun });
                }
            }
        }
        let mut hostile = Hostile::new(seed, targets);
        let forgeries = std::iter::from_fn(|| hostile.forge()).take(usize::from(count));
        forgeries.filter(|forgery| self.forge(forgery)).count()
    }

    /// Writes one forgery. Returns whether it has arrived anywhere.
    pub(super) fn forge(&self, forgery: &Forgery) -> bool {
        let owner = |card: &NodeCard, domain: &Name| card.owns.iter().any(|(owned, _)| owned == domain);
        let taker = |card: &NodeCard, domain: &Name| card.subscribes.iter().any(|(taken, ..)| taken == domain);
        let arrives = match &forgery.address {
            Address::Direct { to, .. } => self.forge_into(&commands(&to.domain), forgery),
            Address::Event { shard, .. } | Address::Events(shard) => self.forge_into(&events(&shard.domain), forgery),
            Address::Committed { from, .. } => self.forge_news(forgery, |card| owner(card, &from.domain)),
            Address::Head(shard) => self.forge_news(forgery, |card| taker(card, &shard.domain)),
            Address::EventsRequest(ShardId { domain, .. })
            | Address::OutboxRequest { from: ShardId { domain, .. }, .. }
            | Address::WatermarkRequest { to: ShardId { domain, .. }, .. }
            | Address::CommandRequest { domain, .. } => self.forge_question(forgery, |card| owner(card, domain)),
            Address::QueryRequest { domain, name } => self
                .forge_question(forgery, |card| card.answers.iter().any(|(of, query)| of == domain && query == name)),
        };
        if arrives {
            self.2.one(FaultEvent::Forged);
            self.1.add(format_args!("  a hostile client writes {}", forgery.kind));
        }
        arrives
    }

    fn forge_into(&self, stream: &str, forgery: &Forgery) -> bool {
        let parcel = Arc::new(Parcel { from: STRANGER, packet: forgery.packet.clone() });
        let stored = self.state().model.publish(stream, None, parcel, crate::clock::instant());
        if stored.is_ok() {
            self.bell(stream).notify_waiters();
        }
        stored.is_ok()
    }

    fn listeners(&self, listens: impl Fn(&NodeCard) -> bool) -> Vec<Arc<SimLink>> {
        self.lines().into_iter().filter(|line| line.is_here() && listens(&line.card)).collect()
    }

    /// News that says otherwise than its place is dropped, as a bridge drops it that knows the place.
    fn forge_news(&self, forgery: &Forgery, listens: impl Fn(&NodeCard) -> bool) -> bool {
        let listeners = self.listeners(listens);
        if let Ok(tidings) = forgery.packet.notification()
            && Address::for_notification(&tidings) == forgery.address
        {
            listeners.iter().for_each(|line| line.door.notify(tidings.clone()));
        }
        !listeners.is_empty()
    }

    fn forge_question(&self, forgery: &Forgery, answers: impl Fn(&NodeCard) -> bool) -> bool {
        let answering = self.listeners(answers);
        if let (Some(line), Ok(asked)) = (answering.first(), forgery.packet.request()) {
            let answer = line.door.request(asked);
            // The answer is not waited for.
            drop(tokio::task::spawn_local(async move { drop(answer.await) }));
        }
        !answering.is_empty()
    }
}
