//! Two runs of one case that differ: something in it does not follow from the seed.

use super::{RuleViolation, Run};

/// The rule that two runs of one case are equal.
const RULE: &str = "deterministic";

/// The first line in which two traces differ, in words.
fn first_difference(one: &str, other: &str) -> Option<String> {
    let (mut ones, mut others) = (one.lines(), other.lines());
    let mut number = 1;
    loop {
        match (ones.next(), others.next()) {
            (None, None) => return None,
            (Some(one), Some(other)) if one == other => number += 1,
            (one, other) => {
                let shown = |line: Option<&str>| line.map_or("nothing more", str::trim).to_owned();
                return Some(format!("line {number} was `{}`, then `{}`", shown(one), shown(other)));
            }
        }
    }
}

/// What a case has come to: what happened, and what does not hold.
pub(super) struct Lived<'a> {
    pub(super) trace: &'a str,
    pub(super) broken: Option<&'a RuleViolation>,
}

impl<'a> Lived<'a> {
    pub(super) fn of(lived: &'a Result<Run, RuleViolation>) -> Self {
        match lived {
            Ok(run) => Self { trace: &run.trace, broken: None },
            Err(broken) => Self { trace: &broken.trace, broken: Some(broken) },
        }
    }
}

/// Compares two runs of one case. The failure that says so, if they differ.
pub(super) fn compared(seed: u64, first: &Lived<'_>, second: &Lived<'_>) -> Option<RuleViolation> {
    let difference = first_difference(first.trace, second.trace)?;
    let outcome = |lived: &Lived<'_>| lived.broken.map_or("held", |broken| broken.reason.as_str()).to_owned();
    let (one, other) = (outcome(first), outcome(second));
    let outcomes = if one == other { one } else { format!("{one}; then: {other}") };
    let reason = format!(
        "{RULE}: the same case was run twice, and the runs differ: {difference}. A handler, a job or a rule uses what does not \
         follow from the seed: the wall clock, random numbers, the order of a HashMap, or state that is shared between runs. \
         Lines that differ after the `#` alone differ in payloads. The outcome: {outcomes}"
    );
    let deeds = first.broken.or(second.broken).map(|broken| broken.deeds.clone()).unwrap_or_default();
    Some(RuleViolation { seed, rule: RULE.to_owned(), reason, trace: first.trace.to_owned(), deeds, description: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_difference_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n").unwrap(), "line 2 was `b`, then `c`");
        assert_eq!(first_difference("a\nb\n", "a\n").unwrap(), "line 2 was `b`, then `nothing more`");
    }
}
