//! A singleton of a service with three nodes, under all faults: no run continues after a later one has begun.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use whizbang::node::Singleton;

use super::*;
use whizbang::testing::FaultEvent;

/// The steps of the singleton in one run of the flow.
#[derive(Default)]
struct Seen {
    steps: u64,
    epoch: u64,
    violation: Option<String>,
}

impl Seen {
    fn step(&mut self, epoch: u64) {
        self.steps += 1;
        if epoch < self.epoch {
            let text = || format!("the run of epoch {epoch} made a step after that of epoch {}", self.epoch);
            self.violation.get_or_insert_with(text);
        }
        self.epoch = self.epoch.max(epoch);
    }
}

#[test]
fn one_run_of_a_singleton_at_a_time_on_three_nodes() {
    let (seen, moves) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicU64>::default());
    let (fresh, moved) = (Arc::clone(&seen), Arc::clone(&moves));
    let with_singleton = move |sim: Sim| {
        *fresh.lock() = Seen::default();
        let (seen, moved) = (Arc::clone(&fresh), Arc::clone(&moved));
        let beat = move |singleton: Singleton| {
            let seen = Arc::clone(&seen);
            if seen.lock().epoch != 0 {
                moved.fetch_add(1, Ordering::Relaxed);
            }
            async move {
                loop {
                    seen.lock().step(singleton.epoch());
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        let accounts = move |node: whizbang::NodeBuilder| node.aggregate::<Account>().singleton("beat", beat.clone());
        sim.service("accounts", accounts).service("transfers", |node| node.saga::<Transfer>()).nodes(3)
    };
    let flow = Flow::new("singletons-on-three-nodes", with_singleton, steps(), 1..12, perform);
    let coverage = flow
        .at_end(move |_, _| {
            let seen = seen.lock();
            match &seen.violation {
                Some(violation) => Err(violation.clone()),
                None if seen.steps == 0 => Err("the singleton never ran".to_owned()),
                None => Ok(()),
            }
        })
        .check(0..40);
    assert!(coverage.fault_events().contains_key(&FaultEvent::PausedBeyondLease));
    assert!(moves.load(Ordering::Relaxed) > 40, "it is started again after each loss of its shard");
}
