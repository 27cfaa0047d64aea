//! Accounts: an aggregate whose balance is never negative.

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

/// Compensates a withdrawal. A compensating command must not be rejected, so even a closed account accepts its refund.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Accounts)]
pub(crate) struct Refund {
    #[key]
    pub(crate) account: String,
    pub(crate) cents: u64,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Accounts)]
pub(crate) struct Close {
    #[key]
    pub(crate) account: String,
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

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Accounts)]
pub(crate) struct Closed;

#[derive(Aggregate, Default)]
#[aggregate(domain = Accounts, handles(Deposit, Withdraw, Refund, Close), applies(Deposited, Withdrawn, Closed))]
pub(crate) struct Account {
    pub(crate) cents: u64,
    closed: bool,
}

impl Handle<Deposit> for Account {
    fn handle(&self, deposit: Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        if self.closed {
            return Err(Rejection::new("accounts.closed", "the account is closed"));
        }
        effects.record(Deposited { cents: deposit.cents });
        Ok(self.cents + deposit.cents)
    }
}

impl Handle<Withdraw> for Account {
    fn handle(&self, withdraw: Withdraw, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        if withdraw.cents > self.cents {
            let text = format!("the account holds {} cents", self.cents);
            return Err(Rejection::new("accounts.insufficient-funds", text));
        }
        effects.record(Withdrawn { cents: withdraw.cents });
        Ok(self.cents - withdraw.cents)
    }
}

impl Handle<Refund> for Account {
    fn handle(&self, refund: Refund, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Deposited { cents: refund.cents });
        Ok(())
    }
}

impl Handle<Close> for Account {
    fn handle(&self, _close: Close, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Closed);
        Ok(())
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

impl Apply<Closed> for Account {
    fn apply(&mut self, _closed: &Closed) {
        self.closed = true;
    }
}
