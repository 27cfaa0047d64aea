use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Rejection)]
#[rejection(domain = Bank)]
enum WithdrawError {
    #[rejection(text = "{0} is closed")]
    Closed,
}

fn main() {}
