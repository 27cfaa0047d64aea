//! Many seeds with many crashes: hours of virtual time. What it says under `tests/run --long` stands in docs/evidence.md.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use whizbang::testing::{Coverage, FaultEvent, Flow, World};
use whizbang_tests::{brief_or_long, is_long};

use crate::shop_flow::fulfilment;
use crate::transfer_flow::transfers;

/// So many faults hit a run at most; half as many on average.
const FAULTS: usize = 200;
/// So many things are done in a run at most: while the faults come there is work for them to hit.
const STEPS: usize = 40;

/// Runs many seeds, and says what they were.
fn campaign<T, F>(name: &str, flow: Flow<T, F>) -> (Coverage, Duration)
where
    T: Clone + Debug + 'static,
    F: AsyncFn(&World, T) + 'static,
{
    let flow = flow.faults(FAULTS).steps(1..STEPS);
    let (begun, seeds) = (Instant::now(), brief_or_long(10, 10_000));
    let (mut coverage, mut simulated) = (Coverage::default(), Duration::ZERO);
    for seed in 0..seeds {
        let run =
            flow.run(seed).unwrap_or_else(|broken| panic!("{name}: {broken}\n{}\n{}", broken.deeds, broken.trace));
        coverage.merge(&run.coverage);
        simulated += run.lasted;
        // Whoever ends it before its time has figures all the same.
        if (seed + 1) % 500 == 0 || seed + 1 == seeds {
            said(name, seed + 1, &coverage, simulated, begun.elapsed());
        }
    }
    (coverage, simulated)
}

fn said(name: &str, seeds: u64, coverage: &Coverage, simulated: Duration, took: Duration) {
    let (hours, crashes) = (simulated.as_secs_f64() / 3600.0, coverage.crashes());
    println!("{name}: {seeds} seeds, {hours:.1} simulated hours, {crashes} crashes, {:.0} s", took.as_secs_f64());
    for trouble in FaultEvent::ALL {
        println!("  {:>9} {trouble}", coverage.troubles().get(trouble).copied().unwrap_or(0));
    }
}

/// So many crashes are half of what the long run is to have: the other flow has the other half.
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
        assert_eq!(coverage.untroubled(), []);
    }
}

#[test]
fn fulfilment_holds_while_nodes_crash_all_the_time() {
    let (coverage, simulated) = campaign("fulfilment", fulfilment());
    crashed_often(&coverage);
    if is_long() {
        assert!(simulated >= Duration::from_secs(24 * 3600), "{simulated:?}");
    }
}
