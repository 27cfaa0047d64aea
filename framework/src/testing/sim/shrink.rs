//! Makes a case that does not hold as short as it can be.
//!
//! First whatever is not needed is left out, then the values of what is left become simpler, then again what is not needed any
//! more is left out, and last the time between what is left. A shorter case counts if the same rule does not hold, whatever the
//! reason says.

use std::fmt;

use super::RuleViolation;
use super::plan::{Frame, Plan, Source};
use super::shrink_mask::{Moves, ShrinkMask};

/// How many runs a failing case may be made shorter with.
const RUNS: usize = 600;
/// How many of them may be spent on the values of one step.
const RUNS_FOR_VALUES: usize = 60;

/// A case that does not hold.
#[derive(Clone, Debug)]
pub struct Found<T> {
    /// The seed it was drawn from.
    pub seed: u64,
    /// What is kept of it; part of the line that plays it again.
    pub path: String,
    /// How many runs that took.
    pub runs: usize,
    /// What is left.
    pub plan: Plan<T>,
    /// What does not hold.
    pub broken: RuleViolation,
}

/// One case that is made shorter.
pub(super) struct Shrinking<'a, T, R> {
    source: &'a Source<T>,
    frame: &'a Frame,
    /// Plays a plan.
    run: R,
    cut: ShrinkMask,
    rule: String,
    found: Found<T>,
}

impl<'a, T, R> Shrinking<'a, T, R>
where
    T: Clone + fmt::Debug + 'static,
    R: Fn(&Plan<T>) -> Option<RuleViolation>,
{
    /// Begins with what failed.
    pub(super) fn new(source: &'a Source<T>, frame: &'a Frame, found: Found<T>, cut: ShrinkMask, run: R) -> Self {
        Self { source, frame, run, cut, rule: found.broken.rule.clone(), found }
    }

    /// The shortest case found.
    pub(super) fn shortest(mut self) -> Found<T> {
        self.leave_out();
        let before = self.cut.clone();
        self.simplify();
        if self.cut != before {
            self.leave_out();
        }
        self.hurry();
        self.found
    }

    /// Returns whether the same rule fails; if so the case is the shortest so far.
    fn fails(&mut self, cut: ShrinkMask) -> bool {
        self.found.runs += 1;
        let plan = self.source.plan(self.found.seed, self.frame, &cut);
        match (self.run)(&plan) {
            Some(broken) if self.rule == broken.rule => {
                (self.found.path, self.found.plan, self.found.broken) = (cut.to_string(), plan, broken);
                self.cut = cut;
                true
            }
            _ => false,
        }
    }

    fn leave_out(&mut self) {
        'shorter: loop {
            for shorter in self.cut.shorter().into_iter().chain(self.cut.shorter_by_two()) {
                if self.found.runs >= RUNS {
                    return;
                }
                if self.fails(shorter) {
                    continue 'shorter;
                }
            }
            return;
        }
    }

    /// Leaves out the time before steps and faults.
    fn hurry(&mut self) {
        for sooner in self.cut.sooner() {
            if self.found.runs >= RUNS {
                return;
            }
            // Each in turn, with what was left out before.
            let sooner = self.cut.with_gaps_of(&sooner);
            if sooner != self.cut {
                self.fails(sooner);
            }
        }
    }

    /// Walks the values of each step as proptest does: simpler as long as it fails, back as long as it does not.
    fn simplify(&mut self) {
        for step in self.cut.steps.clone() {
            let end = (self.found.runs + RUNS_FOR_VALUES).min(RUNS);
            let mut moves: Moves = self.cut.moves(step);
            let mut tree = self.source.tree(self.found.seed, step);
            moves.walk(tree.as_mut());
            let mut simpler = true;
            while self.found.runs < end && if simpler { tree.simplify() } else { tree.complicate() } {
                moves.push(simpler);
                simpler = self.fails(self.cut.moved(step, moves.clone()));
            }
        }
    }
}
