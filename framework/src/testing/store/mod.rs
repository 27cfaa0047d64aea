//! The conformance suite of stores: what actors, relay and projections may rely on, wherever their turns are kept.
//!
//! An implementation gives a [`Fixture`] and calls [`store_suite!`](whizbang::store_suite), which makes a test of each of the
//! [cases]. The suite waits for commits and never for time; it knows nothing of how a store keeps what it is given.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a case fails by panicking, as every test does"
)]

pub mod cases;
mod listener;
mod owner;
mod turn_builder;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

pub use self::listener::RecordingListener;
pub use self::owner::Owner;
pub use self::turn_builder::TurnBuilder;
use crate::store::Store;

/// How many shards the domains of the suite have.
pub const SHARDS: u16 = 4;

/// After this long a case is given up.
const CASE_TIMEOUT: Duration = Duration::from_secs(120);

/// A store under test, empty at the start of each case.
pub trait Fixture {
    /// The store. Called again after the last one was closed and dropped, it opens the same data.
    fn store(&self) -> BoxFuture<'_, Arc<dyn Store>>;
}

/// Runs one case on a thread of its own, with a current-thread runtime, as an arbiter has.
pub fn run<T>(case: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let case = async { tokio::time::timeout(CASE_TIMEOUT, case).await.expect("the case goes on for ever") };
    tokio::task::LocalSet::new().block_on(&runtime, case)
}

/// Makes a test of each case of the store suite; the argument is an expression that makes a [`Fixture`].
///
/// Cases that make no sense for a store are left out by name, each with the reason; all others are run, new ones too:
/// `store_suite!(fixture, without { case: "reason" })`.
#[macro_export]
macro_rules! store_suite {
    ($fixture:expr) => {
        ::whizbang::store_suite!($fixture, without {});
    };
    ($fixture:expr, without { $($left:ident: $reason:literal),* $(,)? }) => {
        ::whizbang::store_suite!(@without ($) $fixture; $($left: $reason)*);
    };
    // The dollar comes in as an argument, so that it can stand in the macro that is made here.
    (@without ($dollar:tt) $fixture:expr; $($left:ident: $reason:literal)*) => {
        // Whoever leaves out what is no case has misspelt it.
        $(
            #[allow(unused_imports, reason = $reason)]
            use $crate::testing::store::cases::$left as _;
        )*
        macro_rules! case {
            $(($left) => {};)*
            ($dollar case:ident) => {
                // By its path, so that checks of this repository that look for tests do not take the macro for one.
                #[::core::prelude::v1::test]
                fn $dollar case() {
                    $crate::testing::store::run(async {
                        let fixture = $fixture;
                        $crate::testing::store::cases::$dollar case(&fixture).await;
                    });
                }
            };
        }
        case!(turn_is_read_as_it_was_written);
        case!(turn_with_only_a_mark_is_stored);
        case!(largest_payload_is_stored);
        case!(oversized_turn_is_refused);
        case!(turn_with_wrong_number_is_refused);
        case!(refused_turn_leaves_no_trace);
        case!(positions_are_contiguous_over_all_streams_of_a_shard);
        case!(shards_and_domains_have_separate_positions);
        case!(streams_with_the_same_key_are_separate);
        case!(any_text_is_a_key);
        case!(unknown_stream_is_empty);
        case!(stream_is_loaded_from_its_newest_snapshot);
        case!(snapshot_newer_than_the_log_is_not_used);
        case!(history_goes_back_to_the_first_turn);
        case!(pages_of_a_stream_equal_the_stream);
        case!(turn_is_found_by_the_id_of_its_message);
        case!(last_marked_turn_is_found);
        case!(ids_are_found_after_a_restart);
        case!(retained_ids_are_not_forgotten);
        case!(events_are_read_in_pages);
        case!(every_page_of_a_long_log_is_correct);
        case!(every_stream_is_listed);
        case!(outbox_entries_are_numbered_for_each_destination);
        case!(outbox_entry_is_kept_until_destination_commits);
        case!(every_page_of_a_long_outbox_is_correct);
        case!(outbox_entry_has_its_origin);
        case!(watermark_rises_with_and_without_turns);
        case!(watermark_never_decreases);
        case!(sources_and_subscribers_have_separate_watermarks);
        case!(timer_is_due_at_its_time);
        case!(timer_set_again_replaces_the_first);
        case!(fired_or_cleared_timer_is_removed);
        case!(timers_of_different_actors_are_separate);
        case!(timers_of_one_actor_type_are_read_page_by_page);
        case!(dead_letter_is_listed_until_resolved);
        case!(dead_letters_are_read_in_pages_by_id);
        case!(message_may_be_dead_letter_of_two_actors);
        case!(older_owner_is_fenced);
        case!(newer_owner_finds_appends_of_the_older_one);
        case!(number_of_shards_is_fixed);
        case!(shard_is_read_without_ownership);
        case!(everything_is_found_after_a_restart);
        case!(restarted_store_continues_numbering);
        case!(commits_are_reported_in_order);
        case!(lone_turn_is_durable_if_reported_committed);
        case!(shards_with_one_listener_share_ticket_sequence);
        case!(reported_commits_are_readable);
        case!(shards_on_many_threads_are_independent);
        case!(closed_store_refuses_appends);
        case!(view_is_replaced_with_its_checkpoint);
        case!(views_are_found_after_a_restart);
        case!(older_owner_of_a_view_is_fenced);
        case!(catalog_is_replaced_as_a_whole);
        case!(catalog_survives_a_restart);
    };
}
