//! User code: the one function through which it is called.
//!
//! Called by every module that runs code of users: handlers, `apply`, `Default`, keys, snapshots, upcasters, views,
//! jobs. Catches panics and records which code runs since when, so that a blocked thread is visible from outside.
//! Never decides what a panic means for a message: the caller does. A test forbids `catch_unwind` everywhere else.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use foldhash::fast::FixedState;
use parking_lot::Mutex;

use crate::telemetry::{Counts, TARGET, shortened};

/// Step of the clock that measures user code. A call within one step counts as zero: reading a precise clock twice
/// would make a turn in memory 10 % slower.
pub const TICK: Duration = Duration::from_millis(50);
/// Most pairs of actor type and message with their own label, because message names may come from outside. Further
/// ones are shown by actor type alone.
const MAX_LABELS: usize = 4096;
/// Most failed tasks listed, because their names may contain names from outside.
const MAX_FAILED_TASKS: usize = 100;

/// A panic of user code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panicked(String);

impl Panicked {
    /// Returns the text of the panic, shortened.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.0)
    }
}

/// Calls user code and catches its panic. Only for code that runs outside a node; a node's threads use [`UserCode::call`].
pub fn user_code<T>(code: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(code)).map_err(panic_from_payload)
}

/// Runs a future and catches a panic in any poll. For tasks of the framework itself.
pub async fn caught<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future: Pin<Box<F>> = Box::pin(future);
    poll_fn(|cx| match user_code(|| future.as_mut().poll(cx)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
        Err(panicked) => Poll::Ready(Err(panicked)),
    })
    .await
}

/// Converts the payload of a panic to an error, and drops the payload.
fn panic_from_payload(payload: Box<dyn Any + Send>) -> Panicked {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no text".to_owned());
    // The payload is a value of the user: its `Drop` may panic too, and that second payload is leaked.
    if let Err(again) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        std::mem::forget(again);
    }
    Panicked(shortened(text))
}

/// Counts steps of [`TICK`], shared by all threads of a node. Does not advance in a simulation.
#[derive(Debug)]
pub struct Ticks(AtomicU64);

impl Default for Ticks {
    fn default() -> Self {
        // Never zero: zero means that no user code runs.
        Self(AtomicU64::new(1))
    }
}

impl Ticks {
    /// Advances by one step.
    pub fn tick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Identifies the actor type and message for which user code runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Label(u32);

/// Calls user code on one thread of a node, and tracks the running call.
#[derive(Debug, Default)]
pub struct UserCode {
    pub counts: Arc<Counts>,
    ticks: Arc<Ticks>,
    /// Start of the running call in ticks (upper half) and its label (lower half); zero if none runs. Only the owning
    /// thread writes it, so no locked instruction is needed.
    running: AtomicU64,
    /// Duration of the longest call so far, in ticks.
    longest: AtomicU64,
    labels: Mutex<Labels>,
    /// Errors of the background tasks of the thread that have failed and not recovered, by name.
    failed: Mutex<BTreeMap<String, String>>,
}

#[derive(Debug, Default)]
struct Labels {
    names: Vec<(String, String)>,
    known: HashMap<String, HashMap<String, u32, FixedState>, FixedState>,
}

impl UserCode {
    pub fn new(ticks: &Arc<Ticks>) -> Arc<Self> {
        Arc::new(Self { ticks: Arc::clone(ticks), ..Self::default() })
    }

    /// Returns the label of an actor type and a message; `message` is empty where there is none.
    pub fn label(&self, actor: &str, message: &str) -> Label {
        let labels = &mut *self.labels.lock();
        if let Some(label) = labels.known.get(actor).and_then(|of| of.get(message)) {
            return Label(*label);
        }
        let shown = if labels.names.len() < MAX_LABELS { message } else { "" };
        if let Some(label) = labels.known.get(actor).and_then(|of| of.get(shown)) {
            return Label(*label);
        }
        labels.names.push((actor.to_owned(), shown.to_owned()));
        // From 1 on: 0 is the label of unlabeled code.
        let label = u32::try_from(labels.names.len()).unwrap_or(0);
        labels.known.entry(actor.to_owned()).or_default().insert(shown.to_owned(), label);
        Label(label)
    }

    /// Calls user code. A panic is counted and becomes an error.
    pub fn call<T>(&self, label: Label, code: impl FnOnce() -> T) -> Result<T, Panicked> {
        let began = self.ticks.now() & u64::from(u32::MAX);
        // Nested call: the outer one continues afterwards.
        let outer = self.running.load(Ordering::Relaxed);
        self.running.store((began << 32) | u64::from(label.0), Ordering::Relaxed);
        let ended = user_code(code);
        self.running.store(outer, Ordering::Relaxed);
        let took = (self.ticks.now() & u64::from(u32::MAX)).saturating_sub(began);
        if took > 0 {
            self.longest.fetch_max(took, Ordering::Relaxed);
        }
        ended.inspect_err(|_| self.counts.panics.one())
    }

    /// Counts and logs a failed background task of this thread. Health lists it until it has
    /// [recovered](Self::task_recovered).
    pub fn failed(&self, task: &str, error: &str) {
        self.counts.failed_tasks.one();
        tracing::error!(target: TARGET, task, error, "background task failed");
        let mut failed = self.failed.lock();
        if failed.len() < MAX_FAILED_TASKS || failed.contains_key(task) {
            failed.insert(task.to_owned(), format!("background task `{task}` failed: {error}"));
        }
    }

    /// Records that a background task has succeeded: it is no longer listed as failed.
    pub fn task_recovered(&self, task: &str) {
        // Nearly always no task has ever failed, and every small task calls this.
        if self.counts.failed_tasks.get() > 0 {
            self.failed.lock().remove(task);
        }
    }

    /// Returns the errors of background tasks that have failed and not recovered.
    pub fn failed_tasks(&self) -> Vec<String> {
        self.failed.lock().values().cloned().collect()
    }

    /// Replaces the label of the running call with a more precise one.
    pub fn relabel(&self, label: Label) {
        let running = self.running.load(Ordering::Relaxed);
        if running != 0 {
            self.running.store((running & !u64::from(u32::MAX)) | u64::from(label.0), Ordering::Relaxed);
        }
    }

    /// Runs a future of user code; each poll is one [call](Self::call).
    pub async fn run<F: Future>(&self, label: Label, future: F) -> Result<F::Output, Panicked> {
        let mut future: Pin<Box<F>> = Box::pin(future);
        let ended = poll_fn(|cx| match self.call(label, || future.as_mut().poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Err(panicked) => Poll::Ready(Err(panicked)),
        })
        .await;
        // The future's fields are dropped here, and their `Drop` is user code too.
        let _ = self.call(label, move || drop(future));
        ended
    }

    /// Returns the call that has blocked the thread for longer than `limit`: duration, actor type and message.
    pub fn blocked(&self, limit: Duration) -> Option<(Duration, String, String)> {
        let running = self.running.load(Ordering::Relaxed);
        if running == 0 {
            return None;
        }
        let now = self.ticks.now() & u64::from(u32::MAX);
        let since = TICK * u32::try_from(now.saturating_sub(running >> 32)).unwrap_or(u32::MAX);
        let (actor, message) = usize::try_from(running & u64::from(u32::MAX))
            .ok()
            .and_then(|label| self.labels.lock().names.get(label.checked_sub(1)?).cloned())
            .unwrap_or_default();
        (since > limit).then_some((since, actor, message))
    }

    /// Returns the duration of the longest call so far, in steps of [`TICK`].
    pub fn longest(&self) -> Duration {
        TICK * u32::try_from(self.longest.load(Ordering::Relaxed)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> (Arc<UserCode>, Arc<Ticks>) {
        let ticks = Arc::new(Ticks::default());
        (UserCode::new(&ticks), ticks)
    }

    #[test]
    fn panic_becomes_counted_error_with_its_text() {
        let (code, _) = code();
        assert_eq!(code.call(Label::default(), || 7), Ok(7));
        let panicked = code.call(Label::default(), || panic!("planned: a handler {}", "fails")).unwrap_err();
        assert_eq!(panicked.to_string(), "panicked: planned: a handler fails");
        assert_eq!(code.counts.panics.get(), 1);
    }

    #[test]
    fn payload_that_panics_when_dropped_is_contained() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("planned: a payload panics");
            }
        }
        let panicked = user_code(|| std::panic::panic_any(Bomb)).unwrap_err();
        assert_eq!(panicked.text(), "no text");
    }

    #[test]
    fn blocked_call_is_named_and_forgotten_when_it_ends() {
        let (code, ticks) = code();
        let label = code.label("account", "Deposit");
        assert_eq!(code.label("account", "Deposit"), label);
        code.call(Label::default(), || {
            code.relabel(label);
            assert_eq!(code.blocked(TICK), None);
            (0..3).for_each(|_| ticks.tick());
            let blocked = code.blocked(TICK).unwrap();
            assert_eq!(blocked, (TICK * 3, "account".to_owned(), "Deposit".to_owned()));
            // A nested call does not hide the outer one afterwards.
            code.call(Label::default(), || ()).unwrap();
            assert_eq!(code.blocked(TICK).unwrap().1, "account");
        })
        .unwrap();
        assert_eq!(code.blocked(Duration::ZERO), None);
        assert_eq!(code.longest(), TICK * 3);
    }

    #[test]
    fn labels_from_outside_fill_no_memory() {
        let (code, _) = code();
        let first = code.label("account", "");
        for n in 0..2 * MAX_LABELS {
            code.label("account", &format!("m{n}"));
        }
        assert_eq!(code.labels.lock().names.len(), MAX_LABELS);
        assert_eq!(code.label("account", "unknown"), first);
    }

    #[test]
    fn future_that_panics_at_any_poll_ends_with_an_error() {
        let (code, _) = code();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            assert_eq!(code.run(Label::default(), async { 3 }).await, Ok(3));
            let late = async {
                tokio::task::yield_now().await;
                panic!("planned: at the second poll")
            };
            let ended: Result<(), _> = code.run(Label::default(), late).await;
            assert_eq!(ended.unwrap_err().text(), "planned: at the second poll");
        });
    }
}
