//! What can be reached on this very thread without leaving it.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use super::CommandEndpoint;
use crate::message::Command;

/// Tells the nodes of one process apart.
pub type NodeId = u64;

/// The typed doors of one node on one thread.
#[derive(Default)]
pub struct LocalRoutes {
    typed: HashMap<TypeId, Box<dyn Any>, BuildHasherDefault<TypeIdHasher>>,
}

/// A `TypeId` is a hash already: take it as it is.
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
    static HERE: Registry = const { RefCell::new(Vec::new()) };
}

impl LocalRoutes {
    /// Hangs in the door of a command.
    pub fn add<C: Command>(&mut self, door: Rc<dyn CommandEndpoint<C>>) {
        self.typed.insert(TypeId::of::<C>(), Box::new(door));
    }

    /// Makes these routes known on this thread.
    pub fn publish(self: Rc<Self>, node: NodeId) {
        HERE.with(|here| here.borrow_mut().push((node, self)));
    }

    /// Takes a node's routes back on this thread.
    pub fn withdraw(node: NodeId) {
        // The routes are dropped after the borrow ends: dropping an actor's door may run user code.
        // A thread that ends has none any more.
        let gone = HERE.try_with(|here| {
            let mut here = here.borrow_mut();
            let at = here.iter().position(|(id, _)| *id == node);
            at.map(|at| here.swap_remove(at))
        });
        drop(gone);
    }

    /// The routes of a node on this thread, if it has made them known.
    pub fn here(node: NodeId) -> Option<Rc<Self>> {
        // Cloned out, so that a door may come back here without meeting a borrow.
        HERE.with(|here| here.borrow().iter().find(|(id, _)| *id == node).map(|(_, routes)| Rc::clone(routes)))
    }

    /// The door of `C`, if an actor takes it.
    pub fn door<C: Command>(&self) -> Option<&dyn CommandEndpoint<C>> {
        let door = self.typed.get(&TypeId::of::<C>())?;
        door.downcast_ref::<Rc<dyn CommandEndpoint<C>>>().map(Rc::as_ref)
    }
}
