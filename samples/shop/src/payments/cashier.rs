//! Calls the payment provider. After a missing or failed answer the job is retried with the same idempotency key.

use std::time::Duration;

use whizbang::prelude::*;

use super::provider::{Provider, ProviderError};
use super::{Charge, Payments, ReturnMoney};

/// The time limit for one answer of the provider.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// The worker that calls the payment provider.
#[derive(Worker)]
#[worker(domain = Payments, performs(Charge, ReturnMoney))]
pub struct Cashier {
    provider: Provider,
}

impl Cashier {
    /// Creates a cashier that calls `provider`.
    pub fn new(provider: Provider) -> Self {
        Self { provider }
    }
}

impl Perform<Charge> for Cashier {
    async fn perform(&self, charge: Charge, job: Job) -> Result<String, WorkError> {
        let key = job.idempotency_key.to_string();
        answer_in_time(self.provider.charge(&key, &charge.order, charge.cents)).await
    }
}

impl Perform<ReturnMoney> for Cashier {
    async fn perform(&self, money: ReturnMoney, job: Job) -> Result<String, WorkError> {
        let key = job.idempotency_key.to_string();
        answer_in_time(self.provider.give_back(&key, &money.order, money.cents)).await
    }
}

/// Waits for an answer of the provider, with a time limit.
async fn answer_in_time(answer: impl Future<Output = Result<String, ProviderError>>) -> Result<String, WorkError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(receipt)) => Ok(receipt),
        Ok(Err(ProviderError::Declined(reason))) => Err(Rejection::new("payments.declined", reason).into()),
        Ok(Err(error)) => Err(WorkError::Retry(error.into())),
        // The charge may have succeeded. A retry with the same key returns its receipt and does not charge twice.
        Err(elapsed) => Err(WorkError::Retry(elapsed.into())),
    }
}
