//! The mask of a shrunk case: the part of a drawn case that is kept.
//!
//! Used by [shrinking](super::shrink) and printed in the replay command. Steps, faults and parts of the fault profile are removed,
//! and the others stay as drawn, at their moments, so that each attempt differs in one thing only. (Value trees of collections
//! would move everything behind a removed element.) The values of a step shrink by themselves, recorded as moves.
//!
//! A mask is printed as a short text. The same seed with the same mask gives the same case, on every machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use proptest::strategy::ValueTree;

use super::FaultProfile;

/// The kept part of a drawn case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShrinkMask {
    /// The indices of the kept steps, in order.
    pub(super) steps: Vec<usize>,
    /// The indices of the kept faults, in order.
    pub(super) faults: Vec<usize>,
    /// One bit for each part of the fault profile that is kept, and [`RELOAD_BIT`].
    profile_bits: u8,
    /// The moves in the value tree of each step.
    moves: BTreeMap<usize, Moves>,
    /// The items that follow their predecessor without the drawn gap.
    at_once: BTreeSet<Item>,
}

/// A step or a fault of a case, by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Item {
    /// A step, by its index.
    Step(usize),
    /// A fault, by its index.
    Fault(usize),
}

/// All parts of the fault profile, and reloading of actors.
const ALL_BITS: u8 = 0b11_1111;
/// The bit for reloading of actors.
const RELOAD_BIT: u8 = 0b10_0000;

/// A walk through a value tree: `true` simplifies, `false` backtracks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Moves(Vec<bool>);

impl Moves {
    /// Adds a move: to a simpler value, or back to a more complicated one.
    pub(super) fn push(&mut self, simpler: bool) {
        self.0.push(simpler);
    }

    /// Repeats the moves on a freshly drawn value.
    pub(super) fn walk<T: fmt::Debug>(&self, tree: &mut dyn ValueTree<Value = T>) {
        for simpler in &self.0 {
            if *simpler {
                tree.simplify()
            } else {
                tree.complicate()
            };
        }
    }
}

/// Formats four moves as one hexadecimal digit. A leading one preserves moves that backtrack first.
impl fmt::Display for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bits: Vec<bool> = vec![true];
        bits.extend(&self.0);
        let mut padded = vec![false; (4 - bits.len() % 4) % 4];
        padded.extend(bits);
        for digit in padded.chunks(4) {
            write!(f, "{:x}", digit.iter().fold(0, |sum, bit| 2 * sum + u8::from(*bit)))?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Moves {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bits = Vec::new();
        for digit in text.chars() {
            let digit = u8::from_str_radix(digit.encode_utf8(&mut [0; 4]), 16)?;
            bits.extend([8, 4, 2, 1].map(|bit| digit & bit != 0));
        }
        Ok(Self(bits.into_iter().skip_while(|bit| !bit).skip(1).collect()))
    }
}

impl ShrinkMask {
    /// Returns the mask that keeps everything and simplifies nothing.
    pub(super) fn full(steps: usize, faults: usize) -> Self {
        Self {
            steps: (0..steps).collect(),
            faults: (0..faults).collect(),
            profile_bits: ALL_BITS,
            moves: BTreeMap::new(),
            at_once: BTreeSet::new(),
        }
    }

    /// Returns whether actors are reloaded.
    pub(super) fn reload(&self, drawn: bool) -> bool {
        drawn && self.profile_bits & RELOAD_BIT != 0
    }

    /// Returns whether the gap before an item is removed.
    pub(super) fn is_at_once(&self, item: Item) -> bool {
        self.at_once.contains(&item)
    }

    /// Returns masks with fewer gaps: without all of them, then without one each.
    pub(super) fn without_gaps(&self) -> Vec<Self> {
        let steps = self.steps.iter().map(|step| Item::Step(*step));
        let items: BTreeSet<_> = steps.chain(self.faults.iter().map(|fault| Item::Fault(*fault))).collect();
        let remaining = items.iter().filter(|item| !self.at_once.contains(item)).copied();
        let one = remaining.map(|item| {
            let mut earlier = self.clone();
            earlier.at_once.insert(item);
            earlier
        });
        let mut earlier: Vec<_> = one.collect();
        if earlier.len() > 1 {
            earlier.insert(0, Self { at_once: items, ..self.clone() });
        }
        earlier
    }

    /// Returns the moves of a step.
    pub(super) fn moves(&self, step: usize) -> Moves {
        self.moves.get(&step).cloned().unwrap_or_default()
    }

    /// Returns the mask with other moves of a step.
    pub(super) fn with_moves(&self, step: usize, moves: Moves) -> Self {
        let mut with_moves = self.clone();
        with_moves.moves.insert(step, moves);
        with_moves
    }

    /// Returns the mask without the gaps that either mask removes.
    pub(super) fn with_gaps_of(&self, other: &Self) -> Self {
        Self { at_once: self.at_once.union(&other.at_once).copied().collect(), ..self.clone() }
    }

    /// Returns the drawn rates without those that are removed.
    pub(super) fn fault_profile(&self, drawn: FaultProfile) -> FaultProfile {
        let kept = |bit: u8, value: u16| if self.profile_bits & bit == 0 { 0 } else { value };
        FaultProfile {
            loss: kept(1, drawn.loss),
            duplication: kept(2, drawn.duplication),
            delay: kept(4, drawn.delay),
            commit_delay: kept(8, drawn.commit_delay),
            read_delay: kept(16, drawn.read_delay),
        }
    }

    /// Returns smaller masks, the smallest first.
    pub(super) fn shorter(&self) -> Vec<Self> {
        let mut shorter = Vec::new();
        shorter.extend(without_parts(&self.faults).into_iter().map(|faults| Self { faults, ..self.clone() }));
        shorter.extend(without_parts(&self.steps).into_iter().map(|steps| Self { steps, ..self.clone() }));
        let bits =
            [ALL_BITS & !RELOAD_BIT, 1, 2, 4, 8, 16, RELOAD_BIT].into_iter().filter(|bit| self.profile_bits & bit != 0);
        shorter.extend(bits.map(|bit| Self { profile_bits: self.profile_bits & !bit, ..self.clone() }));
        shorter
    }

    /// Returns masks without two items each. Removing an item changes the random choices for the others, so two items may be
    /// removable together although neither is alone.
    pub(super) fn shorter_by_two(&self) -> Vec<Self> {
        let count = self.faults.len() + self.steps.len();
        let remaining = |kept: &[usize], from: usize, removed: [usize; 2]| {
            let kept = kept.iter().enumerate().filter(|(at, _)| !removed.contains(&(from + at)));
            kept.map(|(_, number)| *number).collect()
        };
        let pairs = (0..count).flat_map(|one| (one + 1..count).map(move |other| [one, other]));
        pairs
            .map(|removed| Self {
                faults: remaining(&self.faults, 0, removed),
                steps: remaining(&self.steps, self.faults.len(), removed),
                ..self.clone()
            })
            .collect()
    }
}

/// Returns the list without one of its halves, its quarters, … its elements.
fn without_parts(kept: &[usize]) -> Vec<Vec<usize>> {
    let mut lists = Vec::new();
    let mut size = kept.len();
    while size > 0 {
        for (at, _) in kept.iter().enumerate().step_by(size) {
            let (before, rest) = kept.split_at(at);
            lists.push(before.iter().chain(rest.iter().skip(size)).copied().collect());
        }
        size /= 2;
    }
    lists
}

impl fmt::Display for ShrinkMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |kept: &[usize]| kept.iter().map(usize::to_string).collect::<Vec<_>>().join(".");
        write!(f, "{}-{}-{}", list(&self.steps), list(&self.faults), self.profile_bits)?;
        for (step, moves) in self.moves.iter().filter(|(step, _)| self.steps.contains(step)) {
            write!(f, "-{step}:{moves}")?;
        }
        let kept = self.at_once.iter().filter_map(|item| match item {
            Item::Step(step) => self.steps.contains(step).then(|| format!("s{step}")),
            Item::Fault(fault) => self.faults.contains(fault).then(|| format!("f{fault}")),
        });
        let at_once = kept.collect::<Vec<_>>().join(".");
        if !at_once.is_empty() {
            write!(f, "-t{at_once}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for ShrinkMask {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        let list = |part: Option<&str>| -> Result<Vec<usize>, Self::Err> {
            part.unwrap_or_default().split('.').filter(|number| !number.is_empty()).map(str::parse).collect()
        };
        let (steps, faults) = (list(parts.next())?, list(parts.next())?);
        let profile_bits = parts.next().unwrap_or_default().parse()?;
        let mut moves = BTreeMap::new();
        let mut at_once = BTreeSet::new();
        for part in parts {
            if let Some(items) = part.strip_prefix('t') {
                for item in items.split('.') {
                    let fault = item.strip_prefix('f');
                    let number = fault.or_else(|| item.strip_prefix('s')).unwrap_or_default().parse()?;
                    at_once.insert(if fault.is_some() { Item::Fault(number) } else { Item::Step(number) });
                }
                continue;
            }
            let (step, walked) = part.split_once(':').unwrap_or((part, ""));
            moves.insert(step.parse()?, walked.parse()?);
        }
        Ok(Self { steps, faults, profile_bits, moves, at_once })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_round_trips() {
        for mask in [ShrinkMask::full(3, 2), ShrinkMask::full(0, 0)].into_iter().flat_map(|mask| mask.shorter()) {
            assert_eq!(mask.to_string().parse(), Ok(mask));
        }
    }

    #[test]
    fn moves_round_trip() {
        for moves in [vec![], vec![true], vec![false, false, true], vec![true; 9]].map(Moves) {
            let mask = ShrinkMask::full(3, 0).with_moves(1, moves.clone());
            assert_eq!(moves.to_string().parse(), Ok(moves));
            assert_eq!(mask.to_string().parse(), Ok(mask));
        }
    }

    #[test]
    fn removed_gaps_round_trip() {
        let masks = ShrinkMask::full(2, 2).without_gaps();
        assert_eq!(masks.len(), 5, "all at once, and each alone");
        for mask in masks {
            assert_eq!(mask.to_string().parse(), Ok(mask));
        }
        let old: ShrinkMask = "0.2-1-27-0:6".parse().unwrap();
        assert!(!old.reload(true) && old.at_once.is_empty(), "paths of older versions keep their meaning");
    }

    #[test]
    fn every_pair_can_be_removed() {
        let mask = ShrinkMask::full(3, 2);
        let shorter = mask.shorter_by_two();
        assert_eq!(shorter.len(), 10);
        assert!(shorter.iter().all(|shorter| shorter.steps.len() + shorter.faults.len() == 3));
        for (at, one) in shorter.iter().enumerate() {
            assert!(shorter.iter().skip(at + 1).all(|other| one != other));
        }
    }

    #[test]
    fn every_item_can_be_removed() {
        let shorter = ShrinkMask::full(3, 2).shorter();
        for step in 0..3 {
            assert!(shorter.iter().any(|mask| mask.steps.len() == 2 && !mask.steps.contains(&step)));
        }
        assert!(ShrinkMask { profile_bits: 0, ..ShrinkMask::full(0, 0) }.shorter().is_empty());
    }
}
