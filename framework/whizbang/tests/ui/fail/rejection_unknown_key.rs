use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Rejection)]
#[rejection(domain = Bank)]
enum WithdrawError {
    #[rejection(txt = "the account is closed")]
    Closed,
}

fn main() {}
