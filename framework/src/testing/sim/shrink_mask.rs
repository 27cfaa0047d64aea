//! What is left of a drawn case while it is made shorter.
//!
//! Steps, faults and kinds of bad weather are left out, and everything that is left stays as it was drawn, at its moment: so
//! what is tried next differs from what failed in one thing only. (Trees of values that shrink element by element would move
//! everything behind what they take away.) The values of a step shrink by themselves; how far is written down as moves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use proptest::strategy::ValueTree;

use super::FaultProfile;

/// What is kept of a drawn case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShrinkMask {
    pub(super) steps: Vec<usize>,
    pub(super) faults: Vec<usize>,
    /// One bit for each kind of bad weather that is kept.
    weather: u8,
    /// How far the values of a step are shrunk.
    moves: BTreeMap<usize, Moves>,
    /// What comes at once after what comes before it, without the time that was drawn.
    at_once: BTreeSet<Item>,
}

/// A step or a fault of a case, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Item {
    Step(usize),
    Fault(usize),
}

/// All kinds of bad weather, and that actors are reloaded.
const FULL: u8 = 0b11_1111;
/// The bit that says that actors are reloaded.
const RELOAD: u8 = 0b10_0000;

/// How a tree of values was walked: `true` is one step simpler, `false` one step back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Moves(Vec<bool>);

impl Moves {
    pub(super) fn push(&mut self, simpler: bool) {
        self.0.push(simpler);
    }

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

/// Four moves are one digit; a one stands before the first, so that leading moves back are not lost.
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
    pub(super) fn whole(steps: usize, faults: usize) -> Self {
        Self {
            steps: (0..steps).collect(),
            faults: (0..faults).collect(),
            weather: FULL,
            moves: BTreeMap::new(),
            at_once: BTreeSet::new(),
        }
    }

    /// Returns whether actors are reloaded, if that was drawn.
    pub(super) fn reload(&self, drawn: bool) -> bool {
        drawn && self.weather & RELOAD != 0
    }

    /// Returns whether the time before a step or fault is left out.
    pub(super) fn is_at_once(&self, item: Item) -> bool {
        self.at_once.contains(&item)
    }

    /// The same case in less time: without all gaps, or without one more.
    pub(super) fn sooner(&self) -> Vec<Self> {
        let steps = self.steps.iter().map(|step| Item::Step(*step));
        let items: BTreeSet<_> = steps.chain(self.faults.iter().map(|fault| Item::Fault(*fault))).collect();
        let left = items.iter().filter(|item| !self.at_once.contains(item)).copied();
        let one = left.map(|item| {
            let mut sooner = self.clone();
            sooner.at_once.insert(item);
            sooner
        });
        let mut sooner: Vec<_> = one.collect();
        if sooner.len() > 1 {
            sooner.insert(0, Self { at_once: items, ..self.clone() });
        }
        sooner
    }

    /// How far the values of a step are shrunk.
    pub(super) fn moves(&self, step: usize) -> Moves {
        self.moves.get(&step).cloned().unwrap_or_default()
    }

    /// The same with the values of a step shrunk so far.
    pub(super) fn moved(&self, step: usize, moves: Moves) -> Self {
        let mut moved = self.clone();
        moved.moves.insert(step, moves);
        moved
    }

    /// The same without the gaps that another leaves out as well.
    pub(super) fn with_gaps_of(&self, other: &Self) -> Self {
        Self { at_once: self.at_once.union(&other.at_once).copied().collect(), ..self.clone() }
    }

    pub(super) fn weather(&self, drawn: FaultProfile) -> FaultProfile {
        let kept = |bit: u8, value: u16| if self.weather & bit == 0 { 0 } else { value };
        FaultProfile {
            lose: kept(1, drawn.lose),
            repeat: kept(2, drawn.repeat),
            delay: kept(4, drawn.delay),
            disk: kept(8, drawn.disk),
            load: kept(16, drawn.load),
        }
    }

    /// Shorter cases, the shortest first.
    pub(super) fn shorter(&self) -> Vec<Self> {
        let mut shorter = Vec::new();
        shorter.extend(without(&self.faults).into_iter().map(|faults| Self { faults, ..self.clone() }));
        shorter.extend(without(&self.steps).into_iter().map(|steps| Self { steps, ..self.clone() }));
        let bits = [FULL & !RELOAD, 1, 2, 4, 8, 16, RELOAD].into_iter().filter(|bit| self.weather & bit != 0);
        shorter.extend(bits.map(|bit| Self { weather: self.weather & !bit, ..self.clone() }));
        shorter
    }

    /// Cases without two things each. What is left out changes what chance brings to all that is left, so two things may go
    /// together of which neither can go alone.
    pub(super) fn shorter_by_two(&self) -> Vec<Self> {
        let count = self.faults.len() + self.steps.len();
        let left = |kept: &[usize], from: usize, gone: [usize; 2]| {
            let kept = kept.iter().enumerate().filter(|(at, _)| !gone.contains(&(from + at)));
            kept.map(|(_, number)| *number).collect()
        };
        let pairs = (0..count).flat_map(|one| (one + 1..count).map(move |other| [one, other]));
        pairs
            .map(|gone| Self {
                faults: left(&self.faults, 0, gone),
                steps: left(&self.steps, self.faults.len(), gone),
                ..self.clone()
            })
            .collect()
    }
}

/// The list without one of its halves, its quarters … its single elements.
fn without(kept: &[usize]) -> Vec<Vec<usize>> {
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
        write!(f, "{}-{}-{}", list(&self.steps), list(&self.faults), self.weather)?;
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
        let weather = parts.next().unwrap_or_default().parse()?;
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
        Ok(Self { steps, faults, weather, moves, at_once })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_read_as_it_is_written() {
        for cut in [ShrinkMask::whole(3, 2), ShrinkMask::whole(0, 0)].into_iter().flat_map(|cut| cut.shorter()) {
            assert_eq!(cut.to_string().parse(), Ok(cut));
        }
    }

    #[test]
    fn moves_are_read_as_they_are_written() {
        for moves in [vec![], vec![true], vec![false, false, true], vec![true; 9]].map(Moves) {
            let cut = ShrinkMask::whole(3, 0).moved(1, moves.clone());
            assert_eq!(moves.to_string().parse(), Ok(moves));
            assert_eq!(cut.to_string().parse(), Ok(cut));
        }
    }

    #[test]
    fn gaps_left_out_are_read_as_they_are_written() {
        let cuts = ShrinkMask::whole(2, 2).sooner();
        assert_eq!(cuts.len(), 5, "all at once, and each alone");
        for cut in cuts {
            assert_eq!(cut.to_string().parse(), Ok(cut));
        }
        let old: ShrinkMask = "0.2-1-27-0:6".parse().unwrap();
        assert!(!old.reload(true) && old.at_once.is_empty(), "lines of older versions stay what they were");
    }

    #[test]
    fn every_two_things_can_be_left_out_together() {
        let cut = ShrinkMask::whole(3, 2);
        let shorter = cut.shorter_by_two();
        assert_eq!(shorter.len(), 10);
        assert!(shorter.iter().all(|shorter| shorter.steps.len() + shorter.faults.len() == 3));
        for (at, one) in shorter.iter().enumerate() {
            assert!(shorter.iter().skip(at + 1).all(|other| one != other));
        }
    }

    #[test]
    fn every_single_thing_can_be_left_out() {
        let shorter = ShrinkMask::whole(3, 2).shorter();
        for step in 0..3 {
            assert!(shorter.iter().any(|cut| cut.steps.len() == 2 && !cut.steps.contains(&step)));
        }
        assert!(ShrinkMask { weather: 0, ..ShrinkMask::whole(0, 0) }.shorter().is_empty());
    }
}
