use whizbang::prelude::*;

#[derive(Domain)]
#[domain(codec = json)]
struct Web;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Web)]
struct Deposit {
    #[key]
    #[serde(default, skip_serializing_if = "String::is_empty")]
    account: String,
    cents: u64,
}

fn main() {}
