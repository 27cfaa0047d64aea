//! Open issues, one entry per subject.
//!
//! Written by the code that detects an issue and its end; read for the node's health.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Most issues listed. A forged sender may name any number of shards, and an operator needs no more.
pub(crate) const MAX_ISSUES: usize = 100;

/// Open issues by subject, so that each is reported once and can be closed.
#[derive(Debug, Default)]
pub struct Issues(Mutex<BTreeMap<String, String>>);

impl Issues {
    /// Opens an issue, or replaces its text. Returns whether it is new. Beyond [`MAX_ISSUES`] none is opened.
    pub fn open(&self, about: &str, text: impl FnOnce() -> String) -> bool {
        let mut open = self.0.lock();
        let room = open.len() < MAX_ISSUES || open.contains_key(about);
        room && open.insert(about.to_owned(), text()).is_none()
    }

    /// Closes an issue. Returns whether it was open.
    pub fn close(&self, about: &str) -> bool {
        self.0.lock().remove(about).is_some()
    }

    /// Returns the number of open issues whose subject begins with `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        self.0.lock().keys().filter(|about| about.starts_with(prefix)).count()
    }

    /// Returns the texts of the open issues, ordered by subject.
    pub fn texts(&self) -> Vec<String> {
        self.0.lock().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issue_is_new_once_and_can_be_closed() {
        let issues = Issues::default();
        assert!(issues.open("stream a", || "one".to_owned()));
        assert!(!issues.open("stream a", || "two".to_owned()));
        assert!(issues.open("stream b", || "three".to_owned()));
        assert_eq!(issues.texts(), ["two", "three"]);
        assert_eq!((issues.count("stream "), issues.count("stream a"), issues.count("disk")), (2, 1, 0));
        assert!(issues.close("stream a"));
        assert!(!issues.close("stream a"));
        assert_eq!(issues.texts(), ["three"]);
    }

    #[test]
    fn issues_are_bounded_and_close_again() {
        let issues = Issues::default();
        for n in 0..2 * MAX_ISSUES {
            issues.open(&n.to_string(), || format!("{n} stopped"));
        }
        assert_eq!(issues.texts().len(), MAX_ISSUES);
        assert!(!issues.open("0", || "known".to_owned()), "an open issue is replaced even if the list is full");
        assert_eq!((0..2 * MAX_ISSUES).filter(|n| issues.close(&n.to_string())).count(), MAX_ISSUES);
        assert!(issues.texts().is_empty());
    }
}
