//! The conformance suite of bridges: what a node may rely on, whatever carries its messages.
//!
//! An implementation gives a [`Fixture`] and calls [`bridge_suite!`](whizbang::bridge_suite), which makes a test of each of the
//! [cases]. The suite knows what a bridge need not promise: it repeats what may get lost, and counts effects, not deliveries.

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

use futures_util::future::BoxFuture;

use self::hostile::Forgery;
use crate::bridge::Bridge;
use crate::bridge::wire::Packet;
use crate::message::ShardId;

/// How many shards the domains of the suite have.
pub const SHARDS: u16 = 4;

/// A broker under test, empty at the start of each case, and the ways to trouble it.
pub trait Fixture {
    /// A bridge for one more node, not attached.
    fn bridge(&self) -> BoxFuture<'_, Arc<dyn Bridge>>;

    /// Breaks the connections of all bridges and lets them come back.
    fn interrupt(&self) -> BoxFuture<'_, ()>;

    /// Puts a packet before the owner of a shard as if it were a command from outside, whatever is in it.
    fn inject(&self, to: ShardId, packet: Packet) -> BoxFuture<'_, ()>;

    /// Writes a packet to its place, whatever is in it, as any program that reaches the broker can; waits for no acknowledgement.
    fn forge(&self, forgery: Forgery) -> BoxFuture<'_, ()>;

    /// How many packets the bridges have put aside because they were no messages.
    fn refused(&self) -> BoxFuture<'_, usize>;
}

/// Runs one case on a thread of its own: a current-thread runtime and a `LocalSet`, as an arbiter has.
pub fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, case);
}

/// Makes a test of each case of the bridge suite; the argument is an expression that makes a [`Fixture`], in async code.
#[macro_export]
macro_rules! bridge_suite {
    ($fixture:expr) => {
        ::whizbang::bridge_suite!(@ $fixture;
            a_command_reaches_its_owner_and_nobody_else
            a_command_arrives_as_it_was_sent
            an_event_reaches_every_subscribing_service
            a_subscriber_may_start_before_its_source
            nodes_of_one_service_share_the_work
            every_kind_of_question_is_answered
            a_long_answer_is_cut_and_continued
            a_domain_that_nobody_owns_is_said_at_once
            an_owner_that_does_not_answer_is_said_at_the_deadline
            tidings_reach_those_they_concern
            what_was_sent_before_detaching_arrives
            a_bridge_that_is_not_attached_refuses
            a_thousand_in_flight_arrive
            order_is_kept_towards_each_destination
            a_node_is_never_given_more_than_it_has_room_for
            what_was_not_taken_comes_again
            a_node_is_told_when_its_connection_is_back
            what_is_too_large_is_refused_and_the_largest_arrives
            names_that_look_alike_stay_apart
            what_is_no_message_is_put_aside_and_blocks_nothing
            a_hostile_client_changes_nothing_for_others
            a_flood_of_junk_holds_up_no_message
        );
    };
    (@ $fixture:expr; $($case:ident)*) => { $(
        // By its path, so that checks of this repository that look for tests do not take the macro for one.
        #[::core::prelude::v1::test]
        fn $case() {
            $crate::testing::bridge::run(async {
                let fixture = $fixture;
                $crate::testing::bridge::cases::$case(&fixture).await;
            });
        }
    )* };
}
