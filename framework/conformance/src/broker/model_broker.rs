//! The model as a broker of the suite, in virtual time.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;

use super::model::{Model, Next};
use super::{
    Acknowledgement, Broker, BrokerStream, ConsumerSettings, PublishAck, PublishError, ReceivedMessage, StreamSettings,
};
use whizbang_core::clock::instant;

/// A [`Model`] that implements [`Broker`].
#[derive(Default)]
pub struct ModelBroker(Mutex<Model<Vec<u8>>>);

impl std::fmt::Debug for ModelBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelBroker").finish_non_exhaustive()
    }
}

impl ModelBroker {
    /// Performs an action on the model at once, under its lock, and returns its result as a future that is ready.
    fn apply<T: Send + 'static>(&self, action: impl FnOnce(&mut Model<Vec<u8>>) -> T) -> BoxFuture<'static, T> {
        ready(action(&mut self.0.lock())).boxed()
    }
}

impl Broker for ModelBroker {
    const VIRTUAL_TIME: bool = true;

    fn create_stream<'a>(&'a self, name: &'a str, settings: StreamSettings) -> BoxFuture<'a, ()> {
        self.apply(|model| drop(model.create_stream(name, settings)))
    }

    fn delete_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        self.apply(|model| assert!(model.delete_stream(name).is_some(), "there is no `{name}`"))
    }

    fn purge_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        self.apply(|model| assert!(model.purge_stream(name).is_some(), "there is no `{name}`"))
    }

    fn state<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<BrokerStream>> {
        self.apply(|model| model.state(name))
    }

    fn create_consumer<'a>(&'a self, stream: &'a str, name: &'a str, settings: ConsumerSettings) -> BoxFuture<'a, ()> {
        self.apply(|model| assert!(model.create_consumer(stream, name, settings), "there is no `{stream}`"))
    }

    fn delete_consumer<'a>(&'a self, stream: &'a str, name: &'a str) -> BoxFuture<'a, ()> {
        self.apply(|model| model.delete_consumer(stream, name))
    }

    fn publish<'a>(
        &'a self,
        stream: &'a str,
        id: Option<&'a str>,
        payload: &'a [u8],
    ) -> BoxFuture<'a, Result<PublishAck, PublishError>> {
        self.apply(|model| model.publish(stream, id, payload.to_vec(), instant()))
    }

    fn pull<'a>(
        &'a self,
        stream: &'a str,
        consumer: &'a str,
        count: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Option<Vec<ReceivedMessage>>> {
        async move {
            let end = instant() + wait;
            let mut messages = Vec::new();
            while messages.len() < count {
                let next = self.0.lock().next(stream, consumer, instant());
                let due = match next {
                    Next::Message(message) => {
                        messages.push(ReceivedMessage {
                            stream: stream.to_owned(),
                            consumer: consumer.to_owned(),
                            sequence: message.sequence,
                            deliveries: message.deliveries,
                            payload: message.payload,
                            reply: String::new(),
                        });
                        continue;
                    }
                    Next::Empty(due) | Next::AtLimit(due) => due,
                    Next::Missing => return None,
                };
                if instant() >= end {
                    break;
                }
                // Nothing is published while a case waits, so only the passing of time brings a message.
                tokio::time::sleep_until(due.unwrap_or(end).min(end)).await;
            }
            Some(messages)
        }
        .boxed()
    }

    fn acknowledge<'a>(&'a self, message: &'a ReceivedMessage, acknowledgement: Acknowledgement) -> BoxFuture<'a, ()> {
        self.apply(|model| {
            model.acknowledge(&message.stream, &message.consumer, message.sequence, acknowledgement, instant())
        })
    }

    fn restart(&self) -> BoxFuture<'_, ()> {
        // The model keeps everything on its disk.
        ready(()).boxed()
    }
}
