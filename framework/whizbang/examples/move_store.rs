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
    let places = place(from).and_then(|from| Ok((from, place(to)?)));
    let (from, to) = match places {
        Ok(places) => places,
        Err(reason) => {
            eprintln!("failed to read the arguments: {reason}");
            return ExitCode::from(2);
        }
    };
    match run(&*from, &*to).await {
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

async fn run(from: &dyn StorePlace, to: &dyn StorePlace) -> Result<MovedStore, whizbang::store::StoreError> {
    let mut last: Option<(MoveStep, Instant)> = None;
    let report = |progress: &MoveProgress| {
        let is_news = last.is_none_or(|(step, at)| step != progress.step || at.elapsed() >= PAUSE);
        if is_news {
            eprintln!("{}: {} of {} events", progress.step.as_str(), progress.events, progress.of);
            last = Some((progress.step, Instant::now()));
        }
    };
    move_store(from, to, report).await
}

/// Returns the place that an argument names. No error repeats the argument, which may contain a password.
///
/// # Errors
/// If it is likely to be a database in another form, or if the text behind `#` is not the name of a schema.
pub(crate) fn place(argument: &str) -> Result<Box<dyn StorePlace>, &'static str> {
    if !argument.starts_with("postgres://") && !argument.starts_with("postgresql://") {
        let is_path = argument.starts_with(['/', '.']);
        if !is_path && (argument.contains("://") || (argument.contains('=') && argument.contains(' '))) {
            return Err("a database is named by a URL that begins with `postgres://`, in lower case; \
                a folder with such a name is written with `./` before it");
        }
        return Ok(Box::new(EmbeddedPlace::new(argument)));
    }
    let Some((url, schema)) = argument.rsplit_once('#') else {
        return Ok(Box::new(PostgresStore::builder(argument)));
    };
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !(1..=63).contains(&schema.len()) || !schema.bytes().all(is_allowed) {
        return Err("the text behind `#` is not a schema of up to 63 lower-case letters, digits and underscores; \
            in a password `#` is written as `%23`");
    }
    Ok(Box::new(PostgresStore::builder(url).schema(schema)))
}

fn summary(moved: &MovedStore) -> String {
    let MovedStore { shards, turns, events, views, is_resumed, .. } = moved;
    match is_resumed {
        true => "finished the move that was interrupted".to_owned(),
        false => format!("moved {events} events in {turns} turns of {shards} shards, and {views} views"),
    }
}
