//! Rejections: the replies to commands that a domain declines.

use std::borrow::Cow;
use std::fmt;

use super::{Codec, CodecError};

/// The final negative decision of a domain about a command: a stable code for programs and a text for people. Never
/// retried.
///
/// ```
/// # use whizbang::Rejection;
/// let no = Rejection::new("bank.insufficient-funds", "the account holds 3 cents");
/// assert_eq!(no.code(), "bank.insufficient-funds");
/// ```
///
/// An enum that derives `Rejection` lists the rejections of a domain, and [`typed`](Self::typed) returns its variant to
/// the caller, with its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub(super) code: Cow<'static, str>,
    pub(super) text: Cow<'static, str>,
    /// The fields of a typed rejection, a JSON object.
    pub(super) data: Option<Box<str>>,
}

/// An enum of the rejections of one domain. Derived with `#[derive(Rejection)]`.
///
/// ```
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Bank;
///
/// #[derive(Rejection, Debug, PartialEq)]
/// #[rejection(domain = Bank)]
/// enum WithdrawError {
///     #[rejection(text = "the account holds {cents} cents")]
///     InsufficientFunds { cents: u64 },
/// }
///
/// // The owner rejects with the variant; the caller gets it back from the code and the fields.
/// let rejection = Rejection::from(WithdrawError::InsufficientFunds { cents: 3 });
/// assert_eq!(rejection.text(), "the account holds 3 cents");
/// assert_eq!(rejection.typed(), Some(WithdrawError::InsufficientFunds { cents: 3 }));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a rejection",
    label = "expected an enum of rejections",
    note = "derive it: `#[derive(Rejection)] #[rejection(domain = …)]`"
)]
pub trait TypedRejection: Into<Rejection> + Sized {
    /// Returns the variant with the rejection's code and its fields; `None` if the code is unknown, or if a field is
    /// missing or has another type.
    fn from_rejection(rejection: &Rejection) -> Option<Self>;
}

impl Rejection {
    /// The code of the rejection for a command that became a dead letter of its receiver and was discarded by an
    /// operator. The command was not handled.
    pub const DISCARDED: &'static str = "command.discarded";

    /// The code of the rejection by a saga that has ended, for a command that would do more than reply. Nothing was
    /// recorded. See `Effects::complete`.
    pub const SAGA_ENDED: &'static str = "saga.ended";

    /// The code of the rejection for a command that its receiver reached after its expiry. The command was not handled. See
    /// `SendCommand::expires_in`.
    pub const EXPIRED: &'static str = "command.expired";

    #[doc(hidden)]
    pub fn expired() -> Self {
        Self::new(Self::EXPIRED, "the command had expired before it was handled")
    }

    #[doc(hidden)]
    pub fn discarded() -> Self {
        Self::new(Self::DISCARDED, "the command was a dead letter and was discarded")
    }

    #[doc(hidden)]
    pub fn saga_ended() -> Self {
        Self::new(Self::SAGA_ENDED, "the saga has ended")
    }

    /// Creates a rejection. Codes have the form `domain.reason` and must not change once callers depend on them.
    ///
    /// Prefer an enum that derives `Rejection` where callers distinguish reasons or need values: it has a code for each
    /// variant, and carries fields.
    pub fn new(code: impl Into<Cow<'static, str>>, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code: code.into(), text: text.into(), data: None }
    }

    /// Returns the stable code, `domain.reason`.
    ///
    /// Compare this, not the text. [`typed`](Self::typed) returns the variant of an enum instead.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Returns the text for people.
    ///
    /// It may change with every release of the owner.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the fields of a typed rejection as a JSON object, if it has any.
    pub fn data(&self) -> Option<&str> {
        self.data.as_deref()
    }

    /// Returns the variant of `E` with this code, with its fields; `None` if `E` has none. A rejection of a newer
    /// owner may have an unknown code, or lack a field that is not an `Option`: its code and text are still readable.
    pub fn typed<E: TypedRejection>(&self) -> Option<E> {
        E::from_rejection(self)
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
