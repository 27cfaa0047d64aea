//! The identity of a store and the numbers of its nodes' starts.
//!
//! Created by stores, and sent to other services by bridges, which claim the domains of a node for its store.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The identity of a store: 128 random bits, generated when the store is created. Displayed as 32 hexadecimal digits.
///
/// Positions in a log are meaningful only together with the identity of their store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StoreId(u128);

impl StoreId {
    /// Creates an identity from its 128 bits.
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }

    /// Returns the 128 bits.
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// Parses the output of `Display`.
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
        Self::parse(&text).ok_or_else(|| format!("invalid store identity `{text}`: expected 32 hexadecimal digits"))
    }
}

impl From<StoreId> for String {
    fn from(store: StoreId) -> Self {
        store.to_string()
    }
}

/// A start of a node on a store: its number and random bits that are unique to this start, even among copies of the
/// store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The number of the start, which increases with each start on the same store.
    pub epoch: u64,
    /// Random bits. Together with the epoch they distinguish the starts on a store from those on its copies.
    pub nonce: u64,
}

/// A store's identity and the starts that may hold its claims at the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StoreIdentity {
    /// The identity.
    pub store: StoreId,
    /// The last start that is known to have acquired its claims.
    #[serde(default)]
    pub won: Option<Run>,
    /// Later starts with an unknown result: the node ended before it learned the result, or was refused. Oldest first.
    #[serde(default)]
    pub tried: Vec<Run>,
    /// An operator has declared that the store replaces another one or a newer state of itself (`replaces_store`). Its
    /// node then starts even if peers know of later commits of the store.
    #[serde(default)]
    pub in_place_of_other: bool,
}

impl StoreIdentity {
    /// The number of starts with an unknown result that are kept.
    const TRIED: usize = 16;

    /// Creates the identity of a new store.
    pub const fn new(store: StoreId) -> Self {
        Self { store, won: None, tried: Vec::new(), in_place_of_other: false }
    }

    /// Returns the starts that may hold a claim of this store.
    pub fn runs(&self) -> Vec<Run> {
        self.won.into_iter().chain(self.tried.iter().copied()).collect()
    }

    /// Adds a new start with the next epoch.
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

    /// Records that a start has acquired its claims. Earlier starts no longer hold any; a later start, of a node that starts
    /// at the same time, may hold them already or soon.
    #[must_use]
    pub fn has_won(mut self, run: Run) -> Self {
        let won = self.won.filter(|won| won.epoch > run.epoch).unwrap_or(run);
        self.won = Some(won);
        self.tried.retain(|tried| tried.epoch > won.epoch);
        self
    }
}

/// The store whose claims a node may take over although it cannot prove that it continues that store.
///
/// For disaster recovery: the old store is lost for good, and data that only it contained is given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplacedStore {
    /// No store: a claim of another store prevents the start. The default.
    #[default]
    None,
    /// The store with this identity, as shown in the error of the refused start.
    Store(StoreId),
    /// Any store, even if nothing but its effects is known.
    Any,
}

impl ReplacedStore {
    /// Parses `any` or the identity of a store.
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
    fn won_run_keeps_later_starts() {
        let (identity, first) = StoreIdentity::new(StoreId::from_u128(1)).trying(7);
        let (identity, second) = identity.trying(8);
        let (identity, third) = identity.trying(9);
        let won = identity.has_won(second);
        assert_eq!(won.runs(), [second, third], "the third node may have its claims already");
        assert_eq!(won.clone().has_won(first).runs(), [second, third], "its record comes late");
        assert_eq!(won.has_won(third).runs(), [third]);
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
