//! What stands still on a node and why: a person must look after it, so the node's health says it.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// How many are told of. A sender may name as many shards as it likes, and a person has enough with these.
const MOST: usize = 100;

/// What stands still on a node, by its name, and why.
#[derive(Default)]
pub(crate) struct Standing(Mutex<BTreeMap<String, String>>);

impl Standing {
    /// It stands still from now on. Whether that is news.
    pub(crate) fn stands(&self, what: &str, why: String) -> bool {
        let mut standing = self.0.lock();
        let room = standing.len() < MOST || standing.contains_key(what);
        room && standing.insert(what.to_owned(), why).is_none()
    }

    /// Why, of each.
    pub(crate) fn reasons(&self) -> Vec<String> {
        self.0.lock().values().cloned().collect()
    }
}
