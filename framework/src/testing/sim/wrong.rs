//! A rule that does not hold: which one, and what is wrong. Shrinking compares the rule alone.

use super::SimError;

/// A violated rule.
#[derive(Clone, Debug)]
pub(super) struct Wrong {
    /// Names the rule. The same in every run of one flow, whatever the values in the reason are.
    pub(super) rule: String,
    /// What is wrong, for people.
    pub(super) reason: String,
    /// What is wrong with the description of the cluster, if that is wrong.
    pub(super) description: Option<Box<SimError>>,
}

impl Wrong {
    /// A rule of the user, by its kind and its number from 0.
    pub(super) fn of_user(kind: &str, number: usize, reason: &str) -> Self {
        Self { rule: format!("{kind} {}", number + 1), reason: format!("{kind}: {reason}"), description: None }
    }

    /// A panic of the story or of a rule.
    pub(super) fn panic(text: &str) -> Self {
        Self { rule: format!("panic {}", plain(text)), reason: format!("a panic: {text}"), description: None }
    }
}

/// A rule of the framework. Its name is what stands before the first colon: `I7`, `timers`. Reasons without one are compared
/// without the parts that differ between runs.
impl From<String> for Wrong {
    fn from(reason: String) -> Self {
        let rule = match reason.split_once(':') {
            Some((name, _)) if !name.contains(['`', ' ']) => name.to_owned(),
            _ => plain(&reason),
        };
        Self { rule, reason, description: None }
    }
}

impl From<SimError> for Wrong {
    fn from(error: SimError) -> Self {
        Self { rule: "description".to_owned(), reason: error.to_string(), description: Some(Box::new(error)) }
    }
}

/// The words before the first colon, without numbers and quoted parts.
fn plain(text: &str) -> String {
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
        let rule = |reason: &str| Wrong::from(reason.to_owned()).rule;
        assert_eq!(rule("I7: a `k` never took E at x/1 3"), "I7");
        assert_eq!(rule("I7: b never took F at y/2 9"), "I7");
        assert_eq!(rule("account `ada` has 3 left"), rule("account `bob` has 17 left"));
        assert_ne!(rule("I7: x"), rule("I8: x"));
        assert_ne!(Wrong::of_user("always", 0, "a").rule, Wrong::of_user("always", 1, "a").rule);
        assert_eq!(Wrong::of_user("at the end", 1, "{1, 2}").rule, Wrong::of_user("at the end", 1, "{}").rule);
    }
}
