//! What has stopped on a node, and why: a person must look after it, so the node's health lists it until it goes on.

use crate::telemetry::Issues;

/// What has stopped on a node, by its name, and why; and what leaves the node ready: notes, and keys that cannot be loaded.
#[derive(Debug, Default)]
pub(crate) struct HealthIssues {
    standing: Issues,
    notes: Issues,
    keys: Issues,
}

impl HealthIssues {
    /// Lists it as stopped from now on. Returns whether that is news.
    pub(crate) fn raise(&self, what: &str, why: String) -> bool {
        self.standing.open(what, || why)
    }

    /// Lists it as stopped no longer. Returns whether that is news.
    pub(crate) fn resolve(&self, what: &str) -> bool {
        self.standing.close(what)
    }

    /// Notes what an operator should know though the node takes messages. Returns whether that is news.
    pub(crate) fn note(&self, what: &str, why: String) -> bool {
        self.notes.open(what, || why)
    }

    /// Removes a note.
    pub(crate) fn no_note(&self, what: &str) {
        self.notes.close(what);
    }

    /// Lists a key that cannot be loaded. All others go on, so the node is ready.
    pub(crate) fn does_not_load(&self, key: &str, why: impl FnOnce() -> String) {
        self.keys.open(key, why);
    }

    /// Lists a key no longer: it can be loaded.
    pub(crate) fn loads(&self, key: &str) {
        self.keys.close(key);
    }

    /// The reasons for which the node is not ready.
    pub(crate) fn reasons(&self) -> Vec<String> {
        self.standing.texts()
    }

    /// The notes.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.texts()
    }

    /// The keys that cannot be loaded, the first hundred of them.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.keys.texts()
    }
}
