//! The domain behind the gateway: accounts whose balance is never negative, and a view of the balances.

use std::collections::BTreeMap;

use whizbang::prelude::*;

#[derive(Domain)]
pub(crate) struct Accounts;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Accounts, reply = u64)]
pub(crate) struct Deposit {
    #[key]
    pub(crate) account: String,
    pub(crate) cents: u64,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Accounts, reply = u64)]
pub(crate) struct Withdraw {
    #[key]
    pub(crate) account: String,
    pub(crate) cents: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Accounts)]
pub(crate) struct Deposited {
    pub(crate) cents: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Accounts)]
pub(crate) struct Withdrawn {
    pub(crate) cents: u64,
}

/// The reasons for which an account rejects a command.
#[derive(Rejection, Debug)]
#[rejection(domain = Accounts)]
pub(crate) enum AccountError {
    #[rejection(text = "the account cannot hold that much")]
    TooMuch,
    #[rejection(text = "the account holds {cents} cents")]
    InsufficientFunds { cents: u64 },
}

/// Asks for the balance of one account. The reply is `None` if the account has never been used.
#[derive(Query, Serialize, Deserialize)]
#[query(domain = Accounts, reply = Option<u64>)]
pub(crate) struct BalanceOf {
    pub(crate) account: String,
}

#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(domain = Accounts, handles(Deposit, Withdraw), applies(Deposited, Withdrawn))]
pub(crate) struct Account {
    cents: u64,
}

impl Handle<Deposit> for Account {
    fn handle(&self, deposit: Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        let Some(balance) = self.cents.checked_add(deposit.cents) else {
            return Err(AccountError::TooMuch.into());
        };
        effects.record(Deposited { cents: deposit.cents });
        Ok(balance)
    }
}

impl Handle<Withdraw> for Account {
    fn handle(&self, withdraw: Withdraw, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        let Some(balance) = self.cents.checked_sub(withdraw.cents) else {
            return Err(AccountError::InsufficientFunds { cents: self.cents }.into());
        };
        effects.record(Withdrawn { cents: withdraw.cents });
        Ok(balance)
    }
}

impl Apply<Deposited> for Account {
    fn apply(&mut self, deposited: &Deposited) {
        self.cents += deposited.cents;
    }
}

impl Apply<Withdrawn> for Account {
    fn apply(&mut self, withdrawn: &Withdrawn) {
        self.cents -= withdrawn.cents;
    }
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited, Withdrawn), answers(BalanceOf))]
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

impl Answer<BalanceOf> for Balances {
    fn answer(&self, query: BalanceOf) -> Option<u64> {
        self.cents.get(&query.account).copied()
    }
}
