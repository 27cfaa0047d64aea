//! Authorization of commands and queries by a header.

use super::{Call, Layer, Refusal};
use whizbang_core::message::{Kind, Rejection};

type Allows = dyn Fn(&str, &Call<'_>) -> bool + Send + Sync;

/// A layer that lets commands and queries pass by the value of a header. Events pass always: they report what has happened.
///
/// Layers of a node see no queries, so around a node it guards commands only. Check queries where they enter the system.
///
/// A message without the header, or with a value that is not allowed, is rejected with the code [`DENIED`](Self::DENIED).
///
/// A header proves nothing by itself: any service that may send a command can set any header. Where callers are not trusted, set it
/// where messages enter the system, after a login, and let the broker's permissions keep others out.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Account, Deposit};
/// use whizbang::layer::Authorize;
/// use whizbang::prelude::*;
///
/// # whizbang::derive::block_on(async {
/// let clerks = Authorize::by_header("role", |role, _call| matches!(role, "clerk" | "manager"));
/// let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().layer_of::<Deposit>(clerks).start().await?;
/// let deposit = || Deposit { account: "ada".into(), cents: 500 };
/// let denied = node.client().send(deposit()).await.unwrap_err();
/// assert_eq!(denied.rejection().unwrap().code(), Authorize::DENIED);
/// node.client().send(deposit()).header("role", "clerk").await?;
/// node.stop().await
/// # }).unwrap();
/// ```
pub struct Authorize {
    header: String,
    allows: Box<Allows>,
}

impl Authorize {
    /// The code of a rejection. The message was not handled.
    pub const DENIED: &'static str = "authorization.denied";

    /// Lets a command or query pass if `allows` returns true for the value of a header.
    pub fn by_header(
        header: impl Into<String>,
        allows: impl Fn(&str, &Call<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { header: header.into(), allows: Box::new(allows) }
    }
}

impl Layer for Authorize {
    fn before(&self, call: &Call<'_>) -> Result<(), Refusal> {
        let is_request = matches!(call.kind(), Kind::Command | Kind::Query);
        if !is_request || call.header(&self.header).is_some_and(|value| (self.allows)(value, call)) {
            return Ok(());
        }
        // The value is not repeated: it may be a secret.
        Err(Rejection::new(Self::DENIED, format!("the header `{}` does not allow this message", self.header)).into())
    }
}

impl std::fmt::Debug for Authorize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorize").field("header", &self.header).finish_non_exhaustive()
    }
}
