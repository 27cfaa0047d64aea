//! Comparison of two runs of one case. A difference means that something does not follow from the seed.
//!
//! Called by [`Flow`](super::Flow) for failing cases and for some of the others.

use super::{PassedRun, RuleViolation};

/// The name of the rule.
const RULE: &str = "deterministic";

/// Describes the first line in which two traces differ.
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

/// The outcome of a run: its trace and its violation, if any.
pub(super) struct CaseOutcome<'a> {
    /// The trace of the run, which must be the same byte for byte.
    pub(super) trace: &'a str,
    /// The violated rule, if any.
    pub(super) violation: Option<&'a RuleViolation>,
}

impl<'a> CaseOutcome<'a> {
    /// Returns what is compared of a run.
    pub(super) fn of(outcome: &'a Result<PassedRun, RuleViolation>) -> Self {
        match outcome {
            Ok(run) => Self { trace: &run.trace, violation: None },
            Err(violation) => Self { trace: &violation.trace, violation: Some(violation) },
        }
    }
}

/// Compares two runs of one case. Returns a violation if they differ.
pub(super) fn compare(seed: u64, first: &CaseOutcome<'_>, second: &CaseOutcome<'_>) -> Option<RuleViolation> {
    let difference = first_difference(first.trace, second.trace)?;
    let outcome =
        |outcome: &CaseOutcome<'_>| outcome.violation.map_or("held", |violation| violation.reason.as_str()).to_owned();
    let (one, other) = (outcome(first), outcome(second));
    let outcomes = if one == other { one } else { format!("{one}; then: {other}") };
    let reason = format!(
        "{RULE}: two runs of the same case differ: {difference}. A handler, a job or a rule depends on something that does not \
         follow from the seed: the wall clock, random numbers, the order of a HashMap, or state shared between runs. \
         Lines that differ only after the `#` differ in payloads. Outcome: {outcomes}"
    );
    let actor_steps =
        first.violation.or(second.violation).map(|violation| violation.actor_steps.clone()).unwrap_or_default();
    Some(RuleViolation {
        seed,
        rule: RULE.to_owned(),
        reason,
        trace: first.trace.to_owned(),
        actor_steps,
        setup_error: None,
    })
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
