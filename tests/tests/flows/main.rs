//! The shop's fulfilment and the bank's transfer under all faults, and variants with bugs that must be found.
//!
//! `tests/run --long` checks many more seeds.

#[path = "../../../framework/whizbang/tests/bank/mod.rs"]
mod bank;
#[path = "../../../framework/whizbang/tests/bank/transfers.rs"]
mod bank_transfers;

mod diagrams;
mod early_refund;
mod long;
mod shop_flow;
mod transfer_flow;
mod wrong_fulfilment;
mod wrong_transfer;

use std::fmt::Debug;

use whizbang::testing::{Flow, World};

/// Asserts that 200 seeds find a bug and that the shrunk case has at most ten steps and faults.
fn assert_found_and_short<T, F>(flow: &Flow<T, F>, reason: &str)
where
    T: Clone + Debug + 'static,
    F: AsyncFn(&World, T) + 'static,
{
    let found = flow.first_failure(0..200).expect("no failure in 200 seeds");
    assert!(found.violation.reason.contains(reason), "{}\n{}", found.violation.reason, found.plan);
    assert!(found.plan.size() <= 10, "{} steps:\n{}", found.plan.size(), found.plan);
    let report = flow.replay(found.seed, &found.path).expect_err("the case fails again");
    assert!(report.contains(&found.violation.reason), "{report}");
    println!("seed {}, {} runs, {}:\n{}", found.seed, found.runs, found.violation.reason, found.plan);
}
