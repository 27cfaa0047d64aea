//! A broker that behaves like JetStream, in memory, and the suite that holds it to what real servers do.
//!
//! The [model] carries the messages of the [simulated cluster](crate::testing::sim). Real servers run the same
//! [cases], with the same expectations: where the model and a server differ, a test fails.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a case fails by panicking, as every test does")]

pub mod cases;
pub mod model;
mod modelled;

pub use modelled::Modelled;

use std::time::Duration;

use futures_util::future::BoxFuture;

/// How long a case may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a stream does with a message once it is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// It is removed, and there is one consumer.
    WorkQueue,
    /// It stays, for other consumers.
    Limits,
}

/// What a stream does that has as many messages as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// It takes nothing more.
    Refuses,
    /// It forgets its oldest message for each new one.
    ForgetsItsOldest,
}

/// How a stream is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamSettings {
    /// What becomes of what is settled.
    pub retention: Retention,
    /// The most messages it has; 0 stands for no limit.
    pub max_messages: u64,
    /// What it does then.
    pub full: Full,
    /// How long an id is known after its message was stored.
    pub window: Duration,
}

impl StreamSettings {
    /// A stream without a limit, with JetStream's window of two minutes.
    pub fn of(retention: Retention) -> Self {
        Self { retention, max_messages: 0, full: Full::Refuses, window: Duration::from_secs(120) }
    }
}

/// How a consumer is set. It delivers everything, and again for ever, until it is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerSettings {
    /// How long a message may be in hand before it comes again.
    pub ack_wait: Duration,
    /// How many messages may be in hand at once.
    pub max_in_hand: usize,
}

/// What is known of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Another one for each stream that was ever made.
    pub incarnation: String,
    /// The number of the first message, or the next number if there is none; 0 if there never was one.
    pub first: u64,
    /// The number of the last message that was stored.
    pub last: u64,
    /// How many messages it has.
    pub messages: u64,
}

/// Where a message was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its number in the stream.
    pub sequence: u64,
    /// Nothing was stored: its id is in the window, for the message with this number.
    pub duplicate: bool,
}

/// Why a message was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untaken {
    /// There is no such stream.
    Missing,
    /// The stream is full.
    Full,
}

/// What is said about a message that was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is done with (`+ACK`).
    Done,
    /// It shall come again after a while, or at once (`-NAK`).
    Later(Duration),
    /// It is still in hand (`+WPI`).
    InProgress,
    /// It shall not come again (`+TERM`).
    Never,
}

/// A message that was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The stream it is from.
    pub stream: String,
    /// The consumer that has delivered it.
    pub consumer: String,
    /// Its number in the stream.
    pub sequence: u64,
    /// How often it was delivered, this time included.
    pub deliveries: u32,
    /// What it carries.
    pub payload: Vec<u8>,
    /// Where what is said about it goes, if the server wants to know.
    pub reply: String,
}

/// A broker under test, empty at the start of each case.
pub trait Broker {
    /// Whether its time is virtual.
    const VIRTUAL: bool;

    /// Makes a stream; there is none of that name.
    fn make_stream<'a>(&'a self, name: &'a str, settings: StreamSettings) -> BoxFuture<'a, ()>;
    /// Deletes a stream.
    fn delete_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()>;
    /// Empties a stream.
    fn empty_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()>;
    /// What is known of a stream; none if there is none.
    fn state<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<StreamState>>;
    /// Makes a consumer; there is none of that name.
    fn make_consumer<'a>(&'a self, stream: &'a str, name: &'a str, settings: ConsumerSettings) -> BoxFuture<'a, ()>;
    /// Deletes a consumer.
    fn delete_consumer<'a>(&'a self, stream: &'a str, name: &'a str) -> BoxFuture<'a, ()>;
    /// Publishes a message, with an id or without.
    fn publish<'a>(
        &'a self,
        stream: &'a str,
        id: Option<&'a str>,
        payload: &'a [u8],
    ) -> BoxFuture<'a, Result<Stored, Untaken>>;
    /// Takes messages until there are `most`, or `wait` is over; none if there is no such consumer.
    fn take<'a>(
        &'a self,
        stream: &'a str,
        consumer: &'a str,
        most: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Option<Vec<Delivered>>>;
    /// Says something about a message; it has arrived when this ends.
    fn say<'a>(&'a self, message: &'a Delivered, word: Word) -> BoxFuture<'a, ()>;
    /// Ends at once and starts again with what it has on its disk.
    fn restart(&self) -> BoxFuture<'_, ()>;
}

/// Runs one case on a thread of its own, in the broker's time.
pub fn run<B: Broker>(broker: impl FnOnce() -> B, case: impl AsyncFnOnce(&B)) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(B::VIRTUAL).build().expect("a runtime");
    let case = async {
        let broker = broker();
        tokio::time::timeout(PATIENCE, case(&broker)).await.expect("the case goes on for ever");
    };
    tokio::task::LocalSet::new().block_on(&runtime, case);
}

/// Makes a test of each case of the suite of brokers; the argument is an expression that makes a [`Broker`].
#[macro_export]
macro_rules! broker_suite {
    ($broker:expr) => {
        ::whizbang::broker_suite!(@ $broker;
            what_is_published_is_numbered_and_delivered_in_order
            an_id_that_is_sent_again_is_stored_once
            an_id_is_forgotten_after_the_window
            an_id_is_known_though_its_stream_was_emptied
            an_id_is_known_though_its_message_is_done_with
            an_id_is_forgotten_with_its_stream
            what_is_not_settled_in_time_comes_again
            what_is_said_to_be_in_progress_does_not_come_again
            what_comes_again_comes_behind_what_is_newer
            what_was_not_settled_in_time_comes_again_in_the_order_of_the_stream
            what_is_refused_comes_again_in_the_order_of_the_refusals
            what_is_refused_for_a_while_comes_again_after_it
            what_shall_never_come_again_does_not
            a_late_word_about_an_earlier_delivery_counts
            a_word_said_twice_counts_once
            no_more_is_in_hand_than_may_be
            what_comes_again_does_not_wait_for_an_empty_hand
            what_is_done_with_leaves_a_work_queue
            what_is_done_with_stays_for_other_consumers
            two_who_take_from_one_consumer_share
            a_consumer_made_later_begins_with_the_oldest
            a_consumer_made_anew_delivers_everything_again
            an_emptied_stream_goes_on_with_its_numbers
            what_is_in_hand_when_its_stream_is_emptied_does_not_come_again
            a_deleted_stream_takes_nothing_and_has_no_consumers
            a_stream_made_anew_is_another_one_and_begins_at_one
            a_word_about_a_lost_stream_hits_the_same_number_of_the_new_one
            a_full_work_queue_refuses_until_something_is_done_with
            a_full_stream_forgets_its_oldest
            what_was_stored_is_there_after_a_restart
        );
    };
    (@ $broker:expr; $($case:ident)*) => { $(
        // By its path, so that checks of this repository that look for tests do not take the macro for one.
        #[::core::prelude::v1::test]
        fn $case() {
            $crate::testing::broker::run(|| $broker, async |broker| {
                $crate::testing::broker::cases::$case(broker).await;
            });
        }
    )* };
}
