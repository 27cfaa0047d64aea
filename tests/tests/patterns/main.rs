//! The programs of docs/patterns.md: each pattern under lost, repeated and delayed messages and killed nodes, and variants with
//! a bug that must be found.

mod aggregator;
mod channels;
mod claim_check;
mod dead_letters;
mod page;
mod resequencer;
mod routing;
mod routing_slip;
mod scatter_gather;

use std::fmt::Debug;

use whizbang::testing::{Flow, World};

/// The number of seeds of each flow.
const SEEDS: u64 = 25;

/// Asserts that few seeds find a bug.
fn assert_found<T, F>(flow: &Flow<T, F>, reason: &str)
where
    T: Clone + Debug + 'static,
    F: AsyncFn(&World, T) + 'static,
{
    let found = flow.first_failure(0..8 * SEEDS).expect("a seed finds the bug");
    assert!(found.violation.reason.contains(reason), "{}\n{}", found.violation.reason, found.plan);
}
