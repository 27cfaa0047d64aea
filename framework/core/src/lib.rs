//! Messages, ids, clock, codecs and the traits of stores and bridges: what adapters of the `whizbang` framework build on.
//!
//! Applications depend on `whizbang` alone. A store implements [`store::Store`], a bridge [`bridge::Bridge`]; both pass the
//! suites of the crate `whizbang-conformance`.

// docs.rs marks the items that need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Input from outside must not stop a node, so nothing here panics; clippy.toml allows it in tests.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::print_stderr
)]

pub mod bridge;
pub mod clock;
pub mod message;
pub mod retry;
#[doc(hidden)]
pub mod spawn;
pub mod store;
#[doc(hidden)]
pub mod telemetry;
#[doc(hidden)]
pub mod user_code;
