//! The model behind the doors of the suite, in virtual time.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;

use super::model::{Model, Next};
use super::{Broker, ConsumerSettings, Delivered, Stored, StreamSettings, StreamState, Untaken, Word};
use crate::clock::instant;

/// A [`Model`] as the suite wants it.
#[derive(Default)]
pub struct Modelled(Mutex<Model<Vec<u8>>>);

impl Modelled {
    fn done<T: Send + 'static>(&self, what: impl FnOnce(&mut Model<Vec<u8>>) -> T) -> BoxFuture<'static, T> {
        ready(what(&mut self.0.lock())).boxed()
    }
}

impl Broker for Modelled {
    const VIRTUAL: bool = true;

    fn make_stream<'a>(&'a self, name: &'a str, settings: StreamSettings) -> BoxFuture<'a, ()> {
        self.done(|model| drop(model.make_stream(name, settings)))
    }

    fn delete_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        self.done(|model| assert!(model.delete_stream(name).is_some(), "there is no `{name}`"))
    }

    fn empty_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        self.done(|model| assert!(model.empty_stream(name).is_some(), "there is no `{name}`"))
    }

    fn state<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<StreamState>> {
        self.done(|model| model.state(name))
    }

    fn make_consumer<'a>(&'a self, stream: &'a str, name: &'a str, settings: ConsumerSettings) -> BoxFuture<'a, ()> {
        self.done(|model| assert!(model.make_consumer(stream, name, settings), "there is no `{stream}`"))
    }

    fn delete_consumer<'a>(&'a self, stream: &'a str, name: &'a str) -> BoxFuture<'a, ()> {
        self.done(|model| model.delete_consumer(stream, name))
    }

    fn publish<'a>(
        &'a self,
        stream: &'a str,
        id: Option<&'a str>,
        payload: &'a [u8],
    ) -> BoxFuture<'a, Result<Stored, Untaken>> {
        self.done(|model| model.publish(stream, id, payload.to_vec(), instant()))
    }

    fn take<'a>(
        &'a self,
        stream: &'a str,
        consumer: &'a str,
        most: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Option<Vec<Delivered>>> {
        async move {
            let end = instant() + wait;
            let mut taken = Vec::new();
            while taken.len() < most {
                let next = self.0.lock().next(stream, consumer, instant());
                let due = match next {
                    Next::Message(message) => {
                        taken.push(Delivered {
                            stream: stream.to_owned(),
                            consumer: consumer.to_owned(),
                            sequence: message.sequence,
                            deliveries: message.deliveries,
                            payload: message.what,
                            reply: String::new(),
                        });
                        continue;
                    }
                    Next::Nothing(due) | Next::HandsFull(due) => due,
                    Next::Missing => return None,
                };
                if instant() >= end {
                    break;
                }
                // Nothing is published while a case waits, so only time brings something.
                tokio::time::sleep_until(due.unwrap_or(end).min(end)).await;
            }
            Some(taken)
        }
        .boxed()
    }

    fn say<'a>(&'a self, message: &'a Delivered, word: Word) -> BoxFuture<'a, ()> {
        self.done(|model| model.settle(&message.stream, &message.consumer, message.sequence, word, instant()))
    }

    fn restart(&self) -> BoxFuture<'_, ()> {
        // What it has it has on its disk.
        ready(()).boxed()
    }
}
