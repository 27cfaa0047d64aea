//! The routing table of a hub: rebuilt from the cards of the attached nodes whenever a node joins or leaves.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::member::Member;
use whizbang_core::message::{Name, Shard};

/// The nodes of one service that handle the same messages. The messages of a shard go to one node while the group is unchanged.
type Group = Vec<Arc<Member>>;

/// The nodes that receive the messages of a domain.
#[derive(Default)]
pub(super) struct Routes {
    /// The owner of each domain.
    owners: BTreeMap<Name, Group>,
    /// The subscribing services of each domain.
    subscribers: BTreeMap<Name, BTreeMap<Name, Group>>,
    /// The nodes that answer a query, by domain and name.
    query_handlers: BTreeMap<(Name, Name), Group>,
}

impl Routes {
    /// Returns the table of the attached nodes. Costs the number of domains of all nodes.
    pub(super) fn new(members: &[Arc<Member>]) -> Self {
        let mut routes = Self::default();
        for member in members {
            for (domain, _) in &member.card.owns {
                routes.owners.entry(domain.clone()).or_default().push(Arc::clone(member));
            }
            for (domain, _, _) in &member.card.subscribes {
                let services = routes.subscribers.entry(domain.clone()).or_default();
                services.entry(member.card.service.clone()).or_default().push(Arc::clone(member));
            }
            for query in &member.card.answers {
                routes.query_handlers.entry(query.clone()).or_default().push(Arc::clone(member));
            }
        }
        routes
    }

    /// Returns the node that owns a shard; `None` if the domain has no owner here.
    pub(super) fn owner(&self, domain: &Name, shard: Shard) -> Option<Arc<Member>> {
        pick(self.owners.get(domain)?, shard)
    }

    /// Returns a node of the service that shares the shards of the domain by leases; `None` if none does.
    pub(super) fn lease_holder(&self, domain: &Name) -> Option<&Arc<Member>> {
        self.owners.get(domain)?.iter().find(|member| member.card.has_leased_shards)
    }

    /// Returns one node of each subscribing service, or all nodes of a service with leased shards: each of its shards has
    /// watermarks of its own.
    pub(super) fn subscribers(&self, domain: &Name, shard: Shard) -> Group {
        let services = self.subscribers.get(domain).into_iter().flat_map(BTreeMap::values);
        let of_service = |group: &Group| -> Group {
            let is_leased = |member: &&Arc<Member>| member.card.has_leased_shards;
            let all: Group = group.iter().filter(is_leased).cloned().collect();
            if all.is_empty() { pick(group, shard).into_iter().collect() } else { all }
        };
        services.flat_map(of_service).collect()
    }

    /// Returns a node that answers a query, preferably a connected one.
    pub(super) fn query_handler(&self, domain: &Name, query: &Name) -> Option<Arc<Member>> {
        let group = self.query_handlers.get(&(domain.clone(), query.clone()))?;
        group.iter().find(|member| !member.is_disconnected()).or_else(|| group.first()).cloned()
    }
}

/// Returns the node of a group for a shard: the same one as long as the group is the same.
fn pick(group: &Group, shard: Shard) -> Option<Arc<Member>> {
    let index = usize::from(shard).checked_rem(group.len())?;
    group.get(index).cloned()
}
