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

async fn start() {
    let _ = Node::builder("bank", MemoryStore::new()).aggregate::<Deposit>().start().await;
}

fn main() {}
