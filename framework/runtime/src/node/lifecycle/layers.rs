//! The layers around the handlers of a node, as the builder collects them.

use std::sync::Arc;

use crate::layer::Layer;
use crate::node::lifecycle::builder::NodeBuilder;
use whizbang_core::message::Message;

impl NodeBuilder {
    /// Places a [layer](Layer) around each handler of a command or an event on this node, inside the layers placed before. Default:
    /// none.
    pub fn layer(mut self, layer: impl Layer) -> Self {
        self.layers.add(Arc::new(layer));
        self
    }

    /// Places a [layer](Layer) around the handlers of one message type (a command, an event) on this node, inside the layers of
    /// the [node](Self::layer).
    pub fn layer_of<M: Message>(mut self, layer: impl Layer) -> Self {
        self.layers.add_of::<M>(&(Arc::new(layer) as Arc<dyn Layer>));
        self
    }
}
