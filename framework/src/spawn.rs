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

/// Does work on a thread of its own, or here if there is none to be had. `None` if the thread ended in the midst of it.
pub(crate) async fn apart<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, wait) = tokio::sync::oneshot::channel();
    let work = std::sync::Arc::new(parking_lot::Mutex::new(Some((work, done))));
    let there = std::sync::Arc::clone(&work);
    let take = move |work: &parking_lot::Mutex<Option<_>>| work.lock().take();
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let given: Option<(_, tokio::sync::oneshot::Sender<T>)> = take(&there);
        if let Some((work, done)) = given {
            let work: Box<dyn FnOnce() -> T> = Box::new(work);
            let _ = done.send(work());
        }
    });
    match started {
        Ok(_) => wait.await.ok(),
        Err(_) => work.lock().take().map(|(work, _)| work()),
    }
}

/// Starts a task on this thread's `LocalSet`.
pub(crate) fn local(future: impl Future<Output = ()> + 'static) -> Task {
    Task(tokio::task::spawn_local(future))
}
