//! The actor types that the framework hosts in each domain of a node: the scheduler of delayed messages, and cron schedules.
//!
//! Collected by the [builder](crate::node::NodeBuilder). They are not in the manifest, because users do not list them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::actor::Stateful;
#[cfg(feature = "schedules")]
use crate::aggregate::Schedule;
use crate::aggregate::Scheduler;
use crate::node::catalog::StoredNames;
use crate::node::catalog::hosted::Hosted;
use crate::node::definition::ActorDefinition;
use crate::node::error::StartError;
use crate::router::{CANCEL, SCHEDULE};
#[cfg(feature = "schedules")]
use crate::schedule::{REMOVE_SCHEDULE, SET_SCHEDULE};
use whizbang_core::message::{Domain, Name};

/// The actor types of the framework, by domain and name.
#[derive(Default)]
pub(in crate::node) struct OwnActors(BTreeMap<(&'static str, &'static str), OwnActor>);

/// An actor type, and its commands.
struct OwnActor {
    hosted: Hosted,
    commands: &'static [&'static str],
}

impl OwnActors {
    /// Adds the actor types of a domain.
    pub(in crate::node) fn add<D: Domain>(&mut self) {
        self.host::<Scheduler<D>>(&[SCHEDULE, CANCEL]);
        #[cfg(feature = "schedules")]
        self.host::<Schedule<D>>(&[SET_SCHEDULE, REMOVE_SCHEDULE]);
    }

    fn host<A: Stateful>(&mut self, commands: &'static [&'static str]) {
        let own = || OwnActor { hosted: Hosted::new::<A>(), commands };
        self.0.entry((A::Domain::NAME, A::NAME)).or_insert_with(own);
    }

    /// Returns their definitions.
    ///
    /// # Errors
    /// The name of a domain is invalid.
    pub(in crate::node) fn definitions(self, known: &StoredNames) -> Result<Vec<ActorDefinition>, StartError> {
        let define = |((domain, actor), OwnActor { hosted, commands }): (_, OwnActor)| {
            let domain = Name::from_static(domain)?;
            let command = |name: &&'static str| Ok((Name::from_static(name)?, u32::MAX));
            Ok(ActorDefinition {
                actor: Name::from_static(actor)?,
                events: known.events(&domain),
                domain,
                hosted: Arc::new(hosted),
                handles: commands.iter().map(command).collect::<Result<_, StartError>>()?,
                takes: Vec::new(),
                is_isolated: false,
            })
        };
        self.0.into_iter().map(define).collect()
    }
}
