//! Health issues of a node: what has stopped and needs an operator, listed until it is resolved.

use std::sync::atomic::{AtomicIsize, Ordering};

use whizbang_core::telemetry::Issues;

/// Open issues by name. Blocking issues make the node unready; notes and keys do not.
#[derive(Debug, Default)]
pub struct HealthIssues {
    issues: Issues,
    notes: Issues,
    keys: Issues,
    stuck: Issues,
    sources: Issues,
    /// The number of threads whose store fails.
    failing_stores: AtomicIsize,
}

impl HealthIssues {
    /// Adds to the number of threads whose store fails, and returns the sum.
    pub(crate) fn count_failing_stores(&self, change: isize) -> isize {
        self.failing_stores.fetch_add(change, Ordering::Relaxed) + change
    }

    /// Raises a blocking issue. Returns whether it is new.
    pub(crate) fn raise(&self, what: &str, why: String) -> bool {
        self.issues.open(what, || why)
    }

    /// Resolves a blocking issue. Returns whether it was open.
    pub(crate) fn resolve(&self, what: &str) -> bool {
        self.issues.close(what)
    }

    /// Adds a note for operators that leaves the node ready. Returns whether it is new.
    pub(crate) fn note(&self, what: &str, why: String) -> bool {
        self.notes.open(what, || why)
    }

    /// Removes a note.
    pub(crate) fn clear_note(&self, what: &str) {
        self.notes.close(what);
    }

    /// Lists a key that cannot be loaded. All other keys are served, so the node stays ready.
    pub(crate) fn add_unloadable_key(&self, key: &str, why: impl FnOnce() -> String) {
        self.keys.open(key, why);
    }

    /// Unlists a key that can be loaded again.
    pub(crate) fn loads(&self, key: &str) {
        self.keys.close(key);
    }

    /// Lists a key that fails again and again, because of the store or of a layer. All other keys are served, so the node stays
    /// ready.
    pub(crate) fn add_stuck_key(&self, key: &str, why: String) {
        self.stuck.open(key, || why);
    }

    /// Unlists a key that is served again.
    pub(crate) fn serves(&self, key: &str) {
        self.stuck.close(key);
    }

    /// Lists a domain whose events cannot be read. Returns whether it is new.
    pub(crate) fn add_unread_source(&self, domain: &str, why: String) -> bool {
        self.sources.open(domain, || why)
    }

    /// Unlists a domain whose events can be read again.
    pub(crate) fn source_read(&self, domain: &str) {
        self.sources.close(domain);
    }

    /// Returns the domains whose events cannot be read.
    pub(crate) fn unread_sources(&self) -> Vec<String> {
        self.sources.texts()
    }

    /// Returns the reasons for which the node is not ready.
    pub(crate) fn reasons(&self) -> Vec<String> {
        self.issues.texts()
    }

    /// Returns the notes.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.texts()
    }

    /// Returns the keys that cannot be loaded, at most the first hundred.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.keys.texts()
    }

    /// Returns the keys that fail again and again, at most the first hundred.
    pub(crate) fn stuck_keys(&self) -> Vec<String> {
        self.stuck.texts()
    }
}
