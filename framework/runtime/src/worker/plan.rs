//! Worker plan: the commands and events that the derive lists for a worker.

use std::any::TypeId;
use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;

use foldhash::fast::FixedState;
use futures_util::future::LocalBoxFuture;

use super::{Job, OnEvent, OnJobReply, Perform, WorkError, Worker};
use crate::actor::{Outgoing, names};
use crate::router::{ActorCard, MessageCard};
use whizbang_core::message::{CodecError, Coded, Command, Domain, Envelope, Event, Message, Of, encode_reply_verified};
use whizbang_core::telemetry::{error_chain, shortened};

/// Runs one job.
type Doing<W> = fn(Arc<W>, Envelope, Job) -> LocalBoxFuture<'static, Result<Done, JobFailure>>;
type ByName<T> = HashMap<(&'static str, &'static str), T, FixedState>;

/// A finished job.
pub(crate) struct Done {
    /// Encoded `Result<Reply, Rejection>`.
    pub(crate) reply: Vec<u8>,
    pub(crate) rejected: bool,
    /// Messages that it sends. Empty until its attempt has ended, and if it is rejected.
    pub(crate) sent: Vec<Outgoing>,
}

impl Done {
    /// A message without any effect.
    pub(crate) const NOTHING: Self = Self { reply: Vec::new(), rejected: false, sent: Vec::new() };
}

/// Reason why a job is not done.
pub(crate) enum JobFailure {
    /// The message cannot be decoded; nothing was done.
    Undecodable(CodecError),
    /// Another attempt may succeed.
    Retry(Box<dyn Error + Send + Sync>),
    /// Permanent failure.
    Fail(String),
}

/// Returns the text of an error with its causes, as logs and dead letters contain it.
pub(super) fn text_of(error: &(dyn Error + 'static)) -> String {
    shortened(error_chain(error).to_string())
}

/// List filled by [`Worker::wire`].
#[doc(hidden)]
pub struct WorkerPlan<W: ?Sized> {
    pub(crate) performs: ByName<Doing<W>>,
    pub(crate) on: ByName<Doing<W>>,
    pub(crate) replied: ByName<Doing<W>>,
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
        let perform: Doing<W> = |worker, envelope, job| {
            Box::pin(async move {
                let command = <C as Message>::decode(envelope.version, envelope.codec, &envelope.payload)
                    .map_err(JobFailure::Undecodable)?;
                reply::<W, C::Reply>(worker.perform(command, job).await)
            })
        };
        self.performs.extend(names::<C>().map(|name| ((<C::Domain as Domain>::NAME, name), perform)));
    }

    /// Lists an event with a handler.
    pub fn on<E: Event>(&mut self)
    where
        W: OnEvent<E>,
    {
        self.card.takes.push(MessageCard::of::<E>());
        let perform: Doing<W> = |worker, envelope, job| {
            Box::pin(async move {
                let mut events = Vec::new();
                <E as Message>::decode_each(envelope.version, envelope.codec, &envelope.payload, &mut |event| {
                    events.push(event);
                })
                .map_err(JobFailure::Undecodable)?;
                let mut done = reply::<W, ()>(Ok(()))?;
                for (event, nth) in events.into_iter().zip(0..) {
                    let mut job = job.clone();
                    // If one stored event was split into several, each has its own external effect.
                    if nth > 0 {
                        job.idempotency_key = job.idempotency_key.derive("split", nth);
                    }
                    done = reply::<W, ()>(worker.on_event(event, job).await)?;
                }
                Ok(done)
            })
        };
        self.on.extend(names::<E>().map(|name| ((<E::Domain as Domain>::NAME, name), perform)));
    }

    /// Lists a command whose replies are handled.
    pub fn replied<C: Command>(&mut self)
    where
        W: OnJobReply<C>,
    {
        self.card.replies.push(MessageCard::of_command::<C>());
        self.awaited.push(TypeId::of::<C>());
        let perform: Doing<W> = |worker, envelope, job| {
            Box::pin(async move {
                let answer = <C::Reply as Coded>::read_reply(envelope.codec, &envelope.payload)
                    .map_err(JobFailure::Undecodable)?;
                reply::<W, ()>(worker.on_job_reply(answer, job).await)
            })
        };
        self.replied.extend(names::<C>().map(|name| ((<C::Domain as Domain>::NAME, name), perform)));
    }
}

fn reply<W: Worker, R: Coded + 'static>(result: Result<R, WorkError>) -> Result<Done, JobFailure> {
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
    Ok(Done { reply: bytes, rejected, sent: Vec::new() })
}
