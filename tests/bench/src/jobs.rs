//! The cost of a job that sends one command, against a job that sends none.

use std::time::Instant;

use futures_util::future::join_all;
use whizbang::derive::block_on;
use whizbang::prelude::*;
use whizbang::store::embedded::EmbeddedStore;

use crate::report::{REPETITIONS, nanos_each, report};

/// The number of jobs of one measurement.
const JOBS: usize = 20_000;
/// The number of callers.
const CALLERS: usize = 64;

#[derive(Domain)]
#[domain(name = "works")]
struct Works;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Works)]
struct Work {
    #[key]
    key: String,
    sends: bool,
}

#[derive(Domain)]
#[domain(name = "boxes")]
struct Boxes;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Boxes)]
struct Put {
    #[key]
    name: String,
}

#[derive(Worker)]
#[worker(domain = Works, performs(Work))]
struct Smith;

impl Perform<Work> for Smith {
    async fn perform(&self, work: Work, job: Job) -> Result<(), WorkError> {
        if work.sends {
            job.send(Put { name: work.key });
        }
        Ok(())
    }
}

/// Measures the time per job of a node on disk with 64 callers. The receiver of the commands is not started: its turns are
/// not part of the job.
pub(crate) fn that_sends() {
    block_on(async {
        let mut pairs = Vec::new();
        for _ in 0..=REPETITIONS {
            let without = micros_each(false).await;
            pairs.push((micros_each(true).await, without));
        }
        // The first warms up.
        report("job_that_sends", "us", "a job that sends none", pairs.get(1..).unwrap_or_default());
    });
}

async fn micros_each(sends: bool) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let store = EmbeddedStore::open(folder.path().join("store")).expect("it opens");
    let node = Node::builder("bench", store).worker(Smith).threads(0).start().await.expect("it starts");
    let begun = Instant::now();
    let callers = (0..CALLERS).map(|caller| {
        let client = node.client();
        async move {
            for n in 0..JOBS / CALLERS {
                client
                    .send(Work { key: format!("k{}", (n * CALLERS + caller) % 1000), sends })
                    .await
                    .expect("it is done");
            }
        }
    });
    join_all(callers).await;
    let each = nanos_each(begun.elapsed(), JOBS) / 1000.0;
    drop(node);
    each
}
