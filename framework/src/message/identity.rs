//! The identity of a store, and the numbers of the starts of its nodes.
//!
//! Made by stores; carried to other services by bridges, which claim the domains of a node for its store.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The identity of a store: 128 random bits, drawn when the store is created. Written as 32 hexadecimal digits.
///
/// Positions in a log mean something only together with the identity of the store that gave them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StoreId(u128);

impl StoreId {
    /// An identity from its 128 bits.
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }

    /// The 128 bits.
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// Reads an identity as `Display` writes it.
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u128::from_str_radix(text, 16).ok().filter(|_| is_plain).map(Self)
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for StoreId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is not the identity of a store: use 32 hexadecimal digits"))
    }
}

impl From<StoreId> for String {
    fn from(store: StoreId) -> Self {
        store.to_string()
    }
}

/// One start of a node on a store: its number, and random bits that no other start has, not even one on a copy of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The number of the start; rises with each start on the same store.
    pub epoch: u64,
    /// Random bits. Together with the epoch they tell the starts on a store from those on its copies.
    pub nonce: u64,
}

/// A store's identity and the starts that may hold its claims at the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreIdentity {
    /// The identity.
    pub store: StoreId,
    /// The last start that is known to have won its claims.
    #[serde(default)]
    pub won: Option<Run>,
    /// Starts since then whose result is not known: the node ended before it heard of it, or was refused. Oldest first.
    #[serde(default)]
    pub tried: Vec<Run>,
    /// An operator has said that the store stands in for another one, or for a newer state of itself
    /// (`replaces_store`): what others know it to have committed does not stop its node.
    #[serde(default)]
    pub in_place_of_other: bool,
}

impl StoreIdentity {
    /// How many starts with an unknown result are kept.
    const TRIED: usize = 16;

    /// A new store's identity.
    pub const fn new(store: StoreId) -> Self {
        Self { store, won: None, tried: Vec::new(), in_place_of_other: false }
    }

    /// The starts that may hold a claim of this store.
    pub fn runs(&self) -> Vec<Run> {
        self.won.into_iter().chain(self.tried.iter().copied()).collect()
    }

    /// Notes a new start, with the next epoch.
    #[must_use]
    pub fn trying(mut self, nonce: u64) -> (Self, Run) {
        let last = self.runs().iter().map(|run| run.epoch).max().unwrap_or(0);
        let run = Run { epoch: last.saturating_add(1), nonce };
        if self.tried.len() >= Self::TRIED {
            self.tried.remove(0);
        }
        self.tried.push(run);
        (self, run)
    }

    /// Notes that a start has won its claims.
    #[must_use]
    pub fn has_won(self, run: Run) -> Self {
        Self { won: Some(run), tried: Vec::new(), ..self }
    }
}

/// The store whose claims a node may take over though it cannot show that it continues that store.
///
/// For disaster recovery: the old store is gone for good, and what it alone knew is given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplacedStore {
    /// None: a claim of another store stops the start. The default.
    #[default]
    None,
    /// The store with this identity, as the error of the refused start shows it.
    Store(StoreId),
    /// Any store, also one of which nothing but its effects is known.
    Any,
}

impl ReplacedStore {
    /// Reads `any` or the identity of a store.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "any" { Some(Self::Any) } else { StoreId::parse(text).map(Self::Store) }
    }

    /// Returns whether the claims of a store may be taken over.
    pub fn includes(self, store: StoreId) -> bool {
        match self {
            Self::None => false,
            Self::Store(known) => known == store,
            Self::Any => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_identity_comes_back_from_its_text() {
        let store = StoreId::from_u128(0xAB);
        assert_eq!(StoreId::parse(&store.to_string()), Some(store));
        for text in ["", "ab", &"g".repeat(32), &format!("+{}", "0".repeat(31)), &"0".repeat(33)] {
            assert_eq!(StoreId::parse(text), None, "{text}");
        }
        assert_eq!(ReplacedStore::parse("any"), Some(ReplacedStore::Any));
        assert_eq!(ReplacedStore::parse("none"), None);
    }

    #[test]
    fn failed_starts_keep_the_last_won_run() {
        let mut identity = StoreIdentity::new(StoreId::from_u128(1));
        let (tried, first) = identity.trying(7);
        identity = tried.has_won(first);
        for nonce in 0..100 {
            identity = identity.trying(nonce).0;
        }
        let runs = identity.runs();
        assert_eq!(runs.first(), Some(&first));
        assert_eq!(runs.len(), 1 + StoreIdentity::TRIED);
        assert_eq!(runs.last().map(|run| run.epoch), Some(101));
    }
}
