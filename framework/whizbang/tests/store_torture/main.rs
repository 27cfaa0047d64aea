//! The store on disk under torture: it is killed at every call, loses every part of what was not flushed, is cut, spoilt and
//! filled up; and what it has reported is there all the same, or it says by name what is damaged.
#![cfg(all(feature = "testing", feature = "embedded"))]

mod caches;
mod crashes;
mod damage;
mod faults;
mod growth;
mod lives;
mod machine;
mod picture;
mod story;

/// `brief` by default, `long` under `tests/run --long`.
fn brief_or_long<T>(brief: T, long: T) -> T {
    if std::env::var("TESTS_LONG").is_ok_and(|value| value == "1") { long } else { brief }
}
