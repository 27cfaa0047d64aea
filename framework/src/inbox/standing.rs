//! What has stopped on a node, and why: a person must look after it, so the node's health lists it until it goes on.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// How many are listed of each kind. A sender may name as many shards as it likes, and a person has enough with these.
const MOST: usize = 100;

type List = Mutex<BTreeMap<String, String>>;

/// What has stopped on a node, by its name, and why; and what leaves the node ready: notes, and keys that cannot be loaded.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    standing: List,
    notes: List,
    keys: List,
}

impl Standing {
    /// Lists it as stopped from now on. Returns whether that is news.
    pub(crate) fn stands(&self, what: &str, why: String) -> bool {
        insert(&self.standing, what, || why)
    }

    /// Lists it as stopped no longer. Returns whether that is news.
    pub(crate) fn goes_on(&self, what: &str) -> bool {
        self.standing.lock().remove(what).is_some()
    }

    /// Notes what an operator should know though the node takes messages. Returns whether that is news.
    pub(crate) fn note(&self, what: &str, why: String) -> bool {
        insert(&self.notes, what, || why)
    }

    /// Removes a note.
    pub(crate) fn no_note(&self, what: &str) {
        self.notes.lock().remove(what);
    }

    /// Lists a key that cannot be loaded. All others go on, so the node is ready.
    pub(crate) fn does_not_load(&self, key: &str, why: impl FnOnce() -> String) {
        insert(&self.keys, key, why);
    }

    /// Lists a key no longer: it can be loaded.
    pub(crate) fn loads(&self, key: &str) {
        self.keys.lock().remove(key);
    }

    /// The reasons for which the node is not ready.
    pub(crate) fn reasons(&self) -> Vec<String> {
        self.standing.lock().values().cloned().collect()
    }

    /// The notes.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.lock().values().cloned().collect()
    }

    /// The keys that cannot be loaded, the first hundred of them.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.keys.lock().values().cloned().collect()
    }
}

fn insert(into: &List, what: &str, why: impl FnOnce() -> String) -> bool {
    let mut known = into.lock();
    let room = known.len() < MOST || known.contains_key(what);
    room && known.insert(what.to_owned(), why()).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_bounded_and_clear_again() {
        let standing = Standing::default();
        for n in 0..2 * MOST {
            standing.does_not_load(&n.to_string(), || format!("{n} cannot be loaded"));
            standing.stands(&n.to_string(), format!("{n} stands"));
            standing.note(&n.to_string(), format!("{n} is noted"));
        }
        assert_eq!((standing.keys().len(), standing.reasons().len(), standing.notes().len()), (MOST, MOST, MOST));
        for n in 0..2 * MOST {
            standing.loads(&n.to_string());
            standing.goes_on(&n.to_string());
            standing.no_note(&n.to_string());
        }
        assert_eq!((standing.keys().len(), standing.reasons().len(), standing.notes().len()), (0, 0, 0));
    }
}
