//! Worker plan: the commands and events that the derive lists for a worker.

use std::any::TypeId;
use std::collections::HashMap;
use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::FixedState;
use futures_util::future::LocalBoxFuture;

use super::failure::JobFailure;
use super::open_batch::{Batches, JoinBatch};
use super::{Job, OnEvent, OnEventBatch, OnJobReply, Perform, PerformBatch, WorkError, Worker};
use crate::actor::{Outgoing, names};
use crate::router::{ActorCard, MessageCard};
use whizbang_core::message::{Coded, Command, Domain, Envelope, Event, Message, Of, encode_reply_verified};
use whizbang_core::telemetry::{error_chain, shortened};

/// Runs one job.
type HandleOne<W> = fn(Arc<W>, Envelope, Job) -> LocalBoxFuture<'static, Result<FinishedJob, JobFailure>>;
/// Runs one job in a call that it may share with others.
type HandleInBatch<W> =
    Rc<dyn Fn(Arc<W>, Envelope, Job, JoinBatch) -> LocalBoxFuture<'static, Result<FinishedJob, JobFailure>>>;
type HandlersByName<T> = HashMap<(&'static str, &'static str), T, FixedState>;

/// The handler of a message.
pub(crate) enum Handler<W: ?Sized> {
    /// Handles one message in a call.
    One(HandleOne<W>),
    /// Handles the messages of a batch in a call.
    Batch(HandleInBatch<W>),
}

/// A finished job.
pub(crate) struct FinishedJob {
    /// Encoded `Result<Reply, Rejection>`.
    pub(crate) reply: Vec<u8>,
    pub(crate) rejected: bool,
    /// Messages that it sends. Empty until its attempt has ended, and if it is rejected.
    pub(crate) sent: Vec<Outgoing>,
}

impl FinishedJob {
    /// A message without any effect.
    pub(crate) const NOTHING: Self = Self { reply: Vec::new(), rejected: false, sent: Vec::new() };
}

/// Returns the text of an error with its causes, as logs and dead letters contain it.
pub(super) fn text_of(error: &(dyn Error + 'static)) -> String {
    shortened(error_chain(error).to_string())
}

/// List filled by [`Worker::wire`].
#[doc(hidden)]
pub struct WorkerPlan<W: ?Sized> {
    pub(crate) performs: HandlersByName<Handler<W>>,
    pub(crate) on: HandlersByName<Handler<W>>,
    pub(crate) replied: HandlersByName<Handler<W>>,
    /// Commands whose replies are handled.
    pub(crate) awaited: Vec<TypeId>,
    pub(crate) card: ActorCard,
}

impl<W: ?Sized> std::fmt::Debug for WorkerPlan<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerPlan").field("card", &self.card).finish_non_exhaustive()
    }
}

impl<W: Worker> WorkerPlan<W> {
    /// Returns the filled list of a worker.
    pub(crate) fn of() -> Self {
        let card =
            ActorCard { name: W::NAME.to_owned(), role: "worker", formerly: W::FORMERLY, ..ActorCard::default() };
        let (performs, on, replied) = (HashMap::default(), HashMap::default(), HashMap::default());
        let mut plan = Self { performs, on, replied, awaited: Vec::new(), card };
        W::wire(&mut plan);
        plan
    }

    /// Lists a command that is performed.
    pub fn performs<C: Command + Of<W::Domain>>(&mut self)
    where
        W: Perform<C>,
    {
        self.card.handles.push(MessageCard::of_command::<C>());
        let perform: HandleOne<W> = |worker, envelope, job| {
            Box::pin(async move {
                let command = <C as Message>::decode(envelope.version, envelope.codec, &envelope.payload)
                    .map_err(JobFailure::Undecodable)?;
                reply::<W, C::Reply>(worker.perform(command, job).await)
            })
        };
        self.performs.extend(names::<C>().map(|name| ((<C::Domain as Domain>::NAME, name), Handler::One(perform))));
    }

    /// Lists a command with a batch handler.
    pub fn performs_batch<C: Command + Of<W::Domain>>(&mut self)
    where
        W: PerformBatch<C>,
    {
        self.card.handles.push(MessageCard::of_command::<C>());
        let batches = Batches::new(|worker: Arc<W>, batch| Box::pin(async move { worker.perform_batch(batch).await }));
        let perform: HandleInBatch<W> = Rc::new(move |worker, envelope, job, join| {
            let batches = Rc::clone(&batches);
            Box::pin(async move {
                let command = <C as Message>::decode(envelope.version, envelope.codec, &envelope.payload)
                    .map_err(JobFailure::Undecodable)?;
                let results = batches.join(worker, vec![(command, job)], join).await?;
                let result = results.into_iter().next();
                reply::<W, C::Reply>(
                    result.unwrap_or_else(|| Err(WorkError::Retry("the command has no result".into()))),
                )
            })
        });
        let batch = |name| ((<C::Domain as Domain>::NAME, name), Handler::Batch(Rc::clone(&perform)));
        self.performs.extend(names::<C>().map(batch));
    }

    /// Lists an event with a handler.
    pub fn on<E: Event>(&mut self)
    where
        W: OnEvent<E>,
    {
        self.card.takes.push(MessageCard::of::<E>());
        let perform: HandleOne<W> = |worker, envelope, job| {
            Box::pin(async move {
                let mut done = reply::<W, ()>(Ok(()))?;
                for (event, job) in split_event(&envelope, &job)? {
                    done = reply::<W, ()>(worker.on_event(event, job).await)?;
                }
                Ok(done)
            })
        };
        self.on.extend(names::<E>().map(|name| ((<E::Domain as Domain>::NAME, name), Handler::One(perform))));
    }

    /// Lists an event with a batch handler.
    pub fn on_batch<E: Event>(&mut self)
    where
        W: OnEventBatch<E>,
    {
        self.card.takes.push(MessageCard::of::<E>());
        let batches = Batches::new(|worker: Arc<W>, batch| Box::pin(async move { worker.on_event_batch(batch).await }));
        let perform: HandleInBatch<W> = Rc::new(move |worker, envelope, job, join| {
            let batches = Rc::clone(&batches);
            Box::pin(async move {
                let events = split_event(&envelope, &job)?;
                let mut done = reply::<W, ()>(Ok(()))?;
                if !events.is_empty() {
                    for result in batches.join(worker, events, join).await? {
                        done = reply::<W, ()>(result)?;
                    }
                }
                Ok(done)
            })
        });
        let batch = |name| ((<E::Domain as Domain>::NAME, name), Handler::Batch(Rc::clone(&perform)));
        self.on.extend(names::<E>().map(batch));
    }

    /// Lists a command whose replies are handled.
    pub fn replied<C: Command>(&mut self)
    where
        W: OnJobReply<C>,
    {
        self.card.replies.push(MessageCard::of_command::<C>());
        self.awaited.push(TypeId::of::<C>());
        let perform: HandleOne<W> = |worker, envelope, job| {
            Box::pin(async move {
                let answer = <C::Reply as Coded>::read_reply(envelope.codec, &envelope.payload)
                    .map_err(JobFailure::Undecodable)?;
                reply::<W, ()>(worker.on_job_reply(answer, job).await)
            })
        };
        self.replied.extend(names::<C>().map(|name| ((<C::Domain as Domain>::NAME, name), Handler::One(perform))));
    }
}

/// Returns the events of a message, each with its job: one, or those into which a stored event was split.
fn split_event<E: Event>(envelope: &Envelope, job: &Job) -> Result<Vec<(E, Job)>, JobFailure> {
    let mut events = Vec::new();
    let mut split = |event| {
        let (nth, mut job) = (events.len() as u32, job.clone());
        // If one stored event was split into several, each has its own external effect.
        if nth > 0 {
            job.idempotency_key = job.idempotency_key.derive("split", nth);
        }
        events.push((event, job));
    };
    <E as Message>::decode_each(envelope.version, envelope.codec, &envelope.payload, &mut split)
        .map_err(JobFailure::Undecodable)?;
    Ok(events)
}

fn reply<W: Worker, R: Coded + 'static>(result: Result<R, WorkError>) -> Result<FinishedJob, JobFailure> {
    let reply = match result {
        Ok(reply) => Ok(reply),
        Err(WorkError::Rejected(rejection)) => Err(rejection),
        Err(WorkError::Retry(error)) => return Err(JobFailure::Retry(error)),
        Err(WorkError::Fail(error)) => return Err(JobFailure::Fail(text_of(&*error))),
    };
    let rejected = reply.is_err();
    let mut bytes = Vec::new();
    let settled = encode_reply_verified(reply, W::Domain::CODEC, &mut bytes);
    drop(settled.map_err(|error| JobFailure::Fail(format!("failed to encode reply: {error}")))?);
    Ok(FinishedJob { reply: bytes, rejected, sent: Vec::new() })
}
