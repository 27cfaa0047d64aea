//! Bridge handler: receives messages, events and requests of other services from the bridge.
//!
//! Called by the bridge, on its thread. Checks the sender's store and the message's shape, then passes the message to
//! the thread of its shard.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::{BoxFuture, ready};
use tokio::sync::oneshot;

use crate::node::definition::NodeDefinition;
use crate::node::definition::known_owners::{Ownership, claimed_store};
use crate::node::definition::peers::Unreachable;
use crate::node::error::NodeEnd;
use crate::node::inbound::remote_answer::{RemoteRequest, page_unreadable};
use crate::node::thread::Threads;
use crate::node::transport::request::{run_command, run_query};
use crate::relay::{envelope_of, page};
use crate::router::Judgment;
use whizbang_core::bridge::{AckOutcome, Inbound, Notification, Page, Request, RequestError, Response};
use whizbang_core::message::{Envelope, Kind, MAX_SHAPES_BYTES, Name, ShardId, StoreId, shard_of};
use whizbang_core::telemetry::TARGET;

/// Most events or outbox entries in one response, whatever limit is requested.
const MAX_ENTRIES: usize = 1024;

/// Receives everything that arrives over the bridge.
#[derive(Clone)]
pub(in crate::node) struct BridgeHandler {
    definition: Arc<NodeDefinition>,
    threads: Threads,
}

impl BridgeHandler {
    pub(in crate::node) fn new(definition: Arc<NodeDefinition>, threads: Threads) -> Self {
        Self { definition, threads }
    }

    /// Returns how far `to` has committed messages of `from`. If `from` reports how far it has sent, missing messages
    /// are fetched.
    fn watermark(&self, from: ShardId, to: ShardId, sent: Option<u64>) -> BoxFuture<'static, Response> {
        let exists = self.definition.owns(&to.domain).is_some_and(|shards| to.shard < shards);
        if !exists || !self.definition.is_local(&to) {
            return Box::pin(async { Response::Refused(RequestError::NotHere) });
        }
        let (tell, told) = oneshot::channel();
        let (home, store) = (self.definition.thread_of(to.shard), self.definition.store_id());
        self.threads.run(
            home,
            Box::new(move |runtime| {
                if let Some(through) = sent {
                    runtime.note_sent(&from, &to, through);
                }
                let _ = tell.send(runtime.watermark(&from, &to));
            }),
        );
        Box::pin(async move {
            match told.await {
                Ok(Some(through)) => Response::Watermark { through, store },
                Ok(None) | Err(_) => Response::Refused(RequestError::NotHere),
            }
        })
    }

    /// Returns whether the store named in an envelope is the owner of its sender's domain.
    fn ownership(&self, envelope: &Envelope) -> Ownership {
        match claimed_store(envelope) {
            None => Ownership::Owner,
            // No other store speaks for a domain that this node owns.
            Some((domain, store)) if self.definition.owns(domain).is_some() => match self.definition.identity.get() {
                Some(own) if own.store != store => Ownership::Foreign,
                _ => Ownership::Owner,
            },
            Some((domain, store)) => self.definition.known_owners.ownership(domain, Some(store)),
        }
    }

    /// Like [`ownership`](Self::ownership); reads the claim on the domain first if it is unknown.
    async fn find(&self, envelope: &Envelope) -> Ownership {
        match (self.ownership(envelope), claimed_store(envelope), &self.definition.bridge) {
            (Ownership::Unknown, Some((domain, store)), Some(bridge)) => {
                self.definition.known_owners.find(&**bridge, domain, Some(store)).await
            }
            (known, ..) => known,
        }
    }

    /// Drops a message of a store that does not own its domain: the owner's log decides what was sent.
    fn drop_message(&self, envelope: &Envelope) -> AckOutcome {
        tracing::debug!(target: TARGET, id = %envelope.id, "message dropped: its store does not own the domain");
        self.definition.known_owners.count_dropped(envelope.kind);
        AckOutcome::Ack
    }

    /// Delivers a message, unless its store does not own its sender's domain.
    fn receive(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        match self.ownership(&envelope) {
            // Delivered within this call, so that messages keep their order.
            Ownership::Owner => self.take(envelope),
            Ownership::Foreign => Box::pin(ready(self.drop_message(&envelope))),
            Ownership::Unknown => {
                let handler = self.clone();
                Box::pin(async move {
                    match handler.find(&envelope).await {
                        Ownership::Foreign => handler.drop_message(&envelope),
                        _ => handler.take(envelope).await,
                    }
                })
            }
        }
    }

    /// Passes a command or a reply to the thread of its shard.
    fn deliver(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        let home = envelope.to.as_ref().map_or(0, |to| self.definition.thread_of(to.shard));
        let (settle, settled) = oneshot::channel();
        self.threads.run(
            home,
            Box::new(move |runtime| {
                runtime.direct(
                    envelope,
                    Box::new(move |settled| {
                        let _ = settle.send(settled);
                    }),
                )
            }),
        );
        Box::pin(async move { settled.await.unwrap_or(AckOutcome::Retry) })
    }

    /// Passes events to all threads.
    fn deliver_events(&self, events: Vec<Envelope>) -> BoxFuture<'static, AckOutcome> {
        let threads = self.definition.thread_count();
        let mut waits = Vec::with_capacity(threads);
        let mut events = Some(events);
        for thread in 0..threads {
            let is_last = thread + 1 == threads;
            let copy = if is_last { events.take() } else { events.clone() };
            let (done, wait) = oneshot::channel();
            self.threads.run(thread, Box::new(move |runtime| runtime.events(copy.unwrap_or_default(), done)));
            waits.push(wait);
        }
        Box::pin(async move {
            for wait in waits {
                if wait.await.is_err() {
                    return AckOutcome::Retry;
                }
            }
            AckOutcome::Ack
        })
    }

    /// Returns whether an event can be passed on at once: nothing has to be read or asked about its store and its shape. `owner` is
    /// the store of the event before it that is known to own its domain.
    fn passes_at_once(&self, event: &mut Envelope, owner: &mut Option<(Name, StoreId)>) -> bool {
        if event.kind != Kind::Event || event.origin.is_none() {
            return false;
        }
        if let Some((domain, store)) = claimed_store(event)
            && !owner.as_ref().is_some_and(|(known, of)| known == domain && *of == store)
        {
            if self.ownership(event) != Ownership::Owner {
                return false;
            }
            *owner = Some((domain.clone(), store));
        }
        // A different shape is judged by the subscriber, which halts.
        !self.definition.subscribes_to(event) || self.definition.judge(event, false) != Judgment::Unknown
    }

    /// Delivers a judged message. A refused message of an actor is delivered too: it becomes a dead letter, or halts
    /// its projection. A refused message of a caller that does not wait goes to the refused stream.
    fn deliver_judged(&self, envelope: Envelope, judgment: Option<Judgment>) -> BoxFuture<'static, AckOutcome> {
        let reason = match judgment {
            Some(Judgment::Differs { reason, .. }) => reason.to_string(),
            Some(Judgment::Fits { .. }) => String::new(),
            Some(Judgment::Unknown) | None => {
                "its sender has a different shape of it, which cannot be compared".to_owned()
            }
        };
        if !reason.is_empty() && envelope.origin.is_none() {
            return Box::pin(async { AckOutcome::Reject(reason) });
        }
        if envelope.kind == Kind::Event { self.deliver_events(vec![envelope]) } else { self.deliver(envelope) }
    }

    /// Judges a message by its shape and delivers it.
    fn take(&self, mut envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        // The shape of an event without subscribers does not matter, and its owner may not be reachable.
        if envelope.kind == Kind::Event && !self.definition.subscribes_to(&envelope) {
            return self.deliver_events(vec![envelope]);
        }
        match self.definition.judge(&mut envelope, false) {
            Judgment::Unknown => {}
            judgment => return self.deliver_judged(envelope, Some(judgment)),
        }
        let handler = self.clone();
        Box::pin(async move {
            match handler.definition.resolve_shape(&mut envelope, false).await {
                Ok(judgment) => handler.deliver_judged(envelope, judgment).await,
                Err(Unreachable) => AckOutcome::Retry,
            }
        })
    }

    /// Returns the refusal of a request, if its shape demands one.
    fn refusal(&self, envelope: &mut Envelope) -> Option<Response> {
        match self.definition.judge(envelope, true) {
            Judgment::Fits { .. } => None,
            Judgment::Differs { reason, .. } => Some(Response::Refused(RequestError::Shape(reason.to_string()))),
            Judgment::Unknown => Some(Response::Refused(RequestError::UnknownShape)),
        }
    }

    /// Answers a request.
    fn answer(&self, asked: Request) -> BoxFuture<'static, Response> {
        match asked {
            Request::Command(mut envelope) => {
                let asker = RemoteRequest::of(&envelope);
                let Some(shards) = self.definition.owns(&envelope.domain) else {
                    return Box::pin(async { Response::Refused(RequestError::NotHere) });
                };
                if let Some(refused) = self.refusal(&mut envelope) {
                    return Box::pin(async { refused });
                }
                // The caller may assume another number of shards, or know none.
                let to = ShardId::new(envelope.domain.clone(), shard_of(&envelope.key, shards));
                if !self.definition.is_local(&to) {
                    return Box::pin(async { Response::Refused(RequestError::NotHere) });
                }
                envelope.to = Some(to);
                let outcome = run_command(&self.definition, &self.threads, envelope);
                let limits = Arc::clone(&self.definition.log_limits);
                Box::pin(async move { asker.answer(outcome.await, &limits) })
            }
            Request::Query(mut envelope) => {
                if let Some(refused) = self.refusal(&mut envelope) {
                    return Box::pin(async { refused });
                }
                let asker = RemoteRequest::of(&envelope);
                match run_query(&self.definition, &self.threads, &envelope) {
                    Some(outcome) => {
                        let limits = Arc::clone(&self.definition.log_limits);
                        Box::pin(async move { asker.answer(outcome.await, &limits) })
                    }
                    None => {
                        let name = envelope.name.to_string();
                        Box::pin(async move { Response::Refused(RequestError::Unhandled(name)) })
                    }
                }
            }
            Request::Events { shard, after, limit } => {
                let (reader, store) = (self.definition.reader(&shard), self.definition.store_id());
                let shapes = Arc::clone(&self.definition.shapes);
                let limits = Arc::clone(&self.definition.log_limits);
                let limit = usize::try_from(limit).unwrap_or(MAX_ENTRIES).min(MAX_ENTRIES);
                Box::pin(async move {
                    let Some(reader) = reader else { return Response::Refused(RequestError::NotHere) };
                    // Read before the events: an event committed in between may be missing from the page.
                    let head = reader.position();
                    match page::events(&*reader, after, limit).await {
                        Ok(events) => {
                            let envelopes =
                                events.into_iter().map(|event| shapes.mark(envelope_of(&shard, event))).collect();
                            Response::Envelopes(Page::new(envelopes, head).store(store))
                        }
                        Err(error) => page_unreadable(&shard, &error, &limits),
                    }
                })
            }
            Request::Outbox { from, to, after, limit } => {
                let (reader, store) = (self.definition.reader(&from), self.definition.store_id());
                let limit = usize::try_from(limit).unwrap_or(MAX_ENTRIES).min(MAX_ENTRIES);
                let limits = Arc::clone(&self.definition.log_limits);
                let (tell, told) = oneshot::channel();
                let place = (from.clone(), to.clone());
                self.threads.run(
                    self.definition.thread_of(from.shard),
                    Box::new(move |runtime| {
                        let _ = tell.send(runtime.confirmed(&place.0, &place.1));
                    }),
                );
                Box::pin(async move {
                    let Some(reader) = reader else { return Response::Refused(RequestError::NotHere) };
                    let Ok(committed) = told.await else { return Response::Refused(RequestError::NotHere) };
                    // Read before the entries: an entry sent in between may be missing from the page.
                    let head = page::sent_to(&*reader, &to);
                    match page::outbox(&*reader, &to, after, limit).await {
                        Ok(entries) => {
                            let entries = entries.into_iter().map(|entry| entry.envelope).collect();
                            Response::Envelopes(Page::new(entries, head).committed(Some(committed)).store(store))
                        }
                        Err(error) => page_unreadable(&from, &error, &limits),
                    }
                })
            }
            Request::Shape { shape, .. } => Box::pin(async move {
                match shape.shapes().filter(|shapes| shapes.len() <= MAX_SHAPES_BYTES) {
                    Some(shapes) => Response::Shape(shapes.to_string()),
                    None => Response::Refused(RequestError::Unhandled("unknown fingerprint".to_owned())),
                }
            }),
            Request::Watermark { from, to } => self.watermark(from, to, None),
            Request::Sent { from, to, through } => self.watermark(from, to, Some(through)),
        }
    }
}

impl Inbound for BridgeHandler {
    fn deliver(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        match envelope.kind {
            Kind::Event => Box::pin(ready(AckOutcome::Reject("event received as a command".to_owned()))),
            // The owner may be another node by now, which receives it again.
            _ if !self.definition.serves() => Box::pin(ready(AckOutcome::Retry)),
            _ => self.receive(envelope),
        }
    }

    fn event(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        match envelope.kind {
            Kind::Event => self.receive(envelope),
            _ => Box::pin(ready(AckOutcome::Reject("command or reply received as an event".to_owned()))),
        }
    }

    fn events(&self, mut events: Vec<Envelope>) -> BoxFuture<'static, AckOutcome> {
        let mut owner = None;
        let at_once = events.iter_mut().position(|event| !self.passes_at_once(event, &mut owner));
        let others = at_once.map_or_else(Vec::new, |first| events.split_off(first));
        let passed = (!events.is_empty()).then(|| self.deliver_events(events));
        match passed {
            Some(outcome) if others.is_empty() => outcome,
            passed => {
                let others = others.into_iter().map(|event| self.event(event));
                Box::pin(AckOutcome::of_all(passed.into_iter().chain(others).collect()))
            }
        }
    }

    fn request(&self, asked: Request) -> BoxFuture<'static, Response> {
        let is_command = matches!(asked, Request::Command(_));
        if is_command && !self.definition.serves() {
            return Box::pin(ready(Response::Refused(RequestError::NotHere)));
        }
        let answer = self.answer(asked);
        // The reply to a command comes from a commit, which only the owner can write.
        if is_command || self.definition.membership.is_none() {
            return answer;
        }
        let definition = Arc::clone(&self.definition);
        Box::pin(async move {
            let answer = answer.await;
            // Checked last: the process may have been stopped since it read what it answers from.
            if definition.serves() { answer } else { Response::Refused(RequestError::NotHere) }
        })
    }

    fn notify(&self, notification: Notification) {
        match notification {
            // A forger can name any shard: only those that can matter here are queued.
            Notification::Committed { from, to, through } => {
                if self.definition.owns(&from.domain).is_some_and(|shards| from.shard < shards) {
                    self.threads.note_committed(self.definition.thread_of(from.shard), from, to, through);
                }
            }
            Notification::Head { shard, position } => {
                if self.definition.sources.get(&shard.domain).is_some_and(|shards| shard.shard < *shards) {
                    self.threads.advance_head(&shard, position);
                }
            }
        }
    }

    fn reconnected(&self) {
        self.threads.run_all(|runtime| {
            for (_, windows) in runtime.all_windows() {
                windows.query_all_soon(|to| !runtime.is_local(to));
            }
            runtime.catch_up();
        });
    }

    fn claim_lost(&self, reason: String) {
        tracing::error!(target: TARGET, reason, "claim lost: shutting down; end the process");
        self.definition.end_node(&self.threads, NodeEnd::TakenOver { reason });
    }

    fn capacity(&self) -> usize {
        if self.definition.draining.load(Ordering::Relaxed) {
            return 0;
        }
        let limit = self.definition.config.in_flight * self.definition.thread_count();
        limit.saturating_sub(usize::try_from(self.definition.in_flight()).unwrap_or(usize::MAX))
    }
}
