//! Simulated runs: a service that is killed three times under network and disk faults, while clients send deposits.

use std::time::{Duration, Instant};

use whizbang::testing::{Fault, FaultProfile, Sim};

use crate::account::{Account, deposit};
use crate::report::{REPETITIONS, report};

const SEEDS: u32 = 50;
const FAULTS: FaultProfile = FaultProfile { loss: 100, duplication: 100, delay: 50, commit_delay: 10, read_delay: 10 };

/// Measures milliseconds per seed against the simulated time of the run: 1000 / value is the seeds per second.
pub(crate) fn seed() {
    let mut pairs = Vec::new();
    for repetition in 0..=REPETITIONS {
        let (begun, mut simulated) = (Instant::now(), Duration::ZERO);
        for seed in 0..SEEDS {
            simulated += run(u64::from(seed) + 1000 * repetition as u64);
        }
        let each = |span: Duration| span.as_secs_f64() * 1000.0 / f64::from(SEEDS);
        pairs.push((each(begun.elapsed()), each(simulated)));
    }
    // The first pair is a warm-up.
    report("simulation_seed", "ms", "virtual time of the same run", pairs.get(1..).unwrap_or_default());
}

fn run(seed: u64) -> Duration {
    let sim = Sim::new(seed).service("bank", |node| node.aggregate::<Account>()).fault_profile(FAULTS);
    let crash =
        |at| (Duration::from_millis(at), Fault::Crash { service: 0, steps: 5, down: Duration::from_millis(500) });
    let sim = [200, 900, 1600].map(crash).into_iter().fold(sim, |sim, (at, fault)| sim.fault(at, fault));
    let run = sim.run(async |world| {
        for number in 0..20 {
            world.send(deposit(&format!("account-{}", number % 4))).await.expect("a deposit succeeds");
            world.sleep(Duration::from_millis(100)).await;
        }
    });
    run.expect("nothing is lost").elapsed
}
