use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
enum Deposited {
    Cash {
        #[key]
        account: String,
    },
}

fn main() {}
