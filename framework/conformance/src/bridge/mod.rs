//! The conformance suite of bridges: the guarantees that a node relies on, whatever transport is behind a bridge.
//!
//! An implementation provides a `Fixture` and calls `bridge_suite!`, which creates a test of each of the
//! [cases]. The suite accounts for what a bridge need not guarantee: it repeats messages that may be lost and counts effects, not
//! deliveries.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a case fails by panicking, as every test does"
)]

pub mod cases;
pub mod hostile;
pub mod node;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use self::hostile::Forgery;
use whizbang_core::bridge::Bridge;
use whizbang_core::message::{Name, ShardId};
use whizbang_wire::Packet;

/// The number of shards of every domain in the suite.
pub const SHARDS: u16 = 4;

/// A broker under test, empty at the start of each case, and the faults that the suite injects into it.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use futures_util::future::{BoxFuture, FutureExt};
/// use whizbang::bridge::Bridge;
/// use whizbang::bridge::loopback::{LoopbackBridge, LoopbackHub};
/// use whizbang::bridge::wire::Packet;
/// use whizbang::message::ShardId;
/// use whizbang::testing::bridge::{Fixture, hostile::Forgery};
///
/// #[derive(Default)]
/// struct Loopback {
///     hub: LoopbackHub,
///     bridges: Mutex<Vec<Arc<LoopbackBridge>>>,
/// }
///
/// impl Fixture for Loopback {
///     fn bridge(&self) -> BoxFuture<'_, Arc<dyn Bridge>> {
///         let bridge = Arc::new(self.hub.bridge());
///         self.bridges.lock().unwrap().push(bridge.clone());
///         async move { bridge as Arc<dyn Bridge> }.boxed()
///     }
///     fn interrupt(&self) -> BoxFuture<'_, ()> {
///         for bridge in self.bridges.lock().unwrap().iter() {
///             bridge.disconnect();
///             bridge.reconnect();
///         }
///         async {}.boxed()
///     }
///     fn inject(&self, to: ShardId, packet: Packet) -> BoxFuture<'_, ()> {
///         async move { self.hub.inject(&to.domain, packet).await.unwrap() }.boxed()
///     }
///     fn forge(&self, forgery: Forgery) -> BoxFuture<'_, ()> {
///         async move { self.hub.forge(&forgery.address, forgery.packet).await }.boxed()
///     }
///     fn refused(&self) -> BoxFuture<'_, usize> {
///         async { self.hub.refused().len() }.boxed()
///     }
/// }
///
/// whizbang::bridge_suite!(Loopback::default());
/// # fn main() {}
/// ```
///
/// The suite needs two things of a broker that no bridge offers: to break connections, and to write what no node would write. A
/// fixture does both through the broker's own client.
///
/// | a case calls | to check that |
/// |---|---|
/// | [`interrupt`](Self::interrupt) | the bridge reconnects, notifies the node, and loses nothing that was accepted |
/// | [`inject`](Self::inject) | an invalid message is refused, kept for an operator, and blocks no other |
/// | [`forge`](Self::forge) | messages of a hostile client change nothing at other nodes |
/// | [`forge_claim`](Self::forge_claim) | bytes that are not a claim end no node |
/// | [`refused`](Self::refused) | refused packets are counted |
pub trait Fixture {
    /// Returns a bridge for one more node, not attached.
    fn bridge(&self) -> BoxFuture<'_, Arc<dyn Bridge>>;

    /// Breaks the connections of all bridges and lets them reconnect.
    fn interrupt(&self) -> BoxFuture<'_, ()>;

    /// Sends a packet with any content to the owner of a shard, as if it were a command of an external caller.
    fn inject(&self, to: ShardId, packet: Packet) -> BoxFuture<'_, ()>;

    /// Publishes a packet with any content to its address, as any client of the broker can, without waiting for an acknowledgement.
    fn forge(&self, forgery: Forgery) -> BoxFuture<'_, ()>;

    /// Replaces the claim on a domain with any bytes, as any client of the broker can. The default does nothing; it suits a broker
    /// without claims, or whose clients cannot write them.
    fn forge_claim(&self, _domain: Name, _content: Bytes) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Returns the number of packets that the bridges have refused as invalid.
    fn refused(&self) -> BoxFuture<'_, usize>;
}

/// Runs one case on its own current-thread runtime and `LocalSet`, as an arbiter has.
///
/// # Panics
/// If the case fails.
pub fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, case);
}

/// Creates a test of each case of the bridge suite. The argument is an expression, in async code, that evaluates to a [`Fixture`].
#[macro_export]
macro_rules! bridge_suite {
    ($fixture:expr) => {
        $crate::bridge_suite!(@ $fixture;
            command_reaches_its_owner_only
            command_arrives_unchanged
            event_reaches_every_subscribing_service
            last_kept_event_names_its_store
            subscriber_may_start_before_its_source
            nodes_of_one_service_share_messages
            every_kind_of_request_gets_a_response
            long_response_is_truncated_and_continued
            unowned_domain_is_reported_immediately
            silent_owner_is_reported_at_the_deadline
            notification_reaches_the_concerned_nodes
            message_sent_before_detaching_arrives
            unattached_bridge_refuses_every_call
            thousand_messages_in_flight_arrive
            order_per_destination_is_preserved
            node_receives_no_more_than_its_capacity
            retried_message_is_redelivered
            node_is_notified_of_a_reconnection
            oversize_is_refused_and_maximum_size_arrives
            similar_names_do_not_collide
            invalid_message_is_refused_and_blocks_nothing
            hostile_client_does_not_affect_other_nodes
            flood_of_junk_blocks_no_message
        );
    };
    (@ $fixture:expr; $($case:ident)*) => { $(
        // The full path of the attribute keeps source checks that look for tests from taking the macro for one.
        #[::core::prelude::v1::test]
        fn $case() {
            $crate::bridge::run(async {
                let fixture = $fixture;
                $crate::bridge::cases::$case(&fixture).await;
            });
        }
    )* };
}

/// Creates a test of each case of leased shards, for a bridge that implements `Bridge::own` and `Bridge::disown`. Without them, a
/// bridge connects services whose nodes do not share their shards. The argument is that of [`bridge_suite!`](crate::bridge_suite).
#[macro_export]
macro_rules! bridge_lease_suite {
    ($fixture:expr) => {
        $crate::bridge_suite!(@ $fixture;
            owner_alone_receives_a_leased_shard
            message_waits_for_the_next_owner
            moved_shard_redelivers_nothing_acknowledged
            moves_under_load_lose_nothing
            takeovers_under_load_lose_nothing
            unacknowledged_messages_follow_the_shard
            late_calls_of_an_earlier_owner_change_nothing
            every_node_with_leased_shards_receives_events
            nodes_with_one_store_share_its_claim
        );
    };
}

/// Creates a test of each case of watches, for a bridge that implements `Bridge::watch`. With another bridge, streams of events look
/// for new ones every second. The argument is that of [`bridge_suite!`](crate::bridge_suite).
#[macro_export]
macro_rules! bridge_watch_suite {
    ($fixture:expr) => {
        $crate::bridge_suite!(@ $fixture;
            watch_reports_events_and_heads
            dropped_watch_releases_its_watcher
            watch_survives_a_reconnection
        );
    };
}
