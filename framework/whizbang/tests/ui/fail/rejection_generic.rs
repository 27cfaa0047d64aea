use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Rejection)]
#[rejection(domain = Bank)]
enum WithdrawError<'a> {
    #[rejection(text = "{0} is closed")]
    Closed(&'a str),
}

fn main() {}
