//! A wallet that can be filled: the smallest possible aggregate, in a domain of one shard.
#![allow(dead_code, unreachable_pub, missing_docs)]

use whizbang::prelude::*;

#[derive(Domain)]
#[domain(name = "wallets", shards = 1)]
pub struct Wallets;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Wallets)]
pub struct Fill {
    #[key]
    pub wallet: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Wallets)]
pub struct Filled {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Wallets, handles(Fill), applies(Filled))]
pub struct Wallet;

impl Handle<Fill> for Wallet {
    fn handle(&self, _put: Fill, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Filled {});
        Ok(())
    }
}

impl Apply<Filled> for Wallet {
    fn apply(&mut self, _filled: &Filled) {}
}

/// Returns the command that fills a wallet.
pub fn fill(wallet: &str) -> Fill {
    Fill { wallet: wallet.to_owned() }
}
