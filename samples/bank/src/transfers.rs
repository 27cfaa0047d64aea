//! Transfers: an aggregate that knows each, a saga that moves the money, and a projection that tells what became of them.

use std::collections::BTreeMap;

use whizbang::prelude::*;

use crate::accounts::{Deposit, TakeBack, Withdraw};

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
            return Err(Rejection::new("transfers.requested-before", "there is a transfer of that name"));
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

/// A step that the saga has taken.
#[derive(Event, Serialize, Deserialize)]
#[event(domain = Transfers)]
pub(crate) struct MoveBegun {
    to: String,
    cents: u64,
}

/// Takes the money from one account, brings it to the other, and takes it back if the other does not want it.
#[derive(Saga, Default)]
#[saga(domain = Transfers, reacts(TransferRequested), applies(MoveBegun), replies(Withdraw, Deposit))]
pub(crate) struct Move {
    to: String,
    cents: u64,
}

impl React<TransferRequested> for Move {
    fn react(&self, transfer: TransferRequested, effects: &mut Effects<Self>) {
        let TransferRequested { from, to, cents } = transfer;
        effects.send(Withdraw { account: from.clone(), cents }).compensate_with(TakeBack { account: from, cents });
        effects.record(MoveBegun { to, cents });
    }
}

impl OnReply<Withdraw> for Move {
    fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
        match reply {
            Ok(_) => drop(effects.send(Deposit { account: self.to.clone(), cents: self.cents })),
            Err(no) => self.give_up(&no, effects),
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
            Err(no) => self.give_up(&no, effects),
        }
    }
}

impl Apply<MoveBegun> for Move {
    fn apply(&mut self, begun: &MoveBegun) {
        self.to = begun.to.clone();
        self.cents = begun.cents;
    }
}

impl Move {
    /// Undoes what was done, and ends the transfer after that.
    fn give_up(&self, no: &Rejection, effects: &mut Effects<Self>) {
        let transfer = effects.key().to_owned();
        effects.compensate().then(EndTransfer { transfer, outcome: format!("failed: {}", no.text()) });
    }
}

/// Asks what became of a transfer.
#[derive(Query, Serialize, Deserialize)]
#[query(domain = Transfers, reply = String)]
pub(crate) struct OutcomeOf {
    pub(crate) transfer: String,
}

/// The outcomes of transfers.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(TransferEnded), answers(OutcomeOf))]
pub(crate) struct Outcomes {
    of: BTreeMap<String, String>,
}

impl Project<TransferEnded> for Outcomes {
    fn project(&mut self, ended: &TransferEnded, about: &EventContext) {
        self.of.insert(about.key.clone(), ended.outcome.clone());
    }
}

impl Answer<OutcomeOf> for Outcomes {
    fn answer(&self, question: OutcomeOf) -> String {
        self.of.get(&question.transfer).cloned().unwrap_or_else(|| "under way".to_owned())
    }
}
