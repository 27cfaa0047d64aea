//! Health issues of a node: what has stopped and needs an operator, listed until it is resolved.

use whizbang_core::telemetry::Issues;

/// Open issues by name. Blocking issues make the node unready; notes and keys do not.
#[derive(Debug, Default)]
pub struct HealthIssues {
    issues: Issues,
    notes: Issues,
    keys: Issues,
    stuck: Issues,
}

impl HealthIssues {
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

    /// Lists a key for which the store fails again and again. All other keys are served, so the node stays ready.
    pub(crate) fn add_stuck_key(&self, key: &str, why: String) {
        self.stuck.open(key, || why);
    }

    /// Unlists a key that the store serves again.
    pub(crate) fn serves(&self, key: &str) {
        self.stuck.close(key);
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

    /// Returns the keys for which the store fails, at most the first hundred.
    pub(crate) fn stuck_keys(&self) -> Vec<String> {
        self.stuck.texts()
    }
}
