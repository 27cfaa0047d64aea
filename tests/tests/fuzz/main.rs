//! Spoilt input for everything that reads what comes from outside: it is accepted or refused, and nothing else happens.
//!
//! Brief by default; `tests/run --long` looks twenty times longer. What was found once stays in `tests/corpus/`.

mod config;
mod log;
mod messages;
mod wire;
