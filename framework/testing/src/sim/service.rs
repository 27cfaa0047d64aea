//! A service of a simulated cluster, and the places of its nodes.
//!
//! Created by the [world](super::world). [Starts and ends](super::lifecycle) of nodes change it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::link::SimLink;
use super::node_tasks::NodeTasks;
use super::store::SimStore;
use whizbang_core::clock::{Clock, ClockJumps};
use whizbang_core::message::Name;
use whizbang_runtime::node::Node;
use whizbang_runtime::router::{ActorCard, Manifest};

/// Its store and clock outlive its nodes: a restarted node finds both.
pub(super) struct Service {
    /// The name.
    pub(super) name: String,
    /// The store that all nodes of the service share.
    pub(super) store: SimStore,
    /// The wall clock of its nodes, which faults set wrong.
    pub(super) clock: Clock,
    /// The jumps of its wall clock so far.
    pub(super) jumps: ClockJumps,
    /// One place for each node.
    pub(super) seats: Vec<Seat>,
    /// A node that has lost ownership and does not know it.
    pub(super) zombie: RefCell<Option<Zombie>>,
    /// The reason why the last start failed.
    pub(super) start_error: RefCell<Option<String>>,
    /// The manifest of the version that runs.
    pub(super) manifest: RefCell<Option<Manifest>>,
    /// The manifests of all versions that have run.
    pub(super) manifests: RefCell<Vec<Manifest>>,
    /// The version of the next node.
    pub(super) version: Cell<usize>,
}

/// The place of one node of a service.
#[derive(Default)]
pub(super) struct Seat {
    /// The running node; `None` while it is down.
    pub(super) node: RefCell<Option<Node>>,
    /// The number of starts so far.
    pub(super) starts: Cell<u64>,
    /// A node is being started.
    pub(super) starting: Cell<bool>,
    /// The node is being stopped.
    pub(super) stopping: Cell<bool>,
    /// Kills a node during its start.
    pub(super) kill_signal: Notify,
    /// The store handle of the running node.
    pub(super) store_handle: RefCell<Option<SimStore>>,
    /// The tasks of the running node, in a service of several nodes.
    pub(super) tasks: RefCell<Option<Rc<NodeTasks>>>,
}

impl Seat {
    /// Returns whether a node runs here.
    pub(super) fn is_running(&self) -> bool {
        self.node.borrow().is_some()
    }

    /// Returns whether a node starts or stops here.
    pub(super) fn is_changing(&self) -> bool {
        self.starting.get() || self.stopping.get()
    }

    /// Ends the tasks of the node.
    pub(super) fn end_tasks(&self) {
        if let Some(tasks) = self.tasks.borrow_mut().take() {
            tasks.end();
        }
    }
}

/// A node whose service was taken over by another node.
pub(super) struct Zombie {
    /// The running node.
    pub(super) node: Node,
    /// Its connection to the broker, which is interrupted.
    pub(super) link: Arc<SimLink>,
    /// The handle to the store of the service, which ends with the node.
    pub(super) store_handle: Option<SimStore>,
}

impl Service {
    /// Creates a service whose nodes have not started.
    pub(super) fn new(name: &str, store: SimStore, clock: (Clock, ClockJumps), nodes: usize) -> Self {
        let (clock, jumps) = clock;
        Self {
            name: name.to_owned(),
            store,
            clock,
            jumps,
            seats: std::iter::repeat_with(Seat::default).take(nodes).collect(),
            zombie: RefCell::default(),
            start_error: RefCell::default(),
            manifest: RefCell::default(),
            manifests: RefCell::default(),
            version: Cell::new(0),
        }
    }

    /// Returns whether the nodes share the store by leases.
    pub(super) fn has_several_nodes(&self) -> bool {
        self.seats.len() > 1
    }

    /// Returns whether a node runs.
    pub(super) fn is_running(&self) -> bool {
        self.seats.iter().any(Seat::is_running)
    }

    /// Calls a function with each running node.
    pub(super) fn each_node<T>(&self, call: impl Fn(&Node) -> T) -> Vec<T> {
        self.seats.iter().filter_map(|seat| seat.node.borrow().as_ref().map(&call)).collect()
    }

    /// Calls a function with one running node. All nodes of a service have the same description.
    pub(super) fn any_node<T>(&self, call: impl Fn(&Node) -> T) -> Option<T> {
        self.seats.iter().find_map(|seat| seat.node.borrow().as_ref().map(&call))
    }

    /// Returns whether the service has an actor type of this name in the domain.
    pub(super) fn hosts_actor(&self, domain: &Name, actor: &Name) -> bool {
        let manifest = self.manifest.borrow();
        let mut domains = manifest.iter().flat_map(|manifest| &manifest.domains);
        let is = |card: &ActorCard| card.names().any(|name| name == actor.as_str());
        domains.any(|of| of.name == domain.as_str() && of.actors.iter().any(is))
    }

    /// Records the manifest of a node that has started.
    pub(super) fn record_manifest(&self, manifest: &Manifest) {
        *self.manifest.borrow_mut() = Some(manifest.clone());
        let mut manifests = self.manifests.borrow_mut();
        if !manifests.contains(manifest) {
            manifests.push(manifest.clone());
        }
    }
}
