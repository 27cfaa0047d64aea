//! Starting a request before its reply is awaited.
#![allow(unreachable_pub, missing_docs)]

use std::future::{Future, ready};

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

/// Polls a future once, which starts it, and returns the remaining future.
pub fn poll_once<F: Future + Unpin + 'static>(mut future: F) -> LocalBoxFuture<'static, F::Output> {
    match (&mut future).now_or_never() {
        Some(output) => Box::pin(ready(output)),
        None => Box::pin(future),
    }
}
