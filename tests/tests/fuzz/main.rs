//! Corrupt input for every decoder of external data: it is accepted or rejected, and has no other effect.
//!
//! Brief by default; `tests/run --long` runs about twenty times longer. Inputs that once failed are in `tests/corpus/`.

// The name by which the targets import their macro.
extern crate self as libfuzzer_sys;

mod config;
mod log;
mod messages;
mod targets;
mod wire;
