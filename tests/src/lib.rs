//! The harness of the black-box tests: real servers, real processes, and the checker.

pub mod checker;
mod eventually;

pub use eventually::eventually;
