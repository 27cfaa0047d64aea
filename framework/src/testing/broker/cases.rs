//! The cases, each a sentence about what JetStream does with messages.

use std::time::Duration;

use super::{Broker, ConsumerSettings, Delivered, Full, Retention, Stored, StreamSettings, StreamState, Untaken, Word};

/// How long a case waits for what must come.
const SOON: Duration = Duration::from_secs(10);
/// How long a case looks whether something comes that must not.
const A_MOMENT: Duration = Duration::from_millis(200);
/// The ack wait of consumers from which something shall come again.
const SHORT: Duration = Duration::from_millis(500);
/// The ack wait of the others.
const LONG: Duration = Duration::from_secs(60);

fn limits() -> StreamSettings {
    StreamSettings::of(Retention::Limits)
}

fn work_queue() -> StreamSettings {
    StreamSettings::of(Retention::WorkQueue)
}

/// A stream `s` with a consumer `c` and messages `1` to `count`.
async fn begin(broker: &impl Broker, settings: StreamSettings, ack_wait: Duration, count: u64) {
    broker.make_stream("s", settings).await;
    broker.make_consumer("s", "c", ConsumerSettings { ack_wait, max_in_hand: 100 }).await;
    for number in 1..=count {
        assert_eq!(publish(broker, None, number).await, new(number));
    }
}

async fn publish(broker: &impl Broker, id: Option<&str>, number: u64) -> Stored {
    broker.publish("s", id, number.to_string().as_bytes()).await.expect("is stored")
}

fn new(sequence: u64) -> Stored {
    Stored { sequence, duplicate: false }
}

fn known(sequence: u64) -> Stored {
    Stored { sequence, duplicate: true }
}

/// So many messages, which must come.
async fn take(broker: &impl Broker, most: usize) -> Vec<Delivered> {
    let taken = broker.take("s", "c", most, SOON).await.expect("the consumer is there");
    assert_eq!(taken.len(), most, "{taken:?}");
    taken
}

async fn one(broker: &impl Broker) -> Delivered {
    take(broker, 1).await.remove(0)
}

/// Nothing comes.
async fn nothing(broker: &impl Broker) {
    let taken = broker.take("s", "c", 1, A_MOMENT).await.expect("the consumer is there");
    assert_eq!(taken, []);
}

async fn state(broker: &impl Broker) -> StreamState {
    broker.state("s").await.expect("the stream is there")
}

fn seen(messages: &[Delivered]) -> Vec<(u64, u32)> {
    messages.iter().map(|message| (message.sequence, message.deliveries)).collect()
}

/// Numbers 1, 2, 3 … are given, and messages come as they were sent.
pub async fn what_is_published_is_numbered_and_delivered_in_order(broker: &impl Broker) {
    begin(broker, limits(), LONG, 5).await;
    let taken = take(broker, 5).await;
    assert_eq!(seen(&taken), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
    assert!(taken.iter().all(|message| message.payload == message.sequence.to_string().into_bytes()), "{taken:?}");
    let StreamState { first, last, messages, .. } = state(broker).await;
    assert_eq!((first, last, messages), (1, 5, 5));
    nothing(broker).await;
}

/// Within the window a second message of one id is acknowledged with the number of the first, whatever is in it.
pub async fn an_id_that_is_sent_again_is_stored_once(broker: &impl Broker) {
    begin(broker, limits(), LONG, 1).await;
    assert_eq!(publish(broker, Some("a"), 2).await, new(2));
    assert_eq!(publish(broker, Some("b"), 3).await, new(3));
    assert_eq!(publish(broker, Some("a"), 4).await, known(2));
    assert_eq!(publish(broker, None, 4).await, new(4));
    assert_eq!(seen(&take(broker, 4).await), [(1, 1), (2, 1), (3, 1), (4, 1)]);
    nothing(broker).await;
}

/// After the window the same id is stored again. Sending it again does not make the window longer.
pub async fn an_id_is_forgotten_after_the_window(broker: &impl Broker) {
    let window = Duration::from_millis(600);
    begin(broker, StreamSettings { window, ..limits() }, LONG, 0).await;
    let begun = crate::clock::instant();
    assert_eq!(publish(broker, Some("a"), 1).await, new(1));
    assert_eq!(publish(broker, Some("a"), 1).await, known(1));
    let again = loop {
        let stored = publish(broker, Some("a"), 1).await;
        if !stored.duplicate {
            break stored;
        }
        assert!(begun.elapsed() < SOON, "the window never ends");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(again, new(2));
    assert!(begun.elapsed() >= window - Duration::from_millis(50), "{:?}", begun.elapsed());
}

/// What was in a stream before it was emptied is a duplicate within the window, and is nowhere: the false duplicate.
pub async fn an_id_is_known_though_its_stream_was_emptied(broker: &impl Broker) {
    begin(broker, limits(), LONG, 0).await;
    assert_eq!(publish(broker, Some("a"), 1).await, new(1));
    broker.empty_stream("s").await;
    assert_eq!(publish(broker, Some("a"), 1).await, known(1));
    nothing(broker).await;
    assert_eq!(publish(broker, Some("b"), 2).await, new(2));
}

/// In a work queue a message that is done with is gone, and its id is known all the same.
pub async fn an_id_is_known_though_its_message_is_done_with(broker: &impl Broker) {
    begin(broker, work_queue(), LONG, 0).await;
    assert_eq!(publish(broker, Some("a"), 1).await, new(1));
    broker.say(&one(broker).await, Word::Done).await;
    assert_eq!(publish(broker, Some("a"), 1).await, known(1));
    nothing(broker).await;
}

/// A stream made anew knows no ids.
pub async fn an_id_is_forgotten_with_its_stream(broker: &impl Broker) {
    begin(broker, limits(), LONG, 0).await;
    assert_eq!(publish(broker, Some("a"), 1).await, new(1));
    broker.delete_stream("s").await;
    broker.make_stream("s", limits()).await;
    assert_eq!(publish(broker, Some("a"), 1).await, new(1));
}

/// Nobody says anything, and after the ack wait the message is there again, not before; and again.
pub async fn what_is_not_settled_in_time_comes_again(broker: &impl Broker) {
    begin(broker, work_queue(), SHORT, 1).await;
    assert_eq!(seen(&take(broker, 1).await), [(1, 1)]);
    nothing(broker).await;
    assert_eq!(seen(&take(broker, 1).await), [(1, 2)]);
    let third = one(broker).await;
    assert_eq!(third.deliveries, 3);
    broker.say(&third, Word::Done).await;
    let later = broker.take("s", "c", 1, 2 * SHORT).await.expect("the consumer is there");
    assert_eq!(later, []);
}

/// Whoever needs longer says so.
pub async fn what_is_said_to_be_in_progress_does_not_come_again(broker: &impl Broker) {
    begin(broker, work_queue(), SHORT, 1).await;
    let message = one(broker).await;
    for _ in 0..4 {
        nothing(broker).await;
        broker.say(&message, Word::InProgress).await;
    }
    assert_eq!(seen(&take(broker, 1).await), [(1, 2)]);
}

/// Messages overtake each other when one of them comes again.
pub async fn what_comes_again_comes_behind_what_is_newer(broker: &impl Broker) {
    begin(broker, limits(), SHORT, 3).await;
    let taken = take(broker, 3).await;
    broker.say(&taken[1], Word::Done).await;
    broker.say(&taken[2], Word::Done).await;
    publish(broker, None, 4).await;
    let fourth = one(broker).await;
    assert_eq!((fourth.sequence, fourth.deliveries), (4, 1));
    broker.say(&fourth, Word::Done).await;
    assert_eq!(seen(&take(broker, 1).await), [(1, 2)]);
}

/// What is due at once comes as it stands in the stream.
pub async fn what_was_not_settled_in_time_comes_again_in_the_order_of_the_stream(broker: &impl Broker) {
    begin(broker, limits(), SHORT, 4).await;
    let taken = take(broker, 4).await;
    broker.say(&taken[1], Word::Done).await;
    let mut again = take(broker, 3).await;
    again.sort_by_key(|message| message.sequence);
    assert_eq!(seen(&again), [(1, 2), (3, 2), (4, 2)]);
}

/// What is refused at once comes again at once.
pub async fn what_is_refused_comes_again_in_the_order_of_the_refusals(broker: &impl Broker) {
    begin(broker, limits(), LONG, 4).await;
    let taken = take(broker, 3).await;
    for at in [2, 0] {
        broker.say(&taken[at], Word::Later(Duration::ZERO)).await;
    }
    // What comes again goes before what is new.
    assert_eq!(seen(&take(broker, 3).await), [(3, 2), (1, 2), (4, 1)]);
}

/// A message can be asked for again after a while; others go on meanwhile.
pub async fn what_is_refused_for_a_while_comes_again_after_it(broker: &impl Broker) {
    begin(broker, limits(), LONG, 2).await;
    let first = one(broker).await;
    let begun = crate::clock::instant();
    broker.say(&first, Word::Later(SHORT)).await;
    assert_eq!(seen(&take(broker, 1).await), [(2, 1)]);
    nothing(broker).await;
    assert_eq!(seen(&take(broker, 1).await), [(1, 2)]);
    assert!(begun.elapsed() >= SHORT - Duration::from_millis(50), "{:?}", begun.elapsed());
}

/// What was ended is done with.
pub async fn what_shall_never_come_again_does_not(broker: &impl Broker) {
    begin(broker, work_queue(), SHORT, 1).await;
    broker.say(&one(broker).await, Word::Never).await;
    let later = broker.take("s", "c", 1, 2 * SHORT).await.expect("the consumer is there");
    assert_eq!(later, []);
    assert_eq!(state(broker).await.messages, 0);
}

/// Whoever was slow is heard all the same.
pub async fn a_late_word_about_an_earlier_delivery_counts(broker: &impl Broker) {
    begin(broker, work_queue(), SHORT, 1).await;
    let first = one(broker).await;
    assert_eq!(one(broker).await.deliveries, 2);
    broker.say(&first, Word::Done).await;
    assert_eq!(state(broker).await.messages, 0);
    let later = broker.take("s", "c", 1, 2 * SHORT).await.expect("the consumer is there");
    assert_eq!(later, []);
}

/// The second acknowledgement of one message does nothing.
pub async fn a_word_said_twice_counts_once(broker: &impl Broker) {
    begin(broker, work_queue(), LONG, 2).await;
    let first = one(broker).await;
    broker.say(&first, Word::Done).await;
    broker.say(&first, Word::Done).await;
    broker.say(&first, Word::Later(Duration::ZERO)).await;
    assert_eq!(seen(&take(broker, 1).await), [(2, 1)]);
    nothing(broker).await;
}

/// As soon as something is settled there is room for something else.
pub async fn no_more_is_in_hand_than_may_be(broker: &impl Broker) {
    broker.make_stream("s", limits()).await;
    broker.make_consumer("s", "c", ConsumerSettings { ack_wait: LONG, max_in_hand: 2 }).await;
    for number in 1..=4 {
        publish(broker, None, number).await;
    }
    let taken = take(broker, 2).await;
    nothing(broker).await;
    broker.say(&taken[1], Word::Done).await;
    assert_eq!(seen(&take(broker, 1).await), [(3, 1)]);
    nothing(broker).await;
    broker.say(&taken[0], Word::Never).await;
    assert_eq!(seen(&take(broker, 1).await), [(4, 1)]);
}

/// A full hand holds up what is new, not what was there before.
pub async fn what_comes_again_does_not_wait_for_an_empty_hand(broker: &impl Broker) {
    broker.make_stream("s", limits()).await;
    broker.make_consumer("s", "c", ConsumerSettings { ack_wait: LONG, max_in_hand: 2 }).await;
    for number in 1..=3 {
        publish(broker, None, number).await;
    }
    let taken = take(broker, 2).await;
    broker.say(&taken[1], Word::Later(Duration::ZERO)).await;
    assert_eq!(seen(&take(broker, 1).await), [(2, 2)]);
    nothing(broker).await;
}

/// Whatever is settled is gone, and the numbers go on.
pub async fn what_is_done_with_leaves_a_work_queue(broker: &impl Broker) {
    begin(broker, work_queue(), LONG, 3).await;
    let taken = take(broker, 3).await;
    broker.say(&taken[1], Word::Done).await;
    let StreamState { first, last, messages, .. } = state(broker).await;
    assert_eq!((first, last, messages), (1, 3, 2));
    broker.say(&taken[0], Word::Done).await;
    broker.say(&taken[2], Word::Done).await;
    let StreamState { last, messages, .. } = state(broker).await;
    assert_eq!((last, messages), (3, 0));
    assert_eq!(publish(broker, None, 4).await, new(4));
}

/// Each consumer gets everything.
pub async fn what_is_done_with_stays_for_other_consumers(broker: &impl Broker) {
    begin(broker, limits(), LONG, 2).await;
    for message in take(broker, 2).await {
        broker.say(&message, Word::Done).await;
    }
    broker.make_consumer("s", "d", ConsumerSettings { ack_wait: LONG, max_in_hand: 100 }).await;
    let other = broker.take("s", "d", 2, SOON).await.expect("the consumer is there");
    assert_eq!(seen(&other), [(1, 1), (2, 1)]);
    assert_eq!(state(broker).await.messages, 2);
    nothing(broker).await;
}

/// Of two nodes of one service each message comes to one.
pub async fn two_who_take_from_one_consumer_share(broker: &impl Broker) {
    begin(broker, limits(), LONG, 6).await;
    let mut taken = take(broker, 2).await;
    taken.extend(take(broker, 3).await);
    taken.extend(take(broker, 1).await);
    assert_eq!(seen(&taken), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]);
}

/// What was published before is history that it gets.
pub async fn a_consumer_made_later_begins_with_the_oldest(broker: &impl Broker) {
    broker.make_stream("s", limits()).await;
    for number in 1..=3 {
        publish(broker, None, number).await;
    }
    broker.make_consumer("s", "c", ConsumerSettings { ack_wait: LONG, max_in_hand: 100 }).await;
    assert_eq!(seen(&take(broker, 3).await), [(1, 1), (2, 1), (3, 1)]);
}

/// A consumer that was deleted has told nobody what was settled.
pub async fn a_consumer_made_anew_delivers_everything_again(broker: &impl Broker) {
    begin(broker, limits(), LONG, 2).await;
    for message in take(broker, 2).await {
        broker.say(&message, Word::Done).await;
    }
    broker.delete_consumer("s", "c").await;
    assert_eq!(broker.take("s", "c", 1, A_MOMENT).await, None);
    broker.make_consumer("s", "c", ConsumerSettings { ack_wait: LONG, max_in_hand: 100 }).await;
    assert_eq!(seen(&take(broker, 2).await), [(1, 1), (2, 1)]);
}

/// Emptying takes what is there and changes nothing else.
pub async fn an_emptied_stream_goes_on_with_its_numbers(broker: &impl Broker) {
    begin(broker, limits(), LONG, 3).await;
    let before = state(broker).await;
    broker.empty_stream("s").await;
    nothing(broker).await;
    let after = state(broker).await;
    assert_eq!((after.incarnation, after.last, after.messages), (before.incarnation, 3, 0));
    assert_eq!(publish(broker, None, 4).await, new(4));
    assert_eq!(seen(&take(broker, 1).await), [(4, 1)]);
}

/// The broker has it no more, and whoever has it may say what he likes.
pub async fn what_is_in_hand_when_its_stream_is_emptied_does_not_come_again(broker: &impl Broker) {
    begin(broker, limits(), SHORT, 2).await;
    let taken = take(broker, 2).await;
    broker.empty_stream("s").await;
    broker.say(&taken[0], Word::Later(Duration::ZERO)).await;
    let later = broker.take("s", "c", 1, 2 * SHORT).await.expect("the consumer is there");
    assert_eq!(later, []);
    publish(broker, None, 3).await;
    assert_eq!(seen(&take(broker, 1).await), [(3, 1)]);
}

/// Without a stream there is nothing.
pub async fn a_deleted_stream_takes_nothing_and_has_no_consumers(broker: &impl Broker) {
    begin(broker, limits(), LONG, 2).await;
    broker.delete_stream("s").await;
    assert_eq!(broker.publish("s", None, b"3").await, Err(Untaken::Missing));
    assert_eq!(broker.take("s", "c", 1, A_MOMENT).await, None);
    assert_eq!(broker.state("s").await, None);
}

/// Numbers begin again, and what was known of the old stream can be told from it.
pub async fn a_stream_made_anew_is_another_one_and_begins_at_one(broker: &impl Broker) {
    begin(broker, limits(), LONG, 2).await;
    let before = state(broker).await;
    broker.delete_stream("s").await;
    broker.make_stream("s", limits()).await;
    let after = state(broker).await;
    assert_ne!(after.incarnation, before.incarnation);
    assert_eq!((after.first, after.last, after.messages), (0, 0, 0));
    assert_eq!(broker.take("s", "c", 1, A_MOMENT).await, None);
    assert_eq!(publish(broker, None, 1).await, new(1));
}

/// An acknowledgement names a number, not a stream's incarnation: it may take a message along that nobody has handled.
pub async fn a_word_about_a_lost_stream_hits_the_same_number_of_the_new_one(broker: &impl Broker) {
    begin(broker, work_queue(), SHORT, 1).await;
    let lost = one(broker).await;
    broker.delete_stream("s").await;
    begin(broker, work_queue(), SHORT, 1).await;
    assert_eq!(seen(&take(broker, 1).await), [(1, 1)]);
    broker.say(&lost, Word::Done).await;
    assert_eq!(state(broker).await.messages, 0);
    let later = broker.take("s", "c", 1, 2 * SHORT).await.expect("the consumer is there");
    assert_eq!(later, []);
}

/// The sender has to wait.
pub async fn a_full_work_queue_refuses_until_something_is_done_with(broker: &impl Broker) {
    begin(broker, StreamSettings { max_messages: 2, ..work_queue() }, LONG, 2).await;
    assert_eq!(broker.publish("s", None, b"3").await, Err(Untaken::Full));
    broker.say(&one(broker).await, Word::Done).await;
    assert_eq!(publish(broker, None, 3).await, new(3));
    assert_eq!(seen(&take(broker, 2).await), [(2, 1), (3, 1)]);
}

/// Consumers get what is left.
pub async fn a_full_stream_forgets_its_oldest(broker: &impl Broker) {
    let settings = StreamSettings { max_messages: 2, full: Full::ForgetsItsOldest, ..limits() };
    begin(broker, settings, LONG, 4).await;
    let StreamState { first, last, messages, .. } = state(broker).await;
    assert_eq!((first, last, messages), (3, 4, 2));
    assert_eq!(seen(&take(broker, 2).await), [(3, 1), (4, 1)]);
}

/// Streams, their messages, their ids and their consumers survive the end of the server's process. What was in hand comes again.
pub async fn what_was_stored_is_there_after_a_restart(broker: &impl Broker) {
    begin(broker, limits(), SHORT, 2).await;
    assert_eq!(publish(broker, Some("a"), 3).await, new(3));
    let before = state(broker).await;
    let in_hand = one(broker).await;
    assert_eq!(in_hand.sequence, 1);
    broker.restart().await;
    assert_eq!(state(broker).await, before);
    assert_eq!(publish(broker, Some("a"), 3).await, known(3));
    let mut taken = Vec::new();
    while !taken.iter().any(|message: &Delivered| message.sequence == 1) {
        let message = one(broker).await;
        broker.say(&message, Word::Done).await;
        taken.push(message);
    }
    assert!(taken.iter().all(|message| message.sequence <= 3), "{taken:?}");
}
