//! Moves a store between the local disk and PostgreSQL, in either direction, with all positions.
//!
//! `move_store FROM TO` moves the store at FROM to TO. Each is a folder, or the URL of a database: `postgres://user@host/database`.
//! `FROM` and `TO` of a database may end with `#SCHEMA`; without it the schema is `whizbang`. The password is that of the URL, or
//! of the environment variable `PGPASSWORD`. Progress and warnings are on stderr. Stop every node of the service first;
//! docs/how-to/move-a-store.md describes the procedure.

// A program talks to its user.
#![allow(clippy::print_stderr)]

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;
use tracing_subscriber::filter::LevelFilter;
use whizbang::store::embedded::EmbeddedPlace;
use whizbang::store::{MoveProgress, MoveStep, MovedStore, StorePlace, move_store};
use whizbang::{PostgresStore, error_chain};

/// The pause between two lines of one step.
const PAUSE: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn main() -> ExitCode {
    // A store whose server is away waits for it and logs a warning.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = &arguments[..] else {
        eprintln!("usage: move_store FROM TO; each is a folder or postgres://user@host/database#schema");
        return ExitCode::from(2);
    };
    match run(from, to).await {
        Ok(moved) => {
            eprintln!("{}", summary(&moved));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("failed to move the store: {}", error_chain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(from: &str, to: &str) -> Result<MovedStore, whizbang::store::StoreError> {
    let mut last: Option<(MoveStep, Instant)> = None;
    let report = |progress: &MoveProgress| {
        let is_news = last.is_none_or(|(step, at)| step != progress.step || at.elapsed() >= PAUSE);
        if is_news {
            eprintln!("{}: {} of {} events", progress.step.as_str(), progress.events, progress.of);
            last = Some((progress.step, Instant::now()));
        }
    };
    move_store(&*place(from), &*place(to), report).await
}

/// Returns the place that an argument names.
pub(crate) fn place(argument: &str) -> Box<dyn StorePlace> {
    if !argument.starts_with("postgres://") && !argument.starts_with("postgresql://") {
        return Box::new(EmbeddedPlace::new(argument));
    }
    match argument.rsplit_once('#') {
        Some((url, schema)) => Box::new(PostgresStore::builder(url).schema(schema)),
        None => Box::new(PostgresStore::builder(argument)),
    }
}

fn summary(moved: &MovedStore) -> String {
    let MovedStore { shards, turns, events, views, is_resumed, .. } = moved;
    match is_resumed {
        true => "finished the move that was interrupted".to_owned(),
        false => format!("moved {events} events in {turns} turns of {shards} shards, and {views} views"),
    }
}
