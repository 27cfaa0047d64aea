//! Streams of events for code that is not an actor: a request handler, a script, a process that hosts nothing.
//!
//! Called by users through [`Client::subscribe`]. A stream reads the logs of the owner page by page and keeps nothing: the caller
//! stores its [`Cursor`]. It runs inside the poll of the caller, without a task of its own.

mod cursor;
mod decode;
mod error;
mod event;
mod follower;
mod heads;
mod progress;
mod stream;

pub use cursor::{Cursor, CursorError};
pub use error::SubscribeError;
pub use event::StreamedEvent;
pub use stream::EventStream;

use crate::client::Client;
use whizbang_core::message::{Domain, Event};

impl Client {
    /// Subscribes to an event type, while the returned stream exists. By default the stream begins with the next event.
    ///
    /// ```
    /// use whizbang::prelude::*;
    ///
    /// #[derive(Domain)]
    /// struct Plant;
    ///
    /// #[derive(Event, Serialize, Deserialize)]
    /// #[event(domain = Plant)]
    /// struct Measured { celsius: i32 }
    ///
    /// # whizbang::derive::block_on(async {
    /// let node = Node::builder("plant", MemoryStore::new()).publishes::<Measured>().start().await?;
    /// let client = node.client();
    /// client.publish("boiler", Measured { celsius: 81 }).await?;
    ///
    /// let mut measured = client.subscribe::<Measured>().from_start();
    /// let first = measured.next().await.expect("the stream does not end")?;
    /// assert_eq!((&*first.context.key, first.event.celsius), ("boiler", 81));
    /// # drop(measured);
    /// node.stop().await?;
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn subscribe<E: Event>(&self) -> EventStream<E, E::Domain> {
        self.subscribe_to::<E::Domain, E>().event::<E>(std::convert::identity)
    }

    /// Subscribes to several event types of a domain, each of which the stream converts to `T`. Name the types with
    /// [`EventStream::event`].
    ///
    /// ```
    /// use whizbang::prelude::*;
    ///
    /// #[derive(Domain)]
    /// struct Plant;
    ///
    /// #[derive(Debug, PartialEq, Event, Serialize, Deserialize)]
    /// #[event(domain = Plant)]
    /// struct Started;
    ///
    /// #[derive(Debug, PartialEq, Event, Serialize, Deserialize)]
    /// #[event(domain = Plant)]
    /// struct Measured { celsius: i32 }
    ///
    /// #[derive(Debug, PartialEq)]
    /// enum Seen {
    ///     Started(Started),
    ///     Measured(Measured),
    /// }
    ///
    /// # whizbang::derive::block_on(async {
    /// let node = Node::builder("plant", MemoryStore::new()).publishes::<Started>().publishes::<Measured>();
    /// let node = node.start().await?;
    /// let client = node.client();
    /// client.publish("boiler", Started).await?;
    /// client.publish("boiler", Measured { celsius: 81 }).await?;
    ///
    /// let mut seen = client.subscribe_to::<Plant, _>().event(Seen::Started).event(Seen::Measured).from_start();
    /// assert_eq!(seen.next().await.unwrap()?.event, Seen::Started(Started));
    /// assert_eq!(seen.next().await.unwrap()?.event, Seen::Measured(Measured { celsius: 81 }));
    /// # drop(seen);
    /// node.stop().await?;
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn subscribe_to<D: Domain, T: Send + 'static>(&self) -> EventStream<T, D> {
        EventStream::new(self.clone())
    }
}
