//! Shrinking of a failing case.
//!
//! Called by [`Flow`](super::Flow). First removes steps, faults and parts of the fault profile, then simplifies values, then
//! removes items again, and finally removes gaps in time. A smaller case counts if it violates the same rule, whatever the reason
//! says.

use std::fmt;

use super::RuleViolation;
use super::plan::{CaseGenerator, Frame, Plan};
use super::shrink_mask::{Moves, ShrinkMask};

/// Maximum number of runs for shrinking one case.
const MAX_RUNS: usize = 600;
/// Maximum number of runs for the values of one step.
const MAX_RUNS_FOR_VALUES: usize = 60;

/// A failing case.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FailingCase<T> {
    /// The seed of the case.
    pub seed: u64,
    /// The part of the case that is kept, as printed in the replay command.
    pub path: String,
    /// The number of runs used for shrinking.
    pub runs: usize,
    /// The remaining steps and faults.
    pub plan: Plan<T>,
    /// The violation.
    pub violation: RuleViolation,
}

/// The state of shrinking one case.
pub(super) struct Shrinker<'a, T, R> {
    /// Draws the same case again under other masks.
    generator: &'a CaseGenerator<T>,
    /// Everything drawn except the steps.
    frame: &'a Frame,
    /// Runs a plan.
    run: R,
    /// The mask of the smallest case so far.
    mask: ShrinkMask,
    /// The rule that the case violates. Smaller cases must violate the same one.
    rule: String,
    /// The smallest case so far.
    found: FailingCase<T>,
}

impl<'a, T, R> Shrinker<'a, T, R>
where
    T: Clone + fmt::Debug + 'static,
    R: Fn(&Plan<T>) -> Option<RuleViolation>,
{
    /// Starts with a failing case.
    pub(super) fn new(
        generator: &'a CaseGenerator<T>,
        frame: &'a Frame,
        found: FailingCase<T>,
        mask: ShrinkMask,
        run: R,
    ) -> Self {
        Self { generator, frame, run, mask, rule: found.violation.rule.clone(), found }
    }

    /// Returns the smallest failing case found.
    pub(super) fn shrink(mut self) -> FailingCase<T> {
        self.remove_items();
        let before = self.mask.clone();
        self.simplify();
        if self.mask != before {
            self.remove_items();
        }
        self.remove_gaps();
        self.found
    }

    /// Returns whether a smaller case violates the same rule, and keeps it in that case.
    fn still_fails(&mut self, mask: ShrinkMask) -> bool {
        self.found.runs += 1;
        let plan = self.generator.plan(self.found.seed, self.frame, &mask);
        match (self.run)(&plan) {
            Some(violation) if self.rule == violation.rule => {
                (self.found.path, self.found.plan, self.found.violation) = (mask.to_string(), plan, violation);
                self.mask = mask;
                true
            }
            _ => false,
        }
    }

    fn remove_items(&mut self) {
        'shorter: loop {
            for shorter in self.mask.shorter().into_iter().chain(self.mask.shorter_by_two()) {
                if self.found.runs >= MAX_RUNS {
                    return;
                }
                if self.still_fails(shorter) {
                    continue 'shorter;
                }
            }
            return;
        }
    }

    /// Removes the time before steps and faults.
    fn remove_gaps(&mut self) {
        for without_gap in self.mask.without_gaps() {
            if self.found.runs >= MAX_RUNS {
                return;
            }
            // Removed gaps accumulate.
            let without_gap = self.mask.with_gaps_of(&without_gap);
            if without_gap != self.mask {
                self.still_fails(without_gap);
            }
        }
    }

    /// Walks the value tree of each step as proptest does: simplifies while the case fails, backtracks otherwise.
    fn simplify(&mut self) {
        for step in self.mask.steps.clone() {
            let end = (self.found.runs + MAX_RUNS_FOR_VALUES).min(MAX_RUNS);
            let mut moves: Moves = self.mask.moves(step);
            let mut tree = self.generator.tree(self.found.seed, step);
            moves.walk(tree.as_mut());
            let mut simpler = true;
            while self.found.runs < end && if simpler { tree.simplify() } else { tree.complicate() } {
                moves.push(simpler);
                simpler = self.still_fails(self.mask.with_moves(step, moves.clone()));
            }
        }
    }
}
