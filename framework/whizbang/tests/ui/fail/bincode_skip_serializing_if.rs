use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank)]
struct Deposit {
    #[key]
    account: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    coupon: Option<u64>,
    cents: u64,
}

fn main() {}
