//! Balances: a projection that keeps the balance of every account and answers queries.

use std::collections::BTreeMap;

use whizbang::prelude::*;

use crate::accounts::{Accounts, Deposited, Withdrawn};

/// Asks for the balances of all accounts.
#[derive(Query, Serialize, Deserialize)]
#[query(domain = Accounts, reply = BTreeMap<String, u64>)]
pub(crate) struct AskBalances;

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited, Withdrawn), answers(AskBalances))]
pub(crate) struct Balances {
    cents: BTreeMap<String, u64>,
}

impl Project<Deposited> for Balances {
    fn project(&mut self, deposited: &Deposited, context: &EventContext) {
        *self.cents.entry(context.key.clone()).or_default() += deposited.cents;
    }
}

impl Project<Withdrawn> for Balances {
    fn project(&mut self, withdrawn: &Withdrawn, context: &EventContext) {
        *self.cents.entry(context.key.clone()).or_default() -= withdrawn.cents;
    }
}

impl Answer<AskBalances> for Balances {
    fn answer(&self, _: AskBalances) -> BTreeMap<String, u64> {
        self.cents.clone()
    }
}
