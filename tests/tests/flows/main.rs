//! The shop's fulfilment and the bank's transfer as properties, under every fault; and wrong ones, which must be found.
//!
//! `tests/run --long` checks many more seeds.

#[path = "../../../framework/tests/bank/mod.rs"]
mod bank;
#[path = "../../../framework/tests/bank/transfers.rs"]
mod bank_transfers;

mod generous;
mod long;
mod picture;
mod shop_flow;
mod transfer_flow;
mod wrong_fulfilment;
mod wrong_transfer;

use std::fmt::Debug;

use whizbang::testing::{Flow, World};

/// A wrong flow is found within 200 seeds, and what is left of the case has ten steps at most: commands and faults.
fn is_found_and_short<T, F>(flow: &Flow<T, F>, reason: &str)
where
    T: Clone + Debug + 'static,
    F: AsyncFn(&World, T) + 'static,
{
    let found = flow.first_broken(0..200).expect("200 seeds do not find it");
    assert!(found.broken.reason.contains(reason), "{}\n{}", found.broken.reason, found.plan);
    assert!(found.plan.size() <= 10, "{} steps:\n{}", found.plan.size(), found.plan);
    let story = flow.play(found.seed, &found.path).expect_err("the case is the same when it is played again");
    assert!(story.contains(&found.broken.reason), "{story}");
    println!("seed {}, {} runs, {}:\n{}", found.seed, found.runs, found.broken.reason, found.plan);
}
