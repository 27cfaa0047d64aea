//! Balances: a projection that knows what lies in every account, and answers queries.

use std::collections::BTreeMap;

use whizbang::prelude::*;

use crate::accounts::{Accounts, Deposited, Withdrawn};

/// Asks what lies in all accounts.
#[derive(Query, Serialize, Deserialize)]
#[query(domain = Accounts, reply = BTreeMap<String, u64>)]
pub(crate) struct AskBalances {}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited, Withdrawn), answers(AskBalances))]
pub(crate) struct Balances {
    cents: BTreeMap<String, u64>,
}

impl Project<Deposited> for Balances {
    fn project(&mut self, deposited: &Deposited, about: &EventContext) {
        *self.cents.entry(about.key.clone()).or_default() += deposited.cents;
    }
}

impl Project<Withdrawn> for Balances {
    fn project(&mut self, withdrawn: &Withdrawn, about: &EventContext) {
        *self.cents.entry(about.key.clone()).or_default() -= withdrawn.cents;
    }
}

impl Answer<AskBalances> for Balances {
    fn answer(&self, _: AskBalances) -> BTreeMap<String, u64> {
        self.cents.clone()
    }
}
