//! Rejections: the replies to commands that a domain declines.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Codec, CodecError};

/// The final negative decision of a domain about a command: a stable code for programs and a text for people. Never
/// retried.
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
    /// The code of the rejection for a command that became a dead letter of its receiver and was discarded by an
    /// operator. The command was not handled.
    pub const DISCARDED: &'static str = "command.discarded";

    /// The code of the rejection by a saga that has ended, for a command that would do more than reply. Nothing was
    /// recorded. See `Effects::complete`.
    pub const SAGA_ENDED: &'static str = "saga.ended";

    #[doc(hidden)]
    pub fn discarded() -> Self {
        Self::new(Self::DISCARDED, "the command was a dead letter and was discarded")
    }

    #[doc(hidden)]
    pub fn saga_ended() -> Self {
        Self::new(Self::SAGA_ENDED, "the saga has ended")
    }

    /// Creates a rejection. Codes have the form `domain.reason` and must not change once callers depend on them.
    pub fn new(code: impl Into<Cow<'static, str>>, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code: code.into(), text: text.into() }
    }

    /// Returns the stable code, `domain.reason`.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Returns the text for people.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Returns the rejection in an encoded `Result<Reply, Rejection>` of any reply type, or `None` if it is a reply.
///
/// # Errors
/// The error of the codec if the bytes are neither.
pub fn rejection_in(codec: Codec, bytes: &[u8]) -> Result<Option<Rejection>, CodecError> {
    match codec {
        // bincode writes the variant's number first: 0 is `Ok`, 1 is `Err`. It cannot skip a value of unknown type.
        Codec::Bincode => match bytes.split_first() {
            Some((0, _)) => Ok(None),
            Some((1, rest)) => codec.decode(rest).map(Some),
            _ => Err(CodecError::Decode { reason: "neither a reply nor a rejection".to_owned() }),
        },
        Codec::Json => codec.decode::<Result<serde::de::IgnoredAny, Rejection>>(bytes).map(|reply| reply.err()),
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.code)
    }
}

impl std::error::Error for Rejection {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejection_is_found_for_any_reply_type() {
        for codec in [Codec::Bincode, Codec::Json] {
            let no = Rejection::new("a.b", "text");
            let mut bytes = Vec::new();
            codec.encode(&Err::<Vec<String>, _>(no.clone()), &mut bytes).unwrap();
            assert_eq!(rejection_in(codec, &bytes), Ok(Some(no)));
            bytes.clear();
            codec.encode(&Ok::<_, Rejection>((1u8, "x")), &mut bytes).unwrap();
            assert_eq!(rejection_in(codec, &bytes), Ok(None));
            assert!(rejection_in(codec, b"\x07").is_err());
        }
    }
}
