//! Transfers: an aggregate for each transfer, a saga that moves the money, and a projection of the outcomes.

use std::collections::BTreeMap;

use whizbang::prelude::*;

use crate::accounts::{Deposit, Refund, Withdraw};

#[derive(Domain)]
pub(crate) struct Transfers;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Transfers)]
pub(crate) struct RequestTransfer {
    #[key]
    pub(crate) transfer: String,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) cents: u64,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Transfers)]
pub(crate) struct EndTransfer {
    #[key]
    pub(crate) transfer: String,
    pub(crate) outcome: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Transfers)]
pub(crate) struct TransferRequested {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) cents: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Transfers)]
pub(crate) struct TransferEnded {
    pub(crate) outcome: String,
}

#[derive(Aggregate, Default)]
#[aggregate(
    domain = Transfers,
    handles(RequestTransfer, EndTransfer),
    applies(TransferRequested, TransferEnded)
)]
pub(crate) struct Transfer {
    requested: bool,
    ended: bool,
}

impl Handle<RequestTransfer> for Transfer {
    fn handle(&self, request: RequestTransfer, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if self.requested {
            return Err(Rejection::new("transfers.requested-before", "a transfer with this name exists"));
        }
        let RequestTransfer { from, to, cents, .. } = request;
        effects.record(TransferRequested { from, to, cents });
        Ok(())
    }
}

impl Handle<EndTransfer> for Transfer {
    fn handle(&self, end: EndTransfer, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if !self.ended {
            effects.record(TransferEnded { outcome: end.outcome });
        }
        Ok(())
    }
}

impl Apply<TransferRequested> for Transfer {
    fn apply(&mut self, _requested: &TransferRequested) {
        self.requested = true;
    }
}

impl Apply<TransferEnded> for Transfer {
    fn apply(&mut self, _: &TransferEnded) {
        self.ended = true;
    }
}

/// The saga has requested the withdrawal.
#[derive(Event, Serialize, Deserialize)]
#[event(domain = Transfers)]
pub(crate) struct MoveStarted {
    to: String,
    cents: u64,
}

/// Withdraws the money from one account and deposits it in the other, or refunds it if the deposit is rejected.
#[derive(Saga, Default)]
#[saga(domain = Transfers, reacts(TransferRequested), applies(MoveStarted), replies(Withdraw, Deposit))]
pub(crate) struct Move {
    to: String,
    cents: u64,
}

impl React<TransferRequested> for Move {
    fn react(&self, transfer: TransferRequested, effects: &mut Effects<Self>) {
        let TransferRequested { from, to, cents } = transfer;
        effects.send(Withdraw { account: from.clone(), cents }).compensate_with(Refund { account: from, cents });
        effects.record(MoveStarted { to, cents });
    }
}

impl OnReply<Withdraw> for Move {
    fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
        match reply {
            Ok(_) => {
                effects.send(Deposit { account: self.to.clone(), cents: self.cents });
            }
            Err(rejection) => self.fail(&rejection, effects),
        }
    }
}

impl OnReply<Deposit> for Move {
    fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
        match reply {
            Ok(_) => {
                effects.send(EndTransfer { transfer: effects.key().to_owned(), outcome: "done".to_owned() });
                effects.complete();
            }
            Err(rejection) => self.fail(&rejection, effects),
        }
    }
}

impl Apply<MoveStarted> for Move {
    fn apply(&mut self, started: &MoveStarted) {
        self.to = started.to.clone();
        self.cents = started.cents;
    }
}

impl Move {
    /// Compensates the completed steps, then ends the transfer.
    fn fail(&self, rejection: &Rejection, effects: &mut Effects<Self>) {
        let transfer = effects.key().to_owned();
        effects.compensate().then(EndTransfer { transfer, outcome: format!("failed: {}", rejection.text()) });
    }
}

/// Asks for the outcome of a transfer.
#[derive(Query, Serialize, Deserialize)]
#[query(domain = Transfers, reply = String)]
pub(crate) struct OutcomeOf {
    pub(crate) transfer: String,
}

/// The outcomes of transfers.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(TransferEnded), answers(OutcomeOf))]
pub(crate) struct Outcomes {
    by_transfer: BTreeMap<String, String>,
}

impl Project<TransferEnded> for Outcomes {
    fn project(&mut self, ended: &TransferEnded, context: &EventContext) {
        self.by_transfer.insert(context.key.clone(), ended.outcome.clone());
    }
}

impl Answer<OutcomeOf> for Outcomes {
    fn answer(&self, query: OutcomeOf) -> String {
        self.by_transfer.get(&query.transfer).cloned().unwrap_or_else(|| "in progress".to_owned())
    }
}
