//! Many seeds with many crashes. docs/evidence.md has the results of `tests/run --long`. `FIRST_SEED` begins with a later one.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use whizbang::testing::{Coverage, FaultEvent, Flow, World};
use whizbang_tests::{brief_or_long, is_long};

use crate::shop_flow::fulfilment;
use crate::transfer_flow::transfers;

/// Maximum number of faults per case; the average is half of it.
const MAX_FAULTS: usize = 200;
/// Maximum number of steps per case, so that faults have work to hit.
const MAX_STEPS: usize = 40;

/// Runs many seeds and prints the coverage.
fn campaign<T, F>(name: &str, flow: Flow<T, F>) -> (Coverage, Duration)
where
    T: Clone + Debug + 'static,
    F: AsyncFn(&World, T) + 'static,
{
    let flow = flow.max_faults(MAX_FAULTS).steps(1..MAX_STEPS);
    let (begun, seeds) = (Instant::now(), brief_or_long(10, 10_000));
    let (mut coverage, mut simulated) = (Coverage::default(), Duration::ZERO);
    let first = std::env::var("FIRST_SEED").map_or(0, |text| text.parse().expect("a number"));
    for seed in first..seeds {
        let run = flow
            .run(seed)
            .unwrap_or_else(|violation| panic!("{name}: {violation}\n{}\n{}", violation.actor_steps, violation.trace));
        coverage.merge(&run.coverage);
        simulated += run.elapsed;
        // Printed regularly, so that an interrupted run leaves figures.
        if (seed + 1) % 500 == 0 || seed + 1 == seeds {
            print_coverage(name, seed + 1, &coverage, simulated, begun.elapsed());
        }
    }
    (coverage, simulated)
}

fn print_coverage(name: &str, seeds: u64, coverage: &Coverage, simulated: Duration, took: Duration) {
    let (hours, crashes) = (simulated.as_secs_f64() / 3600.0, coverage.crashes());
    println!("{name}: {seeds} seeds, {hours:.1} simulated hours, {crashes} crashes, {:.0} s", took.as_secs_f64());
    for event in FaultEvent::ALL {
        println!("  {:>9} {event}", coverage.fault_events().get(event).copied().unwrap_or(0));
    }
}

/// Asserts half of the crashes that the long run needs; the other flow has the other half.
fn crashed_often(coverage: &Coverage) {
    let crashes = coverage.crashes();
    assert!(crashes >= brief_or_long(100, 125_000), "{crashes}");
}

#[test]
fn transfers_hold_while_nodes_crash_all_the_time() {
    let (coverage, simulated) = campaign("transfers", transfers());
    crashed_often(&coverage);
    if is_long() {
        assert!(simulated >= Duration::from_secs(24 * 3600), "{simulated:?}");
        assert_eq!(coverage.unseen_fault_events(), []);
    }
}

#[test]
fn fulfilment_holds_while_nodes_crash_all_the_time() {
    let (coverage, simulated) = campaign("fulfilment", fulfilment());
    crashed_often(&coverage);
    if is_long() {
        assert!(simulated >= Duration::from_secs(24 * 3600), "{simulated:?}");
        assert_eq!(coverage.unseen_fault_events(), []);
    }
}
