//! An in-memory model of JetStream, and the suite that compares it with real servers.
//!
//! The [model] carries the messages of the simulated cluster. Real servers run the same [cases] with the same
//! expectations, so a difference between model and server fails a test.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a case fails by panicking, as every test does")]

pub mod cases;
pub mod model;
mod model_broker;
mod steps;

pub use model_broker::ModelBroker;

use std::time::Duration;

use futures_util::future::BoxFuture;

/// The time limit of a case.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

/// The effect of an acknowledgement on a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// The message is removed. The stream has one consumer.
    WorkQueue,
    /// The message is kept for other consumers.
    Limits,
}

/// The behavior of a full stream on a new message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// The new message is rejected.
    New,
    /// The oldest message is dropped.
    Old,
}

/// The settings of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamSettings {
    /// The effect of acknowledgements.
    pub retention: Retention,
    /// The maximum number of messages; 0 means unlimited.
    pub max_messages: u64,
    /// The behavior at the maximum.
    pub discard: Discard,
    /// The time for which the id of a stored message is known.
    pub duplicate_window: Duration,
}

impl StreamSettings {
    /// Returns settings without a limit, with JetStream's duplicate window of two minutes.
    pub fn of(retention: Retention) -> Self {
        Self { retention, max_messages: 0, discard: Discard::New, duplicate_window: Duration::from_secs(120) }
    }
}

/// The settings of a consumer. It delivers every message, and redelivers it without limit until it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerSettings {
    /// The time after which an unacknowledged message is redelivered.
    pub ack_wait: Duration,
    /// The maximum number of unacknowledged messages.
    pub max_ack_pending: usize,
}

/// The state of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerStream {
    /// The identity of the stream, distinct for each stream that was ever created.
    pub incarnation: String,
    /// The sequence of the first message, or the next sequence if there is none; 0 if there never was a message.
    pub first: u64,
    /// The sequence of the last stored message.
    pub last: u64,
    /// The number of messages.
    pub messages: u64,
}

/// The acknowledgement of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishAck {
    /// The sequence in the stream.
    pub sequence: u64,
    /// True if nothing was stored: the id is in the window and belongs to the message with this sequence.
    pub duplicate: bool,
}

/// The reason for which a message was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// The stream does not exist.
    NoStream,
    /// The stream is full.
    Full,
}

/// The acknowledgement of a delivered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledgement {
    /// The message is complete (`+ACK`).
    Ack,
    /// The message should be redelivered after a delay, which may be zero (`-NAK`).
    Nak(Duration),
    /// The message is still being handled (`+WPI`).
    InProgress,
    /// The message must not be redelivered (`+TERM`).
    Term,
}

/// A delivered message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedMessage {
    /// The stream of the message.
    pub stream: String,
    /// The consumer that delivered it.
    pub consumer: String,
    /// The sequence in the stream.
    pub sequence: u64,
    /// The number of deliveries, including this one.
    pub deliveries: u32,
    /// The payload.
    pub payload: Vec<u8>,
    /// The subject of the acknowledgement, if the server uses one.
    pub reply: String,
}

/// A broker under test, empty at the start of each case.
///
/// ```
/// use whizbang::testing::broker::ModelBroker;
///
/// // A test of each case, here for the simulated broker.
/// whizbang::broker_suite!(ModelBroker::default());
/// # fn main() {}
/// ```
pub trait Broker {
    /// True if the time of the broker is virtual.
    const VIRTUAL_TIME: bool;

    /// Creates a stream of an unused name.
    fn create_stream<'a>(&'a self, name: &'a str, settings: StreamSettings) -> BoxFuture<'a, ()>;
    /// Deletes a stream.
    fn delete_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()>;
    /// Removes all messages of a stream.
    fn purge_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()>;
    /// Returns the state of a stream; `None` if it does not exist.
    fn state<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<BrokerStream>>;
    /// Creates a consumer of an unused name.
    fn create_consumer<'a>(&'a self, stream: &'a str, name: &'a str, settings: ConsumerSettings) -> BoxFuture<'a, ()>;
    /// Deletes a consumer.
    fn delete_consumer<'a>(&'a self, stream: &'a str, name: &'a str) -> BoxFuture<'a, ()>;
    /// Publishes a message, with or without an id.
    fn publish<'a>(
        &'a self,
        stream: &'a str,
        id: Option<&'a str>,
        payload: &'a [u8],
    ) -> BoxFuture<'a, Result<PublishAck, PublishError>>;
    /// Pulls until `count` messages have arrived or `wait` is over; `None` if the consumer does not exist.
    fn pull<'a>(
        &'a self,
        stream: &'a str,
        consumer: &'a str,
        count: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Option<Vec<ReceivedMessage>>>;
    /// Acknowledges a message; the acknowledgement has arrived when the future completes.
    fn acknowledge<'a>(&'a self, message: &'a ReceivedMessage, acknowledgement: Acknowledgement) -> BoxFuture<'a, ()>;
    /// Kills the broker and starts it again with the content of its disk.
    fn restart(&self) -> BoxFuture<'_, ()>;
}

/// Runs one case on its own runtime, in the time of the broker.
pub fn run<B: Broker>(broker: impl FnOnce() -> B, case: impl AsyncFnOnce(&B)) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(B::VIRTUAL_TIME).build().expect("a runtime");
    let case = async {
        let broker = broker();
        tokio::time::timeout(CASE_TIMEOUT, case(&broker)).await.expect("the case does not end");
    };
    tokio::task::LocalSet::new().block_on(&runtime, case);
}

/// Creates a test of each case of the broker suite. The argument is an expression that evaluates to a [`Broker`].
#[macro_export]
macro_rules! broker_suite {
    ($broker:expr) => {
        $crate::broker_suite!(@ $broker;
            messages_are_numbered_and_delivered_in_order
            repeated_id_is_stored_once
            id_is_forgotten_after_the_window
            id_survives_a_purge_of_its_stream
            id_survives_the_acknowledgement_of_its_message
            id_is_forgotten_with_its_stream
            unacknowledged_message_is_redelivered
            message_in_progress_is_not_redelivered
            redelivered_message_is_overtaken
            expired_messages_keep_stream_order
            rejected_messages_keep_rejection_order
            delayed_redelivery_waits_for_its_delay
            terminated_message_is_not_redelivered
            late_acknowledgement_of_an_earlier_delivery_counts
            repeated_acknowledgement_counts_once
            unacknowledged_messages_are_limited
            redelivery_ignores_the_limit
            acknowledged_message_leaves_a_work_queue
            acknowledged_message_stays_for_other_consumers
            pulls_of_one_consumer_share_messages
            new_consumer_starts_at_the_oldest_message
            recreated_consumer_redelivers_everything
            purged_stream_continues_its_sequence
            purged_message_is_not_redelivered
            deleted_stream_has_no_messages_and_no_consumers
            recreated_stream_restarts_its_sequence
            stale_acknowledgement_hits_the_recreated_stream
            full_work_queue_rejects_until_an_acknowledgement
            full_stream_drops_its_oldest_message
            stored_messages_survive_a_restart
        );
    };
    (@ $broker:expr; $($case:ident)*) => { $(
        // The full path of the attribute keeps source checks that look for tests from taking the macro for one.
        #[::core::prelude::v1::test]
        fn $case() {
            $crate::broker::run(|| $broker, async |broker| {
                $crate::broker::cases::$case(broker).await;
            });
        }
    )* };
}
