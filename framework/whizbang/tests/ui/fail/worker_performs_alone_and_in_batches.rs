use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank)]
struct Deposit {
    #[key]
    account: String,
}

#[derive(Worker)]
#[worker(domain = Bank, performs(Deposit), performs_batch(Deposit))]
struct Teller;

impl Perform<Deposit> for Teller {
    async fn perform(&self, _deposit: Deposit, _job: Job) -> Result<(), WorkError> {
        Ok(())
    }
}

impl PerformBatch<Deposit> for Teller {
    async fn perform_batch(&self, batch: Vec<(Deposit, Job)>) -> Result<Vec<Result<(), WorkError>>, WorkError> {
        Ok(batch.iter().map(|_| Ok(())).collect())
    }
}

fn main() {}
