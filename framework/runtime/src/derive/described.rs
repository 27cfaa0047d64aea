//! The state of an actor as text, if its type implements `Debug`.
//!
//! Called by derived code. The simulated cluster compares these texts; nothing else reads them.

use std::fmt;

/// A state that may implement `Debug`.
#[doc(hidden)]
#[derive(Debug)]
pub struct Described<'a, T>(pub &'a T);

/// Selected for types that implement `Debug`.
#[doc(hidden)]
pub trait DescribedByDebug {
    /// Returns the text.
    fn described(&self) -> Option<String>;
}

impl<T: fmt::Debug> DescribedByDebug for Described<'_, T> {
    fn described(&self) -> Option<String> {
        Some(format!("{:?}", self.0))
    }
}

/// Selected for all other types: it needs one more reference, so the compiler tries it last.
#[doc(hidden)]
pub trait NotDescribed {
    /// Returns `None`.
    fn described(&self) -> Option<String>;
}

impl<T> NotDescribed for &Described<'_, T> {
    fn described(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::needless_borrow, reason = "the derive writes it so: the reference selects the trait")]
    fn types_with_debug_are_described() {
        struct Silent;
        assert_eq!((&Described(&[1, 2])).described().as_deref(), Some("[1, 2]"));
        assert_eq!((&Described(&Silent)).described(), None);
    }
}
