use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Rejection)]
enum WithdrawError {
    #[rejection(text = "the account is closed")]
    Closed,
}

fn main() {}
