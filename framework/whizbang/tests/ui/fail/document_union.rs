use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Document)]
#[document(domain = Bank)]
union PaymentOverdue {
    cents: u64,
}

fn main() {}
