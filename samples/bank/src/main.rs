//! Two aggregates and a saga: money moves from account to account, and comes back if it cannot arrive.

mod accounts;
mod transfers;

use std::time::Duration;

use whizbang::prelude::*;

use accounts::{Account, Close, Deposit};
use transfers::{CheckTransfer, Move, RequestTransfer, Transfer};

#[whizbang::main]
async fn main() -> Result<(), whizbang::Error> {
    let node =
        Node::builder("bank", MemoryStore::new()).host::<Account>().host::<Transfer>().host::<Move>().start().await?;
    let bank = node.client();

    bank.send(Deposit { account: "ada".into(), cents: 500 }).await?;
    bank.send(Deposit { account: "cyd".into(), cents: 10 }).await?;
    bank.send(Close { account: "cyd".into() }).await?;

    for (transfer, from, to, cents) in
        [("rent", "ada", "bob", 300), ("car", "ada", "bob", 90_000), ("gift", "ada", "cyd", 100)]
    {
        let request = RequestTransfer { transfer: transfer.into(), from: from.into(), to: to.into(), cents };
        bank.send(request).await?;
        println!("{transfer}: {cents} cents from {from} to {to}: {}", outcome(&bank, transfer).await?);
    }
    for account in ["ada", "bob"] {
        let balance = bank.send(Deposit { account: account.into(), cents: 0 }).await?;
        println!("{account} has {balance} cents");
    }
    node.stop().await
}

/// Waits for the end of a transfer.
async fn outcome(bank: &Client, transfer: &str) -> Result<String, whizbang::Error> {
    loop {
        if let Some(outcome) = bank.send(CheckTransfer { transfer: transfer.into() }).await? {
            return Ok(outcome);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
