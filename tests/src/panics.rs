//! Detection of panics that a runtime catches in its tasks, which a test would not notice otherwise.

use std::sync::{Arc, Mutex, PoisonError};
use std::{panic, thread};

/// The panics of this process since the value was created.
#[derive(Clone, Debug)]
pub struct Panics(Arc<Mutex<Vec<String>>>);

impl Panics {
    /// Starts recording the panics of all threads. They are still printed.
    pub fn watch() -> Self {
        Self::watch_where(|| true)
    }

    /// Starts recording the panics of this thread only, so that other tests of the process may panic.
    pub fn watch_here() -> Self {
        let here = thread::current().id();
        Self::watch_where(move || thread::current().id() == here)
    }

    fn watch_where(concerns: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let seen = Self(Arc::default());
        let (writes, before) = (seen.clone(), panic::take_hook());
        panic::set_hook(Box::new(move |info| {
            if concerns() {
                writes.0.lock().unwrap_or_else(PoisonError::into_inner).push(info.to_string());
            }
            before(info);
        }));
        seen
    }

    /// Fails if there was a panic whose text contains none of `planned`.
    ///
    /// # Panics
    /// With the texts of all unplanned panics.
    #[track_caller]
    pub fn assert_only(&self, planned: &[&str]) {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unplanned: Vec<_> =
            seen.iter().filter(|text| !planned.iter().any(|planned| text.contains(planned))).collect();
        assert!(unplanned.is_empty(), "{} unplanned panics, the first: {}", unplanned.len(), unplanned[0]);
    }
}
