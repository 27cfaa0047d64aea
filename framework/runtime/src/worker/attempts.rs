//! Attempt log: records each attempt of a job during a simulation: its message, whether its effect was done, and its
//! end.
//!
//! Enabled by the simulated cluster of `whizbang-testing`, which runs on one thread; called where a job calls user
//! code. Compiled only with the feature `testing`.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::time::Instant;

use super::failure::{Failure, JobFailure};
use super::plan::FinishedJob;
use crate::actor::{Failpoint, Failpoints};
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, MessageId};

/// One attempt of a job.
#[derive(Clone, Debug)]
pub struct JobAttempt {
    #[doc(hidden)]
    pub domain: &'static str,
    #[doc(hidden)]
    pub worker: &'static str,
    /// Message of the job.
    pub message: Envelope,
    /// Number of the attempt, from 1.
    pub number: u32,
    #[doc(hidden)]
    pub begun: Instant,
    /// Time at which user code returned a reply or a rejection: its external effect is done.
    pub effect: Option<Instant>,
    /// Time and manner of its end; `None` if its process ended first, or if it is running.
    pub end: Option<(Instant, AttemptEnd)>,
}

/// End of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    #[doc(hidden)]
    Done,
    #[doc(hidden)]
    Rejected,
    #[doc(hidden)]
    Failed(String),
}

thread_local! {
    static ATTEMPTS: RefCell<Option<Vec<Rc<RefCell<JobAttempt>>>>> = const { RefCell::new(None) };
}

/// One attempt in progress.
#[derive(Clone, Debug)]
pub struct Attempt(Rc<RefCell<JobAttempt>>);

impl Attempt {
    /// Starts or stops recording on this thread, and clears the record.
    pub fn record(on: bool) {
        ATTEMPTS.set(on.then(Vec::new));
    }

    /// Returns the attempts since recording began, in the order in which they began.
    pub fn recorded() -> Vec<JobAttempt> {
        ATTEMPTS.with_borrow(|attempts| attempts.iter().flatten().map(|attempt| attempt.borrow().clone()).collect())
    }

    /// Returns when the first attempt for a message began, if one has.
    pub fn first_begun(message: MessageId) -> Option<Instant> {
        ATTEMPTS.with_borrow(|attempts| {
            let mut all = attempts.iter().flatten().map(|attempt| attempt.borrow());
            all.find(|attempt| attempt.message.id == message).map(|attempt| attempt.begun)
        })
    }

    pub(super) fn begin(domain: &'static str, worker: &'static str, message: &Envelope, number: u32) -> Self {
        let begun = instant();
        let attempt = JobAttempt { domain, worker, message: message.clone(), number, begun, effect: None, end: None };
        let attempt = Rc::new(RefCell::new(attempt));
        ATTEMPTS.with_borrow_mut(|attempts| attempts.iter_mut().for_each(|list| list.push(Rc::clone(&attempt))));
        Self(attempt)
    }

    /// Records that user code has returned and its effect is done, and triggers a failpoint if one is set.
    pub(super) async fn returned(&self, done: Result<FinishedJob, JobFailure>) -> Result<FinishedJob, JobFailure> {
        let done = done?;
        self.0.borrow_mut().effect = Some(instant());
        let (domain, id) = (self.0.borrow().domain, self.0.borrow().message.id);
        match Failpoints::after_effect(domain, id) {
            Some(Failpoint::Fail) => Err(JobFailure::Retry("a simulated failure".into())),
            Some(Failpoint::Hang) => std::future::pending().await,
            Some(Failpoint::Kill(killer)) => {
                killer.notify_one();
                std::future::pending().await
            }
            Some(Failpoint::Panic | Failpoint::Poison) | None => Ok(done),
        }
    }

    pub(super) fn ended(&self, ended: &Result<FinishedJob, Failure>) {
        let end = match ended {
            Ok(FinishedJob { rejected: true, .. }) => AttemptEnd::Rejected,
            Ok(_) => AttemptEnd::Done,
            Err(failure) => AttemptEnd::Failed(failure.text().to_owned()),
        };
        self.0.borrow_mut().end = Some((instant(), end));
    }
}
