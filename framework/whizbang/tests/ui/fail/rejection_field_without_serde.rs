use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

struct Limit(u64);

#[derive(Rejection)]
#[rejection(domain = Bank)]
enum WithdrawError {
    #[rejection(text = "above the limit")]
    AboveLimit { limit: Limit },
}

fn main() {}
