//! The mark of a store that is a part of a move.
//!
//! Written by the stores, each at its own place, and read when a store is opened.

use std::fmt::{self, Display, Formatter};

use whizbang_core::store::StoreError;

/// The state of a store that is a part of a move. A store without a mark can be used.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveMark {
    /// The random number of the move, the same in both stores.
    pub number: u128,
    /// The state.
    pub state: MoveState,
}

/// The state of one store of a move.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoveState {
    /// The store is a copy that lacks a part.
    Copying,
    /// The store is a copy with everything. Its source may still be in use.
    Complete,
    /// The content has moved to this place, and the store is not used again.
    Away(String),
}

impl MoveMark {
    /// Creates a mark.
    pub fn new(number: u128, state: MoveState) -> Self {
        Self { number, state }
    }

    /// Reads a mark from its text; `None` if it has another form.
    pub fn parse(text: &str) -> Option<Self> {
        let (word, rest) = text.split_once(' ')?;
        let (number, to) = rest.split_once(' ').map_or((rest, None), |(number, to)| (number, Some(to)));
        let state = match (word, to) {
            ("copying", None) => MoveState::Copying,
            ("complete", None) => MoveState::Complete,
            ("away", Some(to)) => MoveState::Away(to.to_owned()),
            _ => return None,
        };
        Some(Self { number: u128::from_str_radix(number, 16).ok()?, state })
    }

    /// Returns the error for creating a store at `at`, where the store with this mark is.
    ///
    /// The source of the new move can be used, so a copy of it may be deleted. The copy of another source may be the only one.
    pub fn occupies(&self, at: String) -> StoreError {
        let at = match &self.state {
            MoveState::Copying | MoveState::Complete => {
                format!("{at}, with the copy of an interrupted move (delete it if its source was the same),")
            }
            MoveState::Away(_) => at,
        };
        StoreError::NotEmpty { at }
    }

    /// Returns the error for opening the store at `at`.
    pub fn refusal(&self, at: String) -> StoreError {
        match &self.state {
            MoveState::Copying | MoveState::Complete => StoreError::Unfinished { at },
            MoveState::Away(to) => StoreError::Moved { at, to: to.clone() },
        }
    }
}

impl Display for MoveMark {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let number = self.number;
        match &self.state {
            MoveState::Copying => write!(f, "copying {number:032x}"),
            MoveState::Complete => write!(f, "complete {number:032x}"),
            // The text is one line wherever it is stored.
            MoveState::Away(to) => write!(f, "away {number:032x} {}", to.replace(['\n', '\r', '\0'], " ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_is_read_as_it_was_written() {
        for state in [MoveState::Copying, MoveState::Complete, MoveState::Away("/var/lib/bank data".to_owned())] {
            let mark = MoveMark::new(u128::MAX - 7, state);
            assert_eq!(MoveMark::parse(&mark.to_string()), Some(mark));
        }
        let lines = MoveMark::new(1, MoveState::Away("a\nseed 0".to_owned())).to_string();
        assert_eq!(lines, "away 00000000000000000000000000000001 a seed 0");
        for other in ["", "copying", "copying x", "complete 1 2", "away 1", "begun 1"] {
            assert_eq!(MoveMark::parse(other), None, "{other}");
        }
    }
}
