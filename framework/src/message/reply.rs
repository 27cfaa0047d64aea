//! What the sender of a command gets back when the domain says no.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The domain's final "no" to a command: a stable code for programs and a text for people. Never retried.
///
/// ```
/// # use whizbang::Rejection;
/// let no = Rejection::new("bank.insufficient-funds", "the account holds 3 cents");
/// assert_eq!(no.code(), "bank.insufficient-funds");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    code: Cow<'static, str>,
    text: Cow<'static, str>,
}

impl Rejection {
    /// A rejection. Codes are written `domain.reason` and never change once callers know them.
    pub fn new(code: impl Into<Cow<'static, str>>, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code: code.into(), text: text.into() }
    }

    /// The stable code, `domain.reason`.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The text for people.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.code)
    }
}

impl std::error::Error for Rejection {}
