//! The stream of events that callers configure and poll.
//!
//! Created by [`Client::subscribe`](crate::Client::subscribe). The typed surface of a [follower](super::follower).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;

use super::cursor::{Cursor, Mark};
use super::decode::EventTypes;
use super::error::SubscribeError;
use super::event::StreamedEvent;
use super::follower::Follower;
use crate::client::Client;
use whizbang_core::message::{Domain, Envelope, Event, Message, Name};

/// A stream of events of the domain `D`, converted to `T`. It implements [`Stream`], and has [`next`](Self::next).
///
/// **Order.** The events of one shard, and so those of one key, arrive in the order of their log, without gaps or duplicates. Events
/// of different shards have no order.
///
/// **Start.** [`from_now`](Self::from_now) is the default; [`from_start`](Self::from_start) reads all events that the owner has, and
/// [`start_at`](Self::start_at) continues behind a [cursor](Self::cursor). Nothing happens before the first poll.
///
/// **Progress is the caller's.** Nothing is stored: save the cursor with the effects of the events. After a crash, the events
/// since the last saved cursor arrive again. A projection or a worker is the durable form.
///
/// **Back pressure.** A stream that is not polled reads nothing. It holds at most two pages, each of up to 257 events and about
/// 1.5 MiB, however far it is behind. So a slow caller slows nothing down, and loses nothing.
///
/// **Failures.** The stream waits, and logs a warning, while an owner is busy, restarts, moves a shard or cannot be reached. Other
/// failures are [`SubscribeError`]; all but an unreadable event are the last item.
///
/// Dropping the stream ends it. It needs a tokio runtime with a timer.
///
/// ```
/// # use bank_fixture::{Account, Deposit, Deposited};
/// use whizbang::prelude::*;
///
/// # whizbang::derive::block_on(async {
/// let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await?;
/// let client = node.client();
/// client.send(Deposit { account: "ada".into(), cents: 500 }).await?;
/// client.send(Deposit { account: "ada".into(), cents: 20 }).await?;
///
/// let mut deposits = client.subscribe::<Deposited>().from_start();
/// let first = deposits.next().await.expect("the stream does not end")?;
/// // Saved with the effects of the first event.
/// let saved = deposits.cursor().expect("an event was read");
/// drop(deposits);
/// // After a restart: nothing is repeated, nothing is missing.
/// let mut deposits = client.subscribe::<Deposited>().start_at(saved);
/// let second = deposits.next().await.expect("the stream does not end")?;
/// assert_eq!((first.event.cents, second.event.cents), (500, 20));
/// # drop(deposits);
/// node.stop().await?;
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct EventStream<T, D> {
    state: State,
    types: EventTypes<T>,
    /// The rest of an event that has become several.
    parts: VecDeque<T>,
    /// The event of these parts, its shard, and the mark before it.
    current: Option<(Box<Envelope>, (usize, Mark))>,
    domain: PhantomData<fn() -> D>,
}

enum State {
    Unpolled(Client, Start),
    Running(Box<Follower>),
    /// Holds the place of the last event.
    Ended(Option<Cursor>),
}

enum Start {
    Now,
    Beginning,
    Cursor(Cursor),
}

impl<T: Send + 'static, D: Domain> EventStream<T, D> {
    pub(super) fn new(client: Client) -> Self {
        Self {
            state: State::Unpolled(client, Start::Now),
            types: EventTypes::default(),
            parts: VecDeque::new(),
            current: None,
            domain: PhantomData,
        }
    }

    /// Adds an event type of the domain, and how its events become items. Without effect after the first poll.
    #[must_use]
    pub fn event<E: Event + Message<Domain = D>>(mut self, convert: impl Fn(E) -> T + Send + Sync + 'static) -> Self {
        if let State::Unpolled(..) = self.state {
            self.types.add::<E>(convert);
        }
        self
    }

    /// Starts with the next event that is recorded after the first poll; the default. [`started`](Self::started) waits for that
    /// moment.
    #[must_use]
    pub fn from_now(self) -> Self {
        self.starting(Start::Now)
    }

    /// Starts with the first event of each log.
    #[must_use]
    pub fn from_start(self) -> Self {
        self.starting(Start::Beginning)
    }

    /// Continues behind the events before a cursor, as another stream has [returned](Self::cursor) it.
    #[must_use]
    pub fn start_at(self, cursor: Cursor) -> Self {
        self.starting(Start::Cursor(cursor))
    }

    fn starting(mut self, at: Start) -> Self {
        if let State::Unpolled(_, start) = &mut self.state {
            *start = at;
        }
        self
    }

    /// Waits until it is known where the stream starts: it contains every event that is recorded afterwards. Cancel safe.
    ///
    /// # Errors
    /// [`SubscribeError`]; the stream has ended. [`SubscribeError::Stopped`] if it had ended before.
    pub async fn started(&mut self) -> Result<(), SubscribeError> {
        poll_fn(|context| {
            let follower = match self.follower() {
                Ok(Some(follower)) => follower,
                Ok(None) => return Poll::Ready(Err(SubscribeError::Stopped)),
                Err(error) => return Poll::Ready(Err(self.end(error))),
            };
            let started = ready!(follower.poll_started(context));
            Poll::Ready(started.map_err(|error| self.end(error)))
        })
        .await
    }

    /// Returns the next event, or `None` after the end. Cancel safe: no event is lost.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub async fn next(&mut self) -> Option<Result<StreamedEvent<T>, SubscribeError>> {
        poll_fn(|context| self.poll_item(context)).await
    }

    /// Returns the place behind the last item: a stream that [starts](Self::start_at) there continues with the next one. `None` until
    /// the stream has [started](Self::started). Costs the number of shards.
    ///
    /// While an event that was split into several is not complete, the place is before that event.
    pub fn cursor(&self) -> Option<Cursor> {
        match &self.state {
            State::Unpolled(..) => None,
            State::Running(follower) => {
                let held = self.current.as_ref().filter(|_| !self.parts.is_empty());
                follower.cursor(held.map(|(_, before)| *before))
            }
            State::Ended(last) => last.clone(),
        }
    }

    /// Returns the follower, which begins with the first poll; `None` after the end.
    fn follower(&mut self) -> Result<Option<&mut Follower>, SubscribeError> {
        if let State::Unpolled(client, start) = &mut self.state {
            let (client, start) = (client.clone(), std::mem::replace(start, Start::Now));
            self.state = State::Running(Box::new(follow::<D>(client, start, Arc::new(self.types.taken()))?));
        }
        match &mut self.state {
            State::Running(follower) => Ok(Some(follower)),
            State::Unpolled(..) | State::Ended(_) => Ok(None),
        }
    }

    fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<StreamedEvent<T>, SubscribeError>>> {
        loop {
            if let (Some(part), Some((envelope, _))) = (self.parts.pop_front(), &self.current) {
                return Poll::Ready(Some(Ok(StreamedEvent::new(part, envelope))));
            }
            let follower = match self.follower() {
                Ok(Some(follower)) => follower,
                Ok(None) => return Poll::Ready(None),
                Err(error) => return Poll::Ready(Some(Err(self.end(error)))),
            };
            let taken = match ready!(follower.poll_event(context)) {
                Ok(taken) => taken,
                Err(error) => return Poll::Ready(Some(Err(self.end(error)))),
            };
            let types = Arc::clone(&follower.taken);
            let decoded = self.types.decode(&types, &taken.envelope, &mut self.parts);
            let (envelope, _) = self.current.insert((taken.envelope, taken.before));
            if let Err(source) = decoded {
                let origin = envelope.origin.as_ref();
                return Poll::Ready(Some(Err(SubscribeError::Unreadable {
                    domain: envelope.domain.to_string(),
                    shard: origin.map_or(0, |origin| origin.shard.shard),
                    position: origin.map_or(0, |origin| origin.sequence),
                    name: envelope.name.to_string(),
                    source,
                })));
            }
        }
    }

    /// Ends the stream and keeps its place.
    fn end(&mut self, error: SubscribeError) -> SubscribeError {
        self.state = State::Ended(self.cursor());
        error
    }
}

/// Creates the follower of a domain.
fn follow<D: Domain>(
    client: Client,
    start: Start,
    taken: Arc<super::decode::TakenEvents>,
) -> Result<Follower, SubscribeError> {
    let shards = usize::from(D::SHARDS);
    let misfit = |found: &str, found_shards| SubscribeError::Cursor {
        domain: D::NAME.to_owned(),
        shards: D::SHARDS,
        found: found.to_owned(),
        found_shards,
    };
    let domain = Name::new(D::NAME).map_err(|_| misfit("", 0))?;
    let (store, starts) = match start {
        Start::Now => (None, vec![None; shards]),
        Start::Beginning => (None, vec![Some(Mark::default()); shards]),
        Start::Cursor(cursor) if cursor.domain == domain && cursor.marks.len() == shards => {
            (cursor.store, cursor.marks.into_iter().map(Some).collect())
        }
        Start::Cursor(cursor) => return Err(misfit(&cursor.domain, cursor.marks.len())),
    };
    Ok(Follower::new(client, domain, taken, store, starts))
}

/// Nothing in a stream is pinned in place: its futures are boxed.
impl<T, D> Unpin for EventStream<T, D> {}

impl<T: Send + 'static, D: Domain> Stream for EventStream<T, D> {
    type Item = Result<StreamedEvent<T>, SubscribeError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_item(context)
    }
}

impl<T, D: Domain> std::fmt::Debug for EventStream<T, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").field("domain", &D::NAME).finish_non_exhaustive()
    }
}
