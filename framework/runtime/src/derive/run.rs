//! Runs the async functions under `#[whizbang::main]` and `#[whizbang::test]`.
//!
//! Called by derived code. Calls tokio.

use std::future::Future;

/// Runs `future` to completion on this thread, on a tokio runtime of its own with a [`LocalSet`](tokio::task::LocalSet)
/// for actors.
///
/// Tasks that the future has spawned and not awaited end with it.
///
/// # Panics
/// If the runtime cannot be created, or if it is called inside another runtime. Nothing has run then, and `main` has no
/// caller to report to.
pub fn block_on<F: Future>(future: F) -> F::Output {
    #[expect(clippy::expect_used, reason = "a program that cannot start its runtime has no caller to report to")]
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("failed to create the tokio runtime");
    tokio::task::LocalSet::new().block_on(&runtime, future)
}
