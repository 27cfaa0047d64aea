//! Spawning: starts the tasks of every module, and the threads of actors and bridges. The stores start threads of their own, for
//! calls that block.
//!
//! Used by every module. Tasks stay on the thread that starts them, so that a whole cluster can run on one thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::telemetry::TARGET;
use crate::user_code::{UserCode, caught, user_code};

/// A task that is aborted when this handle is dropped.
#[derive(Debug)]
pub struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Receives the failures of a thread's tasks.
pub type TaskMonitor = Arc<UserCode>;

/// First wait before a failed task is restarted; doubles up to [`LONGEST_RESTART`].
pub const FIRST_RESTART: Duration = Duration::from_millis(100);
pub const LONGEST_RESTART: Duration = Duration::from_secs(10);

/// Starts a task that ends by itself. A panic is logged, counted and listed in the health until a task of the same
/// name succeeds.
pub fn detached(monitor: &TaskMonitor, name: &'static str, future: impl Future<Output = ()> + 'static) {
    let monitor = Arc::clone(monitor);
    drop(tokio::task::spawn_local(async move {
        match caught(future).await {
            Ok(()) => monitor.task_recovered(name),
            Err(panicked) => monitor.failed(name, panicked.text()),
        }
    }));
}

/// Starts a task as [`detached`] does, and restarts it after a wait if it panics.
pub fn restarting<F: Future<Output = ()> + 'static>(monitor: &TaskMonitor, name: &str, make: impl Fn() -> F + 'static) {
    drop(tokio::task::spawn_local(restart_until_done(Arc::clone(monitor), name.to_owned(), make)));
}

/// Runs the future that `make` returns to completion. A panic is reported as by [`detached`], and a new future is
/// made after a wait.
pub async fn restart_until_done<F: Future<Output = ()>>(monitor: TaskMonitor, name: String, make: impl Fn() -> F) {
    let mut wait = FIRST_RESTART;
    while let Err(panicked) = caught(make()).await {
        monitor.failed(&name, &format!("{}; restarting", panicked.text()));
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_RESTART);
    }
    monitor.task_recovered(&name);
}

/// Runs a future and catches its panic.
///
/// # Errors
/// The text of the panic.
pub async fn contained<F: Future>(future: F) -> Result<F::Output, String> {
    caught(future).await.map_err(|panicked| panicked.to_string())
}

/// Starts a task without a monitor, for instance of another crate: a panic is logged.
pub fn alone(name: &'static str, future: impl Future<Output = ()> + 'static) {
    drop(tokio::task::spawn_local(async move {
        if let Err(panicked) = caught(future).await {
            tracing::error!(target: TARGET, task = name, error = panicked.text(), "background task failed");
        }
    }));
}

/// Returns whether this thread is unwinding from a panic, so that values dropped now were not ended in order.
pub fn is_unwinding() -> bool {
    std::thread::panicking()
}

/// Starts a thread with its own runtime that runs one future to completion.
pub fn thread<F: Future<Output = ()>>(name: &str, make: impl FnOnce() -> F + Send + 'static) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        actix_rt::Runtime::from(runtime).block_on(make());
    })?;
    Ok(())
}

/// Returns whether this thread can run local tasks, which requires a [`LocalSet`](tokio::task::LocalSet).
pub fn has_local_set() -> bool {
    // tokio reports this only by a panic, whose text goes to the panic hook.
    user_code(|| drop(tokio::task::spawn_local(std::future::ready(())))).is_ok()
}

type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// A thread with its own runtime and [`LocalSet`](tokio::task::LocalSet), for tasks that must outlive the caller's
/// runtime. Dropping it ends the thread and its tasks.
#[derive(Debug)]
pub struct LocalThread(mpsc::UnboundedSender<Job>);

impl LocalThread {
    /// Starts the thread.
    pub fn start(name: &str) -> std::io::Result<Self> {
        // Unbounded: the owner runs one or two futures there.
        let (jobs, mut received) = mpsc::unbounded_channel::<Job>();
        thread(name, move || async move {
            while let Some(job) = received.recv().await {
                alone("local thread", job());
            }
        })?;
        Ok(Self(jobs))
    }

    /// Runs a future on the thread to completion; `None` if it panicked. Dropping this future does not cancel it.
    pub async fn run<F: Future<Output = T>, T: Send + 'static>(
        &self,
        make: impl FnOnce() -> F + Send + 'static,
    ) -> Option<T> {
        let (done, wait) = oneshot::channel();
        let job = move || -> Pin<Box<dyn Future<Output = ()>>> {
            Box::pin(async move {
                // The receiver is gone if the caller was dropped.
                let _ = done.send(make().await);
            })
        };
        self.0.send(Box::new(job)).ok()?;
        wait.await.ok()
    }
}

/// Starts a thread that calls `tick` after every `step` until it returns `false`. Its lifetime is bounded by the
/// value that `tick` observes.
pub fn ticker(name: &str, step: Duration, tick: impl Fn() -> bool + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        while tick() {
            std::thread::park_timeout(step);
        }
    })?;
    Ok(())
}

/// Runs `work` on a new thread, or here if no thread can be started. `None` if the thread ended during the work.
pub async fn run_on_new_thread<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, wait) = oneshot::channel();
    let work = Arc::new(parking_lot::Mutex::new(Some((work, done))));
    let there = Arc::clone(&work);
    let take = move |work: &parking_lot::Mutex<Option<_>>| work.lock().take();
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let given: Option<(_, oneshot::Sender<T>)> = take(&there);
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
pub fn local(future: impl Future<Output = ()> + 'static) -> Task {
    Task(tokio::task::spawn_local(future))
}
