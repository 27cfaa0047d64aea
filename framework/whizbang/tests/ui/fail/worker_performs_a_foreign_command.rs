use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Domain)]
struct Shop;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Shop, reply = u64)]
struct Deposit {
    #[key]
    account: String,
    cents: u64,
}

#[derive(Worker)]
#[worker(domain = Bank, performs(Deposit))]
struct Teller;

impl Perform<Deposit> for Teller {
    async fn perform(&self, deposit: Deposit, _job: Job) -> Result<u64, WorkError> {
        Ok(deposit.cents)
    }
}

fn main() {}
