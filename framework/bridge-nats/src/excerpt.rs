//! Texts of other parties, as logs, headers and health show them.
//!
//! Used wherever a subject or an error of the server is shown.

/// Returns the text of another party, shortened and escaped.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(300).flat_map(char::escape_debug).collect()
}
