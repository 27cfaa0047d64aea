//! What is wrong with the bridge now, one entry for each thing that it concerns.
//!
//! Written by the intake; read for the node's health.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// The open issues of a bridge by the thing they concern, so that each is reported once and can be cleared.
#[derive(Debug, Default)]
pub(super) struct Issues(Mutex<BTreeMap<String, String>>);

impl Issues {
    /// Opens an issue, or replaces its text. Returns whether it is new.
    pub(super) fn open(&self, about: &str, text: String) -> bool {
        self.0.lock().insert(about.to_owned(), text).is_none()
    }

    /// Closes an issue. Returns whether it was open.
    pub(super) fn close(&self, about: &str) -> bool {
        self.0.lock().remove(about).is_some()
    }

    pub(super) fn texts(&self) -> Vec<String> {
        self.0.lock().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issue_is_new_once_and_can_be_closed() {
        let issues = Issues::default();
        assert!(issues.open("stream a", "one".to_owned()));
        assert!(!issues.open("stream a", "two".to_owned()));
        assert!(issues.open("stream b", "three".to_owned()));
        assert_eq!(issues.texts(), ["two", "three"]);
        assert!(issues.close("stream a"));
        assert!(!issues.close("stream a"));
        assert_eq!(issues.texts(), ["three"]);
    }
}
