//! How the state of an actor is saved, if its type implements `Serialize` and `Deserialize`.
//!
//! Called by what the derives write for actors whose attribute does not mention snapshots: those have them if they can.

use std::marker::PhantomData;

use crate::message::{Coded, StateCoding};

/// A state that may be [`Coded`].
#[doc(hidden)]
#[derive(Debug)]
pub struct MaybeCoded<T>(PhantomData<T>);

impl<T> MaybeCoded<T> {
    /// Of the type `T`.
    #[expect(clippy::new_without_default, reason = "only the derives write it")]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

/// Chosen for types that are [`Coded`].
#[doc(hidden)]
pub trait CodedState<T> {
    /// The coding.
    fn coding(&self) -> Option<StateCoding<T>>;
}

impl<T: Coded + 'static> CodedState<T> for MaybeCoded<T> {
    fn coding(&self) -> Option<StateCoding<T>> {
        Some(StateCoding::of())
    }
}

/// Chosen for all other types: one more reference away, so the compiler finds it last.
#[doc(hidden)]
pub trait UncodedState<T> {
    /// Nothing.
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
