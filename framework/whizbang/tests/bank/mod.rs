//! A small bank: two actor types, and a transfer between accounts.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::time::Duration;

use whizbang::prelude::*;

#[derive(Domain)]
#[domain(name = "bank")]
pub struct Bank;

#[derive(Domain)]
#[domain(name = "transfers")]
pub struct Transfers;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
pub struct Deposit {
    #[key]
    pub account: String,
    pub cents: u64,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
pub struct Withdraw {
    #[key]
    pub account: String,
    pub cents: u64,
    pub transfer: String,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Bank)]
pub struct Close {
    #[key]
    pub account: String,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Bank)]
pub struct Hold {
    #[key]
    pub account: String,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Bank)]
pub struct Explode {
    #[key]
    pub account: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Bank)]
pub struct Deposited {
    pub cents: u64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Bank)]
pub struct Withdrawn {
    pub cents: u64,
    pub transfer: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Bank)]
pub struct Closed {}

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Bank, handles(Deposit, Withdraw, Close, Hold, Explode), applies(Deposited, Withdrawn, Closed))]
pub struct Account {
    pub cents: u64,
    pub closed: bool,
}

impl Handle<Deposit> for Account {
    fn handle(&self, deposit: Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        if self.closed {
            return Err(Rejection::new("bank.closed", "the account is closed"));
        }
        effects.record(Deposited { cents: deposit.cents });
        Ok(self.cents + deposit.cents)
    }
}

impl Handle<Withdraw> for Account {
    fn handle(&self, withdraw: Withdraw, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        if self.cents < withdraw.cents {
            return Err(Rejection::new("bank.insufficient-funds", format!("the account holds {} cents", self.cents)));
        }
        effects.record(Withdrawn { cents: withdraw.cents, transfer: withdraw.transfer });
        Ok(self.cents - withdraw.cents)
    }
}

impl Handle<Close> for Account {
    fn handle(&self, _close: Close, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Closed {});
        Ok(())
    }
}

impl Handle<Hold> for Account {
    fn handle(&self, _hold: Hold, _effects: &mut Effects<Self>) -> Result<(), Rejection> {
        Ok(())
    }
}

impl Handle<Explode> for Account {
    fn handle(&self, _explode: Explode, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Deposited { cents: 1_000_000 });
        panic!("boom");
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

#[derive(Domain)]
#[domain(name = "branches")]
pub struct Branches;

/// Has a branch send [`Explode`]: sent by an actor, it parks its account.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Branches)]
pub struct Blast {
    #[key]
    pub account: String,
}

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Branches, handles(Blast))]
pub struct Branch {}

impl Handle<Blast> for Branch {
    fn handle(&self, blast: Blast, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(Explode { account: blast.account });
        Ok(())
    }
}

/// Parks an account behind a dead letter. The node hosts [`Branch`].
pub async fn park(node: &Node, account: &str) -> whizbang::store::DeadLetter {
    node.client().send(Blast { account: account.into() }).await.unwrap();
    node.wait_idle().await;
    node.dead_letters().await.unwrap().remove(0)
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Transfers)]
pub struct StartTransfer {
    #[key]
    pub transfer: String,
    pub from: String,
    pub to: String,
    pub cents: u64,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Transfers)]
pub struct FailTransfer {
    #[key]
    pub transfer: String,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Transfers, reply = String)]
pub struct Outcome {
    #[key]
    pub transfer: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Transfers)]
pub struct TransferStarted {
    pub from: String,
    pub to: String,
    pub cents: u64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Transfers)]
pub struct TransferDone {}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Transfers)]
pub struct TransferFailed {}

#[derive(Document, Clone, Debug, Serialize, Deserialize)]
#[document(domain = Transfers)]
pub struct Overdue {}

#[derive(Saga, Debug, Default)]
#[saga(
    domain = Transfers,
    handles(StartTransfer, FailTransfer, Outcome),
    applies(TransferStarted, TransferDone, TransferFailed),
    reacts(Withdrawn),
    replies(Deposit, Withdraw),
    timers(Overdue)
)]
pub struct Transfer {
    to: String,
    cents: u64,
    outcome: &'static str,
}

impl Handle<StartTransfer> for Transfer {
    fn handle(&self, start: StartTransfer, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        let StartTransfer { transfer, from, to, cents } = start;
        effects
            .send(Withdraw { account: from.clone(), cents, transfer: transfer.clone() })
            .compensate_with(Deposit { account: from.clone(), cents });
        effects.set_timer(&Overdue {}, Duration::from_secs(3600));
        effects.record(TransferStarted { from, to, cents });
        Ok(())
    }
}

impl Handle<FailTransfer> for Transfer {
    fn handle(&self, _fail: FailTransfer, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(TransferFailed {});
        Ok(())
    }
}

impl Handle<Outcome> for Transfer {
    fn handle(&self, _outcome: Outcome, _effects: &mut Effects<Self>) -> Result<String, Rejection> {
        Ok(if self.outcome.is_empty() { "open".to_owned() } else { self.outcome.to_owned() })
    }
}

impl React<Withdrawn> for Transfer {
    fn key(event: &Withdrawn, _context: &EventContext) -> Option<String> {
        (!event.transfer.is_empty()).then(|| event.transfer.clone())
    }

    fn react(&self, event: Withdrawn, effects: &mut Effects<Self>) {
        // From here on only the payee's rejection ends the transfer otherwise: a payment cannot be compensated.
        effects.clear_timer::<Overdue>();
        effects.send(Deposit { account: self.to.clone(), cents: event.cents });
    }
}

impl OnReply<Withdraw> for Transfer {
    fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
        if reply.is_err() {
            effects.record(TransferFailed {});
            effects.compensate();
        }
    }
}

impl OnReply<Deposit> for Transfer {
    fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
        let transfer = effects.key().to_owned();
        match reply {
            Ok(_) => {
                effects.record(TransferDone {});
                effects.complete();
            }
            Err(_) => {
                effects.compensate().then(FailTransfer { transfer });
            }
        }
    }
}

impl OnTimer<Overdue> for Transfer {
    fn on_timer(&self, _timer: Overdue, effects: &mut Effects<Self>) {
        effects.record(TransferFailed {});
        effects.compensate();
    }
}

impl Apply<TransferStarted> for Transfer {
    fn apply(&mut self, started: &TransferStarted) {
        self.to = started.to.clone();
        self.cents = started.cents;
    }
}

impl Apply<TransferDone> for Transfer {
    fn apply(&mut self, _done: &TransferDone) {
        self.outcome = "done";
    }
}

impl Apply<TransferFailed> for Transfer {
    fn apply(&mut self, _failed: &TransferFailed) {
        self.outcome = "failed";
    }
}

pub fn deposit(account: &str, cents: u64) -> Deposit {
    Deposit { account: account.into(), cents }
}

pub fn withdraw(account: &str, cents: u64, transfer: &str) -> Withdraw {
    Withdraw { account: account.into(), cents, transfer: transfer.into() }
}

pub fn transfer(transfer: &str, from: &str, to: &str, cents: u64) -> StartTransfer {
    StartTransfer { transfer: transfer.into(), from: from.into(), to: to.into(), cents }
}

pub fn outcome(transfer: &str) -> Outcome {
    Outcome { transfer: transfer.into() }
}

pub async fn start(store: MemoryStore) -> Node {
    Node::builder("bank", store).threads(0).aggregate::<Account>().saga::<Transfer>().start().await.unwrap()
}
