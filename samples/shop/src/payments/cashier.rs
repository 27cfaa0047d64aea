//! Talks to the payment provider. The provider may answer late or never: then the same is asked again, under the same key.

use std::time::Duration;

use whizbang::prelude::*;

use super::provider::{Provider, ProviderError};
use super::{Charge, Payments, ReturnMoney};

/// The time limit for one answer of the provider.
const PATIENCE: Duration = Duration::from_millis(500);

/// Talks to the payment provider.
#[derive(Worker)]
#[worker(domain = Payments, performs(Charge, ReturnMoney))]
pub struct Cashier {
    provider: Provider,
}

impl Cashier {
    /// A cashier at a provider's counter.
    pub fn new(provider: Provider) -> Self {
        Self { provider }
    }
}

impl Perform<Charge> for Cashier {
    async fn perform(&self, charge: Charge, job: Job) -> Result<String, WorkError> {
        let key = job.idempotency_key.to_string();
        answered(self.provider.charge(&key, &charge.order, charge.cents)).await
    }
}

impl Perform<ReturnMoney> for Cashier {
    async fn perform(&self, money: ReturnMoney, job: Job) -> Result<String, WorkError> {
        let key = job.idempotency_key.to_string();
        answered(self.provider.give_back(&key, &money.order, money.cents)).await
    }
}

/// Waits for the provider's answer, but not for ever.
async fn answered(answer: impl Future<Output = Result<String, ProviderError>>) -> Result<String, WorkError> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(receipt)) => Ok(receipt),
        Ok(Err(ProviderError::Declined(why))) => Err(Rejection::new("payments.declined", why).into()),
        Ok(Err(error)) => Err(WorkError::Retry(error.into())),
        // It may have charged or not; asking again with the same key tells, and charges nothing twice.
        Err(silence) => Err(WorkError::Retry(silence.into())),
    }
}
