//! Runs the async functions under `#[whizbang::main]` and `#[whizbang::test]`.

use std::future::Future;

/// Runs `future` to its end on this thread, on a tokio runtime of its own with a [`LocalSet`](tokio::task::LocalSet) for actors.
///
/// What the future has spawned and not awaited ends with it.
///
/// # Panics
/// If the operating system gives the runtime no event queue, or if it is called inside another runtime: nothing has run then,
/// and `main` has nobody to report to.
pub fn block_on<F: Future>(future: F) -> F::Output {
    #[expect(clippy::expect_used, reason = "a program that cannot start its runtime has nobody to tell")]
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the operating system gives the runtime its event queue");
    tokio::task::LocalSet::new().block_on(&runtime, future)
}
