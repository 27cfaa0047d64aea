//! Fault injection for the store on disk. It is killed at every call, loses any part of what was not flushed, is
//! truncated, corrupted and filled up. Every turn it has reported is still there, or the store names the file that is
//! damaged.
#![cfg(all(feature = "testing", feature = "embedded"))]

mod caches;
mod content;
mod contents;
mod crashes;
mod damage;
mod faults;
mod machine;
mod panics;
mod restarts;
mod segment_sizes;
mod workload;

/// Returns `brief` by default, `long` under `tests/run --long`.
fn brief_or_long<T>(brief: T, long: T) -> T {
    if std::env::var("TESTS_LONG").is_ok_and(|value| value == "1") { long } else { brief }
}
