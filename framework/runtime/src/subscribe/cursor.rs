//! Cursors: positions in the logs of a domain, as text that callers store.
//!
//! Created by a [stream](super::EventStream), and parsed from what a caller has stored.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use whizbang_core::message::{MessageId, Name, Shard, StoreId};

/// A position in one log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// The position of the last event.
    pub(super) position: u64,
    /// A part of the id of that event, if it was read.
    pub(super) check: Option<u32>,
}

impl Mark {
    /// Returns the mark of an event.
    pub(super) fn of(position: u64, id: MessageId) -> Self {
        Self { position, check: Some(check_of(id)) }
    }

    /// Returns whether an event is the one that the mark names.
    pub(super) fn is(self, position: u64, id: MessageId) -> bool {
        self.position == position && self.check.is_none_or(|check| check == check_of(id))
    }
}

/// Returns the low 32 bits of an id: enough to tell two logs with the same positions apart.
fn check_of(id: MessageId) -> u32 {
    let [.., a, b, c, d] = id.as_u128().to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// The place of a stream in the logs of its domain. Store it, and continue with
/// [`EventStream::start_at`](super::EventStream::start_at).
///
/// It names the store of the owner and, for each shard, the position and a part of the id of the last event. So a stream that
/// continues in another store, or in a log that was restored from an older backup, ends with an error.
///
/// It is serialized as its text, which consists of letters, digits and `-_.:`. The text has about 20 bytes for each shard that has
/// events, 2 for each other one, and remains readable for later versions.
///
/// ```
/// use whizbang::subscribe::Cursor;
///
/// let cursor: Cursor = "1:bank:-:12-9a0b1c2d.0.7".parse()?;
/// assert_eq!((cursor.domain(), cursor.position(0), cursor.position(1)), ("bank", Some(12), Some(0)));
/// assert_eq!(cursor.to_string(), "1:bank:-:12-9a0b1c2d.0.7");
/// # Ok::<_, whizbang::subscribe::CursorError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cursor {
    pub(super) domain: Name,
    pub(super) store: Option<StoreId>,
    pub(super) marks: Vec<Mark>,
}

/// A text that is not a [`Cursor`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid cursor: {reason}")]
#[non_exhaustive]
pub struct CursorError {
    /// The defect.
    pub reason: &'static str,
}

/// The most shards of a domain.
const MAX_SHARDS: usize = 1024;

impl Cursor {
    /// Returns the name of the domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Returns the store that holds the logs, if the owner has named it.
    pub fn store(&self) -> Option<StoreId> {
        self.store
    }

    /// Returns the position of the last event of a shard, 0 if there is none; `None` for a shard that the domain does not have.
    pub fn position(&self, shard: Shard) -> Option<u64> {
        self.marks.get(usize::from(shard)).map(|mark| mark.position)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1:{}:", self.domain)?;
        match self.store {
            Some(store) => write!(f, "{store}:")?,
            None => f.write_str("-:")?,
        }
        for (index, mark) in self.marks.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            write!(f, "{}", mark.position)?;
            if let Some(check) = mark.check {
                write!(f, "-{check:08x}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let invalid = |reason| CursorError { reason };
        let mut parts = text.splitn(4, ':');
        let (version, domain, store, marks) = (parts.next(), parts.next(), parts.next(), parts.next());
        if version != Some("1") {
            return Err(invalid("unknown version"));
        }
        let domain = domain.and_then(|domain| Name::new(domain).ok()).ok_or(invalid("invalid domain"))?;
        let store = match store {
            Some("-") => None,
            Some(store) => Some(StoreId::parse(store).ok_or(invalid("invalid store"))?),
            None => return Err(invalid("store is missing")),
        };
        let marks = marks.ok_or(invalid("positions are missing"))?;
        let marks = marks.split('.').take(MAX_SHARDS + 1).map(read_mark).collect::<Option<Vec<_>>>();
        let marks = marks.ok_or(invalid("invalid position"))?;
        if marks.len() > MAX_SHARDS {
            return Err(invalid("too many shards"));
        }
        Ok(Self { domain, store, marks })
    }
}

fn read_mark(text: &str) -> Option<Mark> {
    let (position, check) = match text.split_once('-') {
        Some((position, check)) => (position, Some(check)),
        None => (text, None),
    };
    let is_plain = |text: &str, digits: fn(u8) -> bool| !text.is_empty() && text.bytes().all(digits);
    if !is_plain(position, |byte| byte.is_ascii_digit()) {
        return None;
    }
    let check = match check {
        Some(check) if check.len() == 8 && is_plain(check, |byte| byte.is_ascii_hexdigit()) => {
            Some(u32::from_str_radix(check, 16).ok()?)
        }
        Some(_) => return None,
        None => None,
    };
    Some(Mark { position: position.parse().ok()?, check })
}

impl TryFrom<String> for Cursor {
    type Error = CursorError;

    fn try_from(text: String) -> Result<Self, CursorError> {
        text.parse()
    }
}

impl From<Cursor> for String {
    fn from(cursor: Cursor) -> Self {
        cursor.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_comes_back_from_its_text() {
        let store = StoreId::from_u128(0xAB);
        let marks = vec![Mark { position: u64::MAX, check: Some(0xAB) }, Mark::default()];
        let cursor = Cursor { domain: Name::from_static("e-shop").unwrap(), store: Some(store), marks };
        let text = "1:e-shop:000000000000000000000000000000ab:18446744073709551615-000000ab.0";
        assert_eq!(cursor.to_string(), text, "stored by callers, so it never changes");
        assert_eq!(text.parse(), Ok(cursor.clone()));
        let json = serde_json::to_string(&cursor).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Cursor>(&json).unwrap(), cursor);
    }

    #[test]
    fn invalid_cursor_is_refused() {
        let many = format!("1:bank:-:{}", vec!["0"; MAX_SHARDS + 1].join("."));
        let all = [
            "",
            "1",
            "2:bank:-:0",
            "1:b k:-:0",
            "1:bank",
            "1:bank:x:0",
            "1:bank:-",
            "1:bank:-:",
            "1:bank:-:0.",
            "1:bank:-:+1",
            "1:bank:-:-1",
            "1:bank:-:1-",
            "1:bank:-:1-+0000000",
            "1:bank:-:1-123",
            "1:bank:-:18446744073709551616",
            "1:bank:-:1:2",
            &many,
        ];
        for text in all {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
        let most = format!("1:bank:-:{}", vec!["0"; MAX_SHARDS].join("."));
        assert_eq!(most.parse::<Cursor>().unwrap().position(1023), Some(0));
    }
}
