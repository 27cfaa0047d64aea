//! Who takes what: built from the cards of the attached nodes whenever one comes or goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::member::Member;
use crate::message::{Name, Shard};

/// The nodes of one service that take something. A shard's messages go to the same one while the nodes stay the same.
type Group = Vec<Arc<Member>>;

#[derive(Default)]
pub(super) struct Routes {
    owners: BTreeMap<Name, Group>,
    subscribers: BTreeMap<Name, BTreeMap<Name, Group>>,
    query_handlers: BTreeMap<(Name, Name), Group>,
}

impl Routes {
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

    pub(super) fn owner(&self, domain: &Name, shard: Shard) -> Option<Arc<Member>> {
        pick(self.owners.get(domain)?, shard)
    }

    /// One node of each subscribing service.
    pub(super) fn subscribers(&self, domain: &Name, shard: Shard) -> Group {
        let services = self.subscribers.get(domain).into_iter().flat_map(BTreeMap::values);
        services.filter_map(|team| pick(team, shard)).collect()
    }

    /// A node that answers a query; the first that is not cut off.
    pub(super) fn query_handler(&self, domain: &Name, query: &Name) -> Option<Arc<Member>> {
        let team = self.query_handlers.get(&(domain.clone(), query.clone()))?;
        team.iter().find(|member| !member.is_disconnected()).or_else(|| team.first()).cloned()
    }
}

fn pick(team: &Group, shard: Shard) -> Option<Arc<Member>> {
    let at = usize::from(shard).checked_rem(team.len())?;
    team.get(at).cloned()
}
