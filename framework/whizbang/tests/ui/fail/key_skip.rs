use whizbang::prelude::*;

#[derive(Domain)]
#[domain(codec = json)]
struct Web;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Web)]
struct Deposit {
    #[key]
    #[serde(skip)]
    account: String,
    cents: u64,
}

fn main() {}
