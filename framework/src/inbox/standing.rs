//! What stands still on a node and why: a person must look after it, so the node's health says it.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// How many are told of. A sender may name as many shards as it likes, and a person has enough with these.
const MOST: usize = 100;

/// What stands still on a node, by its name, and why; and notes, which leave the node ready.
#[derive(Default)]
pub(crate) struct Standing {
    standing: Mutex<BTreeMap<String, String>>,
    notes: Mutex<BTreeMap<String, String>>,
}

impl Standing {
    /// It stands still from now on. Whether that is news.
    pub(crate) fn stands(&self, what: &str, why: String) -> bool {
        insert(&self.standing, what, why)
    }

    /// It stands still no more. Whether that is news.
    pub(crate) fn goes_on(&self, what: &str) -> bool {
        self.standing.lock().remove(what).is_some()
    }

    /// An operator should know it, and the node takes messages all the same. Whether that is news.
    pub(crate) fn note(&self, what: &str, why: String) -> bool {
        insert(&self.notes, what, why)
    }

    /// The note does not hold any more.
    pub(crate) fn no_note(&self, what: &str) {
        self.notes.lock().remove(what);
    }

    /// Why, of each that stands still.
    pub(crate) fn reasons(&self) -> Vec<String> {
        self.standing.lock().values().cloned().collect()
    }

    /// The notes.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.lock().values().cloned().collect()
    }
}

fn insert(into: &Mutex<BTreeMap<String, String>>, what: &str, why: String) -> bool {
    let mut known = into.lock();
    let room = known.len() < MOST || known.contains_key(what);
    room && known.insert(what.to_owned(), why).is_none()
}
