//! The log of a shard as records, its index, and the store in memory of the `whizbang` framework.
//!
//! Shared by the stores that keep their own log. Applications depend on `whizbang` alone.

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

#[doc(hidden)]
pub mod index;
pub mod memory;
#[doc(hidden)]
pub mod record;
#[doc(hidden)]
pub mod shard_log;
pub mod transfer;
#[doc(hidden)]
pub mod traverse;
