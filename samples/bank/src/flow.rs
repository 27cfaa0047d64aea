//! A property of the bank: under lost, repeated and delayed messages and killed nodes, no cent is created or lost, and every
//! transfer ends.

use std::cell::Cell;
use std::rc::Rc;

use proptest::prelude::*;
use whizbang::testing::{Flow, Sim, World};

use crate::accounts::{Account, Close, Deposit, Refund};
use crate::balances::Balances;
use crate::transfers::{Move, Outcomes, RequestTransfer, Transfer, TransferEnded, TransferRequested};

/// The actions of customers.
#[derive(Clone, Debug)]
enum Step {
    Deposit { account: u8, cents: u16 },
    Transfer { transfer: u64, from: u8, to: u8, cents: u16 },
    Close { account: u8 },
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0u8..4, 1u16..500).prop_map(|(account, cents)| Step::Deposit { account, cents }),
        6 => (any::<u64>(), 0u8..4, 0u8..4, 1u16..300)
            .prop_map(|(transfer, from, to, cents)| Step::Transfer { transfer, from, to, cents }),
        1 => (0u8..4).prop_map(|account| Step::Close { account }),
    ]
}

fn name(account: u8) -> String {
    format!("account{account}")
}

async fn perform(world: &World, step: Step, paid_in: &Cell<u64>) {
    match step {
        Step::Deposit { account, cents } => {
            let cents = cents.into();
            // A closed account rejects deposits.
            if world.send(Deposit { account: name(account), cents }).await.is_ok() {
                paid_in.set(paid_in.get() + cents);
            }
        }
        Step::Transfer { transfer, from, to, cents } => {
            let transfer = format!("transfer{transfer}");
            let request = RequestTransfer { transfer, from: name(from), to: name(to), cents: cents.into() };
            // A second transfer with the same name is rejected, which is not a failure of the flow.
            let _ = world.send(request).await;
        }
        Step::Close { account } => {
            world.send(Close { account: name(account) }).await.expect("any account can be closed")
        }
    }
}

fn every_transfer_has_ended(world: &World) -> Result<(), String> {
    let (requested, ended) = (world.events::<TransferRequested>(), world.events::<TransferEnded>());
    let has_ended = |transfer: &str| ended.iter().filter(|(of, _)| of == transfer).count() == 1;
    match requested.iter().find(|(transfer, _)| !has_ended(transfer)) {
        Some((transfer, _)) => Err(format!("{transfer} has not ended once")),
        None => Ok(()),
    }
}

#[test]
fn two_hundred_seeds_of_transfers_lose_no_cent() {
    let paid_in = Rc::new(Cell::new(0));
    let (at_start, at_deposit, at_end) = (Rc::clone(&paid_in), Rc::clone(&paid_in), paid_in);
    let cluster = move |sim: Sim| {
        at_start.set(0);
        sim.service("accounts", |node| node.aggregate::<Account>().projection::<Balances>())
            .service("transfers", |node| node.aggregate::<Transfer>().saga::<Move>().projection::<Outcomes>())
    };
    let perform = async move |world: &World, step| perform(world, step, &at_deposit).await;
    let coverage = Flow::new("bank", cluster, steps(), 1..12, perform)
        .at_end(|world, _| every_transfer_has_ended(world))
        .at_end(move |world, _| {
            let held: u64 = world.states::<Account>().iter().map(|(_, account)| account.cents).sum();
            if held == at_end.get() {
                Ok(())
            } else {
                Err(format!("{} cents were paid in and {held} are held", at_end.get()))
            }
        })
        .check(0..200);
    let saga = coverage.of::<Move>();
    assert!(saga.completed() > 50 && saga.compensated() > 50, "{saga}");
    saga.reply::<Refund>().while_compensating().at_least(5);
    coverage.of::<Account>().rejects::<Deposit>().at_least(20);
}
