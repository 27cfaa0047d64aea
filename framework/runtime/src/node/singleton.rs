//! Singletons: tasks of the user that run on one node of a service at a time.
//!
//! Declared with [`NodeBuilder::singleton`](crate::NodeBuilder::singleton). Each is bound to one shard of the service, its
//! home: the node that has the shard open runs it. So a singleton needs no lease of its own, and it moves with its shard.
//! The [thread](crate::node::thread) of the home shard runs it; nothing here runs anything.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::LocalBoxFuture;

use crate::client::Client;
use crate::node::error::StartError;
use whizbang_core::message::{Name, ShardId, shard_of, stable_hash};
use whizbang_core::store::Epoch;

/// One run of a task that runs on one node of a service at a time. Given to the task of
/// [`NodeBuilder::singleton`](crate::NodeBuilder::singleton) when it is started.
#[derive(Clone, Debug)]
pub struct Singleton {
    name: Name,
    epoch: Epoch,
    client: Client,
}

impl Singleton {
    pub(in crate::node) fn new(name: Name, epoch: Epoch, client: Client) -> Self {
        Self { name, epoch, client }
    }

    /// Returns the name of the task.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Returns a client of the node.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the number of the ownership under which this run was started. It is higher on each node that runs the task
    /// later. Pass it to a system outside that can reject lower numbers, for effects that must not come from two nodes.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

type Run = Box<dyn Fn(Singleton) -> LocalBoxFuture<'static, ()> + Send + Sync>;

/// A singleton as the builder collects it.
pub(in crate::node) struct DeclaredSingleton {
    name: String,
    run: Run,
}

impl DeclaredSingleton {
    pub(in crate::node) fn new<F, R>(name: &str, run: F) -> Self
    where
        F: Fn(Singleton) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + 'static,
    {
        Self { name: name.to_owned(), run: Box::new(move |singleton| Box::pin(run(singleton))) }
    }
}

/// A singleton of a node, with its home shard.
pub(in crate::node) struct HostedSingleton {
    pub(in crate::node) name: Name,
    pub(in crate::node) home: ShardId,
    pub(in crate::node) run: Run,
    is_running: AtomicBool,
}

impl HostedSingleton {
    /// Checks the singletons of a node and finds their homes.
    ///
    /// # Errors
    /// [`StartError::Name`], [`StartError::DoubleSingleton`], [`StartError::SingletonWithoutDomain`].
    pub(in crate::node) fn all(
        declared: Vec<DeclaredSingleton>,
        domains: &BTreeMap<Name, u16>,
    ) -> Result<Vec<Self>, StartError> {
        let mut hosted: Vec<Self> = Vec::new();
        for DeclaredSingleton { name, run } in declared {
            if hosted.iter().any(|other| other.name.as_str() == name) {
                return Err(StartError::DoubleSingleton { name });
            }
            let Some(home) = home(&name, domains) else { return Err(StartError::SingletonWithoutDomain { name }) };
            hosted.push(Self { name: Name::new(&name)?, home, run, is_running: AtomicBool::new(false) });
        }
        Ok(hosted)
    }

    pub(in crate::node) fn set_running(&self, is_running: bool) {
        self.is_running.store(is_running, Ordering::Relaxed);
    }

    /// Returns whether this node runs it now.
    pub(in crate::node) fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for HostedSingleton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostedSingleton").field("name", &self.name).field("home", &self.home).finish_non_exhaustive()
    }
}

/// Returns the shard to which a singleton is bound. Every node of the service finds the same one. The domain is chosen by the
/// highest hash, so that a new domain moves few singletons.
fn home(name: &str, domains: &BTreeMap<Name, u16>) -> Option<ShardId> {
    let (domain, shards) = domains.iter().max_by_key(|(domain, _)| stable_hash(&format!("{name} {domain}")))?;
    Some(ShardId::new(domain.clone(), shard_of(name, *shards)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn singletons_are_bound_to_the_same_shards_everywhere() {
        let name = |text: &'static str| Name::from_static(text).unwrap();
        let two = BTreeMap::from([(name("bank"), 16), (name("orders"), 4)]);
        let three: BTreeMap<_, _> = two.clone().into_iter().chain([(name("stock"), 8)]).collect();
        let (mut domains, mut moved) = (std::collections::BTreeSet::new(), 0);
        for number in 0..100 {
            let singleton = format!("singleton-{number}");
            let (before, after) = (home(&singleton, &two).unwrap(), home(&singleton, &three).unwrap());
            assert_eq!(home(&singleton, &two).unwrap(), before);
            assert!(before.shard < two[&before.domain]);
            domains.insert(before.domain.clone());
            if before != after {
                assert_eq!(after.domain.as_str(), "stock");
                moved += 1;
            }
        }
        assert_eq!(domains.len(), 2, "all domains are used");
        assert!(moved > 0 && moved < 60, "{moved} of 100 move to a third domain");
        assert_eq!(home("report", &BTreeMap::new()), None);
    }
}
