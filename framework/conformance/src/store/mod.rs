//! The conformance suite of stores: the guarantees on which actors, relay and projections rely.
//!
//! An implementation provides a `Fixture` and calls `store_suite!`, which creates a test for
//! each of the [cases]. The suite waits for commits and never for time. It does not depend on how a store keeps its
//! data.

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
use whizbang_core::store::Store;

/// The number of shards of the suite's domains.
pub const SHARDS: u16 = 4;

/// The time limit of a case.
const CASE_TIMEOUT: Duration = Duration::from_secs(120);

/// A store under test, empty at the start of each case.
///
/// ```
/// use std::sync::Arc;
/// use futures_util::future::{BoxFuture, ready};
/// use whizbang::store::{Store, memory::MemoryStore};
/// use whizbang::testing::store::Fixture;
///
/// struct Memory(MemoryStore);
///
/// impl Fixture for Memory {
///     fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
///         Box::pin(ready(Arc::new(self.0.clone()) as Arc<dyn Store>))
///     }
/// }
///
/// whizbang::store_suite!(Memory(MemoryStore::new()));
/// # fn main() {}
/// ```
///
/// A fixture is created for each case, so cases run at the same time. Use a folder or a schema of its own for each, and keep it
/// in the fixture, so that it is removed with it.
///
/// A case that fails names the guarantee in its function name. Read its source: each is a dozen lines that use the trait as the
/// runtime does.
pub trait Fixture {
    /// Opens the store. If it is called again after the last store was closed and dropped, it opens the same data.
    ///
    /// Cases about restarts call it twice. A store in memory therefore returns a clone of the same store.
    ///
    /// The store must be able to run beside those of other cases.
    fn store(&self) -> BoxFuture<'_, Arc<dyn Store>>;
}

/// A store under test that several nodes share.
///
/// It is needed for stores whose [`leases`](whizbang_core::store::Store::leases) are not `None`. The two instances may be in one
/// process, but must not share anything except the data.
///
/// ```
/// use std::sync::Arc;
/// use futures_util::future::{BoxFuture, ready};
/// use whizbang::clock::Clock;
/// use whizbang::store::{Store, memory::MemoryStore};
/// use whizbang::testing::store::{Fixture, SharedFixture};
///
/// struct Shared(MemoryStore);
///
/// impl Fixture for Shared {
///     fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
///         Box::pin(ready(Arc::new(self.0.clone()) as Arc<dyn Store>))
///     }
/// }
///
/// impl SharedFixture for Shared {
///     fn second(&self) -> BoxFuture<'_, Arc<dyn Store>> {
///         self.store()
///     }
/// }
///
/// whizbang::lease_suite!(Shared(MemoryStore::shared(&Clock::system())));
/// # fn main() {}
/// ```
pub trait SharedFixture: Fixture {
    /// Opens the store as another node does: a second instance over the same data, beside the first.
    fn second(&self) -> BoxFuture<'_, Arc<dyn Store>>;
}

/// Runs a case to completion on the calling thread, with a current-thread runtime and a `LocalSet`.
///
/// A store may call its listener from other threads: the case waits for it, at most 120 s.
///
/// # Panics
/// If the case fails or does not end.
pub fn run<T>(case: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let case = async { tokio::time::timeout(CASE_TIMEOUT, case).await.expect("the case does not end") };
    tokio::task::LocalSet::new().block_on(&runtime, case)
}

/// Creates a test for each case of the lease suite. The argument is an expression that creates a [`SharedFixture`]. A store
/// with leases passes this suite and [`store_suite!`](crate::store_suite).
#[macro_export]
macro_rules! lease_suite {
    ($fixture:expr) => {
        $crate::lease_suite!(@cases $fixture;
            renewal_returns_members_and_owners
            renewal_keeps_a_member_alive
            expired_lease_ends_by_the_clock_of_the_store
            expired_member_is_renewed_with_what_it_still_owns
            live_owner_keeps_its_shard
            expired_owner_is_replaced_and_fenced
            pending_append_of_expired_owner_is_found_or_refused
            fenced_shard_does_not_stop_the_others
            fenced_owner_leaves_snapshots_and_watermarks_alone
            released_shard_is_free
            stale_release_does_nothing
            member_that_leaves_releases_everything
            member_reopens_its_shard
            member_without_a_lease_opens_nothing
            one_of_two_simultaneous_openings_wins
            members_of_other_services_are_not_listed
            wrong_number_of_shards_changes_no_owner
            closed_instance_leaves_the_other_open
            starts_on_two_instances_are_all_recorded
            limits_of_members_are_listed
        );
    };
    (@cases $fixture:expr; $($case:ident)*) => {$(
        #[::core::prelude::v1::test]
        fn $case() {
            $crate::store::run(async {
                let fixture = $fixture;
                $crate::store::cases::leases::$case(&fixture).await;
            });
        }
    )*};
}

/// Creates a test for each case of the store suite. The argument is an expression that creates a [`Fixture`].
///
/// Cases that do not apply to a store are excluded by name, each with a reason. All others are run, including cases
/// added later: `store_suite!(fixture, without { case: "reason" })`.
#[macro_export]
macro_rules! store_suite {
    ($fixture:expr) => {
        $crate::store_suite!($fixture, without {});
    };
    ($fixture:expr, without { $($left:ident: $reason:literal),* $(,)? }) => {
        $crate::store_suite!(@without ($) $fixture; $($left: $reason)*);
    };
    // The dollar sign is passed as an argument, so that it can be used in the inner macro.
    (@without ($dollar:tt) $fixture:expr; $($left:ident: $reason:literal)*) => {
        // Fails to compile if an excluded case does not exist.
        $(
            #[allow(unused_imports, reason = $reason)]
            use $crate::store::cases::$left as _;
        )*
        macro_rules! case {
            $(($left) => {};)*
            ($dollar case:ident) => {
                // Written with its path, so that checks of this repository that search for tests do not count the
                // macro.
                #[::core::prelude::v1::test]
                fn $dollar case() {
                    $crate::store::run(async {
                        let fixture = $fixture;
                        $crate::store::cases::$dollar case(&fixture).await;
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
        case!(outbox_entry_keeps_the_key_of_its_origin);
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
        case!(pending_append_is_found_or_refused);
        case!(number_of_shards_is_fixed);
        case!(shard_is_read_without_ownership);
        case!(everything_is_found_after_a_restart);
        case!(restarted_store_continues_numbering);
        case!(commits_are_reported_in_order);
        case!(lone_turn_is_durable_if_reported_committed);
        case!(shards_with_one_listener_share_ticket_sequence);
        case!(tickets_of_a_listener_rise_after_its_shards_closed);
        case!(reported_commits_are_readable);
        case!(shards_on_many_threads_are_independent);
        case!(closed_store_refuses_appends);
        case!(view_is_replaced_with_its_checkpoint);
        case!(views_are_found_after_a_restart);
        case!(older_owner_of_a_view_is_fenced);
        case!(catalog_is_replaced_as_a_whole);
        case!(catalog_survives_a_restart);
        case!(changed_catalog_is_not_replaced);
        case!(changed_identity_is_not_replaced);
        case!(starts_at_the_same_time_are_all_recorded);
    };
}
