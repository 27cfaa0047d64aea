//! Violated rules, inside a run and as the result of one. Shrinking compares the name of the rule only.

use super::SimError;

/// A run that violated a rule.
#[derive(Clone, Debug, thiserror::Error)]
#[error("seed {seed}: {reason}")]
#[non_exhaustive]
pub struct RuleViolation {
    /// The seed.
    pub seed: u64,
    /// The name of the violated rule. `at the end 2` is the second rule added with [`Sim::at_end`](super::Sim::at_end); rules of
    /// the framework have names such as `I7`, `timers` or `state`.
    pub rule: String,
    /// The details of the violation.
    pub reason: String,
    /// The trace, one line per step.
    pub trace: String,
    /// The steps of each actor and each worker, by actor and key.
    pub actor_steps: String,
    /// The error in the description of the cluster, if there is one. Nothing else was checked then.
    pub setup_error: Option<Box<SimError>>,
}

impl RuleViolation {
    /// Completes a violation with the seed, the trace and the steps of its run.
    pub(super) fn new(seed: u64, violation: Violation, trace: String, actor_steps: String) -> Self {
        let Violation { rule, reason, setup_error } = violation;
        Self { seed, rule, reason, trace, actor_steps, setup_error }
    }
}

/// A violated rule.
#[derive(Clone, Debug)]
pub(super) struct Violation {
    /// The name of the rule. The same in every run of one flow, whatever values the reason contains.
    pub(super) rule: String,
    /// The details for the reader.
    pub(super) reason: String,
    /// The error in the description of the cluster, if there is one.
    pub(super) setup_error: Option<Box<SimError>>,
}

impl Violation {
    /// Creates a violation of a user's rule, from its kind and its index.
    pub(super) fn of_user(kind: &str, number: usize, reason: &str) -> Self {
        Self { rule: format!("{kind} {}", number + 1), reason: format!("{kind}: {reason}"), setup_error: None }
    }

    /// Creates a violation for a panic of the scenario or of a rule.
    pub(super) fn panic(text: &str) -> Self {
        Self { rule: format!("panic {}", rule_text(text)), reason: format!("a panic: {text}"), setup_error: None }
    }
}

/// Converts a reason of the framework. The rule is the text before the first colon, such as `I7` or `timers`. Without one the rule
/// is the reason without the parts that differ between runs.
impl From<String> for Violation {
    fn from(reason: String) -> Self {
        let rule = match reason.split_once(':') {
            Some((name, _)) if !name.contains(['`', ' ']) => name.to_owned(),
            _ => rule_text(&reason),
        };
        Self { rule, reason, setup_error: None }
    }
}

impl From<SimError> for Violation {
    fn from(error: SimError) -> Self {
        Self { rule: "description".to_owned(), reason: error.to_string(), setup_error: Some(Box::new(error)) }
    }
}

/// Returns the words before the first colon, without numbers and quoted parts.
fn rule_text(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    let unquoted: String = first.split('`').step_by(2).collect();
    let head = unquoted.split(':').next().unwrap_or_default();
    head.chars().filter(|char| !char.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_does_not_depend_on_values() {
        let rule = |reason: &str| Violation::from(reason.to_owned()).rule;
        assert_eq!(rule("I7: a `k` never took E at x/1 3"), "I7");
        assert_eq!(rule("I7: b never took F at y/2 9"), "I7");
        assert_eq!(rule("account `ada` has 3 left"), rule("account `bob` has 17 left"));
        assert_ne!(rule("I7: x"), rule("I8: x"));
        assert_ne!(Violation::of_user("always", 0, "a").rule, Violation::of_user("always", 1, "a").rule);
        assert_eq!(Violation::of_user("at the end", 1, "{1, 2}").rule, Violation::of_user("at the end", 1, "{}").rule);
    }
}
