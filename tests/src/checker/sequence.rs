//! Sequences of numbers that must be 1, 2, 3 …, and their possible defects.

use std::collections::{BTreeMap, BTreeSet};

use super::{Found, ViolationKind};

/// Compares the observed numbers, in their order, with the expected ones.
///
/// With `whole`, all expected numbers must be present; otherwise the observed ones may end early, but must not skip one.
pub(super) fn compare(what: &str, expected: &[u64], seen: &[u64], whole: bool, found: &mut Found) {
    let mut counts = BTreeMap::<u64, usize>::new();
    for number in seen {
        *counts.entry(*number).or_default() += 1;
    }
    let known: BTreeSet<u64> = expected.iter().copied().collect();
    let last_seen = counts.keys().next_back().copied();
    let missing = expected
        .iter()
        .filter(|number| !counts.contains_key(number) && (whole || last_seen.is_some_and(|last| last > **number)));
    for_each_run(missing.copied(), |run| found.add(ViolationKind::Lost, format!("{what}: {run} missing")));
    for (number, count) in counts.iter().filter(|(_, count)| **count > 1) {
        found.add(ViolationKind::Duplicated, format!("{what}: {number} occurs {count} times"));
    }
    for_each_run(counts.keys().copied().filter(|number| !known.contains(number)), |run| {
        found.add(ViolationKind::Phantom, format!("{what}: {run} should not exist"));
    });
    // The order is judged by first occurrences; a repetition is reported above.
    let mut once = BTreeSet::new();
    let firsts: Vec<u64> = seen.iter().copied().filter(|number| once.insert(*number)).collect();
    for pair in firsts.windows(2) {
        if pair[0] > pair[1] {
            found.add(ViolationKind::Misordered, format!("{what}: {} comes after {}", pair[1], pair[0]));
        }
    }
}

/// Compares with 1, 2, 3 … up to `last`.
pub(super) fn contiguous(what: &str, last: u64, seen: &[u64], found: &mut Found) {
    compare(what, &(1..=last).collect::<Vec<_>>(), seen, true, found);
}

/// Calls `each` with every range of consecutive numbers, so that a thousand lost numbers are one line.
fn for_each_run(numbers: impl Iterator<Item = u64>, mut each: impl FnMut(String)) {
    let mut run: Option<(u64, u64)> = None;
    for number in numbers {
        run = match run {
            Some((first, last)) if number == last + 1 => Some((first, number)),
            before => {
                if let Some(run) = before {
                    each(written(run));
                }
                Some((number, number))
            }
        };
    }
    if let Some(run) = run {
        each(written(run));
    }
}

fn written((first, last): (u64, u64)) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(expected: &[u64], seen: &[u64], whole: bool) -> Vec<(ViolationKind, String)> {
        let mut found = Found::default();
        compare("row", expected, seen, whole, &mut found);
        found.0.into_iter().map(|violation| (violation.kind, violation.what)).collect()
    }

    #[test]
    fn each_defect_is_distinguished() {
        let all = [1, 2, 3, 4, 5];
        let one = |kind, what: &str| vec![(kind, format!("row: {what}"))];
        assert_eq!(found(&all, &all, true), []);
        assert_eq!(found(&all, &[1, 2, 5], true), one(ViolationKind::Lost, "3 to 4 missing"));
        assert_eq!(found(&all, &[1, 2, 2, 3, 4, 5], true), one(ViolationKind::Duplicated, "2 occurs 2 times"));
        assert_eq!(found(&all, &[1, 3, 2, 4, 5], true), one(ViolationKind::Misordered, "2 comes after 3"));
        assert_eq!(found(&all, &[1, 2, 3, 4, 5, 9], true), one(ViolationKind::Phantom, "9 should not exist"));
        assert_eq!(found(&all, &[1, 2, 3], true), one(ViolationKind::Lost, "4 to 5 missing"));
        assert_eq!(found(&all, &[1, 2, 3], false), []);
        assert_eq!(found(&all, &[1, 3], false), one(ViolationKind::Lost, "2 missing"));
        assert_eq!(found(&[2, 4], &[2, 4, 4, 2], true).len(), 2);
        assert_eq!(found(&[], &[], true), []);
    }
}
