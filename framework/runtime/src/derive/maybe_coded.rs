//! The coding of an actor's state, if its type implements `Serialize` and `Deserialize`.
//!
//! Called by derived code of actors whose attribute does not mention snapshots: they have snapshots if their state can
//! be encoded.

use std::marker::PhantomData;

use whizbang_core::message::{Coded, StateCoding};

/// A state that may be [`Coded`].
#[doc(hidden)]
#[derive(Debug)]
pub struct MaybeCoded<T>(PhantomData<T>);

impl<T> MaybeCoded<T> {
    /// Returns the marker for the type `T`.
    #[expect(clippy::new_without_default, reason = "only the derives write it")]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

/// Selected for types that are [`Coded`].
#[doc(hidden)]
pub trait CodedState<T> {
    /// Returns the coding.
    fn coding(&self) -> Option<StateCoding<T>>;
}

impl<T: Coded + 'static> CodedState<T> for MaybeCoded<T> {
    fn coding(&self) -> Option<StateCoding<T>> {
        Some(StateCoding::of())
    }
}

/// Selected for all other types: it needs one more reference, so the compiler tries it last.
#[doc(hidden)]
pub trait UncodedState<T> {
    /// Returns `None`.
    fn coding(&self) -> Option<StateCoding<T>>;
}

impl<T> UncodedState<T> for &MaybeCoded<T> {
    fn coding(&self) -> Option<StateCoding<T>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::needless_borrow, reason = "the derive writes it so: the reference selects the trait")]
    fn types_with_both_traits_have_a_coding() {
        struct Silent;
        #[derive(serde::Serialize)]
        struct WriteOnly;
        assert_eq!((&MaybeCoded::<u8>::new()).coding().unwrap().save(&7).unwrap(), [7]);
        assert!((&MaybeCoded::<Silent>::new()).coding().is_none());
        assert!((&MaybeCoded::<WriteOnly>::new()).coding().is_none());
    }
}
