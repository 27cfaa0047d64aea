use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Rejection)]
#[rejection(domain = Bank)]
enum WithdrawError {
    #[rejection(text = "the account is closed", code = "bank.closed")]
    Closed,
}

fn main() {}
