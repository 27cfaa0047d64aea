use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Rejection)]
#[rejection(domain = Bank)]
enum WithdrawError {
    #[rejection(text = "the account holds {cent} cents")]
    NoFunds { cents: u64 },
}

fn main() {}
