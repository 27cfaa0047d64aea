//! The bank's transfer: no cent is made or lost.

use std::time::Duration;

use whizbang::testing::{Flow, World};
use whizbang_tests::brief_or_long;

use crate::bank::{Deposit, Overdue, Transfer, Withdraw};
use crate::bank_transfers::{Step, cluster, money_is_conserved, perform, steps};

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
    // The withdrawal is answered after the transfer was given up: the money goes back.
    saga.timer::<Overdue>().while_open().at_least(5);
    saga.reply::<Withdraw>().while_undoing().at_least(1);
    // The reply to the withdrawal may come after all is done: the event was faster.
    saga.reply::<Withdraw>().after_the_end().at_least(1);
    assert!(saga.completed() > 100 && saga.compensated() > 100, "{saga}");
    // A fault that has hit nothing has proved nothing.
    assert_eq!(coverage.untroubled(), []);
}
