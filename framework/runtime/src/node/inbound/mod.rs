//! Messages that arrive at a thread: from the bridge, from other shards of the node, and events of subscribed logs.
//!
//! Called by the bridge and by the relay of this node. Passes messages to the windows and subscriptions of
//! [`inbox`](crate::inbox).

pub(in crate::node) mod bridge_handler;
pub(in crate::node) mod gaps;
pub(in crate::node) mod receive_windows;
pub(in crate::node) mod remote_answer;
pub(in crate::node) mod subscriptions;
