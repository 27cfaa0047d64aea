//! The size of tests: small by default, large under `tests/run --long`.

/// Returns true under `tests/run --long`: the environment has `TESTS_LONG=1`. Not `WHIZBANG_…`, because these variables configure nodes.
pub fn is_long() -> bool {
    std::env::var("TESTS_LONG").is_ok_and(|value| value == "1")
}

/// Returns `brief` by default, `long` under `tests/run --long`.
pub fn brief_or_long<T>(brief: T, long: T) -> T {
    if is_long() { long } else { brief }
}
