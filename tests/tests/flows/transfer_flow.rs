//! The bank's transfer: no cent is made or lost.

use std::time::Duration;

use proptest::prelude::*;
use whizbang::testing::{Flow, Sim, World};
use whizbang_tests::brief_or_long;

use crate::bank::{Account, Close, Deposit, Overdue, Transfer, Withdraw, deposit, transfer};

/// What people do with their accounts.
#[derive(Clone, Debug)]
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
    /// Nobody can pay into account 3 any more.
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
            world.send(transfer(&name, &account(from), &account(to), cents.into())).await.expect("it always begins");
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

fn cluster(sim: Sim) -> Sim {
    sim.service("accounts", |node| node.host::<Account>()).service("transfers", |node| node.host::<Transfer>())
}

pub(crate) fn transfers() -> Flow<Step, impl AsyncFn(&World, Step)> {
    Flow::new("transfers", cluster, steps(), 1..12, perform)
        // A transfer is given up after an hour: clocks jump farther than that.
        .jumps(Duration::from_secs(12 * 3600))
        .at_end(money_is_conserved)
}

#[test]
fn two_hundred_seeds_of_transfers_conserve_money() {
    let coverage = transfers().check(0..brief_or_long(200, 2000));
    let saga = coverage.of::<Transfer>();
    saga.rejection::<Withdraw>().while_open().at_least(100);
    saga.rejection::<Deposit>().while_open().at_least(5);
    saga.reply::<Deposit>().while_undoing().at_least(5);
    // The reply to the withdrawal may come after all is done: the event was faster.
    saga.reply::<Withdraw>().after_the_end().at_least(1);
    assert!(saga.completed() > 100 && saga.compensated() > 100, "{saga}");
    saga.timer::<Overdue>().while_open().at_least(1);
    // A fault that has hit nothing has proved nothing.
    assert_eq!(coverage.untroubled(), []);
}
