//! A caller in its own process: `caller URL KEY ACCOUNT CENTS` deposits under an idempotency key and prints the reply or the error.
//! It shares no code with the bank: only message names and encodings.

use whizbang::bridge::nats::NatsBridge;
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

#[whizbang::main]
async fn main() -> Result<(), whizbang::Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, key, account, cents] = arguments.as_slice() else {
        panic!("usage: caller URL KEY ACCOUNT CENTS");
    };
    let client = Client::connect("caller", NatsBridge::connect(url).await?).await?;
    let deposit = Deposit { account: account.clone(), cents: cents.parse().expect("a number") };
    match client.send(deposit).idempotency_key(key).await {
        Ok(balance) => println!("{balance}"),
        Err(error) => println!("{error}"),
    }
    client.disconnect().await;
    Ok(())
}
