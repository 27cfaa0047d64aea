//! Validation of messages by the rules on their fields.

use std::marker::PhantomData;

use super::{Call, Layer, Refusal};
use whizbang_core::message::{Message, Rejection};
use whizbang_core::telemetry::shortened;

/// A layer that rejects messages of one type that break the rules on their fields, as `garde` checks them.
///
/// Place it with [`NodeBuilder::layer_of`](crate::NodeBuilder::layer_of), or around a client so that an invalid message is not even
/// sent. The code of the rejection is [`INVALID`](Self::INVALID); its text names each field with its error. Around an event it makes
/// an invalid event a dead letter.
///
/// ```
/// # use bank_fixture as bank;
/// use whizbang::layer::Validate;
/// use whizbang::prelude::*;
///
/// #[derive(Command, garde::Validate, Serialize, Deserialize)]
/// #[command(domain = bank::Bank)]
/// struct Rename {
///     #[key]
///     #[garde(skip)]
///     account: String,
///     #[garde(length(min = 1, max = 100))]
///     owner: String,
/// }
///
/// # whizbang::derive::block_on(async {
/// # let node = bank_fixture::bank().await;
/// let client = node.client().layer(Validate::<Rename>::new());
/// let invalid = client.send(Rename { account: "ada".into(), owner: String::new() }).await.unwrap_err();
/// assert_eq!(invalid.rejection().unwrap().code(), Validate::<Rename>::INVALID);
/// assert!(invalid.rejection().unwrap().text().starts_with("owner: "));
/// # Ok::<_, whizbang::Error>(()) }).unwrap();
/// ```
pub struct Validate<M>(PhantomData<fn() -> M>);

impl<M: Message + garde::Validate<Context: Default>> Validate<M> {
    /// The code of a rejection. The message was not handled.
    pub const INVALID: &'static str = "message.invalid";

    /// Creates the layer.
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl<M: Message + garde::Validate<Context: Default>> Default for Validate<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Message + garde::Validate<Context: Default>> Layer for Validate<M> {
    fn before(&self, call: &Call<'_>) -> Result<(), Refusal> {
        // A message that cannot be decoded is refused by its handler.
        let Ok(Some(message)) = call.message::<M>() else { return Ok(()) };
        let Err(report) = message.validate() else { return Ok(()) };
        let errors: Vec<_> = report.iter().map(|(path, error)| format!("{path}: {error}")).collect();
        Err(Rejection::new(Self::INVALID, shortened(errors.join("; "))).into())
    }
}

impl<M> std::fmt::Debug for Validate<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validate").finish_non_exhaustive()
    }
}
