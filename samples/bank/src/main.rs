//! Two aggregates, a saga and two projections: a transfer moves money between accounts, or returns it if the target rejects it.

mod accounts;
mod balances;
mod transfers;

#[cfg(test)]
mod flow;

use whizbang::prelude::*;

use accounts::{Account, Close, Deposit};
use balances::{AskBalances, Balances};
use transfers::{Move, OutcomeOf, Outcomes, RequestTransfer, Transfer};

#[whizbang::main]
async fn main() -> Result<(), whizbang::Error> {
    let node = Node::builder("bank", MemoryStore::new())
        .aggregate::<Account>()
        .aggregate::<Transfer>()
        .saga::<Move>()
        .projection::<Outcomes>()
        .projection::<Balances>()
        .start()
        .await?;
    let bank = node.client();

    bank.send(Deposit { account: "ada".into(), cents: 500 }).await?;
    bank.send(Deposit { account: "cyd".into(), cents: 10 }).await?;
    bank.send(Close { account: "cyd".into() }).await?;

    for (transfer, from, to, cents) in
        [("rent", "ada", "bob", 300), ("car", "ada", "bob", 90_000), ("gift", "ada", "cyd", 100)]
    {
        let request = RequestTransfer { transfer: transfer.into(), from: from.into(), to: to.into(), cents };
        bank.send(request).await?;
        // The reply means that the request is accepted. Wait until the saga has finished.
        node.wait_idle().await;
        let outcome = bank.query(OutcomeOf { transfer: transfer.into() }).await?;
        println!("{transfer}: {cents} cents from {from} to {to}: {outcome}");
    }
    for (account, cents) in bank.query(AskBalances).await? {
        println!("{account} has {cents} cents");
    }
    node.stop().await
}
