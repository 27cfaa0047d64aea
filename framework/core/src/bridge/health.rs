//! The health of a bridge.

use std::time::Duration;

/// The health of a bridge, for the health and the metrics of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BridgeHealth {
    /// The issues that stop messages, each with the action to take. Empty while everything works. An entry disappears once its
    /// cause is gone. The node is not ready while there is one.
    pub issues: Vec<String>,
    /// The issues for an operator that stop no valid message, each with the action to take. The node stays ready.
    pub notes: Vec<String>,
    /// The number of messages moved to the refused stream since the node started: undecodable ones, and ones without a handler
    /// here.
    pub refused: u64,
    /// The number of messages without a handler that were discarded since the node started: the refused stream was full, and so was
    /// the room for the messages of their sender.
    pub discarded: u64,
    /// The number of messages outside of streams that were refused or dropped since the node started, because they cannot be
    /// decoded, contradict their subject, or name no inbox, or because too many responses waited: requests and notifications.
    pub refused_requests: u64,
    /// The number of requests without a response since the node started, because the broker does not permit this node to
    /// respond to their inbox.
    pub denied_responses: u64,
    /// The number of messages that the client of the broker dropped since the node started, because the node read too slowly. There
    /// may be more.
    pub dropped_messages: u64,
    /// The number of messages that now wait in the broker for this node, as the broker last reported it for each consumer. A
    /// consumer that the nodes of a service share counts at each of them.
    pub lag: u64,
    /// The time since the connection to the broker was lost. Zero while there is one.
    pub disconnected: Duration,
    /// The number of streams and consumers of the broker that now cannot be used, or deliver nothing.
    pub blocked_streams: u64,
    /// The number of stalled consumers that were recreated since the node started.
    pub recreated_consumers: u64,
}

impl BridgeHealth {
    /// Returns the health of a bridge with these issues.
    pub fn new(issues: Vec<String>) -> Self {
        Self { issues, ..Self::default() }
    }
}
