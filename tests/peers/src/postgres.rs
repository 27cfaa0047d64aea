//! Durable: cqrs-es on PostgreSQL, whizbang on the embedded store, one command at a time and 32 in flight.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use postgres_es::{PostgresCqrs, postgres_cqrs};
use sqlx::Executor as _;
use sqlx::postgres::PgPoolOptions;
use whizbang::derive::block_on;
use whizbang::store::embedded::EmbeddedStore;

use crate::report::{REPETITIONS, median, report};
use crate::server::Server;
use crate::{ours, theirs};

/// The limit of a raw flush in microseconds. A slower one means a busy machine, on which all ratios become 1.
const SLOWEST_FLUSH: f64 = 500.0;

/// Few commands for each aggregate, because cqrs-es reads all its events for each command.
const ROUNDS: usize = 5;

const TABLE: &str = "CREATE TABLE events (
    aggregate_type TEXT NOT NULL,
    aggregate_id TEXT NOT NULL,
    sequence BIGINT CHECK (sequence >= 0) NOT NULL,
    event_type TEXT NOT NULL,
    event_version TEXT NOT NULL,
    payload JSON NOT NULL,
    metadata JSON NOT NULL,
    PRIMARY KEY (aggregate_type, aggregate_id, sequence)
)";

fn flush(folder: &Path) -> f64 {
    let file = File::create(folder.join("raw")).expect("a file");
    file.write_all_at(&vec![0; 1 << 20], 0).and_then(|()| file.sync_all()).expect("enough disk space");
    let one = |nth| {
        let begun = Instant::now();
        file.write_all_at(&[7; 200], nth * 200).and_then(|()| file.sync_data()).expect("it is flushed");
        begun.elapsed().as_secs_f64() * 1e6
    };
    median((0..200u64).map(one))
}

async fn theirs(framework: &Arc<PostgresCqrs<theirs::Account>>, names: &[String], tasks: usize) -> f64 {
    let begun = Instant::now();
    let tasks = names.chunks(names.len().div_ceil(tasks)).map(|names| {
        let (framework, names) = (Arc::clone(framework), names.to_vec());
        tokio::task::spawn_local(async move {
            for _ in 0..ROUNDS {
                for name in &names {
                    theirs::deposit(&framework, name).await;
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("it ends");
    }
    begun.elapsed().as_secs_f64()
}

pub(crate) fn row() {
    let server = match Server::start() {
        Ok(server) => server,
        Err(reason) => return eprintln!("  skipped, PostgreSQL did not start: {reason}"),
    };
    block_on(async {
        let pool = PgPoolOptions::new().max_connections(32).connect(&server.url()).await.expect("it answers");
        pool.execute(TABLE).await.expect("the table is created");
        let framework = Arc::new(postgres_cqrs::<theirs::Account>(pool.clone(), Vec::new(), ()));
        for (row, unit, tasks, keys) in
            [("cqrs_es_postgres", "us", 1, 200), ("cqrs_es_postgres_32", "turns/s", 32, 1_600)]
        {
            let mut pairs = Vec::new();
            for repetition in 0..=REPETITIONS {
                let folder = tempfile::tempdir().expect("a folder");
                let flush = flush(folder.path());
                if flush > SLOWEST_FLUSH {
                    eprintln!("  discarded: a raw flush takes {flush:.0} us");
                    continue;
                }
                let names: Vec<String> = (0..keys).map(|key| format!("{row}-{repetition}-{key}")).collect();
                let theirs = theirs(&framework, &names, tasks).await;
                let store = EmbeddedStore::open(folder.path().join("store")).expect("it opens");
                let ours = ours::measure(store, &names, ROUNDS, tasks).await;
                let count = (keys * ROUNDS) as f64;
                let figure = |took: f64| if tasks == 1 { took * 1e6 / count } else { count / took };
                pairs.push((figure(ours), figure(theirs)));
            }
            // The first pair is a warm-up.
            match pairs.get(1..) {
                Some(kept) if !kept.is_empty() => report(row, unit, "cqrs-es 0.5 on PostgreSQL", kept),
                _ => eprintln!("  {row}: nothing was measured, the machine is busy"),
            }
        }
        drop(framework);
        pool.close().await;
    });
}
