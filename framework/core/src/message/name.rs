//! Names that are safe in subjects, file names and table names.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A valid name of a domain, a service, a message or an actor type: `[A-Za-z0-9_-]{1,64}`.
///
/// It contains no dot, wildcard, space or control byte, so it can be used verbatim in a subject, a file name and a
/// header.
///
/// ```
/// use whizbang::message::Name;
///
/// assert_eq!(Name::new("bank")?.as_str(), "bank");
/// assert!(Name::new("a.b").is_err());
/// # Ok::<(), whizbang::message::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Repr);

#[derive(Clone)]
enum Repr {
    Static(&'static str),
    Shared(Arc<str>),
}

impl Repr {
    fn as_str(&self) -> &str {
        match self {
            Self::Static(name) => name,
            Self::Shared(name) => name,
        }
    }
}

impl PartialEq for Repr {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}
impl Eq for Repr {}
impl PartialOrd for Repr {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Repr {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}
impl std::hash::Hash for Repr {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Name {
    /// The largest length of a name in bytes.
    pub const MAX_BYTES: usize = 64;

    /// Validates a name.
    ///
    /// # Errors
    /// [`NameError`] with the invalid text.
    pub fn new(name: &str) -> Result<Self, NameError> {
        Self::check(name)?;
        Ok(Self(Repr::Shared(Arc::from(name))))
    }

    /// Validates a name with static lifetime, without allocation.
    ///
    /// # Errors
    /// [`NameError`] with the invalid text.
    pub fn from_static(name: &'static str) -> Result<Self, NameError> {
        Self::check(name)?;
        Ok(Self(Repr::Static(name)))
    }

    /// Returns whether `name` is a valid name. Usable at compile time; called by the derives.
    pub const fn is_valid(name: &str) -> bool {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() > Self::MAX_BYTES {
            return false;
        }
        let mut at = 0;
        while at < bytes.len() {
            let (first, _) = bytes.split_at(at + 1);
            let Some(byte) = first.last() else { return false };
            if !(byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b'-') {
                return false;
            }
            at += 1;
        }
        true
    }

    fn check(name: &str) -> Result<(), NameError> {
        if Self::is_valid(name) {
            return Ok(());
        }
        // The text may come from outside and have any size: quote only its beginning, with control bytes escaped.
        let shown: String = name.chars().take(Self::MAX_BYTES).flat_map(char::escape_debug).collect();
        Err(NameError { shown, bytes: name.len() })
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is not a valid [`Name`]. Nothing was sent or stored; choose another name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid name `{shown}` ({bytes} bytes): expected 1-64 characters from [A-Za-z0-9_-]")]
pub struct NameError {
    shown: String,
    bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_byte_is_refused_at_every_position() {
        for byte in 0..=255u8 {
            for at in 0..3 {
                let mut bytes = *b"abc";
                bytes[at] = byte;
                let Ok(text) = std::str::from_utf8(&bytes) else { continue };
                let allowed = byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
                assert_eq!(Name::new(text).is_ok(), allowed, "byte {byte} at {at}");
            }
        }
    }

    #[test]
    fn name_has_1_to_64_bytes() {
        assert!(Name::new("").is_err());
        assert!(Name::new(&"a".repeat(64)).is_ok());
        assert!(Name::new(&"a".repeat(65)).is_err());
    }
}
