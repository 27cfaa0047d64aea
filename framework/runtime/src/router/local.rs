//! Local routes: typed endpoints that are reachable on this thread.
//!
//! Called by the client; filled by nodes when they start. Never crosses a thread.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use super::{CommandEndpoint, OpenShards};
use whizbang_core::message::{Command, Key};

/// Distinguishes the nodes of one process.
pub type NodeId = u64;

/// Typed endpoints of one node on one thread.
#[derive(Default)]
pub struct LocalRoutes {
    typed: HashMap<TypeId, Box<dyn Any>, BuildHasherDefault<TypeIdHasher>>,
    /// The shards that are open here, if several nodes share them.
    shared: Option<Arc<OpenShards>>,
}

impl std::fmt::Debug for LocalRoutes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalRoutes").field("types", &self.typed.len()).finish_non_exhaustive()
    }
}

/// Uses a `TypeId` as its own hash, which it already is.
#[derive(Default)]
struct TypeIdHasher(u64);

impl Hasher for TypeIdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

type Registry = RefCell<Vec<(NodeId, Rc<LocalRoutes>)>>;

thread_local! {
    static ROUTES: Registry = const { RefCell::new(Vec::new()) };
}

impl LocalRoutes {
    /// Adds the endpoint of a command.
    pub fn add<C: Command>(&mut self, endpoint: Rc<dyn CommandEndpoint<C>>) {
        self.typed.insert(TypeId::of::<C>(), Box::new(endpoint));
    }

    /// Restricts the routes to keys whose shard is open on this node.
    pub(crate) fn share(&mut self, open: &Arc<OpenShards>) {
        self.shared = open.is_shared().then(|| Arc::clone(open));
    }

    /// Returns whether the shard of a key is open on this node.
    pub(crate) fn is_open<'a>(&self, domain: &str, shards: u16, key: impl FnOnce() -> Key<'a>) -> bool {
        self.shared.as_ref().is_none_or(|open| open.is_open_for(domain, shards, key().as_str()))
    }

    /// Publishes these routes on this thread.
    pub fn publish(self: Rc<Self>, node: NodeId) {
        ROUTES.with(|here| here.borrow_mut().push((node, self)));
    }

    /// Withdraws a node's routes on this thread.
    pub fn withdraw(node: NodeId) {
        // Dropped after the borrow ends, because dropping an actor's endpoint may run user code. A thread that is
        // ending has no routes left.
        let gone = ROUTES.try_with(|here| {
            let mut here = here.borrow_mut();
            let at = here.iter().position(|(id, _)| *id == node);
            at.map(|at| here.swap_remove(at))
        });
        drop(gone);
    }

    /// Returns the routes of a node on this thread, if they are published.
    pub fn here(node: NodeId) -> Option<Rc<Self>> {
        // Cloned, so that a re-entrant call does not meet an open borrow.
        ROUTES.with(|here| here.borrow().iter().find(|(id, _)| *id == node).map(|(_, routes)| Rc::clone(routes)))
    }

    /// Returns the endpoint of `C`, if an actor handles it.
    pub fn endpoint<C: Command>(&self) -> Option<&dyn CommandEndpoint<C>> {
        let endpoint = self.typed.get(&TypeId::of::<C>())?;
        endpoint.downcast_ref::<Rc<dyn CommandEndpoint<C>>>().map(Rc::as_ref)
    }
}
