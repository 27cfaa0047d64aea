//! The layers of a node, and the order in which they run.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::{Call, CallOutcome, Layer, Refusal};
use whizbang_core::message::{Domain as _, Message, MessageFacts};

type Ordered = Vec<Arc<dyn Layer>>;

/// The layers of a node.
#[derive(Clone, Default)]
pub struct Layers {
    all: Ordered,
    /// By the domain and name of a message.
    of: HashMap<(&'static str, &'static str), Ordered, FixedState>,
}

impl Layers {
    /// Adds a layer around every handler.
    pub fn add(&mut self, layer: Arc<dyn Layer>) {
        self.all.push(layer);
    }

    /// Adds a layer around the handlers of one message type, under its present and former names.
    pub fn add_of<M: Message>(&mut self, layer: &Arc<dyn Layer>) {
        for name in MessageFacts::of::<M>().names() {
            self.of.entry((M::Domain::NAME, name)).or_default().push(Arc::clone(layer));
        }
    }

    /// Returns whether no layer exists.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.of.is_empty()
    }

    /// Returns the layers of a message, outermost first. Costs one look-up, if layers of single types exist.
    fn around<'a>(&'a self, call: &Call<'a>) -> impl DoubleEndedIterator<Item = &'a dyn Layer> + use<'a> {
        let of = if self.of.is_empty() { None } else { self.of.get(&(call.domain, call.name)) };
        self.all.iter().chain(of.into_iter().flatten()).map(|layer| &**layer)
    }

    /// Runs the layers before the handler. After a refusal, those that had let the message pass see it as the outcome. User code.
    pub(crate) fn before(&self, call: &Call<'_>) -> Result<(), Refusal> {
        for (passed, layer) in self.around(call).enumerate() {
            if let Err(refusal) = layer.before(call) {
                self.refused(call, passed, &refusal);
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Like [`before`](Self::before), for a caller that can wait. User code.
    pub(crate) async fn before_async(&self, call: &Call<'_>) -> Result<(), Refusal> {
        for (passed, layer) in self.around(call).enumerate() {
            if let Err(refusal) = layer.before_async(call).await {
                self.refused(call, passed, &refusal);
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Reports a refusal to the layers that had let the message pass.
    fn refused(&self, call: &Call<'_>, passed: usize, refusal: &Refusal) {
        let outcome = match refusal {
            Refusal::Reject(rejection) => CallOutcome::Rejected(rejection),
            Refusal::Busy { .. } => CallOutcome::Busy,
        };
        // The layers are few, and a refusal is rare: collected because the chain has no exact size.
        let outer: Vec<_> = self.around(call).take(passed).collect();
        outer.iter().rev().for_each(|layer| layer.after(call, outcome));
    }

    /// Runs the layers after the handler, innermost first. User code.
    pub(crate) fn after(&self, call: &Call<'_>, outcome: CallOutcome<'_>) {
        self.around(call).rev().for_each(|layer| layer.after(call, outcome));
    }
}

impl std::fmt::Debug for Layers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layers").field("all", &self.all.len()).field("of", &self.of.len()).finish()
    }
}
