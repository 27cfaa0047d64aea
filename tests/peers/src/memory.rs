//! In memory: short histories, the best case of cqrs-es, and the first 1,000 commands of one aggregate.

use std::process::{Command, Stdio};
use std::time::Instant;

use cqrs_es::CqrsFramework;
use cqrs_es::mem_store::MemStore;
use whizbang::MemoryStore;
use whizbang::derive::block_on;

use crate::report::{REPETITIONS, report};
use crate::{ours, theirs};

/// The argument of the process that measures cqrs-es. Its store prints a line per command, which that process discards.
pub(crate) const CHILD: &str = "cqrs-es-in-memory";

/// Name, number of aggregates, and number of commands for each.
const SHAPES: [(&str, usize, usize); 2] = [("cqrs_es_memory_short", 2_000, 5), ("cqrs_es_memory_1000", 1, 1_000)];

fn names(count: usize) -> Vec<String> {
    (0..count).map(|key| format!("account-{key}")).collect()
}

/// Prints the nanoseconds per command, one line for each shape.
pub(crate) fn child() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for (_, aggregates, rounds) in SHAPES {
        let names = names(aggregates);
        let framework = CqrsFramework::new(MemStore::<theirs::Account>::default(), Vec::new(), ());
        let begun = Instant::now();
        runtime.block_on(async {
            for _ in 0..rounds {
                for name in &names {
                    theirs::deposit(&framework, name).await;
                }
            }
        });
        eprintln!("{}", begun.elapsed().as_nanos() as f64 / (aggregates * rounds) as f64);
    }
}

fn theirs() -> Vec<f64> {
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    let output = child.arg(CHILD).stdout(Stdio::null()).stderr(Stdio::piped()).output().expect("it runs");
    assert!(output.status.success(), "cqrs-es failed");
    String::from_utf8_lossy(&output.stderr).lines().map(|line| line.parse().expect("a number")).collect()
}

pub(crate) fn row() {
    let mut pairs = vec![Vec::new(); SHAPES.len()];
    for _ in 0..REPETITIONS {
        let theirs = theirs();
        for (((_, aggregates, rounds), pairs), theirs) in SHAPES.iter().zip(&mut pairs).zip(theirs) {
            let took = block_on(async {
                let names = names(*aggregates);
                let task = async move { ours::measure(MemoryStore::new(), &names, *rounds, 1).await };
                tokio::task::spawn_local(task).await.expect("it ends")
            });
            pairs.push((took * 1e9 / (aggregates * rounds) as f64, theirs));
        }
    }
    for ((name, ..), pairs) in SHAPES.iter().zip(&pairs) {
        report(name, "ns", "cqrs-es 0.5 with its store in memory", pairs);
    }
}
