//! The bank's transfer: money is conserved.

use std::time::Duration;

use whizbang::testing::{Flow, World};
use whizbang_tests::brief_or_long;

use crate::bank::{Deposit, Overdue, Transfer, Withdraw};
use crate::bank_transfers::{Step, cluster, money_is_conserved, perform, steps};

pub(crate) fn transfers() -> Flow<Step, impl AsyncFn(&World, Step)> {
    Flow::new("transfers", cluster, steps(), 1..12, perform)
        // A transfer is abandoned after an hour, and clocks jump farther than that.
        .max_clock_jump(Duration::from_secs(12 * 3600))
        .at_end(money_is_conserved)
}

#[test]
fn two_hundred_seeds_of_transfers_conserve_money() {
    let coverage = transfers().check(0..brief_or_long(200, 2000));
    let saga = coverage.of::<Transfer>();
    saga.rejection::<Withdraw>().while_open().at_least(100);
    saga.rejection::<Deposit>().while_open().at_least(5);
    saga.reply::<Deposit>().while_compensating().at_least(5);
    // The withdrawal's reply arrives after the transfer was abandoned, and the money is returned.
    saga.timer::<Overdue>().while_open().at_least(5);
    saga.reply::<Withdraw>().while_compensating().at_least(1);
    // The withdrawal's reply may arrive after the end, because the event was faster.
    saga.reply::<Withdraw>().after_end().at_least(1);
    assert!(saga.completed() > 100 && saga.compensated() > 100, "{saga}");
    // A fault that hits nothing proves nothing.
    assert_eq!(coverage.unseen_fault_events(), []);
}
