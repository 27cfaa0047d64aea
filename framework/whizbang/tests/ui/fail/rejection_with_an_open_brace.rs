use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Rejection)]
#[rejection(domain = Bank)]
enum WithdrawError {
    #[rejection(text = "the account holds {cents cents")]
    NoFunds { cents: u64 },
}

fn main() {}
