use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Rejection)]
#[rejection(domain = Bank)]
enum WithdrawError {}

fn main() {}
