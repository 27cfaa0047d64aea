//! Names of messages in reports: `domain.Name`, or `Name` inside its own domain.
//!
//! Called by the log of a run and by reports of failures.

/// The full name of a message, such as `payments.Charge`.
pub(super) type FullName = String;

/// Returns a name without its domain if that is `home`.
pub(super) fn short_name<'a>(full: &'a str, home: &str) -> &'a str {
    full.strip_prefix(home).and_then(|rest| rest.strip_prefix('.')).unwrap_or(full)
}
