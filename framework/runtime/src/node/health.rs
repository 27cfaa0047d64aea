//! Health and counters of a node, as operators and probes read them.
//!
//! Filled by the [definition](crate::node::definition).

use std::time::Duration;

use serde::Serialize;

/// Health of a node, for probes and operators.
///
/// ```
/// # whizbang::derive::block_on(async {
/// # let node = bank_fixture::bank().await;
/// let health = node.health();
/// assert!(health.live && health.ready, "{:?}", health.reasons);
/// # node.stop().await
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// Liveness: the threads run and the store works. If false, the process should be restarted.
    pub live: bool,
    /// Readiness: the node accepts messages.
    pub ready: bool,
    /// Reasons for not being live or ready, followed by notes for operators that leave the node ready: keys that
    /// cannot be loaded or fail again and again, paused workers, and the number of dead letters with one example.
    /// Bounded; an entry disappears once it is resolved.
    pub reasons: Vec<String>,
}

/// Counters of a node since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Metrics {
    /// Turns appended.
    pub turns: u64,
    /// Events recorded.
    pub events: u64,
    /// Queries answered by aggregates and sagas.
    pub answers: u64,
    /// Rejections returned.
    pub rejections: u64,
    /// Commands that were not handled because they had [expired](crate::client::SendCommand::expires_in).
    pub expired: u64,
    /// Duplicates dropped.
    pub duplicates: u64,
    /// Failed deliveries that were retried.
    pub retries: u64,
    /// Messages that became dead letters.
    pub dead_letters: u64,
    /// Commands from outside that failed for their caller alone: the handler panicked in every attempt, or requested
    /// effects that cannot be written.
    pub failed: u64,
    /// Saga steps that stay done because the dead letter of their compensating command was discarded.
    pub given_up: u64,
    /// Panics in user code.
    pub panics: u64,
    /// Background tasks of the node that ended unexpectedly. Restartable ones are started again.
    pub failed_tasks: u64,
    /// Snapshots skipped because the state could not be encoded. The key's next activation reads more of its log.
    pub snapshots_skipped: u64,
    /// Snapshots and views that could not be restored from their saved form. The log was read instead, and nothing is lost.
    pub states_unrestored: u64,
    /// Duration of the longest single call of user code, in steps of 50 ms; shorter calls count as zero.
    pub longest_call: Duration,
    /// Messages refused for now, because a bound was reached or by a [layer](crate::layer::Refusal::Busy). Each refusal counts.
    pub busy: u64,
    /// Actors activated.
    pub activations: u64,
    /// Actors passivated.
    pub passivations: u64,
    /// Keys that currently cannot be loaded.
    pub unloadable_keys: u64,
    /// Keys that currently fail again and again: the store refuses their turns or jobs, or cannot read their messages; or a layer
    /// has refused a message for more than 10 seconds. Also outboxes, and domains whose events cannot be read.
    pub stuck_keys: u64,
    /// Messages that currently wait, recorded in the shard that received them: for a key in back-off, for a key that
    /// cannot be loaded, or for a worker.
    pub deferred: u64,
    /// Gaps detected in received sequences.
    pub gaps: u64,
    /// Events dropped because their owner's log does not contain them: forged, or of another store.
    pub events_dropped: u64,
    /// Commands and replies of actors dropped because their sender's log does not contain them: forged, or of another
    /// store.
    pub commands_dropped: u64,
    /// Events and outbox entries forwarded.
    pub sent: u64,
    /// Messages of other services that were refused because the type of the message or of its reply differs there.
    pub shape_refusals: u64,
    /// Messages moved to the service's refused stream by the bridge: undecodable, or without a handler here. They
    /// stay there for an operator.
    pub refused: u64,
    /// Refused messages that were discarded: the refused stream was full, and too many messages of their sender waited.
    pub discarded: u64,
    /// Requests and notifications of other services and clients that the bridge refused or dropped: they cannot be decoded,
    /// contradict their subject, or name no inbox for the response; or too many responses waited for the connection.
    pub refused_requests: u64,
    /// Requests without a response because the broker does not permit this node to respond to their inbox.
    pub denied_responses: u64,
    /// Messages that the client of the broker dropped because this node read too slowly: at least so many.
    pub dropped_messages: u64,
    /// Messages that currently wait in the broker for this node, as the broker last reported it. Nodes that share a consumer
    /// count the same messages.
    pub lag: u64,
    /// Seconds since the connection to the broker was lost. 0 while there is one, and without a bridge.
    pub disconnected_seconds: u64,
    /// Streams and consumers of the broker that currently cannot be used, or deliver nothing. Health names them.
    pub blocked_streams: u64,
    /// Stalled broker consumers that were recreated.
    pub recreated_consumers: u64,
    /// Shards that this node owns now, by leases in a shared store.
    pub shards_owned: u64,
    /// Shards opened under a lease.
    pub shards_opened: u64,
    /// Shards handed over to other nodes.
    pub shards_handed_over: u64,
    /// Shards that other nodes have taken because the lease had run out.
    pub shards_lost: u64,
    /// Failed attempts to renew the lease.
    pub lease_failures: u64,
    /// Types of commands that currently wait for a node with a newer program.
    pub newer_commands: u64,
    /// Workers that are currently paused by their [circuit breaker](crate::WorkerOptions::circuit_breaker).
    pub open_circuits: u64,
    /// Pauses of workers by their circuit breakers.
    pub circuits_opened: u64,
    /// Singletons that currently run on this node.
    pub singletons: u64,
}
