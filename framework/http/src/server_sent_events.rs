//! Streams of events as server-sent events, for browsers and other HTTP clients.
//!
//! Called by handlers of the program. The id of each event is the cursor of the stream, so that a client that reconnects continues
//! where it was; the server keeps nothing about it.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::future::{BoxFuture, pending};
use futures_util::stream;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use whizbang_core::clock::instant;
use whizbang_core::message::Domain;
use whizbang_core::user_code::user_code;
use whizbang_runtime::subscribe::{Cursor, CursorError, EventStream, StreamedEvent, SubscribeError};

use crate::problem::Problem;

/// The interval of comments on a quiet connection, unless configured otherwise: shorter than the usual time limit of proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Longest such interval, so that the time of the next comment can be represented.
const LONGEST_KEEP_ALIVE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Chooses the events of one client.
type Choice<T> = Box<dyn Fn(&StreamedEvent<T>) -> bool + Send>;

/// A response with the events of a stream, as `text/event-stream`. Return it from an axum handler.
///
/// | field | content |
/// |---|---|
/// | `id` | the [cursor](Cursor) behind the event; a client sends the last one as `Last-Event-ID` when it reconnects |
/// | `data` | the event as JSON |
/// | `event: unreadable` | an event that this program cannot decode: `{"shard": …, "position": …, "name": …}`. Others follow |
/// | `event: end` | the stream has ended with an error: `{"code": …, "detail": …}`. The client should close the connection |
///
/// A block with only an `id` comes first, and again in quiet times once events that are not sent have moved the cursor. Clients
/// remember the id and report no event, so a client that reconnects before its first event misses none.
///
/// The response reads as fast as the client does, and holds two pages of events. A client that goes away ends the stream. The codes
/// of an end are `gateway.stopped`, after which a client may reconnect; `gateway.other-log`, if the id belongs to another store or to
/// a log that was restored; and `gateway.failed`.
///
/// ```
/// use axum::extract::State;
/// use axum::http::HeaderMap;
/// use axum::response::{IntoResponse, Response};
/// use whizbang::prelude::*;
/// use whizbang_http::{Problem, ServerSentEvents};
///
/// #[derive(Domain)]
/// struct Plant;
///
/// #[derive(Event, Serialize, Deserialize)]
/// #[event(domain = Plant)]
/// struct Measured { celsius: i32 }
///
/// async fn measured(State(client): State<Client>, headers: HeaderMap) -> Result<Response, Problem> {
///     let events = ServerSentEvents::new(client.subscribe::<Measured>()).resume(&headers)?;
///     Ok(events.only(|item| item.context.header("tenant") == Some("acme")).into_response())
/// }
///
/// # fn routes(client: Client) -> axum::Router {
/// axum::Router::new().route("/measured", axum::routing::get(measured)).with_state(client)
/// # }
/// ```
#[must_use = "it does nothing until a handler returns it"]
pub struct ServerSentEvents<T, D> {
    stream: EventStream<T, D>,
    choice: Choice<T>,
    keep_alive: Duration,
    until: BoxFuture<'static, ()>,
}

impl<T: Serialize + Send + 'static, D: Domain> ServerSentEvents<T, D> {
    /// Creates a response with the events of a stream, from where the stream starts.
    pub fn new(stream: EventStream<T, D>) -> Self {
        Self { stream, choice: Box::new(|_| true), keep_alive: KEEP_ALIVE, until: Box::pin(pending()) }
    }

    /// Continues behind the last event that the client has received, if the request names it in `Last-Event-ID`.
    ///
    /// # Errors
    /// A [`Problem`] with status 400 and the code `gateway.invalid-header` if the id is not a cursor.
    pub fn resume(mut self, headers: &HeaderMap) -> Result<Self, Problem> {
        let invalid = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "gateway.invalid-header", detail);
        let Some(id) = headers.get("last-event-id") else { return Ok(self) };
        let id = id.to_str().map_err(|_| invalid("Last-Event-ID is not text".to_owned()))?;
        if !id.is_empty() {
            let cursor: Cursor = id.parse().map_err(|error: CursorError| invalid(format!("Last-Event-ID: {error}")))?;
            self.stream = self.stream.start_at(cursor);
        }
        Ok(self)
    }

    /// Sends only some of the events, for instance those of the client's tenant. Default: all.
    pub fn only(mut self, choice: impl Fn(&StreamedEvent<T>) -> bool + Send + 'static) -> Self {
        self.choice = Box::new(choice);
        self
    }

    /// Sets the time without an event after which a comment or an id is sent, so that a broken connection is noticed and proxies do not
    /// close it. Default: 15 s.
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = interval;
        self
    }

    /// Ends the response, with the code `gateway.stopped`, once `signal` completes. Default: never, so a graceful shutdown of the server
    /// waits until the client goes away. Pass the signal of the shutdown, and clients reconnect to the next server.
    ///
    /// ```
    /// use axum::extract::State;
    /// use axum::response::{IntoResponse, Response};
    /// use tokio::sync::watch;
    /// use whizbang::prelude::*;
    /// use whizbang_http::ServerSentEvents;
    /// # #[derive(Domain)]
    /// # struct Plant;
    /// # #[derive(Event, Serialize, Deserialize)]
    /// # #[event(domain = Plant)]
    /// # struct Measured { celsius: i32 }
    ///
    /// async fn measured(State((client, mut stops)): State<(Client, watch::Receiver<bool>)>) -> Response {
    ///     let stops = async move {
    ///         let _ = stops.wait_for(|stops| *stops).await;
    ///     };
    ///     ServerSentEvents::new(client.subscribe::<Measured>()).until(stops).into_response()
    /// }
    /// ```
    pub fn until(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.until = Box::pin(signal);
        self
    }
}

impl<T: Serialize + Send + 'static, D: Domain> IntoResponse for ServerSentEvents<T, D> {
    fn into_response(self) -> Response {
        let source = EventSource {
            stream: self.stream,
            choice: self.choice,
            keep_alive: self.keep_alive.min(LONGEST_KEEP_ALIVE),
            until: Some(self.until),
            due: instant(),
            is_started: false,
            sent: None,
        };
        let events = stream::unfold(source.waiting(), |mut source| async move {
            let event = source.next_until_stopped().await?;
            Some((Ok::<_, Infallible>(event), source.waiting()))
        });
        Sse::new(events).into_response()
    }
}

/// The source of the blocks of a response.
struct EventSource<T, D> {
    stream: EventStream<T, D>,
    choice: Choice<T>,
    keep_alive: Duration,
    /// Completes when the response must end; `None` once it has.
    until: Option<BoxFuture<'static, ()>>,
    /// The time at which something is sent even without an event.
    due: Instant,
    /// The place where the stream starts is known, or it has ended.
    is_started: bool,
    /// The last cursor that the client has received.
    sent: Option<Cursor>,
}

impl<T: Serialize + Send + 'static, D: Domain> EventSource<T, D> {
    /// Begins an interval without an event.
    fn waiting(mut self) -> Self {
        self.due = instant() + self.keep_alive;
        self
    }

    /// Returns the next block, or `None` after the end.
    async fn next_until_stopped(&mut self) -> Option<Event> {
        let mut until = self.until.take()?;
        let next = tokio::select! {
            biased;
            () = &mut until => return Some(self.block(named(&SubscribeError::Stopped))),
            next = self.next() => next,
        };
        self.until = Some(until);
        next
    }

    /// Returns the next block of the stream, or `None` after its end.
    ///
    /// The first one is the id of the place where the stream starts, so that a client that reconnects before its first event misses
    /// none.
    async fn next(&mut self) -> Option<Event> {
        if !self.is_started {
            let Ok(started) = timeout_at(self.due, self.stream.started()).await else { return Some(self.quiet()) };
            self.is_started = true;
            return Some(match started {
                Ok(()) => self.quiet(),
                Err(error) => self.block(named(&error)),
            });
        }
        loop {
            let Ok(item) = timeout_at(self.due, self.stream.next()).await else { return Some(self.quiet()) };
            match item? {
                Ok(item) => match user_code(|| (self.choice)(&item).then(|| serde_json::to_value(&item.event))) {
                    Ok(None) if instant() < self.due => {}
                    Ok(None) => return Some(self.quiet()),
                    Ok(Some(Ok(data))) => return Some(self.block((None, data))),
                    Ok(Some(Err(_))) | Err(_) => return Some(self.block((Some("unreadable"), place(&item)))),
                },
                Err(error) => return Some(self.block(named(&error))),
            }
        }
    }

    /// Returns a block with an event and the cursor behind it.
    fn block(&mut self, (name, data): (Option<&'static str>, Value)) -> Event {
        let mut event = Event::default().data(data.to_string());
        if let Some(name) = name {
            event = event.event(name);
        }
        self.sent = self.stream.cursor();
        match &self.sent {
            Some(cursor) => event.id(cursor.to_string()),
            None => event,
        }
    }

    /// Returns a block without an event, which a client does not report: the cursor if it has moved, or a comment.
    fn quiet(&mut self) -> Event {
        match self.stream.cursor() {
            Some(cursor) if self.sent.as_ref() != Some(&cursor) => {
                let event = Event::default().id(cursor.to_string());
                self.sent = Some(cursor);
                event
            }
            _ => Event::default().comment(""),
        }
    }
}

/// Returns the place of an event that cannot be written as JSON.
fn place<T>(item: &StreamedEvent<T>) -> Value {
    json!({ "shard": item.context.shard, "position": item.context.position })
}

/// Returns the name and the data of the event that stands for an error.
fn named(error: &SubscribeError) -> (Option<&'static str>, Value) {
    let code = match error {
        SubscribeError::Unreadable { shard, position, name, .. } => {
            return (Some("unreadable"), json!({ "shard": shard, "position": position, "name": name }));
        }
        SubscribeError::Stopped => "gateway.stopped",
        SubscribeError::OtherStore { .. } | SubscribeError::Diverged { .. } | SubscribeError::Cursor { .. } => {
            "gateway.other-log"
        }
        _ => "gateway.failed",
    };
    (Some("end"), json!({ "code": code, "detail": error.to_string() }))
}

impl<T, D: Domain> std::fmt::Debug for ServerSentEvents<T, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerSentEvents").field("stream", &self.stream).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
