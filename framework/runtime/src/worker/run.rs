//! One attempt of a job: the call of user code, with its limits.
//!
//! Called by the path of a [job](super::job), which decides what follows from the result.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::circuit::Counted;
use super::dispatcher::WorkerDispatcher;
use super::failure::{Failure, JobFailure};
use super::layered::JobLayers;
use super::limits::Admitted;
use super::open_batch::{JoinBatch, later, within};
use super::options::{JobError, RetryDecision};
use super::outbox::JobOutbox;
use super::plan::{FinishedJob, Handler, text_of};
use super::rate::Start;
use super::{Job, Worker};
use crate::actor::OwnedShard;
use whizbang_core::message::{Domain, Envelope, Kind};
use whizbang_core::telemetry::TARGET;
use whizbang_core::user_code::Label;

impl<W: Worker> WorkerDispatcher<W> {
    /// Calls user code once, and counts the result for the circuit of the worker.
    pub(super) async fn run_once(
        &self,
        shard: &Rc<OwnedShard>,
        envelope: &Envelope,
        delivery: u32,
        admitted: Admitted,
    ) -> Result<FinishedJob, Failure> {
        let list = match envelope.kind {
            Kind::Event => &self.plan.on,
            Kind::Reply => &self.plan.replied,
            Kind::Command | Kind::Query | Kind::Document => &self.plan.performs,
        };
        let run = match list.get(&(&*envelope.domain, &*envelope.name)) {
            Some(run) => run,
            // An older program listed the command; the present one does not need the reply.
            None if envelope.kind == Kind::Reply => return Ok(FinishedJob::NOTHING),
            None => return Err(Failure::Unhandled),
        };
        if let Some(error) = self.context.settings.shapes.refusal(envelope) {
            return Err(Failure::Undecodable(error.to_string()));
        }
        tracing::debug!(
            target: TARGET, kind = "worker", worker = %self.actor, message = %envelope.name, id = %envelope.id,
            correlation = %envelope.correlation, delivery, "job started",
        );
        let now = self.context.ids.clock().now();
        let outbox = Arc::new(JobOutbox::new(&self.sender, envelope, &shard.id, &self.actor, now));
        let job = Job {
            idempotency_key: envelope.id,
            delivery,
            key: envelope.key.clone(),
            correlation: envelope.correlation,
            headers: envelope.headers.clone(),
            traceparent: envelope.traceparent.clone(),
            replied_command: envelope.causation.filter(|_| envelope.kind == Kind::Reply),
            outbox: Arc::clone(&outbox),
        };
        let (worker, limits, message) = (Arc::clone(&self.worker), Arc::clone(&self.limits), envelope.clone());
        #[cfg(feature = "testing")]
        let (attempt, watched) = {
            let attempt = super::Attempt::begin(W::Domain::NAME, W::NAME, envelope, delivery);
            (attempt.clone(), attempt)
        };
        let layers = &*self.context.settings.layers;
        let layered = (!layers.is_empty()).then(|| JobLayers {
            layers,
            handler: W::NAME,
            codec: <W::Domain as Domain>::CODEC,
            clock: self.context.ids.clock().clone(),
            context: &self.context,
            shard: &shard.id,
        });
        let in_layers = layered.as_ref();
        let limit = self.limits.options.job_limit.unwrap_or(self.context.settings.job_limit);
        let code = &self.context.user_code;
        let label = code.label(W::NAME, &envelope.name);
        let deadline = Rc::new(Cell::new(later(limit)));
        let (size, wait) = self.limits.batch(self.context.settings.jobs);
        let join = JoinBatch {
            // An attempt that follows a failed one may be the cause of the failure.
            is_alone: delivery > 1,
            size,
            wait,
            limit,
            deadline: Rc::clone(&deadline),
            context: Rc::clone(&self.context),
            shard: Rc::clone(shard),
            label,
        };
        let handle = async move |message| match run {
            Handler::One(run) => run(worker, message, job).await,
            Handler::Batch(run) => run(worker, message, job, join).await,
        };
        let running = async move {
            #[cfg(feature = "testing")]
            crate::actor::Failpoints::hit(W::Domain::NAME, &message);
            let done = match in_layers {
                Some(layered) => layered.run(message, handle).await,
                None => handle(message).await,
            };
            #[cfg(feature = "testing")]
            let done = watched.returned(done).await;
            done.map_err(|failure| match failure {
                JobFailure::Undecodable(error) => Failure::Undecodable(error.to_string()),
                JobFailure::Retry(error) => {
                    Failure::decided(limits.options.decide(&*error, delivery), text_of(&*error))
                }
                JobFailure::Fail(text) => Failure::Fail(text),
                JobFailure::Batch(error) => {
                    let decision = match limits.options.decide(&*error, delivery) {
                        RetryDecision::GiveUp => RetryDecision::Policy,
                        decision => decision,
                    };
                    Failure::decided(decision, text_of(&*error))
                }
            })
        };
        let ended_early = |error: JobError| {
            if let Some(layered) = in_layers {
                let _ = code.call(label, || layered.failed(envelope, &error.to_string()));
            }
            self.unreported(label, &error, delivery)
        };
        let Admitted { pass, start } = admitted;
        start.into_iter().for_each(Start::begin);
        let ended = match within(&deadline, code.run(label, running)).await {
            Some(Ok(ended)) => ended,
            Some(Err(panicked)) => Err(ended_early(JobError::Panicked { text: panicked.text().to_owned() })),
            None => Err(ended_early(JobError::TimedOut { limit })),
        };
        // Closed however the attempt has ended: a clone of the job in a detached task sends nothing more.
        let ended = match (ended, outbox.close()) {
            (Ok(done), _) if done.rejected => Ok(done),
            (Ok(done), Ok(sent)) => Ok(FinishedJob { sent, ..done }),
            (Ok(_), Err(error)) => Err(Failure::Fail(error.to_string())),
            (Err(failure), _) => Err(failure),
        };
        #[cfg(feature = "testing")]
        attempt.ended(&ended);
        if let Some(pass) = pass {
            pass.ended(match &ended {
                Ok(_) => Counted::Success,
                Err(Failure::Retry(text, _)) => Counted::Failure(text),
                Err(Failure::Undecodable(_) | Failure::Unhandled | Failure::Fail(_)) => Counted::Neither,
            });
        }
        ended
    }

    /// Returns the failure of an attempt that its worker did not report.
    fn unreported(&self, label: Label, error: &JobError, attempt: u32) -> Failure {
        let options = &self.limits.options;
        let decision = if options.has_rules() {
            // A rule that panics decides nothing.
            self.context.user_code.call(label, || options.decide(error, attempt)).unwrap_or_default()
        } else {
            RetryDecision::Policy
        };
        Failure::decided(decision, error.to_string())
    }
}
