use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Document, Serialize, Deserialize)]
struct PaymentOverdue {
    cents: u64,
}

fn main() {}
