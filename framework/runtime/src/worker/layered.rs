//! The layers around a job.
//!
//! Called by the path of a [job](super::job), in each attempt. Calls the [layers](crate::layer), which are user code.

use std::rc::Rc;

use super::failure::JobFailure;
use super::plan::{FinishedJob, text_of};
use crate::actor::{MIN_WAIT, StuckKey, ThreadContext};
use crate::layer::{Call, CallOutcome, Layers, Refusal};
use whizbang_core::clock::Clock;
use whizbang_core::message::{Codec, Coded as _, Envelope, Kind, Rejection, ShardId, rejection_in};

/// The layers of a worker's jobs.
pub(super) struct JobLayers<'a> {
    pub(super) layers: &'a Layers,
    /// The name of the worker.
    pub(super) handler: &'static str,
    /// The codec of the worker's replies.
    pub(super) codec: Codec,
    pub(super) clock: Clock,
    pub(super) context: &'a Rc<ThreadContext>,
    pub(super) shard: &'a ShardId,
}

impl JobLayers<'_> {
    fn call<'a>(&'a self, envelope: &'a Envelope) -> Call<'a> {
        Call { handler: self.handler, ..Call::of(envelope, &envelope.key, self.clock.now()) }
    }

    /// Runs a job inside the layers. A layer that refuses the message for now is asked again after its wait, within the time limit
    /// of the job.
    pub(super) async fn run(
        &self,
        envelope: Envelope,
        job: impl AsyncFnOnce(Envelope) -> Result<FinishedJob, JobFailure>,
    ) -> Result<FinishedJob, JobFailure> {
        let mut refusals = StuckKey::default();
        loop {
            match self.layers.before_async(&self.call(&envelope)).await {
                Ok(()) => break,
                Err(Refusal::Busy { after }) => {
                    self.context.counts.busy.one();
                    refusals.delayed(
                        self.context,
                        || format!("{}/{}/{} layer", self.shard, self.handler, envelope.id),
                        || format!("a job of `{}` in {}", self.handler, self.shard),
                    );
                    tokio::time::sleep(after.max(MIN_WAIT)).await;
                }
                Err(Refusal::Reject(rejection)) if envelope.kind == Kind::Command => {
                    return rejected(rejection, self.codec);
                }
                Err(Refusal::Reject(rejection)) => {
                    return Err(JobFailure::Fail(format!("rejected by a layer: {rejection}")));
                }
            }
        }
        refusals.served();
        let done = job(envelope.clone()).await;
        let (call, rejection) = (self.call(&envelope), self.rejection(&done));
        let failed = match &done {
            Ok(_) => None,
            Err(JobFailure::Retry(error)) => Some(text_of(&**error)),
            Err(JobFailure::Batch(error)) => Some(text_of(&**error)),
            Err(JobFailure::Fail(text)) => Some(text.clone()),
            Err(JobFailure::Undecodable(_)) => Some("failed to decode message".to_owned()),
        };
        self.layers.after(
            &call,
            match (&failed, &rejection) {
                (_, Some(rejection)) => CallOutcome::Rejected(rejection),
                (None, None) => CallOutcome::Done,
                (Some(text), None) => CallOutcome::Failed(text),
            },
        );
        done
    }

    /// Reports an attempt that a panic or the time limit has ended. User code.
    pub(super) fn failed(&self, envelope: &Envelope, text: &str) {
        self.layers.after(&self.call(envelope), CallOutcome::Failed(text));
    }

    fn rejection(&self, done: &Result<FinishedJob, JobFailure>) -> Option<Rejection> {
        let done = done.as_ref().ok().filter(|done| done.rejected)?;
        rejection_in(self.codec, &done.reply).ok().flatten()
    }
}

fn rejected(rejection: Rejection, codec: Codec) -> Result<FinishedJob, JobFailure> {
    let mut reply = Vec::new();
    match <()>::write_reply(&Err(rejection), codec, &mut reply) {
        Ok(()) => Ok(FinishedJob { reply, rejected: true, sent: Vec::new() }),
        Err(error) => Err(JobFailure::Fail(format!("failed to encode reply: {error}"))),
    }
}
