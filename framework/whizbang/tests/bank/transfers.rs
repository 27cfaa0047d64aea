//! The bank's transfer as a flow: the actions of its customers, how they are executed, and the rule that money is
//! conserved.

use proptest::prelude::*;
use whizbang::testing::{Sim, World};

use crate::bank::{Account, Close, Transfer, deposit, transfer};

/// An action of a customer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    Deposit {
        account: u8,
        cents: u16,
    },
    Transfer {
        from: u8,
        to: u8,
        cents: u16,
    },
    /// Account 3 accepts no deposit afterwards.
    Close,
}

fn account(number: u8) -> String {
    format!("account{number}")
}

pub(crate) fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0u8..3, 1u16..500).prop_map(|(account, cents)| Step::Deposit { account, cents }),
        5 => (0u8..3, 0u8..4, 1u16..300).prop_map(|(from, to, cents)| Step::Transfer { from, to, cents }),
        1 => Just(Step::Close),
    ]
}

pub(crate) async fn perform(world: &World, step: Step) {
    match step {
        Step::Deposit { account: number, cents } => {
            world.send(deposit(&account(number), cents.into())).await.expect("these accounts are open");
        }
        Step::Transfer { from, to, cents } => {
            let name = format!("transfer{}", world.below(u64::MAX));
            world
                .send(transfer(&name, &account(from), &account(to), cents.into()))
                .await
                .expect("a transfer can always begin");
        }
        Step::Close => world.send(Close { account: account(3) }).await.expect("it may be closed twice"),
    }
}

pub(crate) fn money_is_conserved(world: &World, steps: &[Step]) -> Result<(), String> {
    let paid_in = |step: &Step| if let Step::Deposit { cents, .. } = step { u64::from(*cents) } else { 0 };
    let given: u64 = steps.iter().map(paid_in).sum();
    let held: u64 = world.states::<Account>().iter().map(|(_, account)| account.cents).sum();
    if held == given { Ok(()) } else { Err(format!("{given} cents were paid in and {held} are held")) }
}

pub(crate) fn cluster(sim: Sim) -> Sim {
    sim.service("accounts", |node| node.aggregate::<Account>()).service("transfers", |node| node.saga::<Transfer>())
}
