//! Sends a command before its reply is waited for.
#![allow(unreachable_pub, missing_docs)]

use std::future::{Future, ready};

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

/// Polls a future once, so that it has begun, and returns the rest of it.
pub fn polled<F: Future + Unpin + 'static>(mut future: F) -> LocalBoxFuture<'static, F::Output> {
    match (&mut future).now_or_never() {
        Some(output) => Box::pin(ready(output)),
        None => Box::pin(future),
    }
}
