// 5 mistakes, reported together: every listed trait is missing.

use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
struct Deposit {
    #[key]
    account: String,
    cents: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    cents: u64,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Bank)]
struct Overdue {
    cents: u64,
}

#[derive(Saga, Default)]
#[saga(domain = Bank, handles(Deposit), applies(Deposited), reacts(Deposited), replies(Deposit), timers(Overdue))]
struct Plan {
    cents: u64,
}

fn main() {}
