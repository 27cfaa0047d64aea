//! Corrupt input for every decoder of external data: it is accepted or rejected, and has no other effect.
//!
//! Brief by default; `tests/run --long` runs about twenty times longer. Inputs that once failed are in `tests/corpus/`.

mod config;
mod log;
mod messages;
mod wire;
