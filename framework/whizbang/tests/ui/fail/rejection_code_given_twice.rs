use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Rejection)]
#[rejection(domain = Bank)]
enum WithdrawError {
    #[rejection(text = "the account is closed")]
    AccountClosed,
    #[rejection(text = "the bank is closed", code = "account-closed")]
    BankClosed,
}

fn main() {}
