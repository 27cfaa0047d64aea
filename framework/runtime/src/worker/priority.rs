//! Priorities of jobs, and the choice of the next one.
//!
//! Set by the [options](super::WorkerOptions) of a worker. Used by the [admission queue](super::admission_queue). The algorithm
//! is that of the deadline I/O scheduler of Linux for reads and writes (`writes_starved` in
//! Documentation/block/deadline-iosched): the higher priority goes first, but only so many times in a row while a lower one waits.

/// Priority of a job among those of its worker, see [`WorkerOptions::priority`](crate::WorkerOptions::priority).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// Begins when no other waits. While it waits, at most 16 jobs of a higher priority begin before the first one.
    Low,
    /// The default. While it waits, at most 4 urgent jobs, and one of low priority, begin before the first one.
    #[default]
    Normal,
    /// Begins before all others that wait, but for the few that have waited for their number of others.
    Urgent,
}

/// All priorities, the lowest first.
pub(super) const PRIORITIES: [Priority; 3] = [Priority::Low, Priority::Normal, Priority::Urgent];

/// Number of others that may begin while a priority waits, after which it is next; `None` for the highest.
const PATIENCE: [Option<u32>; 3] = [Some(16), Some(4), None];

impl Priority {
    pub(super) fn index(self) -> usize {
        match self {
            Self::Low => 0,
            Self::Normal => 1,
            Self::Urgent => 2,
        }
    }
}

/// Number of others that have begun since a job of each priority began or started to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Passed([u32; 3]);

impl Passed {
    /// Returns the priority that begins next, if one of them waits, and counts it.
    pub(super) fn next(&mut self, waits: [bool; 3]) -> Option<Priority> {
        let Self(passed) = self;
        let waiting = || PRIORITIES.into_iter().zip(waits).filter(|(_, waits)| *waits).map(|(priority, _)| priority);
        let is_due = |priority: &Priority| {
            let (passed, patience) = (passed.get(priority.index()), PATIENCE.get(priority.index()));
            patience.copied().flatten().zip(passed).is_some_and(|(patience, passed)| *passed >= patience)
        };
        let next = waiting().find(is_due).or_else(|| waiting().next_back())?;
        for ((priority, waits), passed) in PRIORITIES.into_iter().zip(waits).zip(passed) {
            *passed = if waits && priority != next { passed.saturating_add(1) } else { 0 };
        }
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgent_job_overtakes_and_a_low_one_is_next_after_16() {
        let mut passed = Passed::default();
        let begun: Vec<_> = (0..34).filter_map(|_| passed.next([true, false, true])).collect();
        let low: Vec<_> = (0..34).filter(|at| begun[*at] == Priority::Low).collect();
        assert_eq!(low, [16, 33]);
        let mut passed = Passed::default();
        let begun: Vec<_> = (0..10).filter_map(|_| passed.next([false, true, true])).collect();
        let normal: Vec<_> = (0..10).filter(|at| begun[*at] == Priority::Normal).collect();
        assert_eq!(normal, [4, 9]);
    }

    /// Every reachable state, whatever arrives: the bounds of the documentation hold, and they are reached.
    #[test]
    fn bounds_hold_in_every_state() {
        let (mut known, mut open) = (std::collections::HashSet::new(), vec![[0; 3]]);
        let mut most = [0; 3];
        while let Some(state) = open.pop() {
            for bits in 0..8 {
                let waits = [bits & 1 > 0, bits & 2 > 0, bits & 4 > 0];
                let mut passed = Passed(state);
                let Some(next) = passed.next(waits) else { continue };
                assert!(waits[next.index()]);
                let highest = PRIORITIES.into_iter().rev().find(|priority| waits[priority.index()]);
                let is_due = PATIENCE[next.index()].is_some_and(|patience| state[next.index()] >= patience);
                assert!(Some(next) == highest || is_due, "{state:?} {waits:?}: {next:?}");
                most.iter_mut().zip(passed.0).take(2).for_each(|(most, passed)| *most = passed.max(*most));
                let state = [passed.0[0], passed.0[1], 0];
                if known.insert(state) {
                    open.push(state);
                }
            }
        }
        assert_eq!(most, [16, 5, 0]);
    }
}
