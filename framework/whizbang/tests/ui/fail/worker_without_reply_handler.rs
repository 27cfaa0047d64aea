use whizbang::prelude::*;

#[derive(Domain)]
struct Payments;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Payments, reply = u64)]
struct Charge {
    #[key]
    order: String,
}

#[derive(Worker)]
#[worker(domain = Payments, performs(Charge), replies(Charge))]
struct Charger;

impl Perform<Charge> for Charger {
    async fn perform(&self, _charge: Charge, _job: Job) -> Result<u64, WorkError> {
        Ok(1)
    }
}

fn main() {}
