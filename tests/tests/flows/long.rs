//! Many seeds with many crashes: hours of virtual time.

use std::time::Duration;

use whizbang_tests::{brief_or_long, is_long};

use crate::transfer_flow::transfers;

/// So many faults hit a run at most; half as many on average, and four in ten of them are crashes.
const FAULTS: usize = 160;

#[test]
fn transfers_hold_while_nodes_crash_all_the_time() {
    let flow = transfers().faults(FAULTS);
    let (mut crashes, mut simulated) = (0, Duration::ZERO);
    for seed in 0..brief_or_long(10, 10_000) {
        let run = flow.run(seed).unwrap_or_else(|broken| panic!("{broken}\n{}\n{}", broken.deeds, broken.trace));
        crashes += run.trace.matches(" is killed\n").count();
        simulated += run.lasted;
    }
    println!("{crashes} crashes in {:.1} simulated hours", simulated.as_secs_f64() / 3600.0);
    assert!(crashes >= brief_or_long(100, 250_000), "{crashes}");
    if is_long() {
        assert!(simulated >= Duration::from_secs(24 * 3600), "{simulated:?}");
    }
}
