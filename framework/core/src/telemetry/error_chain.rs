//! Errors with their causes, as logs and programs print them.

use std::error::Error;
use std::fmt;

/// Displays an error and all its causes on one line, each once: `turn refused by the store: the disk is full`.
///
/// The `Display` of an error of this framework is its own line; its causes are its [sources](Error::source).
///
/// ```
/// use whizbang::{SendError, error_chain};
/// use whizbang::store::StoreError;
///
/// let error = SendError::Refused(StoreError::io("writing the log", std::io::Error::other("no medium")));
/// assert_eq!(error.to_string(), "turn refused by the store");
/// assert_eq!(error_chain(&error).to_string(), "turn refused by the store: writing the log failed: no medium");
/// ```
pub fn error_chain<E: Error + ?Sized>(error: &E) -> ErrorChain<'_, E> {
    ErrorChain(error)
}

/// An error that is displayed with its causes. Created by [`error_chain`].
#[derive(Debug)]
pub struct ErrorChain<'a, E: ?Sized>(&'a E);

impl<E: Error + ?Sized> fmt::Display for ErrorChain<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Errors of other crates may display their cause themselves.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Cause {
        text: &'static str,
        source: Option<Box<Cause>>,
    }

    fn chain(texts: &[&'static str]) -> String {
        let mut error = None;
        for &text in texts.iter().rev() {
            error = Some(Box::new(Cause { text, source: error }));
        }
        error_chain(&error.unwrap()).to_string()
    }

    #[test]
    fn each_cause_is_displayed_once() {
        assert_eq!(chain(&["a"]), "a");
        assert_eq!(chain(&["a", "b", "c"]), "a: b: c");
        assert_eq!(chain(&["a: b", "b", "c"]), "a: b: c");
        assert_eq!(chain(&["a: b: c", "b: c", "c"]), "a: b: c");
    }
}
