//! The one door through which tasks are started.
//!
//! Used by every room. Tasks stay on the thread that starts them, so that a whole cluster can run on one.

use std::future::Future;

use crate::telemetry::TARGET;
use crate::user_code::caught;

/// A task that ends when this handle is dropped.
#[derive(Debug)]
pub(crate) struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts a task that ends by itself. If it panics, that is logged.
pub(crate) fn detached(future: impl Future<Output = ()> + 'static) {
    drop(tokio::task::spawn_local(async move {
        if let Err(panicked) = caught(future).await {
            tracing::error!(target: TARGET, error = panicked.text(), "a background task failed");
        }
    }));
}

/// Starts a thread with a runtime of its own that runs one future to its end.
pub(crate) fn thread<F: Future<Output = ()>>(
    name: &str,
    make: impl FnOnce() -> F + Send + 'static,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        tokio::task::LocalSet::new().block_on(&runtime, make());
    })?;
    Ok(())
}

/// Starts a thread that calls `tick` after every `step`, until it returns `false`. Its owner is what `tick` looks at.
pub(crate) fn ticker(
    name: &str,
    step: std::time::Duration,
    tick: impl Fn() -> bool + Send + 'static,
) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        while tick() {
            std::thread::park_timeout(step);
        }
    })?;
    Ok(())
}

/// Starts a task on this thread's `LocalSet`.
pub(crate) fn local(future: impl Future<Output = ()> + 'static) -> Task {
    Task(tokio::task::spawn_local(future))
}
