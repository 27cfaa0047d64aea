//! A domain without an aggregate, and helpers for streams of its events.

#![allow(dead_code, unreachable_pub, reason = "each test uses some of these")]

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::Stream;
use whizbang::message::Domain;
use whizbang::prelude::*;
use whizbang::subscribe::{EventStream, StreamedEvent, SubscribeError};

#[derive(Domain)]
#[domain(name = "plant", shards = 4)]
pub struct Plant;

#[derive(Event, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[event(domain = Plant)]
pub struct Measured {
    pub number: u64,
}

#[derive(Event, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[event(domain = Plant)]
pub struct Started {}

pub fn plant(store: &MemoryStore) -> whizbang::NodeBuilder {
    Node::builder("plant", store.clone()).publishes::<Measured>().publishes::<Started>()
}

/// Publishes events with these numbers, each under one of ten keys.
pub async fn measure(client: &Client, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        client.publish(format!("meter-{}", number % 10), Measured { number }).await.unwrap();
    }
}

/// The events of a caller, which keeps them and notes the position of the last one of each shard.
#[derive(Debug, Default)]
pub struct Collected {
    pub numbers: Vec<u64>,
    positions: BTreeMap<u16, u64>,
}

impl Collected {
    pub fn add(&mut self, item: StreamedEvent<Measured>) {
        let position = self.positions.entry(item.context.shard).or_default();
        assert!(item.context.position > *position, "{item:?} arrives after position {position}");
        *position = item.context.position;
        assert_eq!(item.context.key, format!("meter-{}", item.event.number % 10));
        self.numbers.push(item.event.number);
    }

    /// Adds the next `count` events.
    pub async fn take(&mut self, stream: &mut EventStream<Measured, Plant>, count: usize) {
        for taken in 0..count {
            let next = tokio::time::timeout(Duration::from_secs(60), stream.next()).await;
            let next = next.unwrap_or_else(|_| panic!("{taken} of {count} events have arrived"));
            self.add(next.expect("the stream continues").expect("an event"));
        }
    }

    /// Checks that exactly these numbers have arrived, each once, and those of one key in their order.
    pub fn assert_exactly(&self, numbers: std::ops::Range<u64>) {
        let mut sorted = self.numbers.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, numbers.clone().collect::<Vec<_>>(), "each event arrives once");
        for key in 0..10 {
            let of_key = self.numbers.iter().filter(|number| *number % 10 == key);
            assert!(of_key.is_sorted(), "the events of a key keep their order");
        }
    }
}

/// Polls a stream once.
pub fn poll<T: Send + 'static, D: Domain>(
    stream: &mut EventStream<T, D>,
) -> Option<Option<Result<StreamedEvent<T>, SubscribeError>>> {
    match std::pin::Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(item) => Some(item),
        Poll::Pending => None,
    }
}
